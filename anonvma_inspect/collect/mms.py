"""The mms, and the trees of VMAs that hang on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.kernel.era import Era
from anonvma_inspect.kernel.locks import is_free, is_write_locked, lock_readers, owner_tasks
from anonvma_inspect.tables import I64Column, RowColumn
from anonvma_inspect.target.memory import BoolColumn, U64Column

__all__ = ("MmFields", "SlotColumns", "looks_like_mm", "read_mms", "slot_order")

# include/linux/mm_types.h, MM_MT_FLAGS: gaps tracked and an external lock, whatever the height; RCU
# mode comes and goes with fork and exit.
_MT_FLAGS_MASK = 0x301
_MT_FLAGS = 0x301


@dataclass(frozen=True)
class MmFields:
    """Fields of mms, as columns, in the order asked for.

    :ivar known: Of which mms all fields could be read.
    :ivar present: Of which the root of the VMAs could.
    """

    address: U64Column
    mm_users: I64Column
    map_count: I64Column
    flags: U64Column
    write_locked: BoolColumn
    lock_free: BoolColumn
    lock_seq: U64Column
    ctx_id: U64Column
    lock_owner: U64Column
    lock_readers: I64Column
    start_brk: U64Column
    brk: U64Column
    start_stack: U64Column
    vdso: U64Column
    vma_root: U64Column
    known: BoolColumn
    present: BoolColumn


@dataclass(frozen=True)
class SlotColumns:
    """Entries of trees of VMAs; ``mm`` as the caller numbered them.

    :ivar holder: The ``maple_node`` that each stands in.
    """

    mm: RowColumn
    holder: U64Column
    first: U64Column
    last: U64Column
    pointer: U64Column


def slot_order(mm: RowColumn, first: U64Column) -> RowColumn:
    """The order of entries by mm and first address.

    Those of one mm mostly are in order already, and then only mms are to be sorted.
    """
    order = np.argsort(mm, kind="stable")
    of, at = mm[order], first[order]
    if ((of[1:] != of[:-1]) | (at[1:] >= at[:-1])).all():
        return order
    return np.lexsort((first, mm))


def read_mms(reader: Reader, era: Era, addresses: U64Column) -> MmFields:
    """Read the fields of mms that are needed."""
    known = np.ones(len(addresses), dtype=bool)

    def words(name: str) -> U64Column:
        if name not in era.mm:
            return np.zeros(len(addresses), dtype=np.uint64)
        values, there = reader.words(era.mm, addresses, name)
        np.logical_and(known, there, out=known)
        return values

    def signed32(name: str) -> I64Column:
        return words(name).astype(np.uint32).view(np.int32).astype(np.int64)

    vma_root, present = reader.words(
        era.mm, addresses, "mm_rb_node" if era.maple_node is None else "ma_root"
    )
    count, readers = (
        words(name) if name in era.mm else None for name in ("mmap_lock_count", "mmap_lock_readers")
    )
    write_locked = is_write_locked(count, readers)
    return MmFields(
        address=addresses,
        mm_users=signed32("mm_users"),
        map_count=signed32("map_count"),
        flags=words("mm_flags"),
        write_locked=write_locked,
        lock_free=is_free(count, readers),
        lock_seq=words("mm_lock_seq"),
        ctx_id=reader.optional_words(era.mm, addresses, "ctx_id")[0],
        lock_owner=_lock_owner(reader, era, addresses, write_locked),
        lock_readers=lock_readers(count, readers),
        start_brk=words("start_brk"),
        brk=words("brk"),
        start_stack=words("start_stack"),
        vdso=words("vdso"),
        vma_root=vma_root,
        known=known,
        present=present,
    )


# Only of locks that are held. What is not in the target is not known; that is no hole, for nothing
# is judged by it alone.
def _lock_owner(
    reader: Reader, era: Era, addresses: U64Column, write_locked: BoolColumn
) -> U64Column:
    owner = np.zeros(len(addresses), dtype=np.uint64)
    held = np.flatnonzero(write_locked)
    if "mmap_lock_owner" in era.mm and len(held):
        column, _ = reader.optional_words(era.mm, addresses[held], "mmap_lock_owner")
        task, is_reader = owner_tasks(column, "mmap_lock_readers" in era.mm)
        owner[held] = np.where(is_reader, np.uint64(0), task)
    return owner


def looks_like_mm(reader: Reader, era: Era, addresses: U64Column) -> BoolColumn:
    """Whether the bytes at addresses that no task vouches for are an ``mm_struct``.

    A VMA that was freed, or a corrupted ``vm_mm``, leads anywhere. What an mm always has is a page
    table in RAM, on a page's boundary, and the flags of its maple tree or, before there was one, a
    root of its red-black tree that is a pointer or NULL.
    """
    sound: BoolColumn = ~reader.space.wild(addresses, era.mm.size)
    at = addresses[sound]
    pgd, pgd_present = reader.words(era.mm, at, "pgd")
    if era.maple_node is None:
        root, present = reader.words(era.mm, at, "mm_rb_node")
        rooted = present & ((root == 0) | ~reader.space.wild(root))
    else:
        flags, present = reader.words(era.mm, at, "ma_flags")
        rooted = present & ((flags & np.uint64(_MT_FLAGS_MASK)) == _MT_FLAGS)
    sound[sound] = pgd_present & rooted & ~reader.space.wild(pgd, era.page_size, era.page_size)
    return sound
