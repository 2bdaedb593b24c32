"""What the checks of pages share.

Everything rests on entries of page tables that are present: a folio that nobody maps may say
anything, since what it said is left there when the last one unmaps it. And it rests on an order
that the kernel keeps: a folio is given its anon_vma, its index and its mapcount before it is
mapped, and loses none of them before it is unmapped, so that what is mapped is right at any moment
(``folio_add_anon_rmap_ptes()``, ``folio_remove_rmap_ptes()`` and their callers).

The exception are folios in the swap cache that entries of page tables name by their slot: what they
say is what the next fault goes by.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.invariants.columns import take
from anonvma_inspect.kernel.folio import MappingKind
from anonvma_inspect.kernel.swap_cache import join_entry, split_entry
from anonvma_inspect.kernel.tags import strip_lock_mark
from anonvma_inspect.tables import NO_ROW, I64Column, Pages, RowColumn, marked
from anonvma_inspect.target.memory import BoolColumn, U64Column, starts_run

if TYPE_CHECKING:
    from anonvma_inspect.invariants.facts import Facts

__all__ = ("PageFacts", "group_rows")

# include/linux/mm.h (v5.10, v7.3): VM_SEQ_READ and VM_RAND_READ at once mark the temporary stack of
# exec, whose pages are moved while the VMA covers where they were and where they go.
_INCOMPLETE_STACK = np.uint64(0x8000 | 0x10000)


def group_rows(rows: RowColumn, *keys: NDArray[np.integer[Any]]) -> tuple[RowColumn, I64Column]:
    """Put rows together that agree.

    :param rows: Ascending.
    :param keys: What they must agree in.
    :return: The first row of each group, ascending, and how many there are of it.
    """
    if not len(rows):
        return rows, np.zeros(0, dtype=np.int64)
    order = np.lexsort((rows, *keys))
    new = np.zeros(len(rows), dtype=bool)
    for key in keys:
        new |= starts_run(key[order])
    first = np.flatnonzero(new)
    count = np.diff(np.append(first, len(rows)))
    found = rows[order[first]]
    by_row = np.argsort(found)
    return found[by_row], count[by_row]


class PageFacts:
    """What follows from mapped pages.

    :param pages: What was read of them.
    """

    def __init__(self, facts: Facts, pages: Pages) -> None:
        self._facts = facts
        self.pages = pages

    @cached_property
    def vma_at_rest(self) -> BoolColumn:
        """VMAs that nobody is changing: in the tree of an mm that is in use, with the bounds that
        this says.

        Somebody may fault in them meanwhile, and reclaim take pages away.
        """
        tables, facts = self._facts.tables, self._facts
        vmas, slots = tables.vmas, tables.slots
        rest: BoolColumn = take(facts.mm_judged, vmas.mm, False)
        rest &= ~take(facts.mm_writer, vmas.mm, True)
        rest &= vmas.slot != NO_ROW
        rest &= take(slots.first, vmas.slot, 0) == vmas.vm_start
        rest &= take(slots.last, vmas.slot, 0) == vmas.vm_end - np.uint64(1)
        rest &= (vmas.vm_flags & _INCOMPLETE_STACK) != _INCOMPLETE_STACK
        # Up to v6.4 a stack grows under the lock of its family.
        root = take(facts.root_row, vmas.active, NO_ROW)
        rest &= ~take(facts.root_writer, root, False)
        return rest

    @cached_property
    def vma_settled(self) -> BoolColumn:
        """Of these, VMAs of whose chain everything is known."""
        facts, links = self._facts, self._facts.tables.links
        settled = self.vma_at_rest & facts.chain_whole
        doubtful = ~facts.link_certain | (facts.link_anon_vma == NO_ROW)
        settled[links.vma[doubtful]] = False
        return settled

    @cached_property
    def mapped(self) -> RowColumn:
        """Rows in mappings of those that map a page of an anonymous folio that is not KSM's."""
        mappings = self.pages.mappings
        of_anon = self.pages.folios.kind[mappings.folio] == MappingKind.ANON
        rows: RowColumn = np.flatnonzero(mappings.present & of_anon)
        return rows

    @cached_property
    def wild(self) -> BoolColumn:
        """Folios whose ``mapping`` leads where no anon_vma can be."""
        folios, record = self.pages.folios, self._facts.era.anon_vma
        wild: BoolColumn = folios.kind == MappingKind.ANON
        wild &= self._facts.tables.space.wild(folios.pointer, record.size)
        return wild

    @cached_property
    def freed(self) -> BoolColumn:
        """Folios whose ``mapping`` leads to what is no anon_vma in use: nobody holds it, or no VMA
        is in its tree.

        Whoever changes the bounds of an only VMA takes it out for a moment, under the lock of the
        family (``vma_prepare()``, since v6.4 also when exec moves its stack).
        """
        facts, folios = self._facts, self.pages.folios
        freed: BoolColumn = (folios.kind == MappingKind.ANON) & (folios.anon_vma_refcount == 0)
        empty = strip_lock_mark(facts.tables.anon_vmas.rb_root) == 0
        empty &= ~take(facts.root_writer, facts.root_row, False)
        freed |= (folios.kind == MappingKind.ANON) & take(empty, folios.anon_vma, False)
        return freed & ~self.wild

    @cached_property
    def runs(self) -> RowColumn:
        """Of :attr:`mapped`, the first of each run within one VMA with one anon_vma."""
        mappings, rows = self.pages.mappings, self.mapped
        pointer = self.pages.folios.pointer[mappings.folio[rows]]
        first: RowColumn = rows[starts_run(mappings.vma[rows]) | starts_run(pointer)]
        return first

    def of_runs(self, bad: RowColumn) -> RowColumn:
        """All rows of some runs.

        :param bad: Of :attr:`runs`, ascending.
        """
        place = np.searchsorted(self.mapped, self.runs)
        end = np.append(place[1:], len(self.mapped))
        which = np.searchsorted(self.runs, bad)
        count = end[which] - place[which]
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        every: RowColumn = self.mapped[np.repeat(place[which], count) + within]
        return every

    def anon_vma_of(self, rows: RowColumn) -> RowColumn:
        """Rows of the anon_vmas of the folios that some mappings map."""
        folios = self.pages.folios
        return folios.anon_vma[self.pages.mappings.folio[rows]]

    @cached_property
    def times(self) -> I64Column:
        """How often each folio, or a part of it, was found mapped."""
        mappings = self.pages.mappings
        found: I64Column = np.bincount(
            mappings.folio[mappings.present], minlength=len(self.pages.folios.address)
        )
        return found

    @cached_property
    def pins(self) -> I64Column:
        """How many folios of each anon_vma's wait to be mapped again.

        Whoever migrates a folio, or splits a large one, holds a reference to its anon_vma meanwhile
        (``folio_get_anon_vma()`` before ``try_to_migrate()``), whatever becomes of its VMAs.
        """
        mappings, folios = self.pages.mappings, self.pages.folios
        waiting = marked(len(folios.address), mappings.folio[~mappings.present])
        row = folios.anon_vma[waiting]
        count = len(self._facts.tables.anon_vmas.address)
        pins: I64Column = np.bincount(row[row != NO_ROW], minlength=count)
        return pins

    @cached_property
    def cached(self) -> RowColumn:
        """Rows in swapped of those whose folio in the swap cache is anonymous and not KSM's, and
        that nobody has locked.

        Whoever maps such a folio, or changes to what it belongs, has its lock.
        """
        swapped = self.pages.swapped
        folios = swapped.folios
        fits = folios.kind == MappingKind.ANON
        fits &= (folios.flags & np.uint64(self.pages.locked)) == 0
        rows: RowColumn = np.flatnonzero(take(fits, swapped.folio, False))
        return rows[self.vma_settled[swapped.vma[rows]]]

    @cached_property
    def owned(self) -> BoolColumn:
        """Of :attr:`cached`, entries that are marked as those of a page of one process alone, and
        look like that: nothing maps the folio, and no other entry names the slot.
        """
        swapped = self.pages.swapped
        if not swapped.exclusive_known:
            return np.zeros(len(self.cached), dtype=bool)
        alone = swapped.folios.mapcount == 0
        place = join_entry(swapped.area, swapped.slot)
        _, inverse, times = np.unique(place, return_inverse=True, return_counts=True)
        owned: BoolColumn = swapped.exclusive & (times[inverse] == 1)
        owned = owned[self.cached] & alone[swapped.folio[self.cached]]
        return owned

    def slot_index(self, rows: RowColumn) -> U64Column:
        """The key that the folios of some swap entries have for their pages."""
        swapped = self.pages.swapped
        folio = swapped.folio[rows]
        _, first = split_entry(swapped.folios.private[folio])
        index: U64Column = swapped.folios.index[folio] + (swapped.slot[rows] - first)
        return index

    def slot_key(self, rows: RowColumn) -> U64Column:
        """The same as their VMAs have it."""
        swapped = self.pages.swapped
        return self._key(swapped.vma[rows], swapped.address[rows])

    def page_key(self, rows: RowColumn) -> U64Column:
        """The key of mapped pages in the trees of anon_vmas, as their VMAs have it."""
        mappings = self.pages.mappings
        return self._key(mappings.vma[rows], mappings.address[rows])

    def _key(self, vma: RowColumn, address: U64Column) -> U64Column:
        vmas = self._facts.tables.vmas
        shift = np.uint64(self._facts.era.page_size.bit_length() - 1)
        key: U64Column = vmas.key_first[vma] + ((address - vmas.vm_start[vma]) >> shift)
        return key

    def page_index(self, rows: RowColumn) -> U64Column:
        """The same as their folios have it: ``index``, and how far into the folio a page is."""
        folios, mappings = self.pages.folios, self.pages.mappings
        folio = mappings.folio[rows]
        index: U64Column = folios.index[folio] + (mappings.pfn[rows] - folios.pfn[folio])
        return index
