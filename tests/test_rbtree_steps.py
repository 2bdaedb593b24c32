"""A tree that is caught between any two words of an insertion or a removal is no finding."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from anonvma_inspect.in_flight import audit
from anonvma_inspect.invariants import catalogue
from anonvma_inspect.invariants.base import Severity

from . import rbtree_steps
from .captures import few_or_all
from .handmade import PAGE, Avc, Mm, Model
from .test_in_flight import NO_TASK, lock

#: The model after each word, and what was done last.
States = Iterator[tuple[Model, str]]


# A process whose mapping is cut into parts of different lengths, and its child.
def family(parts: int) -> tuple[Model, Mm, Mm]:
    model = Model()
    mother = model.mm("mother")
    rest = model.map(mother, 0x100, 3 * parts)
    model.fault(rest)
    for part in range(1, parts):
        rest = model.split(rest, 0x100 + 3 * part - part % 3)
    return model, mother, model.fork(mother, "child")


# Trees as they come to be, not as flat as can be: some AVCs were taken out, and put in again.
def finish(model: Model, source: random.Random) -> None:
    model.finish()
    for tree in model.anon_vmas:
        for avc in source.sample(tree.tree, len(tree.tree) // 2):
            for change in (rbtree_steps.remove, rbtree_steps.insert):
                for _ in change(tree, avc):
                    pass


# munmap() has taken a VMA out of its mm, and takes its AVCs out of their trees.
def unmapping(parts: int, which: int, generation: int, source: random.Random) -> States:
    model, *mms = family(parts)
    mm = mms[generation]
    vma = sorted(mm.vmas, key=lambda each: each.vm_start)[which]
    finish(model, source)
    mm.slots = [slot for slot in mm.slots if slot[2] != vma.address]
    mm.map_count -= 1
    vma.attached = False
    lock(model.tasks[generation], mm, model.anon_vmas[0])
    for avc in list(vma.chain):
        tree = avc.of_anon_vma
        for step, _ in enumerate(rbtree_steps.remove(tree, avc)):
            yield model, f"removal from {tree.address:#x}, step {step}"
        tree.tree.remove(avc)
        if not tree.tree:
            # It stays on the list, for the second loop.
            yield model, "empty"
            model.anon_vmas[0].num_children -= 1
            yield model, "no child any more"
            continue
        vma.chain.remove(avc)
        model.avcs.remove(avc)
        model.finish_list(vma)
        yield model, "off the list"


# vma_prepare() takes it out of the trees, vma_complete() puts it back with other bounds.
def adjusting(parts: int, which: int, source: random.Random) -> States:
    model, mother, _ = family(parts)
    vma = sorted(mother.vmas, key=lambda each: each.vm_start)[which]
    finish(model, source)
    lock(model.tasks[0], mother, model.anon_vmas[0])
    (avc,) = vma.chain
    tree = avc.of_anon_vma
    for step, _ in enumerate(rbtree_steps.remove(tree, avc)):
        yield model, f"removal, step {step}"
    tree.tree.remove(avc)
    yield model, "removed"
    vma.vm_end -= PAGE
    yield model, "smaller"
    mother.slots = [(each.vm_start, each.vm_end - 1, each.address) for each in mother.vmas]
    for step, _ in enumerate(rbtree_steps.insert(tree, avc)):
        yield model, f"insertion, step {step}"


# anon_vma_clone() puts the AVCs of a child's VMA into the trees of its parent's anon_vmas.
def forking(parts: int, which: int, generation: int, source: random.Random) -> States:
    model, *mms = family(parts)
    mm = mms[generation]
    old = sorted(mm.vmas, key=lambda each: each.vm_start)[which]
    grandchild = model.mm()
    pages = (old.vm_end - old.vm_start) // PAGE
    new = model.map(grandchild, old.vm_start // PAGE, pages, old.vm_pgoff)
    finish(model, source)
    grandchild.slots, grandchild.map_count = [], 0
    lock(model.tasks[generation], mm, grandchild, model.anon_vmas[0])
    for link in reversed(old.chain):
        tree = link.of_anon_vma
        # From kmem_cache_alloc(), with what was there before.
        avc = Avc(model.elsewhere(64), new.address, tree.address, new, tree)
        avc.rb_parent_color, avc.rb_left, avc.rb_right = 0x6B6B, 0x6B6B6B6B, mm.address
        model.avcs.append(avc)
        new.chain.insert(0, avc)
        model.finish_list(new)
        yield model, "on the list"
        for step, _ in enumerate(rbtree_steps.insert(tree, avc)):
            yield model, f"insertion into {tree.address:#x}, step {step}"
        tree.tree.append(avc)


# The last VMA of a child that exits, and the last AVC on its list: when that is out of its tree,
# nothing leads to the VMA any more, nor to the anon_vma that only the child had.
def exiting(parts: int, which: int, source: random.Random) -> States:
    model, mother, child = family(parts)
    vmas = sorted(child.vmas, key=lambda each: each.vm_start)
    vma = vmas.pop(which)
    for gone in vmas:
        for avc in gone.chain:
            avc.of_anon_vma.tree.remove(avc)
            model.avcs.remove(avc)
        child.vmas.remove(gone)
        model.vmas.remove(gone)
    finish(model, source)
    root = model.anon_vmas[0]
    # Whoever does it has another mm now, or none.
    lock(model.tasks[1], root)
    model.tasks[1].mm = mother
    child.mm_users = 0
    own, last = vma.chain
    for step, _ in enumerate(rbtree_steps.remove(own.of_anon_vma, own)):
        yield model, f"removal from its own, step {step}"
    own.of_anon_vma.tree.remove(own)
    yield model, "out of its own"
    root.num_children -= 1
    yield model, "no child any more"
    for step, _ in enumerate(rbtree_steps.remove(root, last)):
        yield model, f"removal, step {step}"


def errors(states: States) -> list[tuple[str, str, str]]:
    wrong = []
    for model, name in states:
        result = audit(model.tables())
        assert not result.failures
        wrong += [
            (name, finding.code, finding.message)
            for finding in result.findings()
            if finding.severity is Severity.ERROR
        ]
    return wrong


MAKERS: dict[str, Callable[[int, int, random.Random], States]] = {
    "munmap": lambda parts, which, source: unmapping(parts, which, 0, source),
    "munmap of a child": lambda parts, which, source: unmapping(parts, which, 1, source),
    "vma_adjust": adjusting,
    "fork": lambda parts, which, source: forking(parts, which, 0, source),
    "fork of a child": lambda parts, which, source: forking(parts, which, 1, source),
    "exit": exiting,
}


@pytest.mark.parametrize("operation", sorted(MAKERS))
@pytest.mark.parametrize("seed", range(few_or_all(1, 6)))
def test_between_any_two_words(operation: str, seed: int) -> None:
    source = random.Random(f"{operation} {seed}")
    parts = source.randrange(5, 16)
    for which in source.sample(range(parts), few_or_all(3, parts)):
        assert errors(MAKERS[operation](parts, which, source)) == []


# What is called an insertion or a removal must be one: the tree that these end with is as the
# kernel's, a red-black tree of all that is in it.
def test_the_steps_end_with_a_tree_in_order() -> None:
    source = random.Random(1)
    for parts in range(2, 14):
        model, *_ = family(parts)
        finish(model, source)
        result = audit(model.tables())
        assert list(result.findings()) == []
        assert not result.in_flight_total


# The same states, when the root's lock is held by no task that there is.
@pytest.mark.parametrize("operation", sorted(MAKERS))
def test_not_if_nobody_holds_the_lock(operation: str) -> None:
    source = random.Random(operation)
    shape = {"AV203", "AV205", "AV206"}
    for which in range(9):
        for model, _ in MAKERS[operation](9, which, source):
            root = model.anon_vmas[0]
            owner, root.lock_owner = root.lock_owner, NO_TASK
            found = catalogue.audit(model.tables()).findings()
            broken = [finding.code for finding in found if finding.code in shape]
            if broken:
                told = [finding.code for finding in audit(model.tables()).findings()]
                assert [code for code in told if code in shape] == broken
                return
            root.lock_owner = owner
    pytest.fail("nothing was broken in any of these states")
