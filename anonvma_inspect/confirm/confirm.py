"""Reading again, until every suspicion is a finding or is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anonvma_inspect.confirm.steady import Steady
from anonvma_inspect.in_flight import Audit
from anonvma_inspect.invariants.base import Finding, Invariant, Result, State, Violations, state_of
from anonvma_inspect.tables import NO_ROW, I64Column, Tables, find_rows
from anonvma_inspect.target.memory import BoolColumn, U64Column, distinct

__all__ = ("MAX_READINGS", "confirm")

#: How often a family is read before what is suspicious in it is given up as transient.
MAX_READINGS = 8
# How often in a row two readings have to agree, where a number tells of every writer in between;
# and where nothing does.
_AGREEMENTS = 1
_AGREEMENTS_UNGUARDED = 2

_NO_ADDRESSES: U64Column = np.empty(0, dtype=np.uint64)


def confirm(
    first: Audit,
    read_again: Callable[[], Audit | None],
    on_finding: Callable[[], None] = lambda: None,
) -> Audit:
    """Tell findings from suspicions.

    :param first: An audit of a target that runs.
    :param read_again: Makes another one, of a fresh view of the target, by the same invariants;
        ``None``: of what it is about, nothing is left. A pause before it is its own affair.
    :param on_finding: Called when a reading confirmed something, before there is another one.
    :return: The first audit with the findings that were confirmed, each as the reading shows it
        that confirmed it; the other ones are in :attr:`Audit.transient`.
    """
    suspicions = _Suspicions(first)
    before = first
    for _ in range(MAX_READINGS - 1):
        if not suspicions.undecided:
            break
        now = read_again()
        if now is None:
            break
        if suspicions.compare(before.tables, now):
            on_finding()
        before = now
    return suspicions.outcome()


# How an invariant is violated, and by what.
_Kind = tuple[str, str]


@dataclass(frozen=True)
class _Undecided:
    """What the last reading showed of one kind and is not decided, by address.

    :ivar agreed: How many times in a row readings agreed about each.
    """

    result: Result
    group: Violations
    agreed: I64Column


class _Suspicions:
    def __init__(self, first: Audit) -> None:
        self._first = first
        self._open: dict[_Kind, _Undecided] = {}
        self._confirmed: dict[_Kind, U64Column] = {}
        self._groups: dict[str, list[tuple[Result, Violations]]] = {}
        self._transient: list[tuple[Result, Violations]] = []
        for result, group in _groups(first):
            order = np.argsort(group.address, kind="stable")
            agreed = np.zeros(len(order), dtype=np.int64)
            kind = (result.invariant.code, group.message)
            self._open[kind] = _Undecided(result, group.only(order), agreed)

    @property
    def undecided(self) -> bool:
        """Whether another reading could tell more."""
        return bool(self._open)

    def compare(self, before: Tables, now: Audit) -> bool:
        """Take another reading into account, and tell whether it confirmed anything."""
        found = False
        steady = Steady(before, now.tables)
        left_open: dict[_Kind, _Undecided] = {}
        for result, group in _groups(now):
            kind = (result.invariant.code, group.message)
            address = group.address
            count = np.zeros(len(group), dtype=np.int64)
            if (last := self._open.get(kind)) is not None:
                there = find_rows(last.group.address, address)
                agrees = (there != NO_ROW) & steady.violations(group)
                for row in np.flatnonzero(agrees & ~_placed(group)).tolist():
                    agrees[row] = _reads_alike(last.group, int(there[row]), group, row)
                count[agrees] = last.agreed[there[agrees]] + 1
            done = find_rows(self._confirmed.get(kind, _NO_ADDRESSES), address) != NO_ROW
            sure = ~done & (count >= _needed(group, now.tables))
            if sure.any():
                found = True
                rows = np.flatnonzero(sure)
                self._groups.setdefault(kind[0], []).append((result, group.only(rows)))
                confirmed = self._confirmed.get(kind, _NO_ADDRESSES)
                self._confirmed[kind] = distinct(np.concatenate([confirmed, address[rows]]))
            left = np.flatnonzero(~done & ~sure)
            left = left[np.argsort(address[left], kind="stable")]
            if len(left):
                left_open[kind] = _Undecided(result, group.only(left), count[left])
        self._let_go(left_open)
        self._open = left_open
        return found

    # What the newest reading does not show any more was transient.
    def _let_go(self, still_open: dict[_Kind, _Undecided]) -> None:
        for kind, last in self._open.items():
            address = last.group.address
            gone = find_rows(self._confirmed.get(kind, _NO_ADDRESSES), address) == NO_ROW
            if kind in still_open:
                gone &= find_rows(still_open[kind].group.address, address) == NO_ROW
            if gone.any():
                self._transient.append((last.result, last.group.only(np.flatnonzero(gone))))

    def outcome(self) -> Audit:
        """What is confirmed, and what is not."""
        self._let_go({})
        transient: dict[str, list[tuple[Result, Violations]]] = {}
        for result, group in self._transient:
            transient.setdefault(result.invariant.code, []).append((result, group))
        results = self._first.results
        return dataclasses.replace(
            self._first,
            results=tuple(_with(result, self._groups) for result in results),
            transient=tuple(
                _with(result, transient) for result in results if result.invariant.code in transient
            ),
        )


def _groups(audit: Audit) -> list[tuple[Result, Violations]]:
    return [
        (result, group) for result in audit.results for group in result.violations if len(group)
    ]


# What is about no object that anything guards, is asked for once more.
def _needed(group: Violations, tables: Tables) -> I64Column:
    guarded = _placed(group) & ("mm_lock_seq" in tables.era.mm)
    return np.where(guarded, _AGREEMENTS, _AGREEMENTS_UNGUARDED)


# Which violations belong to something whose words two readings are compared by.
def _placed(group: Violations) -> BoolColumn:
    placed: BoolColumn = np.zeros(len(group), dtype=bool)
    for rows in (group.mm, group.vma, group.anon_vma):
        if rows is not None:
            placed |= rows != NO_ROW
    return placed


# Of the others, what is wrong with them has to be the same. The list of free objects of a slab in
# use is read while it changes, again and again, and leads astray each time to somewhere else.
def _reads_alike(before: Violations, row_before: int, now: Violations, row_now: int) -> bool:
    words = [
        0 if group.word is None else int(group.word[row])
        for group, row in ((before, row_before), (now, row_now))
    ]
    return words[0] == words[1] and before.actual(row_before) == now.actual(row_now)


# A result with other violations, which may come from other readings.
def _with(result: Result, groups: dict[str, list[tuple[Result, Violations]]]) -> Result:
    chosen = groups.get(result.invariant.code, [])
    makers = {id(group): origin.make for origin, group in chosen}

    def make(invariant: Invariant, violations: Violations, index: int) -> Finding:
        return makers[id(violations)](invariant, violations, index)

    violations = tuple(group for _, group in chosen)
    state = result.state
    if state not in (State.NOT_CHECKED, State.NOT_APPLICABLE):
        state = state_of(result.invariant, violations)
    return dataclasses.replace(result, state=state, violations=violations, make=make)
