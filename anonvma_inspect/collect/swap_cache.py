"""The folios that the swap cache has for slots of swap areas, looked up many at once.

As ``swap_cache_get_folio()`` in ``mm/swap_state.c`` (v6.1, v6.12, v7.3) looks one up. What is found
is taken for true only if the folio says the same: that it is in the swap cache, and in which slot.
So it does not matter if a word was read a while before the folio, or was not what it was taken for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anonvma_inspect.collect.folios import FolioReader
from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.kernel.folio import FolioEra
from anonvma_inspect.kernel.swap_cache import (
    SPACE_BITS,
    SwapCacheEra,
    resolve_swap_cache,
    split_entry,
)
from anonvma_inspect.tables import Folios, RowColumn
from anonvma_inspect.target.memory import KERNEL_HALF, WORD, BoolColumn, U64Column, distinct
from anonvma_inspect.target.target import Target

__all__ = ("SWAP_CACHE_WALK", "CachedFolios", "SwapCache", "find_swap_cache")

#: What a snapshot calls the words of the swap cache.
SWAP_CACHE_WALK = "swap cache"

# Levels of the highest array: 64 bits of index by four bits a node.
_MOST_LEVELS = 16
_NO_SHIFT = 64
_AREA_BITS = 5


@dataclass(frozen=True)
class CachedFolios:
    """What the swap cache has.

    :ivar folio: Address of the folio for each slot; 0 if there is none.
    :ivar known: Whether that could be told.
    """

    folio: U64Column
    known: BoolColumn


def find_swap_cache(target: Target) -> tuple[SwapCacheEra, int] | str:
    """Find the swap cache of a target.

    :return: What it looks like and the address of its variable; or why it cannot be read.
    """
    if target.walks is not None and SWAP_CACHE_WALK not in target.walks:
        return "not in this snapshot"
    era = resolve_swap_cache(target.layouts)
    if isinstance(era, str):
        return era
    address = target.symbols.get(era.symbol)
    return f"{era.symbol} not found" if address is None else (era, address)


class SwapCache:
    """Looks folios up in the swap cache.

    :param variable: Address of what :attr:`SwapCacheEra.symbol` names.
    """

    def __init__(
        self,
        reader: Reader,
        era: SwapCacheEra,
        variable: int,
        folio_era: FolioEra,
        folios: FolioReader,
    ) -> None:
        self._reader, self._era, self._variable = reader, era, np.uint64(variable)
        self._folio_era, self._folios = folio_era, folios

    def look_up(self, area: U64Column, slot: U64Column) -> CachedFolios:
        """The folios for slots of areas, each of them asked for once."""
        count = len(slot)
        folio, known = np.zeros(count, dtype=np.uint64), np.zeros(count, dtype=bool)
        if not count:
            return CachedFolios(folio, known)
        # More areas than this there cannot be, whatever a page table says.
        asked = np.flatnonzero((area >> np.uint64(_AREA_BITS)) == 0)
        top, there = self._words(self._variable + area[asked] * np.uint64(WORD))
        asked, top = asked[there & (top != 0)], top[there & (top != 0)]
        if self._era.space is not None:
            attempts = [self._in_arrays(top, slot[asked], whole) for whole in (False, True)]
        else:
            attempts = [self._in_tables(top, slot[asked], size) for size in self._era.cluster_sizes]
        # How many slots a cluster has, or whether indexes begin anew in each address_space, no
        # field tells: whichever finds a folio that knows its slot is right.
        for found, read in attempts:
            good = self._is_of_slot(found, area[asked], slot[asked])
            fresh = good & (folio[asked] == 0)
            folio[asked[fresh]] = found[fresh]
            known[asked] |= read & (good | (found == 0))
        # Something is there that is no folio of that slot: not known, unless another way found one.
        for found, read in attempts:
            doubtful = ~read | (found != 0)
            known[asked[doubtful & (folio[asked] == 0)]] = False
        return CachedFolios(folio, known)

    def read(self, found: CachedFolios) -> Folios:
        """The folios found, each once."""
        return self._folios.read(distinct(found.folio[found.folio != 0]))

    def _words(self, at: U64Column) -> tuple[U64Column, BoolColumn]:
        # Areas and clusters lie in memory of vmalloc()'s, so that no range can be asked for.
        plausible = (at >= np.uint64(KERNEL_HALF)) & ((at & np.uint64(WORD - 1)) == 0)
        words, present = np.zeros(len(at), dtype=np.uint64), plausible.copy()
        rows, present[plausible] = self._reader.memory.gather(at[plausible], WORD)
        words[plausible] = rows.view("<u8").reshape(-1)
        words[~present] = 0
        return words, present

    # Slots in the arrays of address_spaces; `whole`: their index there is the slot (to v6.11), else
    # what is left of it within the address_space.
    def _in_arrays(
        self, spaces: U64Column, slot: U64Column, whole: bool
    ) -> tuple[U64Column, BoolColumn]:
        era = self._era
        assert era.space is not None
        number = slot >> np.uint64(SPACE_BITS)
        index = slot if whole else slot & np.uint64((1 << SPACE_BITS) - 1)
        place = spaces + number * np.uint64(era.space.size)
        entry, read = self._words(place + np.uint64(era.space.offset("xa_head")))
        # A single entry of the array is that of index 0.
        entry[read & ~era.nodes(entry) & (index != 0)] = 0
        front = np.flatnonzero(read & era.nodes(entry))
        above = np.full(len(slot), _NO_SHIFT, dtype=np.int64)
        for _ in range(_MOST_LEVELS):
            if not len(front):
                break
            front = self._step(entry, read, above, index, front)
        read[front] = False
        found = np.where(read & era.folios(entry), entry, np.uint64(0))
        odd = read & (entry != 0) & ((entry & np.uint64(3)) == 2)
        read[odd] = False
        return found, read

    # One level of the arrays: entries that are nodes become what is in their slot.
    def _step(
        self,
        entry: U64Column,
        read: BoolColumn,
        above: RowColumn,
        index: U64Column,
        front: RowColumn,
    ) -> RowColumn:
        era, reader = self._era, self._reader
        assert era.node is not None
        node = entry[front] & ~np.uint64(3)
        sound = ~reader.space.wild(node, era.node.size)
        read[front[~sound]] = False
        front, node = front[sound], node[sound]
        place = era.node.fields["shift"]
        rows, present = reader.memory.gather(node + np.uint64(place.offset), place.size)
        shift = era.node.column(rows, "shift", place.offset).astype(np.int64)
        present &= shift < above[front]
        read[front[~present]] = False
        front, node, shift = front[present], node[present], shift[present]
        # The topmost has no slot for an index that is higher than any in the array.
        high = index[front] >> np.minimum(shift + era.node_bits, 63).astype(np.uint64)
        beyond = (above[front] == _NO_SHIFT) & (high != 0)
        above[front] = shift
        size = 1 << era.node_bits
        entry[front[beyond]] = 0
        front, node, shift = front[~beyond], node[~beyond], shift[~beyond]
        slot = (index[front] >> shift.astype(np.uint64)) & np.uint64(size - 1)
        slots = np.uint64(era.node.offset("slots"))
        words, there = self._words(node + slots + slot * np.uint64(WORD))
        sibling, other = era.siblings(words)
        if sibling.any():
            at = node[sibling] + slots + other[sibling].astype(np.uint64) * np.uint64(WORD)
            words[sibling], there[sibling] = self._words(at)
        read[front[~there]] = False
        entry[front] = words
        more: RowColumn = front[there & era.nodes(words)]
        return more

    def _in_tables(
        self, areas: U64Column, slot: U64Column, size: int
    ) -> tuple[U64Column, BoolColumn]:
        era = self._era
        assert era.area is not None
        assert era.cluster is not None
        first, read = self._words(areas + np.uint64(era.area.offset("cluster_info")))
        most = era.area.fields["max"]
        rows, there = self._reader.memory.gather(areas + np.uint64(most.offset), most.size)
        # No slot behind the end of the area.
        read &= there & (slot < era.area.column(rows, "max", most.offset))
        cluster = first + slot // np.uint64(size) * np.uint64(era.cluster.size)
        table, there = self._words(cluster + np.uint64(era.cluster.offset("table")))
        read &= there
        # A cluster without a table has nothing in use.
        empty = table == 0
        words, there = self._words(table + slot % np.uint64(size) * np.uint64(WORD))
        read &= there | empty
        words[empty] = 0
        is_frame, frame = era.frames_of_table(words)
        # v6.18 has the folio's address.
        found = np.where(era.folios(words), words, np.uint64(0))
        found = np.where(is_frame, self._folios.page_of(frame), found)
        return found, read

    # Which folios say that they are in the swap cache, with the pages for some slots among theirs.
    def _is_of_slot(self, folio: U64Column, area: U64Column, slot: U64Column) -> BoolColumn:
        good = folio != 0
        frame = self._folios.frame_of(folio)
        good &= self._folios.page_of(frame) == folio
        good &= (frame < np.uint64(1 << 40)) & self._folios.in_ram(frame)
        at = distinct(folio[good])
        era, page = self._folio_era, self._folio_era.page
        words, _ = self._reader.columns(page, at, ("flags", "private", "head"))
        wanted = np.uint64(era.flags.get("swapcache", 0) | era.flags.get("swapbacked", 0))
        sound = (words["flags"] & wanted) == wanted
        sound &= (words["head"] & np.uint64(1)) == 0
        sound &= bool(era.flags.get("swapcache")) and bool(era.flags.get("swapbacked"))
        pages = np.ones(len(at), dtype=np.int64)
        large = np.flatnonzero(sound & ((words["flags"] & np.uint64(era.flags["head"])) != 0))
        if len(large):
            rows, present = self._reader.rows(era.large, at[large])
            pages[large] = np.where(present, era.nr_pages(rows), 0)
        own_area, own_slot = split_entry(words["private"])
        row = np.searchsorted(at, folio[good])
        inside = (slot[good] >= own_slot[row]) & (
            slot[good] - own_slot[row] < pages[row].astype(np.uint64)
        )
        found: BoolColumn = np.zeros(len(folio), dtype=bool)
        found[good] = sound[row] & (own_area[row] == area[good]) & inside
        return found
