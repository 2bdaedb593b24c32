"""``mremap()``: ``mm/mremap.c``, with ``copy_vma()`` from ``mm/mmap.c``, since v6.12 ``mm/vma.c``.

Moves are to a place that the caller names (``MREMAP_FIXED``); whoever does not name one does not
allow a move.
"""

from __future__ import annotations

import contextlib
import errno

from .merge import Proposal, merge_new, out_of_trees
from .objects import Mm, OutOfMemory, Vma
from .rmap import unlink_anon_vmas
from .vma import Refused, clone_into, munmap

__all__ = ("mremap_move", "mremap_resize")


def _copy_vma(vma: Vma, start: int, end: int, at: int, keep: bool) -> tuple[Vma, Vma]:
    # copy_vma(): what is at page `at` of a VMA gets a second place.
    # Returns the VMA at the new place, and the old one, which may have become part of the other.
    mm = vma.mm
    rules = mm.machine.rules
    pgoff, anon_pgoff = vma.pgoff + at - vma.start, vma.anon_pgoff + at - vma.start
    alone = vma.word is None and vma.file is None
    if vma.word is None:
        # Nothing has such an offset yet: the copy starts anew.
        anon_pgoff = start
        if vma.file is None:
            pgoff = start
    proposal = Proposal(
        mm=mm,
        start=start,
        end=end,
        flags=vma.flags,
        file=vma.file,
        pgoff=pgoff,
        anon_pgoff=anon_pgoff,
        prev=mm.before(start),
        next=mm.find(start),
        word=vma.word,
        copied_from=vma,
    )
    if alone and keep and rules.keeping_source == "itself":
        proposal.prev = None if proposal.prev is vma else proposal.prev
        proposal.next = None if proposal.next is vma else proposal.next
    beside = start == vma.end or end == vma.start
    merged = None
    if not (alone and keep and beside and rules.keeping_source == "not beside"):
        old_start = vma.start
        try:
            merged = merge_new(proposal)
        except OutOfMemory:
            merged = None
        if merged is not None:
            swallowed = merged.start <= old_start < merged.end
            return merged, merged if swallowed else vma
    new = mm.machine.allocate(vma.dup())
    new.start, new.end, new.pgoff, new.anon_pgoff = start, end, pgoff, anon_pgoff
    clone_into(new, vma)
    mm.add(new)
    return new, vma


def _move_vma(vma: Vma, start: int, old_end: int, to: int, to_end: int, keep: bool) -> None:
    mm = vma.mm
    _, vma = _copy_vma(vma, to, to_end, start, keep)
    if not keep:
        # The pages have moved: if that fails, what is left of the old mapping is empty.
        with contextlib.suppress(OutOfMemory):
            munmap(mm, start, old_end)
    elif mm.machine.rules.dontunmap != "leave" and (vma.start, vma.end) == (start, old_end):
        unlink_anon_vmas(vma)
        if mm.machine.rules.dontunmap == "unfault":
            vma.anon_pgoff = vma.start
            if vma.file is None:
                vma.pgoff = vma.start


def _check_source(mm: Mm, start: int, old_end: int, keep: bool) -> Vma:
    # vma_to_resize(), since v6.17 check_prep_vma().
    vma = _source(mm, start)
    if keep and mm.machine.rules.dontunmap == "leave" and vma.file is not None:
        raise Refused(errno.EINVAL)
    if old_end > vma.end:
        raise Refused(errno.EFAULT)
    return vma


def _source(mm: Mm, page: int) -> Vma:
    vma = mm.find(page)
    if vma is None or vma.start > page:
        raise Refused(errno.EFAULT)
    return vma


def _mremap_to(mm: Mm, start: int, old: int, to: int, new: int, keep: bool) -> None:
    # mremap_to(): make room, cut off what is too much, move.
    if mm.machine.rules.mremap_checks_first:
        _check_source(mm, start, start + min(old, new), keep)
    munmap(mm, to, to + new)
    if old > new:
        munmap(mm, start + new, start + old)
        old = new
    vma = _check_source(mm, start, start + old, keep)
    _move_vma(vma, start, start + old, to, to + new, keep)


def mremap_move(mm: Mm, start: int, old: int, to: int, new: int, *, keep: bool = False) -> None:
    """``mremap(MREMAP_MAYMOVE | MREMAP_FIXED)``.

    :param old: Pages that are there.
    :param new: Pages that there shall be.
    :param keep: ``MREMAP_DONTUNMAP``.
    :raises Refused: if it cannot; before v6.17 the destination may be unmapped nevertheless.
    :raises OutOfMemory: the destination is unmapped.
    """
    rules = mm.machine.rules
    if keep and (old != new or rules.dontunmap is None):
        raise Refused(errno.EINVAL)
    if rules.mremap_looks_first and not rules.mremap_checks_first:
        _source(mm, start)
    if start < to + new and to < start + old:
        raise Refused(errno.EINVAL)
    if not rules.mremap_moves_many or old != new:
        _mremap_to(mm, start, old, to, new, keep)
        return
    # remap_move(): gaps between the VMAs are moved along, but there must be one at the start.
    _source(mm, start)
    page = start
    while (vma := mm.find(page)) is not None and vma.start < start + old:
        part, behind = max(vma.start, start), vma.end
        pages = min(behind, start + old) - part
        _mremap_to(mm, part, pages, to + part - start, pages, keep)
        page = behind


def mremap_resize(mm: Mm, start: int, old: int, new: int) -> None:
    """``mremap()`` without flags: shrink or grow where it is.

    :raises Refused: if it cannot.
    :raises OutOfMemory: nothing was done.
    """
    if mm.machine.rules.mremap_looks_first:
        _source(mm, start)
    if new <= old:
        if new < old:
            munmap(mm, start + new, start + old)
        return
    vma = _check_source(mm, start, start + old, False)
    after = mm.find(vma.end)
    end = start + new
    if vma.end != start + old or (after is not None and after.start < end):
        raise Refused(errno.ENOMEM)
    if not mm.machine.rules.growing_merges:
        with out_of_trees(vma):
            vma.end = end
        return
    pages = vma.end - vma.start
    merge_new(
        Proposal(
            mm=mm,
            start=vma.end,
            end=end,
            flags=vma.flags,
            file=vma.file,
            pgoff=vma.pgoff + pages,
            anon_pgoff=vma.anon_pgoff + pages,
            prev=vma,
            next=after,
            word=vma.word,
        )
    )
