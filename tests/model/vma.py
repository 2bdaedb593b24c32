"""Mapping, unmapping and changing: ``mm/mmap.c``, and since v6.12 ``mm/vma.c``; ``mm/mprotect.c``
and ``mm/madvise.c``."""

from __future__ import annotations

import errno
from collections.abc import Callable

from .links import put_vma
from .merge import Proposal, merge_existing, merge_new, out_of_trees
from .objects import Flag, Mm, OutOfMemory, Vma
from .rmap import anon_vma_clone, unlink_anon_vmas

__all__ = ("Refused", "change", "clone_into", "mmap", "munmap", "release")


class Refused(Exception):  # noqa: N818  # an answer of the kernel's, no error of the model
    """A system call's error; what it did before stays done."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode[number])
        self.errno = number


def clone_into(new: Vma, old: Vma) -> None:
    """Give a new VMA the anon_vmas of the one it is a copy of.

    :raises OutOfMemory: there is no new VMA.
    """
    machine = old.mm.machine
    try:
        anon_vma_clone(new, old)
    except OutOfMemory:
        machine.free(new)
        raise
    try:
        # Since v6.2 or so before the clone, so that there is nothing to undo.
        machine.allocate_nodes()
    except OutOfMemory:
        unlink_anon_vmas(new)
        machine.free(new)
        raise


def split(vma: Vma, page: int, *, new_below: bool) -> Vma:
    """``__split_vma()``: cut a VMA in two.

    :param new_below: Which part becomes the new object; the other stays the old one.
    :return: The new one.
    :raises OutOfMemory: nothing was done.
    """
    mm = vma.mm
    new = mm.machine.allocate(vma.dup())
    if new_below:
        new.end = page
    else:
        new.move_start(page)
    clone_into(new, vma)
    with out_of_trees(vma):
        if new_below:
            vma.move_start(page)
        else:
            vma.end = page
    mm.add(new)
    return new


def _detach(mm: Mm, start: int, end: int) -> list[Vma]:
    # vms_gather_munmap_vmas(): the range's VMAs, cut out of what reaches beyond it.
    old_goes = mm.machine.rules.unmaps_old_object
    first = mm.find(start)
    if first is not None and first.start < start and first.end > start:
        split(first, start, new_below=old_goes)
    last = mm.find(end)
    if last is not None and last.start < end:
        split(last, end, new_below=not old_goes)
    gone = [vma for vma in mm.vmas if start <= vma.start and vma.end <= end]
    for vma in gone:
        mm.vmas.remove(vma)
    return gone


def release(vmas: list[Vma]) -> None:
    """``free_pgtables()`` and ``remove_vma()``: VMAs that no mm has any more."""
    for vma in vmas:
        unlink_anon_vmas(vma)
    for vma in vmas:
        put_vma(vma)


def munmap(mm: Mm, start: int, end: int) -> None:
    """``do_vmi_munmap()``.

    :raises OutOfMemory: nothing is unmapped; one split may have been done.
    """
    release(_detach(mm, start, end))


def mmap(mm: Mm, start: int, end: int, flags: Flag, file: int | None, pgoff: int) -> None:
    """``mmap_region()``, of a private mapping at a fixed place.

    :param pgoff: Which page of the file; of anonymous memory it is that of the address.
    :raises OutOfMemory: what was there is gone all the same, unless to unmap it was what failed.
    """
    # Since v6.12 what was there is still in the mm's tree, but in no anon_vma's any more.
    munmap(mm, start, end)
    proposal = Proposal(
        mm=mm,
        start=start,
        end=end,
        flags=flags,
        file=file,
        pgoff=start if file is None else pgoff,
        anon_pgoff=start,
        prev=mm.before(start),
        next=mm.find(start),
    )
    if not _merge_if_possible(proposal, prefer_next=mm.machine.rules.mmap_prefers_next):
        _insert(Vma(mm, start, end, flags, file, proposal.pgoff, proposal.anon_pgoff))


def _merge_if_possible(proposal: Proposal, *, prefer_next: bool) -> bool:
    try:
        return merge_new(proposal, prefer_next=prefer_next) is not None
    except OutOfMemory:
        return False


def _insert(new: Vma) -> None:
    machine = new.mm.machine
    machine.allocate(new)
    try:
        machine.allocate_nodes()
    except OutOfMemory:
        machine.free(new)
        raise
    new.mm.add(new)


def _modify(vma: Vma, prev: Vma | None, start: int, end: int, flags: Flag) -> Vma:
    # vma_modify(): merge the changed part, or cut it out.
    mm = vma.mm
    delta = start - vma.start
    proposal = Proposal(
        mm=mm,
        start=start,
        end=end,
        flags=flags,
        file=vma.file,
        pgoff=vma.pgoff + delta,
        anon_pgoff=vma.anon_pgoff + delta,
        prev=prev,
        next=mm.find(vma.end),
        word=vma.word,
        middle=vma,
    )
    try:
        merged = merge_existing(proposal)
    except OutOfMemory:
        if mm.machine.rules.merge_failure_is_fatal:
            raise
        merged = None
    if merged is not None:
        return merged
    if vma.start < start:
        split(vma, start, new_below=True)
    if vma.end > end:
        split(vma, end, new_below=False)
    return vma


def change(
    mm: Mm, start: int, end: int, new_flags: Callable[[Vma], Flag], *, over_gaps: bool = False
) -> None:
    """``do_mprotect_pkey()`` or ``madvise_walk_vmas()``: change the flags of a range.

    :param new_flags: The flags that a VMA is to have; may refuse.
    :param over_gaps: Go on behind a gap, as only ``madvise()`` does.
    :raises Refused: with ``ENOMEM`` if there was a gap.
    :raises OutOfMemory: what was changed before stays.
    """
    gap = False
    vma = mm.find(start)
    prev = mm.before(start)
    if vma is not None and vma.start < start:
        prev = vma
    while start < end:
        if vma is None:
            raise Refused(errno.ENOMEM)
        if start < vma.start:
            gap = True
            start = vma.start
            if start >= end or not over_gaps:
                break
        flags = new_flags(vma)
        part_end = min(end, vma.end)
        if flags == vma.flags:
            prev = vma
        else:
            prev = _modify(vma, prev, start, part_end, flags)
            prev.flags = flags
        start = max(part_end, prev.end)
        vma = mm.find(start)
    if gap:
        raise Refused(errno.ENOMEM)
