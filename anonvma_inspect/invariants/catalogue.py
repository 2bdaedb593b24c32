"""The catalogue of invariants: choosing from it, and auditing tables by it.

Each module of invariants declares its own in a tuple ``INVARIANTS``: adding one touches that file
alone.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from anonvma_inspect.errors import UsageError
from anonvma_inspect.invariants import (
    allocation,
    chains,
    counts,
    ksm,
    lineage,
    pages,
    roles,
    sharing,
    tag_schemes,
    tags,
    trees,
    vmas,
)
from anonvma_inspect.invariants.base import (
    Finding,
    FindingMaker,
    Invariant,
    Result,
    Severity,
    State,
    Violations,
    state_of,
)
from anonvma_inspect.invariants.facts import Facts
from anonvma_inspect.invariants.where import Locator
from anonvma_inspect.parallel import run_parallel
from anonvma_inspect.tables import Tables
from anonvma_inspect.target.memory import U64Column

__all__ = ("CATALOGUE", "Audit", "audit", "run", "select")

#: All invariants, by code.
CATALOGUE: tuple[Invariant, ...] = tuple(
    sorted(
        itertools.chain.from_iterable(
            module.INVARIANTS
            for module in (
                *(vmas, chains, sharing, trees, lineage, counts),
                *(allocation, tags, tag_schemes, ksm, pages, roles),
            )
        ),
        key=lambda invariant: invariant.code,
    )
)

_GROUP = re.compile(r"AV[0-9]{1,2}\Z", re.IGNORECASE)


def select(only: Sequence[str] = (), skip: Sequence[str] = ()) -> tuple[Invariant, ...]:
    """Choose invariants.

    :param only: Codes, slugs or groups (``AV2``), each string perhaps several with commas between.
        Empty: all.
    :param skip: Likewise; wins over ``only``.
    :raises UsageError: if one names nothing, or if nothing is left.
    """
    wanted = _named(only) if only else {invariant.code for invariant in CATALOGUE}
    wanted -= _named(skip)
    if not wanted:
        raise UsageError("no invariant is left to check: --skip takes away all that --only names")
    return tuple(invariant for invariant in CATALOGUE if invariant.code in wanted)


# The codes that people named in one way or another.
def _named(texts: Sequence[str]) -> set[str]:
    codes: set[str] = set()
    for name in (part.strip() for text in texts for part in text.split(",")):
        found = {invariant.code for invariant in CATALOGUE if _is_named(invariant, name)}
        if not found:
            raise UsageError(_unknown(name))
        codes |= found
    return codes


def _is_named(invariant: Invariant, name: str) -> bool:
    if _GROUP.match(name):
        return invariant.code.startswith(name.upper())
    return name.upper() == invariant.code or name.lower() == invariant.slug


def _unknown(name: str) -> str:
    known = [text for invariant in CATALOGUE for text in (invariant.code, invariant.slug)]
    known += sorted({invariant.code[:3] for invariant in CATALOGUE})
    near = difflib.get_close_matches(name.upper(), known) or difflib.get_close_matches(
        name.lower(), known
    )
    hint = f"did you mean {' or '.join(near)}?" if near else "explain lists all of them"
    return f"no invariant is called '{name}': {hint}"


@dataclass(frozen=True)
class Audit:
    """What an audit came to.

    :ivar results: Of every invariant that was asked for, by code.
    :ivar transient: What the target showed while it ran, but not when it was read again.
    """

    tables: Tables
    results: tuple[Result, ...]
    transient: tuple[Result, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether nothing was missing from the target, and no check failed."""
        return self.tables.complete and not self.failures

    @property
    def failures(self) -> tuple[Result, ...]:
        """Checks that raised an exception: bugs of this tool, see :attr:`Result.error`."""
        return tuple(result for result in self.results if result.error is not None)

    @property
    def findings_total(self) -> int:
        """How many findings there are."""
        return sum(result.total for result in self.results)

    @property
    def transient_total(self) -> int:
        """How many suspicions did not become findings."""
        return sum(result.total for result in self.transient)

    def transients(self) -> Iterator[Finding]:
        """Those suspicions, by code, address of the object and message."""
        return itertools.chain.from_iterable(result.findings() for result in self.transient)

    @property
    def totals(self) -> dict[Severity, int]:
        """How many findings there are of each severity."""
        return {
            severity: sum(
                result.total for result in self.results if result.invariant.severity is severity
            )
            for severity in Severity
        }

    def findings(self, limit: int | None = None) -> Iterator[Finding]:
        """Findings by code, address of the object and message, made one by one.

        :param limit: No more than this many; ``None``: all.
        """
        return itertools.islice(
            itertools.chain.from_iterable(result.findings(limit) for result in self.results), limit
        )


def audit(tables: Tables, invariants: Sequence[Invariant] = CATALOGUE) -> Audit:
    """Verify invariants.

    :param invariants: See :func:`select`.
    """
    return Audit(tables, tuple(run(tables, invariants)))


def run(tables: Tables, invariants: Sequence[Invariant] = CATALOGUE) -> list[Result]:
    """Verify invariants, in the order of their codes.

    A check that raises an exception does not take the others with it: its result is "not checked"
    and carries the exception, which whoever shows the results must show as the bug that it is.
    """
    facts = Facts(tables)
    maker = _Maker(tables)
    results = run_parallel(
        lambda invariant: _run_one(facts, invariant, maker),
        sorted(invariants, key=lambda invariant: invariant.code),
        rows=len(tables.avcs.address),
    )
    maker.look_for_causes([group for result in results for group in result.violations])
    return results


def _run_one(facts: Facts, invariant: Invariant, make: FindingMaker) -> Result:
    reason = invariant.applies(facts.era)
    if reason is not None:
        return Result(invariant, State.NOT_APPLICABLE, 0, reason, (), make)
    try:
        verdict = invariant.check(facts)
    except Exception as error:
        reason = f"a bug of this tool: {type(error).__name__}: {error}"
        return Result(invariant, State.NOT_CHECKED, 0, reason, (), make, error)
    if verdict.not_checked is not None:
        return Result(invariant, State.NOT_CHECKED, 0, verdict.not_checked, (), make)
    state = state_of(invariant, verdict.violations)
    return Result(invariant, state, verdict.objects, None, tuple(verdict.violations), make)


class _Maker:
    """Makes findings, and tells those that share their wrong word."""

    def __init__(self, tables: Tables) -> None:
        self._locator = Locator(tables)
        self._shared: U64Column = np.empty(0, dtype=np.uint64)

    def look_for_causes(self, violations: Sequence[Violations]) -> None:
        """Find the words that more than one finding blames."""
        blamed = [group.word for group in violations if group.word is not None]
        if blamed:
            words = np.sort(np.concatenate(blamed))
            words = words[words != 0]
            self._shared = words[:-1][words[1:] == words[:-1]]

    def __call__(self, invariant: Invariant, violations: Violations, index: int) -> Finding:
        word = None if violations.word is None else int(violations.word[index]) or None
        return Finding(
            code=invariant.code,
            slug=invariant.slug,
            severity=invariant.severity,
            message=violations.message,
            object_type=violations.object_type,
            object_address=int(violations.address[index]),
            expected=violations.expected(index),
            actual=violations.actual(index),
            where=self._locator.where(violations, index),
            root=self._locator.root(violations, index),
            cause=word if word is not None and self._is_shared(word) else None,
            word=word,
        )

    def _is_shared(self, word: int) -> bool:
        value = np.uint64(word)
        place = int(np.searchsorted(self._shared, value))
        return place < len(self._shared) and bool(self._shared[place] == value)
