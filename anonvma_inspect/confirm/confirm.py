"""Reading again, until every suspicion is a finding or is not."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from anonvma_inspect import in_flight
from anonvma_inspect.confirm.steady import Steady
from anonvma_inspect.invariants import catalogue, pages
from anonvma_inspect.invariants.base import Finding, Invariant, Result, State, Violations, state_of
from anonvma_inspect.tables import NO_ROW, Broken, I64Column, RowColumn, Tables, find_rows
from anonvma_inspect.target.memory import BoolColumn, U64Column

__all__ = ("MAX_READINGS", "confirm")

#: How often a family is read before what is suspicious in it is given up as transient.
MAX_READINGS = 8
# How often in a row two readings have to agree, where a number tells of every writer in between:
# all that the one in the middle read, it read between the first look at that number and the last.
# And where nothing does.
_AGREEMENTS = 2
_AGREEMENTS_UNGUARDED = 3
# How often the tasks alone are walked again.
_WALKS = 3
_OF_TASKS = ("signal_struct", "task_struct")

# What rests on page tables: pages come and go without any of the locks that readings are compared
# by, and a folio is read a while after the entry that led to it.
_OF_PAGES = frozenset(invariant.code for invariant in pages.INVARIANTS)

_NO_ADDRESSES: U64Column = np.empty(0, dtype=np.uint64)


def confirm(
    first: catalogue.Audit,
    read_again: Callable[[], catalogue.Audit | None],
    broken_threads: Callable[[], Broken],
    on_finding: Callable[[], None] = lambda: None,
) -> in_flight.Audit:
    """Tell findings from suspicions.

    :param first: An audit of a target that runs, in-flight states among its findings.
    :param read_again: Makes another one, of a fresh view of the target, by the same invariants;
        ``None``: of what it is about, nothing is left. A pause before it is its own affair.
    :param broken_threads: Walks the tasks, and nothing else, of a fresh view; see
        :func:`anonvma_inspect.collect.broken_threads`.
    :param on_finding: Called when a reading confirmed something, before there is another one.
    :return: The first audit with the findings that were confirmed, each as the reading shows it
        that confirmed it; the other ones are in :attr:`Audit.transient`, or in
        :attr:`Audit.explained` if the last reading still shows them and an operation under way.
    """
    suspicions = _Suspicions(first, broken_threads)
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


# Which invariant is violated, how, by which objects, and the how many-eth group of such it is: a
# rule that looks at two words of an object may say the same of both.
_Kind = tuple[str, str, str, int]


@dataclass(frozen=True)
class _Undecided:
    """What the last reading showed of one kind and is not decided, by address.

    :ivar agreed: How many times in a row readings agreed about each.
    """

    result: Result
    group: Violations
    agreed: I64Column


class _Suspicions:
    def __init__(self, first: catalogue.Audit, broken_threads: Callable[[], Broken]) -> None:
        self._first = first
        self._last = _Reading(first)
        self._broken_threads = broken_threads
        self._open: dict[_Kind, _Undecided] = {}
        self._groups: dict[str, list[tuple[Result, Violations]]] = {}
        self._transient: list[tuple[Result, Violations]] = []
        for kind, result, group in _groups(first):
            order = np.argsort(group.address, kind="stable")
            agreed = np.zeros(len(order), dtype=np.int64)
            self._open[kind] = _Undecided(result, group.only(order), agreed)

    @property
    def undecided(self) -> bool:
        """Whether another reading could tell more of what each reading so far has shown."""
        return bool(self._open)

    def compare(self, before: Tables, now: catalogue.Audit) -> bool:
        """Take another reading into account, and tell whether it confirmed anything."""
        steady = Steady(before, now.tables)
        self._last = _Reading(now)
        shown = {kind: (result, group) for kind, result, group in _groups(now)}
        found = False
        left_open: dict[_Kind, _Undecided] = {}
        for kind, last in self._open.items():
            if kind not in shown:
                self._transient.append((last.result, last.group))
                continue
            result, group = shown[kind]
            gone = np.flatnonzero(~np.isin(last.group.address, group.address))
            if len(gone):
                self._transient.append((last.result, last.group.only(gone)))
            # What is new in this reading is for the next audit: on a machine that is busy each
            # reading shows something, and one that went after that as well would never end.
            there = find_rows(last.group.address, group.address)
            group = group.only(np.flatnonzero(there != NO_ROW))
            there = there[there != NO_ROW]
            agreed = self._agreed(kind[0], last, there, group, steady)
            sure = agreed >= _needed(kind[0], group, now.tables)
            if sure.any():
                sure &= ~self._last.explains(result, group)
            if group.object_type in _OF_TASKS:
                sure &= self._astray_again(group, sure)
            if sure.any():
                found = True
                confirmed = group.only(np.flatnonzero(sure))
                self._groups.setdefault(kind[0], []).append((result, confirmed))
            left = np.flatnonzero(~sure)
            left = left[np.argsort(group.address[left], kind="stable")]
            if len(left):
                left_open[kind] = _Undecided(result, group.only(left), agreed[left])
        self._open = left_open
        return found

    # How often in a row readings have agreed about violations, with this one.
    def _agreed(
        self, code: str, last: _Undecided, there: RowColumn, group: Violations, steady: Steady
    ) -> I64Column:
        agrees = steady.violations(group)
        compared = agrees if code in _OF_PAGES else agrees & ~_placed(group)
        for row in np.flatnonzero(compared).tolist():
            agrees[row] = _reads_alike(last.group, int(there[row]), group, row)
        return np.where(agrees, last.agreed[there] + 1, 0)

    # The list of tasks has no lock that tells of writers: a task that has ended can be freed, and
    # its memory be another's, while the walk is on its way there, and in one reading after the
    # other. A walk of nothing else is over before that.
    def _astray_again(self, group: Violations, sure: BoolColumn) -> BoolColumn:
        sure = sure.copy()
        for _ in range(_WALKS):
            if not sure.any():
                break
            broken = self._broken_threads()
            here = set(zip(broken.address.tolist(), map(hex, broken.value.tolist()), strict=True))
            for row in np.flatnonzero(sure).tolist():
                sure[row] = (int(group.address[row]), group.actual(row)) in here
        return sure

    def outcome(self) -> in_flight.Audit:
        """What is confirmed, and what is not."""
        explained = self._last.explained if self.undecided else ()
        for way, addresses in _by_way(explained).items():
            self._take_out(way, addresses)
        self._transient += [
            (last.result, last.group) for last in self._open.values() if len(last.group)
        ]
        transient: dict[str, list[tuple[Result, Violations]]] = {}
        for result, group in self._transient:
            transient.setdefault(result.invariant.code, []).append((result, group))
        results = self._first.results
        return in_flight.Audit(
            self._first.tables,
            tuple(_with(result, self._groups) for result in results),
            tuple(
                _with(result, transient) for result in results if result.invariant.code in transient
            ),
            explained,
        )

    def _take_out(self, way: _Way, addresses: U64Column) -> None:
        for kind, last in self._open.items():
            if kind[:2] == way:
                left = np.flatnonzero(~np.isin(last.group.address, addresses))
                self._open[kind] = _Undecided(last.result, last.group.only(left), last.agreed[left])


class _Reading:
    """What operations under way explain of a reading; nobody is asked before it matters."""

    def __init__(self, audit: catalogue.Audit) -> None:
        self._audit = audit

    @cached_property
    def explained(self) -> _Explained:
        return in_flight.explain(self._audit).explained

    @cached_property
    def _addresses_by_way(self) -> dict[_Way, U64Column]:
        return _by_way(self.explained)

    def explains(self, result: Result, group: Violations) -> BoolColumn:
        way = (result.invariant.code, group.message)
        return np.isin(group.address, self._addresses_by_way.get(way, _NO_ADDRESSES))


_Explained = tuple[tuple[Result, tuple[in_flight.Operation, ...]], ...]
# The code and the message: what operations explain, they explain of all words of an object.
_Way = tuple[str, str]


def _by_way(explained: _Explained) -> dict[_Way, U64Column]:
    addresses: dict[_Way, U64Column] = {}
    for result, _ in explained:
        for group in result.violations:
            way = (result.invariant.code, group.message)
            addresses[way] = np.append(addresses.get(way, _NO_ADDRESSES), group.address)
    return addresses


def _groups(audit: catalogue.Audit) -> Iterator[tuple[_Kind, Result, Violations]]:
    alike: Counter[tuple[str, str, str]] = Counter()
    for result in audit.results:
        for group in result.violations:
            kind = (result.invariant.code, group.message, group.object_type)
            if len(group):
                yield (*kind, alike[kind]), result, group
            alike[kind] += 1


# What is about no object that anything guards, is asked for once more.
def _needed(code: str, group: Violations, tables: Tables) -> I64Column:
    guarded = _placed(group) & ("mm_lock_seq" in tables.era.mm) & (code not in _OF_PAGES)
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
