"""The swap cache: which folio holds what is, or will be, in a slot of a swap area.

To v6.17 it is an array of ``struct address_space`` for each area, one for so many slots, whose
``i_pages`` has the folios (``swap_address_space()`` in ``mm/swap.h`` and ``mm/swap_state.c``,
v5.10, v6.1, v6.12). Since v6.18 each cluster of slots has a table of words (``mm/swap_table.h``,
v7.2 and v7.3). What those words are no type tells: nothing follows from one but by the folio that
it leads to, which knows its slot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.kernel.era import Record, resolve_record
from anonvma_inspect.target.layouts import Layouts
from anonvma_inspect.target.memory import WORD, BoolColumn, U64Column

__all__ = ("SwapCacheEra", "join_entry", "resolve_swap_cache", "split_entry")

# Of a word as include/linux/swapops.h packs it, what is the slot: SWP_TYPE_SHIFT.
_SLOT_BITS = 58
#: SWAP_ADDRESS_SPACE_SHIFT: slots for which there is one address_space.
SPACE_BITS = 14
# XA_RETRY_ENTRY and XA_ZERO_ENTRY are below; what is above is a pointer to a node.
_LEAST_NODE = np.uint64(4096)
# Entries that stand for another slot of the same node: xa_mk_sibling().
_TWO, _THREE = np.uint64(2), np.uint64(3)
# SWP_TB_PFN_MARK, and what of a word is the frame's number: at most MAX_POSSIBLE_PHYSMEM_BITS.
_FRAME_SHIFT, _FRAME_MASK = np.uint64(2), np.uint64((1 << 40) - 1)
# SWAPFILE_CLUSTER: HPAGE_PMD_NR with CONFIG_THP_SWAP.
_CLUSTERS = (512, 256)


def split_entry(words: U64Column) -> tuple[U64Column, U64Column]:
    """Swap area and slot of ``swp_entry_t``, as ``folio->swap`` (``private``) has it."""
    return words >> np.uint64(_SLOT_BITS), words & np.uint64((1 << _SLOT_BITS) - 1)


def join_entry(area: U64Column, slot: U64Column) -> U64Column:
    """The ``swp_entry_t`` of a swap area and a slot in it; see :func:`split_entry`."""
    words: U64Column = area << np.uint64(_SLOT_BITS) | slot
    return words


@dataclass(frozen=True)
class SwapCacheEra:
    """Where this kernel's swap cache is.

    :ivar symbol: The variable that has a pointer for each swap area.
    :ivar space: ``address_space``; ``None`` where there are tables.
    :ivar node: ``xa_node``, likewise.
    :ivar node_bits: Binary logarithm of a node's slots.
    :ivar area: ``swap_info_struct``; ``None`` where there are address_spaces.
    :ivar cluster: ``swap_cluster_info``, likewise.
    :ivar cluster_sizes: How many slots a cluster may have.
    """

    symbol: str
    space: Record | None = None
    node: Record | None = None
    node_bits: int = 0
    area: Record | None = None
    cluster: Record | None = None
    cluster_sizes: tuple[int, ...] = ()

    @staticmethod
    def nodes(entries: U64Column) -> BoolColumn:
        """Which entries of an array lead to a node."""
        found: BoolColumn = ((entries & _THREE) == _TWO) & (entries > _LEAST_NODE)
        return found

    def siblings(self, entries: U64Column) -> tuple[BoolColumn, NDArray[np.int64]]:
        """Which entries of a node stand for another slot of it, and for which."""
        place = (entries >> _TWO).astype(np.int64)
        return ((entries & _THREE) == _TWO) & (place < (1 << self.node_bits)), place

    @staticmethod
    def folios(entries: U64Column) -> BoolColumn:
        """Which entries of an array are folios."""
        found: BoolColumn = (entries != 0) & ((entries & _THREE) == 0)
        return found

    @staticmethod
    def frames_of_table(words: U64Column) -> tuple[BoolColumn, U64Column]:
        """Which words of a table may have the number of a page frame, and that."""
        frame: U64Column = (words >> _FRAME_SHIFT) & _FRAME_MASK
        return (words & _THREE) == _TWO, frame


def resolve_swap_cache(layouts: Layouts) -> SwapCacheEra | str:
    """Find what reading the swap cache takes.

    :return: Or why it cannot be read.
    """
    missing: list[str] = []
    if layouts.field("swap_cluster_info", "table") is not None:
        area = resolve_record(layouts, "swap_info_struct", ("cluster_info", "max"), missing)
        cluster = resolve_record(layouts, "swap_cluster_info", ("table",), missing)
        size = layouts.size("swap_table")
        sizes = (size // WORD,) if size else _CLUSTERS
        era = SwapCacheEra("swap_info", area=area, cluster=cluster, cluster_sizes=sizes)
    else:
        space = resolve_record(layouts, "address_space", ("xa_head=i_pages.xa_head",), missing)
        node = resolve_record(layouts, "xa_node", ("shift", "slots"), missing)
        slots = node.fields.get("slots")
        bits = 0 if slots is None or not slots.length else slots.length.bit_length() - 1
        era = SwapCacheEra("swapper_spaces", space=space, node=node, node_bits=bits)
    if missing:
        return f"{', '.join(missing)} not found"
    return era
