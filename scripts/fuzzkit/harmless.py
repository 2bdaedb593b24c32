"""Changes that no audit could report, each kind of them with its reason.

None is on a list by its name: what is asked is the change itself, and the kernel's other words.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from anonvma_inspect.kernel.locks import LockState, lock_states
from anonvma_inspect.kernel.tags import AnonVmaKind, decode_anon_vma
from anonvma_inspect.tables import NO_ROW, Tables, Vmas, find_rows

from .subjects import UNMAPPED
from .verbs import Change

__all__ = ("HARMLESS", "harmless", "needs_pages")

# include/linux/mm.h: what is_cow_mapping() asks.
_COW = 0x8 | 0x20
# What VM_REFCNT_LIMIT and the two bits above it come to, include/linux/mm_types.h (v7.2).
_MAX_VM_REFCNT = 0x7FFFFFFF


def _vma_row(change: Change) -> int:
    tables = change.population.tables
    return int(find_rows(tables.vmas.address, np.array([change.address], dtype=np.uint64))[0])


def _is_key(change: Change) -> bool:
    name, record = change.subject.name, change.population.tables.era.vma
    if change.subject.kind != "vma":
        return False
    keys = ("anon_pgoff_lo", "anon_pgoff_hi") if "anon_pgoff_lo" in record else ("vm_pgoff",)
    return name in keys or name in ("vm_start", "vm_end")


def _same(change: Change) -> bool:
    return change.new == change.old


def _no_key(change: Change) -> bool:
    if change.subject.kind != "vma" or "pgoff" not in change.subject.name:
        return False
    tables = change.population.tables
    return not _is_key(change) or not (tables.avcs.vma_row == _vma_row(change)).any()


def _flags(change: Change) -> bool:
    # vma_flags is the same word under another type.
    if change.subject.name not in ("vm_flags", "vma_flags"):
        return False
    vmas, row = change.population.tables.vmas, _vma_row(change)
    bare = vmas.anon_vma_pointer[row] == 0 or vmas.slot[row] == NO_ROW
    return bool(bare) or not (change.old ^ change.new) & _COW


# What a VMA without a chain can have, and nothing of what others have is bound to: if references
# to root VMAs are counted, none that anything still leads to.
def _no_anon_vma(change: Change) -> bool:
    if str(change.subject) != "vma.anon_vma":
        return False
    tables = change.population.tables
    vmas, tags, row = tables.vmas, tables.era.tags, _vma_row(change)
    if vmas.chain_length[row] or vmas.slot[row] == NO_ROW:
        return False
    pointer, tag = decode_anon_vma(np.array([change.new], dtype=np.uint64))
    kind = tags.kinds(pointer, tag)[0]
    if "root_refs" in tables.era.vma:
        return bool(kind == AnonVmaKind.NONE) and _is_last(vmas, row)
    if kind != AnonVmaKind.LAZY_VMA:
        return bool(kind in (AnonVmaKind.NONE, AnonVmaKind.UNFAULTED))
    root = int(find_rows(vmas.address, pointer)[0])
    owns = (vmas.anon_vma_pointer == vmas.address[row]) & (vmas.anon_vma_tag != 0)
    owns[row] = False
    return root != NO_ROW and vmas.mm[root] == vmas.mm[row] and not owns.any()


# Its word is all that leads to its root VMA, which is not mapped any more.
def _is_last(vmas: Vmas, row: int) -> bool:
    root = int(find_rows(vmas.address, vmas.anon_vma_pointer[row : row + 1])[0])
    same = (vmas.anon_vma_pointer == vmas.anon_vma_pointer[row]) & (vmas.anon_vma_tag != 0)
    return root != NO_ROW and vmas.slot[root] == NO_ROW and int(np.count_nonzero(same)) == 1


# Where it was, while others have it as their root VMA.
def _was_there(change: Change) -> bool:
    if change.role != UNMAPPED or change.subject.name not in ("vm_start", "vm_end"):
        return False
    start, end = (
        int(getattr(change.population.tables.vmas, name)[_vma_row(change)])
        if change.subject.name != name
        else change.new
        for name in ("vm_start", "vm_end")
    )
    return start < end and not (start | end) % change.population.tables.era.page_size


def _file(change: Change) -> bool:
    return change.subject.name == "vm_file"


def _readers(change: Change) -> bool:
    if change.subject.name != "vm_refcnt":
        return False
    return change.role == UNMAPPED or 0 < change.new <= _MAX_VM_REFCNT


# A state that a lock can be in, that is: for an anon_vma that is no root, one without a writer.
def _lock(change: Change) -> bool:
    if not change.subject.name.startswith("rwsem"):
        return False
    word = np.array([change.new], dtype=np.uint64)
    by_count = change.subject.name == "rwsem_count"
    state = lock_states(word if by_count else None, None if by_count else word, True)[0]
    tables = change.population.tables
    at = np.array([change.address], dtype=np.uint64)
    row = int(find_rows(tables.anon_vmas.address, at)[0])
    is_root = tables.anon_vmas.root_row[row] == row
    return bool(state == LockState.IDLE or (is_root and state != LockState.IMPOSSIBLE))


#: Kinds of changes that contradict nothing, with the reason of each.
HARMLESS: dict[str, Callable[[Change], bool]] = {
    "the word is as it was": _same,
    "the VMA is in no interval tree, or its trees go by another word: nothing holds this offset "
    "twice, and no walk of the reverse map reads it": _no_key,
    "of a VMA's flags only VM_SHARED and VM_MAYWRITE are bound to what it has, and only if it has "
    "an anon_vma": _flags,
    "a VMA without a chain may have nothing, the flag of its guards, or a root VMA of its mm": (
        _no_anon_vma
    ),
    "nothing says where a root VMA was before it was unmapped": _was_there,
    "the reverse map of anonymous pages does not read vm_file": _file,
    "a count of those who hold the VMA's lock, who are on no list; that it is not 0 is all that "
    "tells, of a VMA in its mm's tree": _readers,
    "a state that the lock can be in: any task may hold a root's, and a walker that came late may "
    "hold another's for read": _lock,
}

_OFFSET = (
    "all trees that the VMA is in are in order with it, and each rb_subtree_last is the same: "
    "only the pages that the VMA maps know at which offset"
)
_RANGE = (
    "a red-black tree of VMAs has no ranges of its own, no other VMA is in the way, and the keys "
    "fit: only the page tables know what it covers, and mm->total_vm how much"
)


def harmless(change: Change) -> str | None:
    """Why a change contradicts nothing, or ``None``."""
    return next((reason for reason, holds in HARMLESS.items() if holds(change)), None)


def needs_pages(change: Change) -> str | None:
    """Why only page tables could tell of a change of a VMA's keys: it leaves all trees in order.

    :return: ``None`` if it does not.
    """
    tables = change.population.tables
    is_range = change.subject.name in ("vm_start", "vm_end")
    if not _is_key(change) or (is_range and tables.era.maple_node is not None):
        return None
    row = _vma_row(change)
    first, last = _new_keys(change, tables, row)
    if last < first:
        return None
    nodes, avcs, vmas = tables.nodes, tables.avcs, tables.vmas
    home = avcs.vma_row[nodes.avc]
    for node in np.flatnonzero(home == row).tolist():
        for other in (node - 1, node + 1):
            if 0 <= other < len(home) and nodes.anon_vma[other] == nodes.anon_vma[node]:
                key = int(vmas.key_first[home[other]])
                if (key > first) if other < node else (key < first):
                    return None
        below = [int(side[node]) for side in (nodes.left, nodes.right) if side[node] != NO_ROW]
        stored = [int(avcs.rb_subtree_last[nodes.avc[child]]) for child in below]
        if max([last, *stored]) != int(avcs.rb_subtree_last[nodes.avc[node]]):
            return None
    return _RANGE if is_range else _OFFSET


def _new_keys(change: Change, tables: Tables, row: int) -> tuple[int, int]:
    vmas, name = tables.vmas, change.subject.name
    start, end, first = (int(c[row]) for c in (vmas.vm_start, vmas.vm_end, vmas.key_first))
    if name == "vm_start":
        start = change.new
    elif name == "vm_end":
        end = change.new
    elif name == "anon_pgoff_lo":
        first = first & ~0xFFFFFFFF | change.new
    elif name == "anon_pgoff_hi":
        first = first & 0xFFFFFFFF | change.new << 32
    else:
        first = change.new
    pages = (end - start) % 2**64 // tables.era.page_size
    return first, (first + pages - 1) % 2**64
