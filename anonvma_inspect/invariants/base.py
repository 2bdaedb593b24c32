"""What an invariant is, and what a check of one answers."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from anonvma_inspect.kernel.era import Era
from anonvma_inspect.tables import NO_ROW, RowColumn, Tables
from anonvma_inspect.target.memory import U64Column

__all__ = (
    "Check",
    "Finding",
    "Invariant",
    "Result",
    "Severity",
    "State",
    "Verdict",
    "Violations",
    "Where",
)


class Severity(str, enum.Enum):
    """How sure a finding is to be a corruption."""

    #: Contradicts the kernel's own rules: never reported of a consistent structure.
    ERROR = "error"
    #: Suspicious: a leak, or a holder that this tool does not know.
    WARNING = "warning"


class State(str, enum.Enum):
    """What became of a check."""

    OK = "ok"
    VIOLATED = "violated"
    WARNED = "warned"
    NOT_CHECKED = "not checked"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Where:
    """The mapping that a finding belongs to; each part ``None`` if unknown."""

    pid: int | None = None
    comm: bytes | None = None
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class Finding:
    """One contradiction.

    :ivar message: One sentence that is the same for all findings of its kind, without figures.
    :ivar object_type: C name of the struct whose word is wrong, as far as can be told, else of the
        one that disagrees.
    :ivar expected: What the word would have to be, as text.
    :ivar actual: What it is.
    :ivar root: Address of the root anon_vma of the family, if known.
    :ivar cause: Address of the word that this finding shares with others, if it is one word away.
    """

    code: str
    slug: str
    severity: Severity
    message: str
    object_type: str
    object_address: int
    expected: str
    actual: str
    where: Where = Where()
    root: int | None = None
    cause: int | None = None


@dataclass
class Violations:
    """Objects of one kind that break an invariant in one way, as columns.

    :ivar message: See :attr:`Finding.message`.
    :ivar object_type: C name of the struct.
    :ivar address: The objects.
    :ivar expected: Text for one row, by its index in these columns.
    :ivar actual: Likewise.
    :ivar vma: Row in ``tables.vmas`` that each belongs to, NO_ROW where unknown.
    :ivar anon_vma: Row in ``tables.anon_vmas`` that each belongs to, likewise.
    """

    message: str
    object_type: str
    address: U64Column
    expected: Callable[[int], str]
    actual: Callable[[int], str]
    vma: RowColumn | None = None
    anon_vma: RowColumn | None = None

    def __len__(self) -> int:
        return len(self.address)

    def rows(self, column: RowColumn | None) -> RowColumn:
        """One of the columns of rows, NO_ROW throughout if it was left out."""
        return np.full(len(self), NO_ROW, dtype=np.int64) if column is None else column


@dataclass
class Verdict:
    """What a check answers.

    :ivar objects: How many objects were checked.
    :ivar violations: What was found, empty groups included.
    :ivar reason: Why it was not checked or does not apply; then ``state`` says which of the two.
    """

    objects: int
    violations: list[Violations] = field(default_factory=list)
    reason: str | None = None
    state: State = State.OK


Check = Callable[[Tables], Verdict]


@dataclass(frozen=True)
class Invariant:
    """A rule of the anonymous reverse map.

    :ivar code: ``AVnnn``; never changes its meaning.
    :ivar slug: The rule in two or three words.
    :ivar statement: One line.
    :ivar why: The reason that it must hold.
    :ivar consequence: What a violation leads to.
    :ivar lock: What protects the relation.
    :ivar source: Kernel files, functions and releases that establish it.
    :ivar eras: In words, where it holds, and how it differs.
    :ivar objects: What is counted, in the plural: ``anon_vmas``.
    :ivar rows: Rows of the project's catalogue of kernel facts that it covers, e.g. ``("I16",)``.
    :ivar applies: Why it does not apply in an era, or ``None`` if it does.
    :ivar check: From tables to a verdict.
    """

    code: str
    slug: str
    severity: Severity
    statement: str
    why: str
    consequence: str
    lock: str
    source: str
    eras: str
    objects: str
    check: Check
    applies: Callable[[Era], str | None] = lambda era: None


@dataclass(frozen=True)
class Result:
    """What became of one invariant in one audit.

    :ivar reason: For :attr:`State.NOT_CHECKED` and :attr:`State.NOT_APPLICABLE`.
    :ivar total: How many findings there are.
    """

    invariant: Invariant
    state: State
    objects: int
    reason: str | None
    total: int
    findings: Callable[[], Iterator[Finding]]
