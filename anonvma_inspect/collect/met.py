"""What a collection has met so far."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from anonvma_inspect.collect.index import AddressIndex
from anonvma_inspect.collect.mm_store import MmStore
from anonvma_inspect.collect.reader import ObjectStore, Reader
from anonvma_inspect.collect.trees import TreeWalker
from anonvma_inspect.kernel.era import Era
from anonvma_inspect.tables import I64Column, RowColumn, U8Column
from anonvma_inspect.target.memory import BoolColumn, U64Column

__all__ = ("Met",)

# The fields that the tables have; what else the records of the era have, other walks go by.
_VMA_WORDS = (
    "vm_start",
    "vm_end",
    "vm_flags",
    "vm_pgoff",
    "vm_file",
    "vm_mm",
    "anon_vma",
    "anon_vma_chain_next",
    "anon_vma_chain_prev",
    "anon_pgoff_lo",
    "anon_pgoff_hi",
    "detached",
    "vm_refcnt",
    "root_refs",
)
_ANON_VMA_WORDS = (
    "root",
    "parent",
    "refcount",
    "num_children",
    "num_active_vmas",
    "degree",
    "rb_node",
    "rb_leftmost",
    "rwsem_count",
    "rwsem_readers",
    "rwsem_owner",
    "rwsem_rt_owner",
)


@dataclass
class Met:
    """Objects by the numbers of their stores, and what the walks said of them.

    :ivar tree_whole: For each anon_vma: see :class:`anonvma_inspect.tables.AnonVmas`.
    :ivar chain_end: For each VMA: see :class:`anonvma_inspect.tables.Vmas`.
    :ivar chain_length: Likewise.
    :ivar links: Entries of lists, by walk: number of the VMA, position, address of the AVC.
    """

    mms: MmStore
    vmas: ObjectStore
    avcs: AddressIndex
    anon_vmas: ObjectStore
    trees: TreeWalker
    tree_whole: BoolColumn = field(default_factory=lambda: np.empty(0, dtype=bool))
    chain_end: U8Column = field(default_factory=lambda: np.empty(0, dtype=np.uint8))
    chain_length: I64Column = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    links: list[tuple[RowColumn, I64Column, U64Column]] = field(default_factory=list)

    @staticmethod
    def nothing(reader: Reader, era: Era) -> Met:
        """The beginning."""
        avcs = AddressIndex(reader.space)
        return Met(
            mms=MmStore(reader, era),
            vmas=ObjectStore(reader, era.vma, _VMA_WORDS),
            avcs=avcs,
            anon_vmas=ObjectStore(reader, era.anon_vma, _ANON_VMA_WORDS),
            trees=TreeWalker(reader, era.avc, avcs),
        )
