"""ANON_VMA_LAZY: VMAs that have no anon_vma before somebody else may share their pages.

Follows "mm: ... ANON_VMA_LAZY" of the series posted on 2026-05-27, helper by helper; what may be
wrong with it is said in :mod:`.lazy_rules`. Of the rest of that series it is taken for granted that
``vma_anon_vma()`` is NULL for a word with a tag, and that a root VMA alone makes no fork's child.
"""

from __future__ import annotations

from .lazy_rules import LazyRules
from .links import get_anon_vma, mergeable_anon_vmas, put_anon_vma, put_vma, write_locked
from .objects import AnonVma, Avc, Lazy, OutOfMemory, Parent, RootVma, Vma

__all__ = (
    "drop",
    "link_parent",
    "link_root",
    "prepare",
    "upgrade",
    "upgrade_to_clone",
    "upgrade_to_fork",
)


def _rules(vma: Vma) -> LazyRules:
    rules = vma.mm.machine.rules.lazy
    assert rules is not None
    return rules


def prepare(vma: Vma) -> None:
    """``vma_prepare_anon_vma_lazy()``: the first fault makes a VMA its own root VMA."""
    vma.holders += 1
    vma.lazy = RootVma(vma)


def link_root(vma: Vma, src: Vma) -> bool:
    """``vma_link_anon_vma_lazy_root()``: a copy of a VMA has the same root VMA.

    :return: false if there is none any more: the source has been upgraded.
    """
    src.mm.machine.passes("link root")
    if not isinstance(src.lazy, RootVma):
        vma.lazy = None
        vma.anon_vma = None if _rules(src).clone_of_upgraded_has_none else src.anon_vma
        return False
    src.lazy.vma.holders += 1
    vma.lazy = src.lazy
    return True


def link_parent(vma: Vma, src: Vma) -> None:
    """``vma_link_anon_vma_lazy_parent()``: a fork's child has no anon_vma of its own yet."""
    assert src.anon_vma is not None
    get_anon_vma(src.anon_vma)
    vma.lazy = Parent(src.anon_vma)


def drop(vma: Vma, instead: AnonVma | None = None) -> bool:
    """``vma_unlink_anon_vma_lazy()``: give back what a lazy VMA holds.

    :param instead: What it has from now on.
    :return: false if it is not lazy.
    """
    old = vma.lazy
    if old is None:
        return False
    vma.lazy, vma.anon_vma = None, instead
    if instead is not None:
        vma.mm.machine.passes("upgrade published")
    _put(old)
    return True


def _put(old: Lazy) -> None:
    if isinstance(old, Parent):
        assert old.anon_vma.tree.root is not None  # the kernel's VM_BUG_ON
        put_anon_vma(old.anon_vma)
    else:
        put_vma(old.vma)


def upgrade(vma: Vma) -> None:
    """``vma_upgrade_anon_vma_lazy()``: give a lazy VMA an anon_vma, unless somebody else has.

    :raises OutOfMemory: it stays lazy.
    """
    machine, rules = vma.mm.machine, _rules(vma)
    parent = vma.lazy.anon_vma if isinstance(vma.lazy, Parent) else None
    shared = _shared(vma, parent)
    anon_vma = shared or AnonVma(machine)
    avc = machine.allocate(Avc(vma, anon_vma))
    if shared is None:
        try:
            machine.allocate(anon_vma)
        except OutOfMemory:
            machine.free(avc)
            raise
        if parent is not None:
            anon_vma.root, anon_vma.parent = parent.root, parent
    machine.passes("upgrade allocated")
    if not drop(vma, anon_vma):
        machine.free(avc)
        if shared is None and rules.late_upgrade_puts_root:
            put_anon_vma(anon_vma)
        elif shared is None:
            machine.free(anon_vma)
        return
    machine.passes("upgrade put")
    if anon_vma.root is not anon_vma and (shared is None or rules.reference_for_shared):
        get_anon_vma(anon_vma.root)
    if shared is None:
        anon_vma.parent.num_children += 1
    vma.chain.insert(0, avc)
    with write_locked(anon_vma, vma.mm):
        machine.passes("upgrade listed")
    anon_vma.tree.insert(avc.rb)
    anon_vma.num_active_vmas += 1


# find_mergeable_anon_vma() for a lazy VMA, and what is done about its answer.
def _shared(vma: Vma, parent: AnonVma | None) -> AnonVma | None:
    for old in mergeable_anon_vmas(vma):
        assert old.anon_vma is not None
        if _rules(vma).share_unlike_chains:
            # Posted, the first is taken or none.
            return old.anon_vma if parent is None or old.anon_vma.root is parent.root else None
        theirs = {avc.anon_vma for avc in old.chain} - {old.anon_vma}
        if theirs == {avc.anon_vma for avc in vma.chain}:
            return old.anon_vma
    return None


def upgrade_to_fork(vma: Vma) -> None:
    """What ``anon_vma_fork()`` does to a lazy VMA before it is shared.

    :raises OutOfMemory: it stays lazy.
    """
    if vma.lazy is not None and (vma.mm.machine.lazy_enabled or not _rules(vma).off_ignores_lazy):
        upgrade(vma)


def upgrade_to_clone(dst: Vma, src: Vma) -> None:
    """What ``anon_vma_clone()`` does to a fork's child that is still lazy before it is copied.

    :raises OutOfMemory: ``src`` stays lazy.
    """
    try:
        upgrade(src)
    except OutOfMemory:
        if not _rules(src).failed_clone_leaves_word:
            dst.lazy = None
        raise
    dst.lazy, dst.anon_vma = None, src.anon_vma
