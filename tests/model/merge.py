"""Merging VMAs: ``vma_merge()`` and ``__vma_adjust()`` in ``mm/mmap.c`` up to v6.11, the
``vma_merge_*()`` functions and ``vma_expand()`` in ``mm/vma.c`` since v6.12.

Both make the same of it, case by case, but for what is said where it is not so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .guards import take_guards
from .links import put_vma, write_locked
from .objects import Flag, Mm, OutOfMemory, Stretch, Vma, Word, continues
from .rmap import anon_vma_clone, unlink_anon_vmas
from .sharing import may_merge

__all__ = ("Proposal", "merge_existing", "merge_new", "out_of_trees")


@dataclass
class Proposal:
    """``struct vma_merge_struct``: a range as it is to be, and what is around it.

    :ivar prev: The VMA before it; it need not be adjacent, nor need ``next``.
    :ivar word: ``anon_vma``: what the range has.
    :ivar middle: The VMA that it is in; ``None`` if it is new.
    :ivar copied_from: The VMA that ``mremap()`` is about to move here.
    """

    mm: Mm
    start: int
    end: int
    flags: Flag
    file: int | None
    pgoff: int
    anon_pgoff: int
    prev: Vma | None
    next: Vma | None
    word: Word = None
    middle: Vma | None = None
    copied_from: Vma | None = None


@contextmanager
def out_of_trees(*vmas: Vma) -> Iterator[None]:
    """``vma_prepare()`` and ``vma_complete()``: ranges change only while no tree knows them."""
    for vma in vmas:
        for avc in vma.chain:
            avc.anon_vma.tree.remove(avc.rb)
    linked = [vma for vma in vmas if vma.chain]
    if linked:
        with write_locked(linked[0].chain[0].anon_vma, linked[0].mm):
            linked[0].mm.machine.passes("out of trees")
    yield
    for vma in vmas:
        for avc in vma.chain:
            avc.anon_vma.tree.insert(avc.rb)


def _is_like(proposal: Proposal, vma: Vma) -> bool:
    # is_mergeable_vma() and is_mergeable_anon_vma().
    if vma.flags != proposal.flags or vma.file != proposal.file:
        return False
    theirs, ours = vma.word, proposal.word
    if proposal.mm.machine.rules.merges_unlike and may_merge(theirs, ours):
        return True
    if not proposal.mm.machine.rules.unfaulted_takes_in:
        return theirs == ours or (None in (theirs, ours) and len(vma.chain) == 1)
    if theirs is None and ours is not None:
        sources = (proposal.middle, proposal.copied_from)
        return not any(source.is_fork_child() for source in sources if source is not None)
    return theirs == ours or (ours is None and not vma.is_fork_child())


def _continues(low: Stretch, high: Stretch, proposal: Proposal) -> bool:
    # Of a file both offsets must fit, of anonymous memory they are the same.
    both = proposal.mm.machine.rules.anon_pgoff_is_key and proposal.file is not None
    return continues(low, high, anon=both)


def _joining_prev(proposal: Proposal) -> Vma | None:
    prev = proposal.prev
    if prev is None or not _continues(prev, proposal, proposal) or not _is_like(proposal, prev):
        return None
    return prev


def _joining_next(proposal: Proposal) -> Vma | None:
    after = proposal.next
    if after is None or not _continues(proposal, after, proposal) or not _is_like(proposal, after):
        return None
    return after


# That both neighbours fit the proposal does not mean that they fit each other.
def _fit_each_other(prev: Vma, after: Vma) -> bool:
    if prev.mm.machine.rules.merges_unlike and may_merge(prev.word, after.word):
        return True
    return None in (prev.word, after.word) or prev.word == after.word


def _dup_anon_vma(dst: Vma, src: Vma) -> bool:
    # dup_anon_vma(): one that has none takes over those of what becomes part of it.
    if src.word is None or dst.word is not None:
        return False
    dst.anon_vma, dst.lazy = src.anon_vma, src.lazy
    anon_vma_clone(dst, src)
    return True


# The last that can fail: the nodes. Nothing has changed yet but, perhaps, a copied anon_vma.
def _prepare_nodes(mm: Mm, target: Vma, copied: bool) -> None:
    try:
        mm.machine.allocate_nodes()
    except OutOfMemory:
        if copied:
            unlink_anon_vmas(target)
        raise


def _remove(mm: Mm, vma: Vma) -> None:
    mm.vmas.remove(vma)
    unlink_anon_vmas(vma)
    put_vma(vma)


def merge_existing(proposal: Proposal) -> Vma | None:
    """``vma_merge_existing_range()``: part of a VMA changes; perhaps its neighbours are so already.

    :return: What it was merged into, with the old flags still; ``None`` if nothing was done.
    :raises OutOfMemory: nothing was done.
    """
    mm, middle = proposal.mm, proposal.middle
    assert middle is not None
    left = _joining_prev(proposal) if proposal.start == middle.start else None
    right = _joining_next(proposal) if proposal.end == middle.end else None
    if left is not None and right is not None and not _fit_each_other(left, right):
        right = None
    whole = (proposal.start, proposal.end) == (middle.start, middle.end)
    target = left or right
    if target is None:
        return None
    # Of what becomes part of it, whichever has an anon_vma.
    source = right if right is not None and right.word is not None else middle
    copied = _dup_anon_vma(target, source)
    _prepare_nodes(mm, target, copied)
    gone = [middle] if whole else []
    if left is not None:
        if right is not None and mm.machine.rules.swallows_one_by_one:
            with out_of_trees(left):
                left.end = middle.end
            _remove(mm, middle)
            gone = []
        with out_of_trees(left) if whole else out_of_trees(left, middle):
            left.end = proposal.end if right is None else right.end
            if not whole:
                middle.move_start(proposal.end)
        gone += [right] if right is not None else []
    elif right is not None:
        with out_of_trees(right) if whole else out_of_trees(middle, right):
            if not whole:
                middle.end = proposal.start
            right.move_start(proposal.start)
    take_guards(target, middle, *gone)
    for vma in gone:
        _remove(mm, vma)
    return target


def merge_new(proposal: Proposal, *, prefer_next: bool = False) -> Vma | None:
    """``vma_merge_new_range()`` and ``vma_expand()``: a neighbour grows over a range that is free.

    :param prefer_next: See :attr:`.eras.Rules.mmap_prefers_next`.
    :return: What has grown; ``None`` if nothing was done.
    :raises OutOfMemory: nothing was done.
    """
    left, right = _joining_prev(proposal), _joining_next(proposal)
    if left is not None and right is not None:
        if prefer_next:
            # __mmap_region(), v6.1: prev must fit as if next were what is mapped.
            proposal.word = right.word
            left = _joining_prev(proposal)
        elif not _fit_each_other(left, right):
            right = None
    target = left or right
    if target is None:
        return None
    copied = left is not None and right is not None and _dup_anon_vma(left, right)
    if proposal.copied_from is not None:
        copied = _dup_anon_vma(target, proposal.copied_from) or copied
    _prepare_nodes(proposal.mm, target, copied)
    with out_of_trees(target):
        if left is None:
            target.move_start(proposal.start)
        else:
            left.end = proposal.end if right is None else right.end
    swallowed = [right] if left is not None and right is not None else []
    moved = [proposal.copied_from] if proposal.copied_from is not None else []
    take_guards(target, *swallowed, *moved)
    for vma in swallowed:
        _remove(proposal.mm, vma)
    return target
