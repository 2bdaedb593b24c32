"""``mm/rmap.c``: how VMAs come by their anon_vmas, and lose them."""

from __future__ import annotations

from .objects import AnonVma, Avc, Flag, OutOfMemory, Vma, continues

__all__ = (
    "anon_vma_clone",
    "anon_vma_fork",
    "anon_vma_prepare",
    "get_anon_vma",
    "put_anon_vma",
    "unlink_anon_vmas",
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


def _link(avc: Avc) -> None:
    # anon_vma_chain_assign() and anon_vma_interval_tree_insert().
    avc.vma.chain.insert(0, avc)
    avc.anon_vma.tree.insert(avc.rb)


def anon_vma_prepare(vma: Vma) -> None:
    """``__anon_vma_prepare()``: the first write to a private mapping is about to be done."""
    if vma.anon_vma is not None:
        return
    machine = vma.mm.machine
    anon_vma = _find_mergeable(vma)
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
    vma.anon_vma = anon_vma
    _link(avc)
    anon_vma.num_active_vmas += 1


def _find_mergeable(vma: Vma) -> AnonVma | None:
    # find_mergeable_anon_vma(), mm/mmap.c, since v6.12 mm/vma.c. Only a neighbour that has
    # nothing of another process shares what it has.
    after, before = vma.mm.find(vma.end), vma.mm.before(vma.start)
    for old, low, high in ((after, vma, after), (before, before, vma)):
        if low is None or high is None or old is None or not _are_compatible(low, high):
            continue
        if old.anon_vma is not None and len(old.chain) == 1:
            return old.anon_vma
    return None


def _are_compatible(low: Vma, high: Vma) -> bool:
    # anon_vma_compatible(): but for the protection as if of one mapping.
    return (
        low.file == high.file
        and (low.flags ^ high.flags) & ~Flag.ACCESS == 0
        and continues(low, high, anon=low.mm.machine.rules.anon_pgoff_is_key)
    )


def anon_vma_clone(dst: Vma, src: Vma, *, fork: bool = False) -> None:
    """``anon_vma_clone()``: give one VMA all anon_vmas of another.

    :param dst: Has an empty chain. For a fork its anon_vma is ``None``, and may become one of
        those that are cloned; else it is ``src``'s.
    :raises OutOfMemory: ``dst`` is left with neither chain nor anon_vma.
    """
    machine = src.mm.machine
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
    for avc in reversed(dst.chain):
        avc.anon_vma.tree.insert(avc.rb)
        if fork and dst.anon_vma is None and _is_reusable(avc.anon_vma, src):
            dst.anon_vma = avc.anon_vma
    if dst.anon_vma is not None:
        dst.anon_vma.num_active_vmas += 1


def _is_reusable(anon_vma: AnonVma, src: Vma) -> bool:
    # An anon_vma whose VMAs are gone may be taken over, or a process that forks all the time
    # would have one more a generation. Never a root: it is its own child, and has another one.
    if anon_vma.machine.rules.reuse_by_degree:
        return anon_vma is not src.anon_vma and anon_vma.degree < 2
    return anon_vma.num_active_vmas == 0 and anon_vma.num_children < 2


def anon_vma_fork(vma: Vma, pvma: Vma) -> None:
    """``anon_vma_fork()``: a child's VMA gets its parent's anon_vmas, and one of its own.

    :raises OutOfMemory: it is left with none.
    """
    if pvma.anon_vma is None:
        return
    machine = vma.mm.machine
    vma.anon_vma = None
    anon_vma_clone(vma, pvma, fork=True)
    if vma.anon_vma is not None:
        return
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
    _link(avc)
    anon_vma.parent.num_children += 1


def unlink_anon_vmas(vma: Vma) -> None:
    """``unlink_anon_vmas()``: take a VMA out of everything."""
    machine = vma.mm.machine
    emptied = []
    for avc in vma.chain:
        avc.anon_vma.tree.remove(avc.rb)
        if avc.anon_vma.tree.root is None:
            avc.anon_vma.parent.num_children -= 1
            emptied.append(avc.anon_vma)
        machine.free(avc)
    vma.chain.clear()
    if vma.anon_vma is not None:
        vma.anon_vma.num_active_vmas -= 1
        vma.anon_vma = None
    for anon_vma in emptied:
        assert (anon_vma.num_children, anon_vma.num_active_vmas) == (
            0,
            0,
        )  # the kernel's VM_WARN_ON
        put_anon_vma(anon_vma)
