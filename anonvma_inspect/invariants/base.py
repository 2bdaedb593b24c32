"""What an invariant is, and what a check of one answers.

A check is a function of :class:`anonvma_inspect.invariants.facts.Facts`. It answers in columns
(:class:`Violations`), never in :class:`Finding` objects: a dump that is corrupt throughout breaks a
rule millions of times, and only as many findings are made as somebody asks for.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from anonvma_inspect.kernel.era import Era
from anonvma_inspect.tables import NO_ROW, I64Column, RowColumn
from anonvma_inspect.target.memory import BoolColumn, U64Column

if TYPE_CHECKING:
    from anonvma_inspect.invariants.facts import Facts

__all__ = (
    "Check",
    "Finding",
    "Invariant",
    "Result",
    "Severity",
    "State",
    "Text",
    "Verdict",
    "Violations",
    "Where",
    "address_text",
    "always",
    "at_least",
    "count_text",
    "state_of",
)

Column = TypeVar("Column", U64Column, RowColumn)


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
    :ivar word: Address of the word that is wrong, if it is known which.
    :ivar root: Address of the root anon_vma of the family, if known.
    :ivar cause: The same as ``word``, if that word explains other findings, too.
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
    word: int | None = None


#: Text for one row of some columns, by its index.
Text = Callable[[int], str]


def always(text: str) -> Text:
    """The same words for every row."""
    return lambda index: text


def address_text(column: U64Column, known: BoolColumn | None = None, otherwise: str = "") -> Text:
    """Addresses, pointers and flags: ``0x...``.

    :param known: Where the column means anything; ``None``: everywhere.
    :param otherwise: What to say where it does not.
    """

    def text(index: int) -> str:
        if known is not None and not known[index]:
            return otherwise
        return f"{int(column[index]):#x}"

    return text


def count_text(column: I64Column) -> Text:
    """Counts: decimal."""
    return lambda index: str(int(column[index]))


def at_least(column: I64Column, exact: BoolColumn | None = None) -> Text:
    """Counts of which only a lower bound is known.

    :param exact: Where the figure is more than a bound; ``None``: nowhere.
    """

    def text(index: int) -> str:
        bound = "" if exact is not None and exact[index] else "at least "
        return f"{bound}{int(column[index])}"

    return text


@dataclass(frozen=True)
class Violations:
    """Objects of one kind that break an invariant in one way, as columns.

    :ivar message: See :attr:`Finding.message`.
    :ivar object_type: C name of the struct.
    :ivar address: The objects.
    :ivar expected: Text for one row, by its index in these columns.
    :ivar actual: Likewise.
    :ivar word: Address of the word that is wrong; ``None`` or 0 if that cannot be told.
    :ivar mm: Row in ``tables.mms`` that each belongs to; ``None`` where its VMA says so.
    :ivar vma: Row in ``tables.vmas`` that each belongs to, NO_ROW where unknown.
    :ivar anon_vma: Row in ``tables.anon_vmas`` that each belongs to, likewise.
    """

    message: str
    object_type: str
    address: U64Column
    expected: Text
    actual: Text
    word: U64Column | None = None
    mm: RowColumn | None = None
    vma: RowColumn | None = None
    anon_vma: RowColumn | None = None

    def __len__(self) -> int:
        return len(self.address)

    def only(self, rows: RowColumn) -> Violations:
        """Some of them.

        :param rows: Indexes in these columns.
        """

        def pick(column: Column | None) -> Column | None:
            return None if column is None else column[rows]

        return dataclasses.replace(
            self,
            address=self.address[rows],
            expected=lambda index: self.expected(int(rows[index])),
            actual=lambda index: self.actual(int(rows[index])),
            word=pick(self.word),
            mm=pick(self.mm),
            vma=pick(self.vma),
            anon_vma=pick(self.anon_vma),
        )

    def row(self, column: RowColumn | None, index: int) -> int:
        """An element of one of the columns of rows, NO_ROW if that was left out."""
        return NO_ROW if column is None else int(column[index])


@dataclass(frozen=True)
class Verdict:
    """What a check answers.

    :ivar objects: How many objects were checked.
    :ivar violations: What was found, empty groups included.
    :ivar not_checked: Why nothing could be checked, or ``None``.
    """

    objects: int
    violations: Sequence[Violations] = ()
    not_checked: str | None = None


Check = Callable[["Facts"], Verdict]


# Most rules hold in every era.
def _everywhere(era: Era) -> str | None:
    return None


@dataclass(frozen=True)
class Invariant:
    """A rule of the anonymous reverse map.

    All text is for people: ``explain CODE`` prints it.

    :ivar code: ``AVnnn``; never changes its meaning.
    :ivar slug: The rule in two or three words.
    :ivar statement: One line.
    :ivar why: The reason that it must hold.
    :ivar consequence: What a violation leads to.
    :ivar lock: What protects the relation.
    :ivar source: Kernel files, functions and releases that establish it.
    :ivar eras: Where it holds, and how it differs.
    :ivar schemes: What tags in ``vma->anon_vma`` change in it.
    :ivar objects: What is counted, in the plural: ``anon_vmas``.
    :ivar check: From facts to a verdict.
    :ivar applies: Why it does not apply in an era, or ``None`` if it does.
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
    applies: Callable[[Era], str | None] = _everywhere
    schemes: str = "In force under each."


def state_of(invariant: Invariant, violations: Sequence[Violations]) -> State:
    """What became of a check that was done, by what it found."""
    if not any(len(group) for group in violations):
        return State.OK
    return State.WARNED if invariant.severity is Severity.WARNING else State.VIOLATED


#: Makes a finding from a row of violations.
FindingMaker = Callable[[Invariant, Violations, int], Finding]


@dataclass(frozen=True)
class Result:
    """What became of one invariant in one audit.

    :ivar objects: How many objects were checked.
    :ivar reason: For :attr:`State.NOT_CHECKED` and :attr:`State.NOT_APPLICABLE`.
    :ivar violations: What was found, in columns.
    :ivar error: What the check raised, if it failed: a bug of this tool, to be shown as such.
    """

    invariant: Invariant
    state: State
    objects: int
    reason: str | None
    violations: Sequence[Violations]
    make: FindingMaker = field(repr=False)
    error: Exception | None = None

    @property
    def total(self) -> int:
        """How many findings there are."""
        return sum(len(group) for group in self.violations)

    def findings(self, limit: int | None = None) -> Iterator[Finding]:
        """The findings, by address of the object, then by message.

        :param limit: Make no more than this many; ``None``: all.
        """
        groups = [group for group in self.violations if len(group)]
        if not groups or limit == 0:
            return
        address = np.concatenate([group.address for group in groups])
        message = {text: rank for rank, text in enumerate(sorted(g.message for g in groups))}
        size = [len(group) for group in groups]
        rank = np.repeat([message[group.message] for group in groups], size)
        number = np.repeat(np.arange(len(groups)), size)
        index = np.concatenate([np.arange(count) for count in size])
        for place in itertools.islice(np.lexsort((index, number, rank, address)), limit):
            yield self.make(self.invariant, groups[number[place]], int(index[place]))
