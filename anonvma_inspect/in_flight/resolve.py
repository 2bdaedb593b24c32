"""Telling the findings that operations under way explain from the others."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from anonvma_inspect.in_flight import (
    bounds,
    clone,
    first_fault,
    leave,
    mm_tree,
    pins,
    rebalance,
    unlink,
    unmap,
    upgrade,
)
from anonvma_inspect.in_flight.draft import Draft
from anonvma_inspect.in_flight.linking import finish_linking
from anonvma_inspect.in_flight.operation import Operation
from anonvma_inspect.in_flight.scene import Scene
from anonvma_inspect.invariants import catalogue
from anonvma_inspect.invariants.base import (
    Finding,
    Invariant,
    Result,
    Severity,
    Violations,
    state_of,
)
from anonvma_inspect.invariants.catalogue import CATALOGUE
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.invariants.facts import Facts
from anonvma_inspect.tables import NO_ROW, RowColumn, Tables, find_rows
from anonvma_inspect.target.memory import U64Column

__all__ = ("Audit", "InFlight", "audit", "explain")

_RECOGNISERS = (
    leave.recognise,
    bounds.recognise,
    clone.recognise,
    upgrade.recognise,
    unlink.recognise,
    first_fault.recognise,
    unmap.recognise,
    mm_tree.recognise,
    rebalance.recognise,
    pins.recognise,
)
# Operations that do not fit are put aside, and the others tried again; not for ever.
_ROUNDS = 8
# What tells of references too many.
_PINNED = "AV404"


@dataclass(frozen=True)
class InFlight:
    """A finding that an operation under way explains."""

    finding: Finding
    operation: Operation


@dataclass(frozen=True)
class Audit(catalogue.Audit):
    """What an audit came to, in-flight states apart.

    :ivar explained: Of each invariant that has any, what is explained, and by which operation each.
    """

    explained: tuple[tuple[Result, tuple[Operation, ...]], ...] = ()

    @property
    def in_flight_total(self) -> int:
        """How many findings operations under way explain."""
        return sum(len(operations) for _, operations in self.explained)

    @property
    def in_flight_counts(self) -> Counter[str]:
        """How many, by name of the operation."""
        return Counter(
            operation.name for _, operations in self.explained for operation in operations
        )

    def in_flight(self, limit: int | None = None) -> Iterator[InFlight]:
        """What they explain, in the order of findings.

        :param limit: No more than this many; ``None``: all.
        """
        return itertools.islice(
            (
                InFlight(finding, operation)
                for result, operations in self.explained
                for finding, operation in zip(result.findings(), operations, strict=True)
            ),
            limit,
        )


def audit(tables: Tables, invariants: Sequence[Invariant] = CATALOGUE) -> Audit:
    """Verify invariants, and set apart what operations under way explain.

    :param invariants: See :func:`anonvma_inspect.invariants.catalogue.select`.
    """
    return explain(catalogue.audit(tables, invariants))


def explain(found: catalogue.Audit) -> Audit:
    """Set apart what operations under way explain of an audit's findings."""
    tables = found.tables
    if not found.findings_total:
        return Audit(tables, found.results)
    # Which operations are recognised must not depend on what was asked for.
    every = found
    if len(found.results) < len(CATALOGUE):
        every = catalogue.audit(tables)
    facts = Facts(tables)
    after, operations = _settle(facts, every)
    if not operations:
        return Audit(tables, found.results)
    results: list[Result] = []
    explained: list[tuple[Result, tuple[Operation, ...]]] = []
    for result in found.results:
        rest, gone, owners = _divide(facts, result, after, operations)
        results.append(rest)
        if owners:
            explained.append((gone, owners))
    return Audit(tables, tuple(results), explained=tuple(explained))


# What each rule says once the operations are settled, by code: which objects it finds, by message.
_Seen = dict[tuple[str, str], U64Column]
# What each state may be taken for, by the objects that are in it.
_State = tuple[frozenset[int], str]
_Choices = dict[_State, list[Operation]]


def _seen(results: Sequence[Result]) -> _Seen:
    seen: _Seen = {}
    for result in results:
        for group in result.violations:
            key = (result.invariant.code, group.message)
            if len(group):
                known = seen.get(key, group.address[:0])
                seen[key] = np.concatenate([known, group.address])
    return {key: np.sort(addresses) for key, addresses in seen.items()}


# The operations that hold, first with lists on which something comes or goes set right; unless that
# shows what the lists had hidden.
def _settle(facts: Facts, before: catalogue.Audit) -> tuple[_Seen, list[Operation]]:
    tables, linking = finish_linking(Scene(facts, before.results))
    if linking:
        seen, operations = _settle_operations(Facts(tables), catalogue.audit(tables))
        if _is_within(seen, _seen(before.results)):
            return seen, operations + linking
    return _settle_operations(facts, before)


def _is_within(seen: _Seen, known: _Seen) -> bool:
    return all(
        key in known and np.isin(addresses, known[key]).all() for key, addresses in seen.items()
    )


# The operations that hold: settling them leaves nothing wrong in their families and mms that was
# not wrong before. Of what one state may be taken for, the first that also leaves nothing of it.
def _settle_operations(facts: Facts, before: catalogue.Audit) -> tuple[_Seen, list[Operation]]:
    scene = Scene(facts, before.results)
    choices: _Choices = {}
    for recognise in _RECOGNISERS:
        for operation in recognise(scene):
            key: _State = (operation.vmas, operation.name if operation.beside else "")
            if not operation.vmas:
                # Of one anon_vma or mm, several things can be half done.
                key = (operation.anon_vmas | operation.mms, operation.name)
            choices.setdefault(key, []).append(operation)
    known = _seen(before.results)
    second_best: dict[_State, Operation] = {}
    for _ in range(_ROUNDS):
        if not choices:
            break
        tried = _try(facts, known, [chosen[0] for chosen in choices.values()])
        left, pinned = _left(facts, tried.results, tried.operations)
        for key, chosen in choices.items():
            if id(chosen[0]) in pinned - left and not tried.spoils(facts, chosen[0]):
                second_best.setdefault(key, chosen[0])
        if not _reconsider(facts, choices, tried, left | pinned):
            return _accepted(facts, known, _better(facts, known, tried, choices, second_best))
    return known, []


@dataclass(frozen=True)
class _Trial:
    """What comes of settling some operations: families (by their roots) and mms of which something
    is found that was not before; and anon_vmas that only an unknown holder keeps.
    """

    operations: list[Operation]
    results: Sequence[Result]
    roots: set[int]
    mms: set[int]
    kept: RowColumn

    def spoils(self, facts: Facts, operation: Operation) -> bool:
        return bool(_families(facts, operation) & self.roots or operation.mms & self.mms)

    @property
    def errors(self) -> int:
        return sum(
            result.total for result in self.results if result.invariant.severity is Severity.ERROR
        )


def _try(facts: Facts, known: _Seen, operations: list[Operation]) -> _Trial:
    draft = Draft(facts)
    for operation in operations:
        operation.settle(draft)
    results = catalogue.run(draft.tables())
    roots, mms = _spoiled(facts, results, known)
    return _Trial(operations, results, roots | set(draft.leftovers.tolist()), mms, draft.kept)


# Of what a state may be taken for, one was passed over only for references that nobody knows of:
# with those, it may be that nothing explains them, and that it explains more than what came after.
def _better(
    facts: Facts,
    known: _Seen,
    tried: _Trial,
    choices: _Choices,
    second_best: dict[_State, Operation],
) -> _Trial:
    instead = [second_best.get(key, chosen[0]) for key, chosen in choices.items()]
    if instead == tried.operations:
        return tried
    again = _try(facts, known, instead)
    if again.errors < tried.errors and not (again.roots or again.mms):
        return again
    return tried


# What the rules say then. That somebody holds an anon_vma who is not known is said still, if it is
# only out of sight.
def _accepted(facts: Facts, known: _Seen, tried: _Trial) -> tuple[_Seen, list[Operation]]:
    seen = _seen(tried.results)
    kept = facts.tables.anon_vmas.address[tried.kept]
    for key, addresses in known.items():
        if key[0] == _PINNED:
            still = addresses[np.isin(addresses, kept)]
            seen[key] = np.union1d(seen.get(key, still), still)
    return seen, tried.operations


# Go on to what else a state may be, or drop what spoils its family; whether there was any of that.
def _reconsider(
    facts: Facts,
    choices: _Choices,
    tried: _Trial,
    left: set[int],
) -> bool:
    others, spoilers = [], []
    for key, chosen in choices.items():
        spoils = tried.spoils(facts, chosen[0])
        if len(chosen) > 1 and (spoils or id(chosen[0]) in left):
            others.append(key)
        elif spoils:
            spoilers.append(key)
    for key in others:
        del choices[key][0]
    if not others:
        for key in spoilers:
            del choices[key]
    return bool(others or spoilers)


# Operations that leave findings of their own kind, by id(): others than references too many, and
# those.
def _left(
    facts: Facts, results: Sequence[Result], operations: Sequence[Operation]
) -> tuple[set[int], set[int]]:
    left: set[int] = set()
    pinned: set[int] = set()
    for result in results:
        these = pinned if result.invariant.code == _PINNED else left
        for group in result.violations:
            these.update(id(owner) for owner in _owners(facts, group, operations).values())
    return left, pinned


def _families(facts: Facts, operation: Operation) -> set[int]:
    return {int(facts.root_row[row]) for row in operation.anon_vmas} | {
        int(row) for row in operation.anon_vmas
    }


# Families (by their roots) and mms of which something is found that was not before.
def _spoiled(facts: Facts, results: Sequence[Result], known: _Seen) -> tuple[set[int], set[int]]:
    roots: set[int] = set()
    mms: set[int] = set()
    for result in results:
        for group in result.violations:
            old = known.get((result.invariant.code, group.message), group.address[:0])
            new = np.flatnonzero(find_rows(old, group.address) == NO_ROW)
            if not len(new):
                continue
            _, anon_vma, mm = _places(facts, group)
            roots.update(anon_vma[new].tolist())
            roots.update(take(facts.root_row, anon_vma[new], NO_ROW).tolist())
            mms.update(mm[new].tolist())
    return roots - {NO_ROW}, mms - {NO_ROW}


# The VMA, anon_vma and mm of each violation, as far as it says.
def _places(facts: Facts, group: Violations) -> tuple[RowColumn, RowColumn, RowColumn]:
    nothing = np.full(len(group), NO_ROW, dtype=np.int64)
    vma = nothing if group.vma is None else group.vma
    anon_vma = nothing if group.anon_vma is None else group.anon_vma
    mm = take(facts.tables.vmas.mm, vma, NO_ROW) if group.mm is None else group.mm
    return vma, anon_vma, mm


# Part a result: what stays, and what the operations explain, with the operation of each finding in
# the order that the result lists them.
def _divide(
    facts: Facts, result: Result, after: _Seen, operations: Sequence[Operation]
) -> tuple[Result, Result, tuple[Operation, ...]]:
    code = result.invariant.code
    rest, gone = [], []
    owner_of: dict[tuple[int, str], Operation] = {}
    for group in result.violations:
        left = after.get((code, group.message), group.address[:0])
        vanished = np.flatnonzero(find_rows(left, group.address) == NO_ROW)
        explained = np.zeros(len(group), dtype=bool)
        owners = _owners(facts, group, operations, vanished)
        for index, owner in owners.items():
            explained[index] = True
            owner_of[int(group.address[index]), group.message] = owner
        rest.append(group.only(np.flatnonzero(~explained)))
        gone.append(group.only(np.flatnonzero(explained)))
    taken = dataclasses.replace(result, violations=tuple(gone))
    state = state_of(result.invariant, rest) if owner_of else result.state
    in_order = tuple(
        owner_of[finding.object_address, finding.message] for finding in taken.findings()
    )
    return dataclasses.replace(result, violations=tuple(rest), state=state), taken, in_order


# The operations that some violations belong to, by index: as their VMA says, or else their anon_vma
# or their mm.
def _owners(
    facts: Facts,
    group: Violations,
    operations: Sequence[Operation],
    rows: RowColumn | None = None,
) -> dict[int, Operation]:
    of_kind = [each for each in operations if group.message.startswith(each.kinds)]
    owners: dict[int, Operation] = {}
    if not of_kind or not len(group):
        return owners
    asked = np.arange(len(group)) if rows is None else rows
    vma, anon_vma, mm = (column[asked] for column in _places(facts, group))
    bare = vma == NO_ROW
    for name, column, which in (
        ("mms", mm, bare),
        ("anon_vmas", anon_vma, np.ones(len(asked), dtype=bool)),
        ("vmas", vma, ~bare),
    ):
        owner = {row: each for each in reversed(of_kind) for row in getattr(each, name)}
        if not owner:
            continue
        wanted = np.fromiter(owner, dtype=np.int64, count=len(owner))
        for index in np.flatnonzero(which & np.isin(column, wanted)).tolist():
            owners[int(asked[index])] = owner[int(column[index])]
    return owners
