"""Objects that lie upon each other: one piece of memory taken for two things."""

from __future__ import annotations

import itertools
from functools import cached_property

import numpy as np

from anonvma_inspect.invariants.base import Invariant, Severity, Text, Verdict, Violations
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.invariants.facts import Facts
from anonvma_inspect.kernel.era import Record
from anonvma_inspect.tables import NO_ROW
from anonvma_inspect.target.memory import U64Column, distinct, starts_run

__all__ = ("INVARIANTS",)

# The smallest page of any architecture; a coarser grid would do as well.
_PAGE_SHIFT, _IN_PAGE = np.uint64(12), np.uint64(0xFFF)


class _Kind:
    """All objects of one kind that are vouched for; their addresses sorted."""

    def __init__(self, record: Record, address: U64Column) -> None:
        self.record, self.address = record, address

    @cached_property
    def pages(self) -> U64Column:
        """What pages they lie on, sorted, each once."""
        first = self._first
        size = np.uint64(self.record.size)
        # What reaches the end of the page that it begins on.
        over = self.address[(self.address & _IN_PAGE) + size > _IN_PAGE]
        last = (over + size - np.uint64(1)) >> _PAGE_SHIFT
        return distinct(np.concatenate([first[starts_run(first)], last]))

    @property
    def _first(self) -> U64Column:
        return self.address >> _PAGE_SHIFT

    @property
    def _last(self) -> U64Column:
        return (self.address + np.uint64(self.record.size - 1)) >> _PAGE_SHIFT

    def on(self, pages: U64Column) -> U64Column:
        """Those that lie on some pages."""
        if not len(pages):
            return pages
        return self.address[np.isin(self._first, pages) | np.isin(self._last, pages)]


def _check_overlap(facts: Facts) -> Verdict:
    # Objects that something vouches for beside the pointer that led to them: a VMA by its place in
    # the tree of an mm at rest, an AVC by a list or a tree, an anon_vma by its tree or its family.
    tables, era = facts.tables, facts.era
    vmas, mms = tables.vmas, tables.mms
    there = (vmas.slot != NO_ROW) & take(facts.mm_judged, vmas.mm, False)
    kinds = (
        _Kind(era.vma, vmas.address[there]),
        _Kind(era.avc, tables.avcs.address[facts.avc_known]),
        _Kind(era.anon_vma, tables.anon_vmas.address[facts.believed]),
        _Kind(era.mm, np.sort(mms.address[facts.mm_judged])),
    )
    groups = [_overlaps_of_one_kind(kind) for kind in kinds]
    groups += [_overlaps(one, other) for one, other in itertools.combinations(kinds, 2)]
    return Verdict(sum(len(kind.address) for kind in kinds), groups)


def _overlaps_of_one_kind(kind: _Kind) -> Violations:
    over = np.flatnonzero(np.diff(kind.address) < np.uint64(kind.record.size))
    return _violations(kind.record, kind.address[over + 1], kind.record, kind.address[over])


def _overlaps(one: _Kind, other: _Kind) -> Violations:
    # A page of a slab has objects of one kind: those on pages that have both are few.
    shared = np.intersect1d(one.pages, other.pages, assume_unique=True)
    address, others = one.on(shared), other.on(shared)
    # Of the others, the last that begins before each of ours ends.
    last = np.searchsorted(others, address + np.uint64(one.record.size)) - 1
    address, last = address[last >= 0], last[last >= 0]
    over = others[last] + np.uint64(other.record.size) > address
    return _violations(one.record, address[over], other.record, others[last[over]])


def _violations(
    record: Record, address: U64Column, other: Record, neighbour: U64Column
) -> Violations:
    def actual(index: int) -> str:
        return f"{other.struct} at {int(neighbour[index]):#x}"

    expected: Text = lambda index: f"{record.size} bytes of its own"  # noqa: E731
    return Violations(
        f"two objects lie upon each other: {record.struct} and {other.struct}",
        record.struct,
        address,
        expected,
        actual,
    )


INVARIANTS = (
    Invariant(
        code="AV602",
        slug="one-role",
        severity=Severity.ERROR,
        statement="No two objects share memory: none is two things at once.",
        why=(
            "Each VMA, AVC, anon_vma and mm is allocated by itself. Judged only of objects that "
            "something vouches for beside one pointer: a stray pointer into the middle of an "
            "object is told by the rule that the pointer breaks."
        ),
        consequence=(
            "Writing to one changes the other: an object was freed while it was in use, and its "
            "memory given out again."
        ),
        lock="None: it follows from allocation.",
        source=(
            "vm_area_alloc() and mm_alloc() in kernel/fork.c, anon_vma_alloc() and "
            "anon_vma_chain_alloc() in mm/rmap.c (v6.1, v6.12)."
        ),
        eras="All.",
        objects="objects",
        check=_check_overlap,
    ),
)
