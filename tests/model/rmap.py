"""``mm/rmap.c``: how VMAs come by their anon_vmas, and lose them."""

from __future__ import annotations

from . import lazy
from .links import get_anon_vma, link, mergeable_anon_vmas, put_anon_vma, write_locked
from .objects import AnonVma, Avc, OutOfMemory, Parent, RootVma, Vma

__all__ = (
    "anon_vma_clone",
    "anon_vma_fork",
    "anon_vma_prepare",
    "unlink_anon_vmas",
)


def anon_vma_prepare(vma: Vma) -> None:
    """``__anon_vma_prepare()``: the first write to a private mapping is about to be done."""
    if vma.word is not None:
        return
    machine = vma.mm.machine
    if machine.lazy_enabled:
        lazy.prepare(vma)
        return
    # Only a neighbour that has nothing of another process shares what it has.
    alike = [old.anon_vma for old in mergeable_anon_vmas(vma) if len(old.chain) == 1]
    anon_vma = alike[0] if alike else None
    fresh = anon_vma is None
    if anon_vma is None:
        anon_vma = machine.allocate(AnonVma(machine))
        anon_vma.num_children += 1  # itself
    try:
        avc = machine.allocate(Avc(vma, anon_vma))
    except OutOfMemory:
        if fresh:
            put_anon_vma(anon_vma)
        raise
    vma.anon_vma, vma.unfaulted = anon_vma, False
    link(avc)
    anon_vma.num_active_vmas += 1


def anon_vma_clone(dst: Vma, src: Vma, *, fork: bool = False) -> None:
    """``anon_vma_clone()``: give one VMA all anon_vmas of another.

    :param dst: Has an empty chain. For a fork its anon_vma is ``None``, and may become one of
        those that are cloned; else it is ``src``'s.
    :raises OutOfMemory: ``dst`` is left with neither chain nor anon_vma.
    """
    machine = src.mm.machine
    if isinstance(src.lazy, RootVma):
        if lazy.link_root(dst, src):
            return
    elif isinstance(src.lazy, Parent):
        lazy.upgrade_to_clone(dst, src)
    try:
        for avc in src.chain if machine.rules.clone_reverses else reversed(src.chain):
            dst.chain.insert(0, machine.allocate(Avc(dst, avc.anon_vma)))
    except OutOfMemory:
        # Before v7.0 each had gone into its tree at once, and is taken out again.
        for avc in dst.chain:
            machine.free(avc)
        dst.chain.clear()
        dst.anon_vma = None
        raise
    # Before v7.0 each is linked at once.
    if machine.rules.clone_reverses:
        machine.passes("clone listed")
    for avc in reversed(dst.chain):
        avc.anon_vma.tree.insert(avc.rb)
        if fork and dst.anon_vma is None and _is_reusable(avc.anon_vma, src):
            dst.anon_vma = avc.anon_vma
            dst.anon_vma.num_active_vmas += 1
        if machine.rules.clone_reverses:
            with write_locked(avc.anon_vma, src.mm):
                machine.passes("clone in part")
    if not fork and dst.anon_vma is not None:
        dst.anon_vma.num_active_vmas += 1


def _is_reusable(anon_vma: AnonVma, src: Vma) -> bool:
    # An anon_vma whose VMAs are gone may be taken over, or a process that forks all the time
    # would have one more a generation. Never a root: it is its own child, and has another one.
    if anon_vma.machine.rules.reuse_by_degree:
        return anon_vma is not src.anon_vma and anon_vma.degree < 2
    return anon_vma.num_active_vmas == 0 and anon_vma.num_children < 2


def anon_vma_fork(vma: Vma, pvma: Vma, shared: AnonVma | None = None) -> None:
    """``anon_vma_fork()``: a child's VMA gets its parent's anon_vmas, and one of its own.

    :param shared: What it is to have instead of one of its own.
    :raises OutOfMemory: it is left with none.
    """
    if pvma.word is None:
        return
    machine = vma.mm.machine
    lazy.upgrade_to_fork(pvma)
    vma.anon_vma, vma.lazy = shared, None
    anon_vma_clone(vma, pvma, fork=True)
    if shared is not None:
        shared.num_active_vmas += 1
        if all(avc.anon_vma is not shared for avc in vma.chain):
            link(machine.allocate(Avc(vma, shared)))
    if vma.word is not None:
        return
    if machine.lazy_enabled:
        lazy.link_parent(vma, pvma)
        return
    assert pvma.anon_vma is not None
    # Since v7.0 allocated before the clone, and given back where there is one to reuse.
    try:
        anon_vma = machine.allocate(AnonVma(machine))
        try:
            avc = machine.allocate(Avc(vma, anon_vma))
        except OutOfMemory:
            put_anon_vma(anon_vma)
            raise
    except OutOfMemory:
        unlink_anon_vmas(vma)
        raise
    anon_vma.root, anon_vma.parent = pvma.anon_vma.root, pvma.anon_vma
    get_anon_vma(anon_vma.root)
    vma.anon_vma = anon_vma
    anon_vma.num_active_vmas += 1
    link(avc)
    anon_vma.parent.num_children += 1


def unlink_anon_vmas(vma: Vma) -> None:
    """``unlink_anon_vmas()``: take a VMA out of everything."""
    machine = vma.mm.machine
    if lazy.drop(vma):
        machine.passes("unlink dropped")
    for avc in list(vma.chain):
        avc.anon_vma.tree.remove(avc.rb)
        if avc.anon_vma.tree.root is None:
            avc.anon_vma.parent.num_children -= 1
        else:
            _forget(avc)
        with write_locked(avc.anon_vma, vma.mm):
            machine.passes("unlink in part")
    if vma.anon_vma is not None:
        vma.anon_vma.num_active_vmas -= 1
        vma.anon_vma = None
    machine.passes("unlinked")
    for avc in list(vma.chain):
        anon_vma = avc.anon_vma
        # The kernel's VM_WARN_ON.
        assert (anon_vma.num_children, anon_vma.num_active_vmas) == (0, 0)
        put_anon_vma(anon_vma)
        _forget(avc)
        machine.passes("unlinked")


def _forget(avc: Avc) -> None:
    avc.vma.chain.remove(avc)
    avc.vma.mm.machine.free(avc)
