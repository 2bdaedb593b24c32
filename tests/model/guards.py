"""Guards, which fork must copy page tables for: ``mm/madvise.c``.

What tells fork so is an anon_vma; with ANON_VMA_UNFAULTED a flag in its place will do. A copy of
the VMA has the flag, too, and whatever gives the VMA an anon_vma takes it away.
"""

from __future__ import annotations

from .objects import Mm, Vma
from .rmap import anon_vma_prepare

__all__ = ("guard_install", "guard_remove", "take_guards")


def guard_install(mm: Mm, start: int, end: int) -> None:
    """``madvise(MADV_GUARD_INSTALL)``.

    :raises OutOfMemory: if a VMA needs an anon_vma.
    """
    for vma in _within(mm, start, end):
        if not mm.machine.rules.unfaulted:
            anon_vma_prepare(vma)
        else:
            vma.unfaulted = vma.anon_vma is None


def guard_remove(mm: Mm, start: int, end: int) -> None:
    """``madvise(MADV_GUARD_REMOVE)``: of a whole VMA, no guard is left."""
    for vma in _within(mm, start, end):
        if start <= vma.start and vma.end <= end:
            vma.unfaulted = False


def take_guards(target: Vma, *sources: Vma) -> None:
    """A merge: guards of what becomes part of a VMA become its own."""
    flags = [vma.unfaulted for vma in (target, *sources)]
    target.unfaulted = any(flags) and target.anon_vma is None


def _within(mm: Mm, start: int, end: int) -> list[Vma]:
    return [vma for vma in mm.vmas if vma.start < end and start < vma.end]
