"""References and links: what holds objects of the reverse map together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .objects import AnonVma, Avc, Flag, Mm, Vma, continues

__all__ = (
    "get_anon_vma",
    "link",
    "mergeable_anon_vmas",
    "put_anon_vma",
    "put_vma",
    "write_locked",
)


def get_anon_vma(anon_vma: AnonVma) -> None:
    """``get_anon_vma()``, ``include/linux/rmap.h``."""
    anon_vma.refcount += 1


def put_anon_vma(anon_vma: AnonVma) -> None:
    """``put_anon_vma()``: the last one to go gives the root back, too."""
    anon_vma.refcount -= 1
    if anon_vma.refcount == 0:
        anon_vma.machine.free(anon_vma)
        if anon_vma.root is not anon_vma:
            put_anon_vma(anon_vma.root)


def put_vma(vma: Vma) -> None:
    """``vm_area_free()``; under ANON_VMA_LAZY ``vma_put()``: a root VMA outlives its mapping."""
    vma.holders -= 1
    if vma.holders == 0:
        vma.mm.machine.free(vma)


@contextmanager
def write_locked(anon_vma: AnonVma, mm: Mm) -> Iterator[None]:
    """``anon_vma_lock_write()``, by whoever has the lock of an mm, or leaves it behind."""
    anon_vma.root.writer = mm.writer or mm.machine.leaving
    yield
    anon_vma.root.writer = None


def link(avc: Avc) -> None:
    """``anon_vma_chain_assign()`` and ``anon_vma_interval_tree_insert()``."""
    avc.vma.chain.insert(0, avc)
    avc.anon_vma.tree.insert(avc.rb)


def mergeable_anon_vmas(vma: Vma) -> list[Vma]:
    """Neighbours whose anon_vmas ``find_mergeable_anon_vma()`` looks at, in its order.

    ``mm/mmap.c``, since v6.12 ``mm/vma.c``.
    """
    after, before = vma.mm.find(vma.end), vma.mm.before(vma.start)
    return [
        old
        for old, low, high in ((after, vma, after), (before, before, vma))
        if low is not None and high is not None and old is not None
        if old.anon_vma is not None and _are_compatible(low, high)
    ]


def _are_compatible(low: Vma, high: Vma) -> bool:
    # anon_vma_compatible(): but for the protection as if of one mapping.
    return (
        low.file == high.file
        and (low.flags ^ high.flags) & ~Flag.ACCESS == 0
        and continues(low, high, anon=low.mm.machine.rules.anon_pgoff_is_key)
    )
