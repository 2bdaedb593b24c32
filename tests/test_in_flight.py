"""Operations half done: what each leaves is explained, and nothing that is not just that.

Each state is made by hand, as the kernel source named in the module that recognises it has it, from
a sound forest. It must be explained as it is; and no more once its lock is not held, is held by no
task, or one more word is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import anonvma_inspect.invariants
from anonvma_inspect.in_flight import Audit, audit, kinds
from anonvma_inspect.invariants.base import Severity
from anonvma_inspect.kernel.era import Era
from anonvma_inspect.kernel.locks import LockState
from anonvma_inspect.kernel.tags import TagScheme
from anonvma_inspect.tables import ObjectState
from anonvma_inspect.target.layouts import Field

from .captures import few_or_all
from .handmade import ERA, PAGE, RAM, AnonVma, Avc, Mm, Model, Task, Vma, without

NO_TASK = RAM + 0x3F00000


@dataclass
class Scene:
    """A state, and what near misses of it are made from.

    :ivar operation: What it is the middle of.
    :ivar codes: The rules that it breaks.
    :ivar locks: Objects whose locks it takes.
    :ivar exits: It is of an mm without users, whoever holds what.
    :ivar counted: An anon_vma whose counts the operation is at work on.
    :ivar warns: The rules that it breaks are warnings.
    """

    model: Model
    operation: str
    codes: set[str]
    locks: list[Mm | AnonVma]
    counted: AnonVma
    exits: Mm | None = None
    readers: list[Mm] = field(default_factory=list)
    waited: AnonVma | None = None
    warns: bool = False


# What the states are made in: the last of these.
_ERAS = [ERA]
DEGREE = without("num_children", "num_active_vmas", degree=56)

STATES: dict[str, Callable[[], Scene]] = {}


def state(function: Callable[[], Scene]) -> Callable[[], Scene]:
    """A state that some operation passes through."""
    STATES[function.__name__] = function
    return function


def lock(task: Task, *objects: Mm | AnonVma) -> None:
    for locked in objects:
        locked.write_locked, locked.lock_owner = True, task.address


def anon_vma_of(vma: Vma) -> AnonVma:
    assert vma.active is not None
    return vma.active


# A process with a mapping, and its child and grandchild, which have copies of it: of chains with
# one, two and three anon_vmas.
def family(era: Era | None = None) -> tuple[Model, list[Mm]]:
    model = Model(era or _ERAS[-1])
    mms = [model.mm("mother")]
    model.fault(model.map(mms[0], 0x100, 8))
    for name in ("child", "grandchild"):
        mms.append(model.fork(mms[-1], name))
    return model, mms


def take_from_tree(avc: Avc) -> None:
    avc.of_anon_vma.tree.remove(avc)


# A child of fork: no task has it yet, and its VMA is not in its tree.
def half_fork(model: Model, parent: Mm) -> tuple[Mm, Vma, Vma]:
    child = model.mm()
    old = parent.vmas[0]
    new = model.map(child, old.vm_start // PAGE, (old.vm_end - old.vm_start) // PAGE, old.vm_pgoff)
    return child, new, old


def finish(model: Model, *unborn: Mm) -> None:
    model.finish()
    for mm in unborn:
        mm.slots, mm.map_count = [], 0


# An anon_vma with one reference, and nothing in its tree: none for finish().
def loose(model: Model, anon_vma: AnonVma, active: int) -> None:
    root = model.anon_vmas[0]
    assert anon_vma.of_parent is not None
    anon_vma.root, anon_vma.parent = root.address, anon_vma.of_parent.address
    anon_vma.refcount, anon_vma.num_children, anon_vma.num_active_vmas = 1, 0, active
    anon_vma.degree = active
    root.refcount += 1
    model.anon_vmas.append(anon_vma)


# A VMA's new anon_vma, which is its own root, before anything of it is in order but its reference.
def loose_root(model: Model, vma: Vma) -> None:
    assert vma.active is not None
    root = vma.active
    root.root = root.parent = vma.anon_vma = root.address
    root.refcount = root.num_children = root.degree = 1
    if root not in model.anon_vmas:
        model.anon_vmas.append(root)


@state
def fork_with_part_of_the_list() -> Scene:
    model, mms = family()
    child, new, old = half_fork(model, mms[2])
    for avc in old.chain[:0:-1]:
        model.link(new, avc.of_anon_vma)
    finish(model, child)
    lock(model.tasks[2], mms[2], child)
    return Scene(model, "fork", {"AV105"}, [child, mms[2]], anon_vma_of(old))


@state
def fork_with_an_avc_in_no_tree() -> Scene:
    scene = fork_with_part_of_the_list()
    model, root = scene.model, anon_vma_of(scene.model.mms[0].vmas[0])
    new = scene.model.mms[-1].vmas[0]
    take_from_tree(new.chain[0])
    finish(model, model.mms[-1])
    lock(model.tasks[2], root)
    scene.codes |= {"AV201"}
    return scene


@state
def fork_whose_own_anon_vma_is_in_no_tree() -> Scene:
    model, mms = family()
    child, new, old = half_fork(model, mms[1])
    model._clone(new, old)
    own = model.new_anon_vma(old.active)
    new.active = own
    model.link(new, own)
    take_from_tree(new.chain[0])
    finish(model, child)
    loose(model, own, active=1)
    lock(model.tasks[1], mms[1], child)
    return Scene(model, "fork", {"AV201"}, [child, mms[1]], anon_vma_of(old))


@state
def unlink_after_the_lock() -> Scene:
    model, mms = family()
    gone = mms[2]
    vma = gone.vmas[0]
    for avc in vma.chain:
        take_from_tree(avc)
    emptied = anon_vma_of(vma)
    vma.chain, vma.active = vma.chain[:1], None
    finish(model)
    loose(model, emptied, active=0)
    model.tasks.pop()
    gone.mm_users = 0
    codes = {"AV105", "AV104", "AV201"}
    return Scene(model, "unlink", codes, [], emptied, exits=gone)


@state
def unlink_whose_anon_vma_is_freed() -> Scene:
    # mremap() that leaves the old mapping without pages: the mm is used on.
    scene = unlink_after_the_lock()
    model, gone = scene.model, scene.counted
    mm = model.mms[2]
    task = model.tasks[1]
    model.tasks.append(Task(model.elsewhere(64), 200, b"grandchild", mm))
    mm.mm_users, scene.exits = 1, None
    gone.refcount = 0
    model.anon_vmas[0].refcount -= 1
    model.states[gone.address] = ObjectState.FREE
    lock(task, mm)
    scene.locks, scene.codes = [mm], {"AV105", "AV104", "AV201", "AV403", "AV503"}
    return scene


@state
def munmap_that_has_marked_vmas() -> Scene:
    model, mms = family()
    vmas = [model.map(mms[0], 0x200 + 4 * n, 4) for n in range(3)]
    active = model.fault(vmas[1])
    finish(model)
    for vma in vmas[:2]:
        vma.attached = False
    lock(model.tasks[0], mms[0])
    return Scene(model, "munmap", {"AV003"}, [mms[0]], active)


@state
def split_before_it_is_in_the_mm() -> Scene:
    model, mms = family()
    old = mms[0].vmas[0]
    model.split(old, 0x104)
    finish(model)
    old.vm_end += 4 * PAGE
    model._finish_tree(anon_vma_of(old))
    mms[0].slots = [(old.vm_start, old.vm_end - 1, old.address)]
    mms[0].map_count = 1
    lock(model.tasks[0], mms[0])
    return Scene(model, "split", {"AV202"}, [mms[0]], anon_vma_of(old))


@state
def counted_after_it_is_stored() -> Scene:
    model, mms = family()
    model.map(mms[0], 0x200, 4)
    finish(model)
    mms[0].map_count -= 1
    lock(model.tasks[0], mms[0])
    return Scene(model, "map_count", {"AV002"}, [mms[0]], anon_vma_of(mms[0].vmas[0]))


@state
def unlink_under_the_lock() -> Scene:
    model, mms = family()
    gone = mms[2]
    vma = gone.vmas[0]
    emptied = anon_vma_of(vma)
    # The first AVC is out, and its anon_vma's parent knows; the others are in.
    take_from_tree(vma.chain[0])
    finish(model)
    loose(model, emptied, active=1)
    root = model.anon_vmas[0]
    task = model.tasks.pop(0)
    model.tasks[-1].mm = mms[0]
    lock(task, root)
    gone.mm_users = 0
    model.tasks.append(task)
    return Scene(model, "unlink", {"AV201"}, [root], emptied, exits=gone)


@state
def unlink_of_which_the_active_one_is_off_the_list() -> Scene:
    model, mms = family()
    gone = mms[1]
    vma = gone.vmas[0]
    active = anon_vma_of(vma)
    take_from_tree(vma.chain.pop(0))
    finish(model)
    task = next(task for task in model.tasks if task.mm is gone)
    task.mm = mms[2]
    gone.mm_users = 0
    root = model.anon_vmas[0]
    lock(task, root)
    return Scene(model, "unlink", {"AV105"}, [root], active, exits=gone)


@state
def unlink_of_a_vma_that_nothing_leads_to() -> Scene:
    model, mms = family()
    finish(model)
    root = model.anon_vmas[0]
    root.num_active_vmas += 1
    root.degree += 1
    lock(model.tasks[0], mms[0], root)
    return Scene(model, "unlink", set(), [root], root)


@state
def adjusting_bounds_without_an_anon_vma() -> Scene:
    model, mms = family()
    vma = model.map(mms[0], 0x200, 4)
    finish(model)
    vma.vm_start += PAGE
    lock(model.tasks[0], mms[0])
    return Scene(model, "vma_adjust", {"AV002"}, [mms[0]], anon_vma_of(mms[0].vmas[0]))


@state
def munmap_of_a_vma_that_is_out_of_the_mm() -> Scene:
    model, mms = family()
    vma = mms[1].vmas[0]
    finish(model)
    mms[1].slots, mms[1].map_count = [], 0
    mms[1].lock_readers = 1
    vma.attached = False
    scene = Scene(model, "munmap", {"AV202"}, [], anon_vma_of(vma))
    scene.readers = [mms[1]]
    return scene


@state
def adjusting_bounds() -> Scene:
    model, mms = family()
    vma = mms[1].vmas[0]
    for avc in vma.chain:
        take_from_tree(avc)
    own = anon_vma_of(vma)
    finish(model)
    vma.vm_end -= PAGE
    root = model.anon_vmas[0]
    lock(model.tasks[1], mms[1], root)
    return Scene(model, "vma_adjust", {"AV002", "AV201"}, [root], own)


@state
def first_fault_before_the_avc() -> Scene:
    model, mms = family()
    vma = model.map(mms[0], 0x200, 4)
    finish(model)
    root = AnonVma(model.elsewhere(96))
    root.root = root.parent = vma.anon_vma = root.address
    root.refcount = root.num_children = root.degree = 1
    model.anon_vmas.append(root)
    lock(model.tasks[0], root)
    mms[0].lock_readers = 1
    return Scene(model, "anon_vma_prepare", {"AV105"}, [root], root, readers=[mms[0]])


@state
def merge_before_the_list() -> Scene:
    model, mms = family()
    vma = mms[0].vmas[0]
    new = model.map(mms[0], 0x108, 4)
    finish(model)
    new.anon_vma = vma.anon_vma
    lock(model.tasks[0], mms[0])
    return Scene(model, "merge", {"AV105"}, [mms[0]], anon_vma_of(vma))


@state
def exit_that_has_left_the_pointer() -> Scene:
    # Before v5.12; told by the red-black tree of VMAs.
    model, mms = family(replace(_ERAS[-1], maple_node=None))
    gone = mms[1]
    vma = model.map(gone, 0x300, 2)
    freed = model.fault(vma)
    take_from_tree(vma.chain.pop())
    vma.active = None
    finish(model)
    vma.anon_vma = freed.root = freed.parent = freed.address
    model.anon_vmas.append(freed)
    model.tasks = [task for task in model.tasks if task.mm is not gone]
    gone.mm_users = 0
    return Scene(model, "exit_mmap", {"AV105"}, [], anon_vma_of(mms[0].vmas[0]), exits=gone)


@state
def walker_that_waits() -> Scene:
    model, _ = family()
    finish(model)
    root = model.anon_vmas[0]
    root.lock_state = LockState.QUEUED
    model.anon_vmas[1].refcount += 1
    scene = Scene(model, "rmap", {"AV404"}, [], model.anon_vmas[1])
    scene.waited = root
    return scene


@state
def page_that_ksmd_merges() -> Scene:
    model, mms = family()
    finish(model)
    vma = mms[1].vmas[0]
    vma.vm_flags |= 1 << 31
    anon_vma_of(vma).refcount += 1
    mms[1].lock_readers = 1
    return Scene(model, "ksm", {"AV404"}, [], anon_vma_of(vma), readers=[mms[1]])


@state
def red_root_while_a_tree_is_repaired() -> Scene:
    model, mms = family()
    finish(model)
    root = model.anon_vmas[0]
    top = next(avc for avc in root.tree if avc.rb == root.rb_root)
    top.rb_parent_color &= ~1
    lock(model.tasks[1], mms[1], root)
    return Scene(model, "rebalance", {"AV203"}, [root], root)


# list_add() of the first AVC: what is behind it, here the head, leads back to it already.
@state
def first_fault_whose_avc_is_half_on_the_list() -> Scene:
    model, mms = family()
    vma = model.map(mms[0], 0x200, 4)
    model.fault(vma)
    new = vma.chain.pop()
    take_from_tree(new)
    finish(model)
    loose_root(model, vma)
    vma.prev = new.node
    mms[0].lock_readers = 1
    lock(model.tasks[0], anon_vma_of(vma))
    counted = anon_vma_of(mms[0].vmas[0])
    return Scene(model, "linking", {"AV101"}, [], counted, readers=[mms[0]])


# list_del() in the first loop of an unlinking: what is behind it leads back past it already.
def unlink_whose_avc_is_half_off_the_list() -> Scene:
    scene = unlink_of_which_the_active_one_is_off_the_list()
    model = scene.model
    vma = model.mms[1].vmas[0]
    gone = next(avc for avc in model.avcs if avc.of_vma is vma and avc not in vma.chain)
    vma.chain.insert(0, gone)
    vma.next, gone.prev, gone.next = gone.node, vma.head, vma.chain[1].node
    return scene


def test_an_avc_that_goes_off_its_list() -> None:
    scene = unlink_whose_avc_is_half_off_the_list()
    result = run(scene.model)
    assert errors(result) == []
    assert set(result.in_flight_counts) == {"linking", "unlink"}
    for locked in scene.locks:
        locked.write_locked = False
    assert scene.exits is not None
    scene.exits.mm_users = 1
    assert "AV101" in errors(run(scene.model))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("words", [1, 2, 3])
def test_an_avc_that_comes_onto_a_list(count: int, words: int) -> None:
    model, mms = family()
    child, new, old = half_fork(model, mms[2])
    for avc in old.chain[: -1 - count : -1]:
        model.link(new, avc.of_anon_vma)
    finish(model, child)
    lock(model.tasks[2], mms[2], child, model.anon_vmas[0])
    tree = old.chain[-1 - count].of_anon_vma
    comes = Avc(model.elsewhere(64), new.address, tree.address, new, tree)
    model.avcs.append(comes)
    first = new.chain[0]
    first.prev = comes.node
    comes.next = first.node if words > 1 else 0
    comes.prev = new.head if words > 2 else 0
    result = run(model)
    assert errors(result) == []
    assert set(result.in_flight_counts) == {"linking", "fork"}
    # What leads to another list's entry is neither coming nor going.
    first.prev = old.chain[0].node
    assert "AV101" in errors(run(model))


# mmap() over a mapping, which it has marked and unlinks, and which the mm's tree has until the end.
def test_an_unlinking_of_what_is_mapped_over() -> None:
    scene = unlink_whose_anon_vma_is_freed()
    scene.model.mms[2].vmas[0].attached = False
    result = run(scene.model)
    assert errors(result) == []
    assert set(result.in_flight_counts) == {"unlink", "munmap"}


# Up to some 6.x, the nodes that a store replaces are marked as dead before that.
def test_a_maple_tree_with_nodes_that_are_about_to_be_replaced() -> None:
    model, mms = family()
    finish(model)
    node = model.elsewhere(256)
    for problem in ("the node has pivots out of order", "the node is dead"):
        model.broken.append((mms[0], node, "maple_node", node | 0xC, problem))
    assert errors(run(model)) == ["AV002", "AV002"]
    lock(model.tasks[0], mms[0])
    assert errors(run(model)) == []
    other = model.elsewhere(256)
    model.broken.append((mms[0], other, "maple_node", other | 0xC, model.broken[0][4]))
    assert errors(run(model)) == ["AV002"]


# A family under ANON_VMA_LAZY, with a child of the child that has its parent's anon_vma.
def lazy_family() -> tuple[Model, list[Mm], Vma]:
    model, mms = family(replace(_ERAS[-1], tags=TagScheme("lazy", "", vma=1, parent=2)))
    mms.append(model.mm("lazy"))
    return model, mms, model.copy_lazily(mms[1].vmas[0], mms[3])


@state
def upgrade_of_a_root_vma() -> Scene:
    model, mms, _ = lazy_family()
    vma = model.map(mms[0], 0x200, 4)
    finish(model)
    root = AnonVma(model.elsewhere(96))
    root.root = root.parent = vma.anon_vma = root.address
    root.refcount = 1
    model.anon_vmas.append(root)
    lock(model.tasks[0], mms[0])
    return Scene(model, "upgrade", {"AV105"}, [mms[0]], root)


@state
def upgrade_of_a_child() -> Scene:
    model, mms, vma = lazy_family()
    own = model.new_anon_vma(mms[1].vmas[0].active)
    finish(model)
    loose(model, own, active=0)
    # The word that was put had a reference; that of the root is yet to come.
    model.anon_vmas[0].refcount -= 1
    anon_vma_of(mms[1].vmas[0]).refcount -= 1
    vma.anon_vma = own.address
    lock(model.tasks[3], mms[3])
    return Scene(model, "upgrade", {"AV105"}, [mms[3]], own)


@state
def upgrade_of_a_child_before_its_reference_is_put() -> Scene:
    scene = upgrade_of_a_child()
    anon_vma_of(scene.model.mms[1].vmas[0]).refcount += 1
    scene.codes |= {"AV404"}
    return scene


@state
def upgrade_of_a_child_before_the_tree() -> Scene:
    model, mms, vma = lazy_family()
    parent = anon_vma_of(mms[1].vmas[0])
    own = model.new_anon_vma(parent)
    vma.lazy, vma.active = None, own
    take_from_tree(model.link(vma, own))
    finish(model)
    loose(model, own, active=0)
    parent.num_children += 1
    parent.degree += 1
    root = model.anon_vmas[0]
    lock(model.tasks[3], mms[3], root)
    return Scene(model, "upgrade", {"AV201"}, [root], own)


@state
def upgrade_of_a_child_before_the_count() -> Scene:
    model, mms, vma = lazy_family()
    own = model.new_anon_vma(mms[1].vmas[0].active)
    vma.lazy, vma.active = None, own
    model.link(vma, own)
    finish(model)
    own.num_active_vmas -= 1
    own.degree -= 1
    root = model.anon_vmas[0]
    lock(model.tasks[3], mms[3], root)
    return Scene(model, "upgrade", set(), [root], own)


@state
def fork_of_a_lazy_child() -> Scene:
    model, mms, _ = lazy_family()
    child, new, old = half_fork(model, mms[1])
    model._clone(new, old)
    new.lazy = old.active
    finish(model, child)
    lock(model.tasks[1], mms[1], child)
    return Scene(model, "fork", {"AV202"}, [child, mms[1]], anon_vma_of(old))


@state
def fork_of_a_lazy_child_before_the_word() -> Scene:
    scene = fork_of_a_lazy_child()
    scene.model.mms[-1].vmas[0].anon_vma = 0
    scene.codes |= {"AV105", "AV404"}
    return scene


@state
def munmap_of_a_lazy_child() -> Scene:
    model, mms, vma = lazy_family()
    finish(model)
    mms[3].slots, mms[3].map_count = [], 0
    mms[3].lock_readers = 1
    vma.attached = False
    counted = anon_vma_of(mms[1].vmas[0])
    return Scene(model, "munmap", {"AV202"}, [], counted, readers=[mms[3]])


@state
def adjusting_bounds_of_a_lazy_child() -> Scene:
    model, mms, vma = lazy_family()
    for avc in vma.chain:
        take_from_tree(avc)
    finish(model)
    vma.vm_end -= PAGE
    root = model.anon_vmas[0]
    lock(model.tasks[3], mms[3], root)
    counted = anon_vma_of(mms[1].vmas[0])
    return Scene(model, "vma_adjust", {"AV002", "AV201"}, [root], counted)


@state
def adjusting_bounds_of_an_unfaulted_vma() -> Scene:
    model, mms = family(replace(_ERAS[-1], tags=TagScheme("unfaulted", "", unfaulted=1)))
    vma = model.map(mms[0], 0x200, 4)
    vma.unfaulted = True
    finish(model)
    vma.vm_start += PAGE
    lock(model.tasks[0], mms[0])
    return Scene(model, "vma_adjust", {"AV002"}, [mms[0]], anon_vma_of(mms[0].vmas[0]))


@state
def first_fault_of_an_unfaulted_vma() -> Scene:
    scene = first_fault_before_the_avc()
    scene.model.era = replace(scene.model.era, tags=TagScheme("unfaulted", "", unfaulted=1))
    other = scene.model.map(scene.model.mms[0], 0x300, 4)
    other.anon_vma = 1
    other.next = other.prev = other.head
    scene.model.mms[0].slots.append((other.vm_start, other.vm_end - 1, other.address))
    scene.model.mms[0].map_count += 1
    return scene


@state
def unlink_of_a_lazy_child() -> Scene:
    model, mms, vma = lazy_family()
    finish(model)
    vma.anon_vma = 0
    model.tasks.pop()
    mms[3].mm_users = 0
    return Scene(model, "unlink", {"AV105"}, [], anon_vma_of(mms[1].vmas[0]), exits=mms[3])


# Likewise with the count of references to root VMAs, and two VMAs that have the first one as
# theirs; and a VMA with nothing.
def counting_family() -> tuple[Model, Mm]:
    model, mms, _ = lazy_family()
    fields = {**model.era.vma.fields, "root_refs": Field(48, 4, "integer", "int", signed=True)}
    vma = replace(model.era.vma, fields=fields)
    model.era = replace(model.era, vma=vma)
    first = model.map(mms[0], 0x200, 4)
    model.fault_lazily(first)
    for page in (0x210, 0x220):
        model.fault_lazily(model.map(mms[0], page, 4), first)
    model.map(mms[0], 0x230, 4)
    return model, mms[0]


@state
def first_fault_before_the_word_of_a_root_vma() -> Scene:
    model, mm = counting_family()
    finish(model)
    mm.vmas[-1].root_refs += 1
    mm.lock_readers = 1
    return Scene(model, "root_refs", {"AV610"}, [], anon_vma_of(mm.vmas[0]), readers=[mm])


@state
def munmap_of_vmas_that_have_a_root_vma() -> Scene:
    model, mm = counting_family()
    finish(model)
    model.vmas = [vma for vma in model.vmas if vma not in mm.vmas[2:4]]
    del mm.vmas[2:4], mm.slots[2:4]
    mm.map_count -= 2
    mm.lock_readers = 1
    return Scene(model, "root_refs", {"AV610"}, [], anon_vma_of(mm.vmas[0]), readers=[mm])


@state
def munmap_of_a_root_vma_before_it_is_put() -> Scene:
    model, mm = counting_family()
    root = mm.vmas[1]
    model.unmap(mm, root)
    finish(model)
    root.root_refs += 1
    mm.lock_readers = 1
    return Scene(model, "root_refs", {"AV610"}, [], anon_vma_of(mm.vmas[0]), readers=[mm])


# The reference is put last of all, when folios lead to the anon_vma: what is beside it is whole.
@state
def upgrade_before_the_reference_to_the_root_vma_is_put() -> Scene:
    model, mm = counting_family()
    vma = mm.vmas[2]
    vma.lazy = None
    model.fault(vma)
    finish(model)
    mm.vmas[1].root_refs += 1
    mm.lock_readers = 0
    lock(model.tasks[0], mm)
    counted = anon_vma_of(vma)
    return Scene(model, "root_refs", {"AV610"}, [mm], counted, warns=True)


# dup_anon_vma() copies the word, then anon_vma_clone() takes the reference.
@state
def merge_before_the_reference_to_the_root_vma() -> Scene:
    model, mm = counting_family()
    model.fault_lazily(mm.vmas[-1], mm.vmas[1])
    finish(model)
    mm.vmas[1].root_refs -= 1
    lock(model.tasks[0], mm)
    return Scene(model, "merge", {"AV608"}, [mm], anon_vma_of(mm.vmas[0]))


@state
def upgrade_with_a_root_vma_that_has_its_reference_still() -> Scene:
    model, mm = counting_family()
    vma = mm.vmas[2]
    finish(model)
    root = AnonVma(model.elsewhere(96))
    root.root = root.parent = vma.anon_vma = root.address
    root.refcount = 1
    model.anon_vmas.append(root)
    lock(model.tasks[0], mm)
    return Scene(model, "upgrade", {"AV105"}, [mm], root)


def run(model: Model) -> Audit:
    result = audit(model.tables())
    for failed in result.failures:
        assert failed.error is not None
        raise failed.error
    return result


def errors(result: Audit) -> list[str]:
    return [f.code for f in result.findings() if f.severity is Severity.ERROR]


@pytest.fixture(params=sorted(STATES))
def scene(request: pytest.FixtureRequest) -> Scene:
    return STATES[request.param]()


def test_it_is_explained(scene: Scene) -> None:
    result = run(scene.model)
    assert [f.code for f in result.findings()] == []
    assert {state.finding.code for state in result.in_flight()} >= scene.codes
    assert set(result.in_flight_counts) == {scene.operation}


@pytest.mark.parametrize("name", sorted(STATES))
def test_where_one_counter_has_both(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}._ERAS", [DEGREE])
    scene = STATES[name]()
    result = run(scene.model)
    assert [f.code for f in result.findings()] == []
    assert set(result.in_flight_counts) == {scene.operation}
    scene.counted.degree += 7
    assert list(run(scene.model).findings())


def test_not_without_its_lock(scene: Scene) -> None:
    for locked in scene.locks:
        locked.write_locked = False
    for mm in scene.readers:
        mm.lock_readers = 0
    if scene.waited is not None:
        scene.waited.lock_state = LockState.IDLE
    if scene.exits is not None:
        scene.exits.mm_users = 1
    assert list(run(scene.model).findings())


def test_not_if_no_task_holds_the_lock(scene: Scene) -> None:
    if not scene.locks:
        pytest.skip("nobody holds it for write")
    for locked in scene.locks:
        locked.lock_owner = NO_TASK
    result = run(scene.model)
    assert list(result.findings()) if scene.warns else errors(result)


@pytest.mark.parametrize("word", ["num_children", "num_active_vmas", "refcount"])
def test_not_more_than_that(scene: Scene, word: str) -> None:
    setattr(scene.counted, word, getattr(scene.counted, word) + 7)
    assert list(run(scene.model).findings())


def test_a_root_vma_that_lacks_more_than_a_merge_takes() -> None:
    scene = merge_before_the_reference_to_the_root_vma()
    scene.model.mms[0].vmas[1].root_refs -= 1
    assert errors(run(scene.model)) == ["AV608"]


def test_mms_that_were_not_walked() -> None:
    # Of one process alone: of the others, only what is in its families' trees is known.
    scene = fork_with_part_of_the_list()
    for mm in scene.model.mms[1:]:
        mm.walked = False
    result = run(scene.model)
    assert [f.code for f in result.findings()] == []
    assert set(result.in_flight_counts) == {"fork"}


def test_two_states_of_one_anon_vma() -> None:
    scene = unlink_of_a_vma_that_nothing_leads_to()
    root = scene.model.anon_vmas[0]
    top = next(avc for avc in root.tree if avc.rb == root.rb_root)
    top.rb_parent_color &= ~1
    result = run(scene.model)
    assert [f.code for f in result.findings()] == []
    assert set(result.in_flight_counts) == {"unlink", "rebalance"}


def test_the_documentation_names_each() -> None:
    text = (Path(__file__).parent.parent / "docs" / "in-flight.md").read_text()
    named = set(re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\| (`[^|]*) \|", text, re.M))))
    made = {make().operation for make in STATES.values()}
    assert named == {"operation", "mremap"} | made


def test_kinds_are_messages_of_rules() -> None:
    directory = Path(anonvma_inspect.invariants.__file__).parent
    source = re.sub(r'"\s+f?"', "", "".join(path.read_text() for path in directory.glob("*.py")))
    # Those that a rule makes of a name and the rest.
    made = ("rb_left of", "rb_right of", "a anon_vma that", "anon_vma points to", "prev ")
    for name in kinds.__all__:
        for message in getattr(kinds, name):
            assert message in source or message.startswith(made), message


WILD = 0x4141414141414148
WORDS = {
    Vma: ("anon_vma", "next", "prev", "vm_mm", "vm_start"),
    Avc: ("vma", "anon_vma", "next", "prev", "rb_parent_color", "rb_subtree_last"),
    AnonVma: ("root", "parent", "refcount", "num_children", "num_active_vmas"),
}


# Every word of every object, but for those that nobody reads: where an AVC that is in no tree was
# or will be in it, what an empty tree's parent was, and what an mm without users still has or
# points to. (Of a VMA that no mm has, the mm is asked for before it is taken for one.)
def words_of(model: Model, exits: Mm | None) -> list[tuple[Vma | Avc | AnonVma, str]]:
    words: list[tuple[Vma | Avc | AnonVma, str]] = []
    for objects in (model.vmas, model.avcs, model.anon_vmas):
        for target in objects:
            if isinstance(target, Avc) and target not in target.of_vma.chain:
                continue
            if isinstance(target, AnonVma) and exits is not None and not target.refcount:
                continue
            if isinstance(target, Vma):
                slots = [slot[2] for mm in model.mms for slot in mm.slots]
                names = [name for name in WORDS[Vma] if name[:3] != "vm_"]
                if target.address in slots and exits is None:
                    names += ["vm_mm", "vm_start"]
                words += [(target, name) for name in names]
            elif isinstance(target, Avc) and target not in target.of_anon_vma.tree:
                words += [(target, name) for name in WORDS[Avc] if not name.startswith("rb")]
            elif isinstance(target, AnonVma) and not target.rb_root:
                words += [(target, name) for name in WORDS[AnonVma] if name != "parent"]
            else:
                words += [(target, name) for name in WORDS[type(target)]]
    return words


@pytest.mark.parametrize("name", sorted(STATES))
def test_not_one_more_word(name: str) -> None:
    scene = STATES[name]()
    missed = []
    every = few_or_all(3, 1)
    first = sorted(STATES).index(name) % every
    for target, word in words_of(scene.model, scene.exits)[first::every]:
        old = getattr(target, word)
        counter = "num_" in word or word == "refcount"
        setattr(target, word, old + 7 if counter else WILD)
        if not list(run(scene.model).findings()):
            missed.append((type(target).__name__, hex(target.address), word))
        setattr(target, word, old)
    assert missed == []
