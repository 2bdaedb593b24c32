"""Each invariant finds just the object that is broken, and nothing in what is whole.

The tables are made by hand (``handmade.forest``); each case breaks one word of them, and names all
findings that this must bring: code, object, what is expected and what is there.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from anonvma_inspect.invariants.base import Finding
from anonvma_inspect.invariants.catalogue import Audit, audit
from anonvma_inspect.kernel.locks import LockState
from anonvma_inspect.tables import ChainEnd, ObjectState

from .handmade import (
    CACHES,
    NO_SLAB,
    OTHER_SLAB,
    PAGE,
    RAM,
    SLAB_OF,
    VARIABLES,
    VMEMMAP,
    AnonVma,
    Avc,
    Mm,
    Model,
    RmapItem,
    StableNode,
    Vma,
    forest,
    without,
)

WILD = 0x4141414141414148
POISON_NEXT, POISON_PREV = 0xDEAD000000000100, 0xDEAD000000000122
UNSTABLE = 1 << 22

Object = Mm | Vma | Avc | AnonVma | RmapItem | StableNode
Expected = tuple[str, Object | int, str, str]
Break = Callable[[Model], list[Expected]]

CASES: dict[str, Break] = {}


def case(function: Break) -> Break:
    """A way to break a sound forest, and the findings that it must bring."""
    CASES[function.__name__] = function
    return function


def run(model: Model) -> Audit:
    result = audit(model.tables())
    for failed in result.failures:
        assert failed.error is not None
        raise failed.error
    return result


def found(model: Model) -> list[Finding]:
    return list(run(model).findings())


def key(finding: Finding) -> tuple[str, int, str, str]:
    return finding.code, finding.object_address, finding.expected, finding.actual


def address(object_: Object | int) -> int:
    return object_ if isinstance(object_, int) else object_.address


# ---- who is who in the forest


def init(model: Model) -> Mm:
    return model.mms[0]


def piece(model: Model, number: int, mm: int = 0) -> Vma:
    """One of the twelve pieces of the heap, in one of the four processes."""
    return model.mms[mm].vmas[number]


def idle(model: Model) -> Vma:
    return init(model).vmas[12]


def file(model: Model) -> Vma:
    return init(model).vmas[13]


def gone(model: Model) -> tuple[AnonVma, AnonVma]:
    """What KSM alone holds: a root and its child."""
    _, root, child = (item.of_anon_vma for item in model.stable_nodes[0].items)
    return root, child


def root_of(vma: Vma) -> AnonVma:
    return vma.chain[-1].of_anon_vma


def own(vma: Vma) -> AnonVma:
    assert vma.active is not None
    return vma.active


def avc_at(model: Model, rb: int) -> Avc:
    return next(avc for avc in model.avcs if avc.rb == rb)


def top(model: Model, anon_vma: AnonVma) -> Avc:
    return avc_at(model, anon_vma.rb_root)


def lowest(model: Model, anon_vma: AnonVma) -> Avc:
    """The first node of a tree that is as deep as can be: a red leaf."""
    avc = top(model, anon_vma)
    while avc.rb_left:
        avc = avc_at(model, avc.rb_left)
    assert not avc.rb_parent_color & 1
    return avc


def above(model: Model, avc: Avc) -> Avc:
    return avc_at(model, avc.rb_parent_color & ~3)


# ---- AV001


@case
def vma_of_another_mm(model: Model) -> list[Expected]:
    vma, other = piece(model, 3), model.mms[1]
    vma.vm_mm = other.address
    return [("AV001", vma, hex(init(model).address), hex(other.address))]


@case
def vma_of_no_mm(model: Model) -> list[Expected]:
    vma = idle(model)
    vma.vm_mm = WILD
    return [("AV001", vma, hex(init(model).address), hex(WILD))]


@case
def entry_of_another_mm(model: Model) -> list[Expected]:
    mm, lost, guest = init(model), idle(model), idle(model).address
    guest = model.mms[1].vmas[12].address
    mm.slots[12] = (lost.vm_start, lost.vm_end - 1, guest)
    return [("AV001", mm, "VMAs of this mm", hex(guest))]


@case
def wild_mm_of_a_task(model: Model) -> list[Expected]:
    model.broken.append((None, RAM + 0x40, "task_struct", WILD, "mm is wild"))
    return [("AV001", RAM + 0x40, "a pointer that leads on", hex(WILD))]


# ---- AV002


@case
def start_moved(model: Model) -> list[Expected]:
    vma = idle(model)
    vma.vm_start += PAGE
    return [("AV002", vma, hex(vma.vm_start - PAGE), hex(vma.vm_start))]


@case
def end_moved(model: Model) -> list[Expected]:
    vma = idle(model)
    vma.vm_end ^= 1 << 40
    return [("AV002", vma, hex(vma.vm_end ^ (1 << 40)), hex(vma.vm_end))]


@case
def neighbours_divided(model: Model) -> list[Expected]:
    mm = init(model)
    (first, last, one), (_, end, two) = mm.slots[3:5]
    mm.slots[3:5] = [(first, last + PAGE, one), (last + PAGE + 1, end, two)]
    return [("AV002", mm, hex(last + 1), hex(last + 1 + PAGE))]


@case
def entry_twice(model: Model) -> list[Expected]:
    mm, vma = init(model), piece(model, 0)
    mm.slots[12] = (*mm.slots[12][:2], vma.address)
    return [("AV002", mm, hex(vma.vm_start), hex(mm.slots[12][0]))]


@case
def ragged(model: Model) -> list[Expected]:
    mm, vma = init(model), idle(model)
    vma.vm_end -= 8
    mm.slots[12] = (vma.vm_start, vma.vm_end - 1, vma.address)
    text = f"{vma.vm_start:#x}-{vma.vm_end:#x}"
    return [("AV002", vma, "a multiple of the page size", text)]


@case
def void(model: Model) -> list[Expected]:
    mm, vma = init(model), idle(model)
    vma.vm_end = vma.vm_start
    mm.slots[12] = (vma.vm_start, vma.vm_end - 1, vma.address)
    text = f"{vma.vm_start:#x}-{vma.vm_end:#x}"
    return [("AV002", vma, "vm_start < vm_end", text)]


@case
def map_count(model: Model) -> list[Expected]:
    init(model).map_count -= 1
    return [("AV002", init(model), "14", "13")]


@case
def wild_maple_node(model: Model) -> list[Expected]:
    mm, node = init(model), RAM + 0x100
    mm.whole = False
    model.broken.append((mm, node, "maple_node", WILD, "a pointer to a node is wild"))
    model.broken.append((mm, 0, "maple_tree", WILD, "ma_root is no node"))
    return [
        ("AV002", node, "a pointer that leads on", hex(WILD)),
        ("AV002", mm, "a pointer that leads on", hex(WILD)),
    ]


# ---- AV101


@case
def next_skips_one(model: Model) -> list[Expected]:
    one, two, three = piece(model, 5, mm=2).chain
    one.next = three.node
    return [("AV101", one, hex(two.node), hex(three.node))]


@case
def next_ends_early(model: Model) -> list[Expected]:
    vma = piece(model, 5, mm=2)
    one, two, _ = vma.chain
    one.next = vma.head
    return [("AV101", one, hex(two.node), hex(vma.head))]


@case
def next_goes_round(model: Model) -> list[Expected]:
    vma = piece(model, 5, mm=2)
    one, _, three = vma.chain
    three.next = one.node
    return [("AV101", three, hex(vma.head), hex(one.node))]


@case
def next_leads_to_itself(model: Model) -> list[Expected]:
    one, two, _ = piece(model, 5, mm=2).chain
    one.next = one.node
    return [("AV101", one, hex(two.node), hex(one.node))]


@case
def next_of_another_list(model: Model) -> list[Expected]:
    one, two, _ = piece(model, 5, mm=2).chain
    other = piece(model, 6, mm=2).chain[1]
    one.next = other.node
    return [("AV101", one, hex(two.node), hex(other.node))]


@case
def next_wild(model: Model) -> list[Expected]:
    one, two, _ = piece(model, 5, mm=2).chain
    one.next = WILD
    return [("AV101", one, hex(two.node), hex(WILD))]


@case
def next_null(model: Model) -> list[Expected]:
    one, two, _ = piece(model, 5, mm=2).chain
    one.next = 0
    return [("AV101", one, hex(two.node), "0x0")]


@case
def next_poisoned(model: Model) -> list[Expected]:
    vma = piece(model, 5, mm=2)
    three = vma.chain[2]
    three.next = POISON_NEXT
    return [("AV101", three, hex(vma.head), hex(POISON_NEXT))]


@case
def next_to_a_stranger(model: Model) -> list[Expected]:
    # In RAM, but no AVC.
    one, two, _ = piece(model, 5, mm=2).chain
    one.next = model.mms[0].address
    return [("AV101", one, hex(two.node), hex(one.next))]


@case
def prev_of_another_list(model: Model) -> list[Expected]:
    one, two, _ = piece(model, 5, mm=2).chain
    two.prev = piece(model, 6, mm=2).chain[0].node
    return [("AV101", two, hex(one.node), hex(two.prev))]


@case
def prev_poisoned(model: Model) -> list[Expected]:
    one, two, _ = piece(model, 5, mm=2).chain
    two.prev = POISON_PREV
    return [("AV101", two, hex(one.node), hex(POISON_PREV))]


@case
def prev_wild(model: Model) -> list[Expected]:
    vma = piece(model, 5)
    vma.chain[0].prev = WILD
    return [("AV101", vma.chain[0], hex(vma.head), hex(WILD))]


@case
def head_next_to_itself(model: Model) -> list[Expected]:
    vma = piece(model, 5)
    vma.next = vma.head
    return [("AV101", vma, hex(vma.chain[0].node), hex(vma.head))]


@case
def head_next_wild(model: Model) -> list[Expected]:
    vma = piece(model, 5)
    vma.next = WILD
    return [("AV101", vma, hex(vma.chain[0].node), hex(WILD))]


@case
def head_prev_wild(model: Model) -> list[Expected]:
    vma = piece(model, 5, mm=2)
    vma.prev = WILD
    return [("AV101", vma, hex(vma.chain[-1].node), hex(WILD))]


@case
def head_prev_too_early(model: Model) -> list[Expected]:
    vma = piece(model, 5, mm=2)
    vma.prev = vma.chain[0].node
    return [("AV101", vma, hex(vma.chain[-1].node), hex(vma.chain[0].node))]


@case
def empty_head_next_null(model: Model) -> list[Expected]:
    vma = idle(model)
    vma.next = 0
    return [("AV101", vma, hex(vma.head), "0x0")]


@case
def empty_head_prev_null(model: Model) -> list[Expected]:
    vma = idle(model)
    vma.prev = 0
    return [("AV101", vma, hex(vma.head), "0x0")]


# ---- AV102


@case
def owner_is_another_vma(model: Model) -> list[Expected]:
    vma, other = piece(model, 5, mm=2), piece(model, 6, mm=2)
    vma.chain[1].vma = other.address
    return [("AV102", vma.chain[1], hex(vma.address), hex(other.address))]


@case
def owner_is_wild(model: Model) -> list[Expected]:
    vma = piece(model, 5)
    vma.chain[0].vma = WILD
    return [("AV102", vma.chain[0], hex(vma.address), hex(WILD))]


# ---- AV103


@case
def two_avcs_of_a_pair(model: Model) -> list[Expected]:
    # As if a chain had been copied into one that was not empty.
    vma = piece(model, 5, mm=1)
    twin = model.link(vma, root_of(vma))
    model.finish()
    first = vma.chain[-1]
    assert first is not twin
    return [
        (
            "AV103",
            first,
            "an anon_vma that is not in the chain yet",
            hex(root_of(vma).address),
        )
    ]


# ---- AV104


@case
def root_in_another_family(model: Model) -> list[Expected]:
    anon_vma, other = own(piece(model, 5, mm=1)), own(file(model))
    right = anon_vma.root
    anon_vma.root = other.address
    return [
        ("AV104", anon_vma, hex(right), hex(other.address)),
        ("AV302", anon_vma, hex(right), hex(other.address)),
    ]


@case
def chain_without_its_root(model: Model) -> list[Expected]:
    # Unlinked from the list and from the tree, as if the clone had left it out.
    expected: list[Expected] = []
    for vma in (piece(model, 5, mm=1), piece(model, 6, mm=2)):
        avc = vma.chain.pop()
        avc.of_anon_vma.tree.remove(avc)
        model.avcs.remove(avc)
        expected.append(("AV104", vma, hex(avc.anon_vma), "not in the chain"))
    model.finish()
    return expected


@case
def parent_in_another_chain(model: Model) -> list[Expected]:
    anon_vma, other = own(piece(model, 5, mm=2)), own(piece(model, 6, mm=1))
    anon_vma.parent = other.address
    return [("AV104", anon_vma, "an anon_vma of the same chains", hex(other.address))]


@case
def chain_without_a_parent(model: Model) -> list[Expected]:
    # A leaf's VMA has lost the middle one of three; others have it.
    vma = piece(model, 5, mm=2)
    lower = model.split(vma, vma.vm_start // PAGE + 1)
    avc = lower.chain.pop(1)
    avc.of_anon_vma.tree.remove(avc)
    model.avcs.remove(avc)
    model.finish()
    return [("AV104", lower, hex(avc.anon_vma), "not in the chain")]


# ---- AV105


@case
def active_null(model: Model) -> list[Expected]:
    vma = piece(model, 5)
    vma.anon_vma = 0
    return [("AV105", vma, hex(root_of(vma).address), "0x0")]


@case
def active_null_in_a_long_chain(model: Model) -> list[Expected]:
    vma = piece(model, 5, mm=2)
    vma.anon_vma = 0
    return [("AV105", vma, "an anon_vma of its chain", "0x0")]


@case
def active_without_a_chain(model: Model) -> list[Expected]:
    vma, other = idle(model), own(file(model))
    vma.anon_vma = other.address
    return [
        ("AV105", vma, "0x0", hex(other.address)),
        # It is not known why the VMA names it; that it does is not counted there.
        ("AV402", other, "2", "1"),
    ]


@case
def active_in_another_chain(model: Model) -> list[Expected]:
    vma, other = piece(model, 5, mm=1), own(piece(model, 6, mm=1))
    vma.anon_vma = other.address
    return [("AV105", vma, "an anon_vma of its chain", hex(other.address))]


@case
def active_wild(model: Model) -> list[Expected]:
    vma = piece(model, 5)
    vma.anon_vma = WILD
    return [("AV105", vma, hex(root_of(vma).address), hex(WILD))]


@case
def active_wild_without_a_chain(model: Model) -> list[Expected]:
    vma = idle(model)
    vma.anon_vma = WILD
    return [("AV105", vma, "0x0", hex(WILD))]


# ---- AV201


@case
def listed_but_not_in_the_tree(model: Model) -> list[Expected]:
    # Taken out of the tree and not put back; its rb is stale.
    vma = piece(model, 5, mm=2)
    avc = vma.chain[2]
    anon_vma = avc.of_anon_vma
    anon_vma.tree.remove(avc)
    model.finish()
    avc.rb_parent_color, avc.rb_left, avc.rb_right = 1, 0, 0
    return [("AV201", avc, hex(anon_vma.address), "in no tree")]


@case
def tree_lost(model: Model) -> list[Expected]:
    anon_vma = own(piece(model, 5))
    first = top(model, anon_vma)
    anon_vma.rb_root = 0
    return [("AV201", anon_vma, hex(first.rb), "0x0")]


@case
def orphan_with_a_wild_anon_vma(model: Model) -> list[Expected]:
    avc = listed_but_not_in_the_tree_avc(model)
    avc.anon_vma = WILD
    return [("AV201", avc, "an anon_vma", hex(WILD))]


def listed_but_not_in_the_tree_avc(model: Model) -> Avc:
    avc = piece(model, 5, mm=2).chain[2]
    avc.of_anon_vma.tree.remove(avc)
    model.finish()
    avc.rb_parent_color, avc.rb_left, avc.rb_right = 1, 0, 0
    return avc


# ---- AV202


@case
def anon_vma_of_another_tree(model: Model) -> list[Expected]:
    avc, other = piece(model, 5, mm=2).chain[1], own(piece(model, 6, mm=2))
    right = avc.anon_vma
    avc.anon_vma = other.address
    return [("AV202", avc, hex(right), hex(other.address))]


@case
def anon_vma_wild(model: Model) -> list[Expected]:
    avc = piece(model, 5, mm=2).chain[1]
    right = avc.anon_vma
    avc.anon_vma = WILD
    return [("AV202", avc, hex(right), hex(WILD))]


@case
def in_the_tree_but_on_no_list(model: Model) -> list[Expected]:
    # A clean list without it: as if it had been freed without being taken out of the tree.
    vma = piece(model, 5, mm=2)
    avc = vma.chain.pop(2)
    model.finish()
    avc.next = avc.prev = avc.node
    return [("AV202", avc, hex(vma.address), "on no list")]


@case
def in_the_tree_for_no_vma(model: Model) -> list[Expected]:
    # The VMA was freed, the AVC was not.
    vma = piece(model, 5, mm=2)
    avc = model.link(vma, root_of(vma))
    vma.chain.remove(avc)
    model.finish()
    avc.next = avc.prev = avc.node
    avc.vma = model.mms[0].address
    return [("AV202", avc, "a VMA", hex(avc.vma))]


@case
def vma_not_in_its_mm(model: Model) -> list[Expected]:
    mm, vma = init(model), piece(model, 5)
    del mm.slots[5]
    mm.map_count -= 1
    return [("AV202", vma, hex(mm.address), "not in that mm")]


# ---- AV203


@case
def parent_pointer_wrong(model: Model) -> list[Expected]:
    anon_vma = root_of(piece(model, 0))
    node, right = lowest(model, anon_vma), above(model, lowest(model, anon_vma))
    node.rb_parent_color = top(model, anon_vma).rb
    return [("AV203", node, hex(right.rb), hex(top(model, anon_vma).rb))]


@case
def parent_pointer_null(model: Model) -> list[Expected]:
    anon_vma = root_of(piece(model, 0))
    node, right = lowest(model, anon_vma), above(model, lowest(model, anon_vma))
    node.rb_parent_color = 0
    return [("AV203", node, hex(right.rb), "0x0")]


@case
def parent_pointer_of_the_root(model: Model) -> list[Expected]:
    anon_vma = root_of(piece(model, 0))
    node = top(model, anon_vma)
    node.rb_parent_color |= node.rb_left
    return [("AV203", node, "0x0", hex(node.rb_left))]


@case
def child_pointer_wild(model: Model) -> list[Expected]:
    node = top(model, root_of(piece(model, 0)))
    right, node.rb_left = node.rb_left, WILD
    return [("AV203", node, hex(right), hex(WILD))]


@case
def child_pointer_null(model: Model) -> list[Expected]:
    node = top(model, root_of(piece(model, 0)))
    child, node.rb_right = node.rb_right, 0
    return [
        ("AV201", avc_at(model, child), hex(node.anon_vma), "in no tree"),
        ("AV203", node, hex(child), "0x0"),
    ]


@case
def child_pointer_to_a_grandchild(model: Model) -> list[Expected]:
    node = top(model, root_of(piece(model, 0)))
    child = avc_at(model, node.rb_left)
    node.rb_left = child.rb_left
    return [
        ("AV201", child, hex(node.anon_vma), "in no tree"),
        ("AV203", node, hex(child.rb), hex(child.rb_left)),
    ]


@case
def child_pointer_to_another_tree(model: Model) -> list[Expected]:
    node = top(model, root_of(piece(model, 0)))
    child, other = node.rb_left, piece(model, 5, mm=2).chain[1]
    assert other.of_anon_vma is not node.of_anon_vma
    node.rb_left = other.rb
    return [("AV203", node, hex(child), hex(other.rb))]


@case
def child_pointer_upwards(model: Model) -> list[Expected]:
    anon_vma = root_of(piece(model, 0))
    node = lowest(model, anon_vma)
    node.rb_left = top(model, anon_vma).rb
    return [("AV203", node, "a node or 0x0", hex(node.rb_left))]


@case
def child_pointer_to_itself(model: Model) -> list[Expected]:
    node = lowest(model, root_of(piece(model, 0)))
    node.rb_right = node.rb
    return [("AV203", node, "a node or 0x0", hex(node.rb))]


@case
def child_pointer_to_no_avc(model: Model) -> list[Expected]:
    node = lowest(model, root_of(piece(model, 0)))
    node.rb_right = WILD & ~0xFF
    return [("AV203", node, "a node or 0x0", hex(node.rb_right))]


@case
def root_pointer_wild(model: Model) -> list[Expected]:
    anon_vma = root_of(piece(model, 0))
    first, anon_vma.rb_root = anon_vma.rb_root, WILD
    return [("AV203", anon_vma, hex(first), hex(WILD))]


@case
def root_pointer_to_another_tree(model: Model) -> list[Expected]:
    anon_vma, other = own(piece(model, 5, mm=2)), root_of(piece(model, 5, mm=2))
    first, anon_vma.rb_root = anon_vma.rb_root, other.rb_root
    return [("AV203", anon_vma, hex(first), hex(other.rb_root))]


@case
def root_pointer_to_another_tree_the_other_way_round(model: Model) -> list[Expected]:
    # Now the one with the wrong word comes first in memory, and is walked first.
    anon_vma, other = root_of(piece(model, 5, mm=2)), own(piece(model, 5, mm=2))
    first, anon_vma.rb_root = anon_vma.rb_root, other.rb_root
    return [("AV203", anon_vma, hex(first), hex(other.rb_root))]


@case
def root_pointer_to_an_inner_node(model: Model) -> list[Expected]:
    anon_vma = root_of(piece(model, 0))
    first = top(model, anon_vma)
    anon_vma.rb_root = first.rb_left
    return [
        ("AV201", first, hex(anon_vma.address), "in no tree"),
        ("AV203", anon_vma, hex(first.rb), hex(first.rb_left)),
    ]


@case
def spare_bit(model: Model) -> list[Expected]:
    node = top(model, root_of(piece(model, 0)))
    node.rb_parent_color |= 2
    return [("AV203", node, "0x1", "0x3")]


@case
def red_root(model: Model) -> list[Expected]:
    node = top(model, own(piece(model, 5, mm=2)))
    node.rb_parent_color &= ~1
    return [("AV203", node, "black", "red")]


@case
def red_below_red(model: Model) -> list[Expected]:
    anon_vma = root_of(piece(model, 0))
    node = above(model, lowest(model, anon_vma))
    node.rb_parent_color &= ~1
    return [("AV203", node, "black", "red")]


@case
def black_leaf(model: Model) -> list[Expected]:
    node = lowest(model, root_of(piece(model, 0)))
    node.rb_parent_color |= 1
    return [("AV203", node, "red", "black")]


@case
def colours_that_two_changes_explain(model: Model) -> list[Expected]:
    # Of three nodes, one below is black: it should be red, or the other one black.
    model.__init__()  # type: ignore[misc]
    vma = model.map(model.mm("init"), 0x1000, 3)
    model.fault(vma)
    for page in (0x1001, 0x1002):
        model.split(model.mms[0].vmas[-1], page)
    model.finish()
    node = top(model, own(vma))
    avc_at(model, node.rb_left).rb_parent_color |= 1
    return [("AV203", node, "1", "0")]


@case
def colours_of_a_root_and_a_child(model: Model) -> list[Expected]:
    # Two words: no single one explains it.
    node = top(model, root_of(piece(model, 0)))
    child = avc_at(model, node.rb_left)
    node.rb_parent_color &= ~1
    child.rb_parent_color &= ~1
    return [
        ("AV203", node, "black", "red"),
        ("AV203", child, "black", "red"),
        ("AV203", node, *black_heights(model, node)),
    ]


def black_heights(model: Model, node: Avc) -> tuple[str, str]:
    def height(rb: int) -> int:
        if not rb:
            return 0
        avc = avc_at(model, rb)
        return height(avc.rb_left) + (avc.rb_parent_color & 1)

    return str(height(node.rb_left)), str(height(node.rb_right))


# ---- AV204 and AV205: the keys are the VMA's


@case
def offset_too_high(model: Model) -> list[Expected]:
    vma = piece(model, 5)
    assert vma.vm_pgoff == 0x100A
    vma.vm_pgoff = 0x5000
    # Before it are pieces of all four processes at the next lower offset, behind it the other
    # processes' at its own.
    return [
        ("AV204", vma, "0x1008 to 0x100a", "0x5000"),
        ("AV205", vma, hex(vma.chain[0].rb_subtree_last), "0x5001"),
    ]


@case
def offset_wraps(model: Model) -> list[Expected]:
    vma = file(model)
    vma.vm_pgoff = 2**64 - 1
    return [
        ("AV204", vma, "a first page before the last", hex(2**64 - 1)),
        ("AV205", vma, "0x8", "0x0"),
    ]


@case
def subtree_last_too_high(model: Model) -> list[Expected]:
    node = lowest(model, root_of(piece(model, 0)))
    right = node.rb_subtree_last
    node.rb_subtree_last += 0x1000
    return [("AV205", node, hex(right), hex(right + 0x1000))]


@case
def subtree_last_too_low(model: Model) -> list[Expected]:
    node = top(model, root_of(piece(model, 0)))
    right, node.rb_subtree_last = node.rb_subtree_last, 0
    return [("AV205", node, hex(right), "0x0")]


@case
def subtree_last_in_the_middle(model: Model) -> list[Expected]:
    anon_vma = root_of(piece(model, 0))
    node = avc_at(model, top(model, anon_vma).rb_right)
    right = node.rb_subtree_last
    node.rb_subtree_last -= 1
    return [("AV205", node, hex(right), hex(right - 1))]


# ---- AV206


@case
def leftmost_is_the_second(model: Model) -> list[Expected]:
    anon_vma = root_of(piece(model, 0))
    first = anon_vma.rb_leftmost
    anon_vma.rb_leftmost = above(model, lowest(model, anon_vma)).rb
    return [("AV206", anon_vma, hex(first), hex(anon_vma.rb_leftmost))]


@case
def leftmost_null(model: Model) -> list[Expected]:
    anon_vma = root_of(piece(model, 0))
    first, anon_vma.rb_leftmost = anon_vma.rb_leftmost, 0
    return [("AV206", anon_vma, hex(first), "0x0")]


@case
def leftmost_of_an_empty_tree(model: Model) -> list[Expected]:
    # A VMA's anon_vma after unlink_anon_vmas() was cut short: AV201 tells of the empty tree.
    vma = file(model)
    anon_vma = own(vma)
    first = anon_vma.rb_root
    for other in model.vmas:
        for avc in [avc for avc in other.chain if avc.of_anon_vma is anon_vma]:
            avc.of_anon_vma.tree.remove(avc)
    model.finish()
    anon_vma.rb_leftmost = WILD
    return [
        ("AV201", anon_vma, hex(first), "0x0"),
        ("AV206", anon_vma, "0x0", hex(WILD)),
    ]


# ---- AV207


@case
def mark_on_a_root(model: Model) -> list[Expected]:
    anon_vma = root_of(piece(model, 0))
    first = anon_vma.rb_root
    anon_vma.rb_root |= 1
    return [("AV207", anon_vma, hex(first), hex(first | 1))]


@case
def mark_on_another(model: Model) -> list[Expected]:
    anon_vma = own(piece(model, 5, mm=2))
    root_of(piece(model, 5, mm=2)).write_locked = True
    anon_vma.write_locked = True
    first = anon_vma.rb_root
    anon_vma.rb_root |= 1
    return [
        ("AV207", anon_vma, hex(first), hex(first | 1)),
        ("AV303", anon_vma, "not locked for write", "locked for write"),
    ]


# ---- AV301 and AV302


@case
def root_wild(model: Model) -> list[Expected]:
    anon_vma = own(piece(model, 5, mm=2))
    right, anon_vma.root = anon_vma.root, WILD
    return [
        ("AV104", anon_vma, hex(right), hex(WILD)),
        ("AV301", anon_vma, hex(right), hex(WILD)),
    ]


@case
def root_is_no_root(model: Model) -> list[Expected]:
    anon_vma, other = own(piece(model, 5, mm=2)), own(piece(model, 5, mm=1))
    right, anon_vma.root = anon_vma.root, other.address
    return [
        ("AV104", anon_vma, hex(right), hex(other.address)),
        ("AV301", anon_vma, hex(right), hex(other.address)),
    ]


@case
def root_of_the_root(model: Model) -> list[Expected]:
    anon_vma, other = root_of(piece(model, 5, mm=2)), own(piece(model, 5, mm=1))
    anon_vma.root = other.address
    texts = hex(anon_vma.address), hex(other.address)
    return [("AV104", anon_vma, *texts), ("AV301", anon_vma, *texts), ("AV302", anon_vma, *texts)]


@case
def parent_wild(model: Model) -> list[Expected]:
    anon_vma = own(piece(model, 5, mm=2))
    anon_vma.parent = WILD
    return [("AV302", anon_vma, "an anon_vma", hex(WILD))]


@case
def parent_is_itself(model: Model) -> list[Expected]:
    anon_vma = own(piece(model, 5, mm=2))
    anon_vma.parent = anon_vma.address
    return [
        ("AV302", anon_vma, "another anon_vma of its chains", hex(anon_vma.address)),
        ("AV401", anon_vma, "1", "0"),
        ("AV401", own(piece(model, 5, mm=1)), "0", "1"),
    ]


@case
def parent_of_a_root(model: Model) -> list[Expected]:
    anon_vma, other = own(file(model)), own(piece(model, 5))
    anon_vma.parent = other.address
    return [
        ("AV104", anon_vma, "an anon_vma of the same chains", hex(other.address)),
        ("AV302", anon_vma, hex(anon_vma.address), hex(other.address)),
    ]


@case
def parents_in_a_circle(model: Model) -> list[Expected]:
    # The middle one of three generations has its own child as parent.
    anon_vma, child = own(piece(model, 5, mm=1)), own(piece(model, 5, mm=2))
    anon_vma.parent = child.address
    return [
        ("AV104", piece(model, 5, mm=1), hex(child.address), "not in the chain"),
        ("AV302", anon_vma, "another anon_vma of its chains", hex(child.address)),
        ("AV401", child, "1", "0"),
        ("AV401", root_of(piece(model, 5)), "24", "25"),
    ]


# ---- AV401 to AV404


@case
def too_few_children(model: Model) -> list[Expected]:
    anon_vma = root_of(piece(model, 0))
    anon_vma.num_children -= 1
    return [("AV401", anon_vma, "25", "24")]


@case
def too_many_children(model: Model) -> list[Expected]:
    anon_vma = own(piece(model, 5, mm=2))
    anon_vma.num_children += 1
    return [("AV401", anon_vma, "0", "1")]


@case
def too_few_active_vmas(model: Model) -> list[Expected]:
    anon_vma = own(piece(model, 5, mm=2))
    anon_vma.num_active_vmas = -1
    return [("AV402", anon_vma, "1", "-1")]


@case
def too_many_active_vmas(model: Model) -> list[Expected]:
    anon_vma = root_of(piece(model, 0))
    anon_vma.num_active_vmas += 1
    return [("AV402", anon_vma, "12", "13")]


@case
def no_references(model: Model) -> list[Expected]:
    anon_vma = own(piece(model, 5, mm=2))
    anon_vma.refcount = 0
    # Nor does it keep its root, then.
    return [("AV403", anon_vma, "at least 1", "0")]


@case
def negative_references(model: Model) -> list[Expected]:
    anon_vma = root_of(piece(model, 0))
    anon_vma.refcount = -(2**31)
    return [("AV403", anon_vma, "at least 37", str(-(2**31)))]


@case
def too_few_references(model: Model) -> list[Expected]:
    anon_vma = root_of(piece(model, 0))
    anon_vma.refcount -= 1
    return [("AV403", anon_vma, "at least 37", "36")]


@case
def too_many_references(model: Model) -> list[Expected]:
    anon_vma = own(piece(model, 5, mm=2))
    anon_vma.refcount += 1
    return [("AV404", anon_vma, "1", "2")]


# ---- AV501 to AV506


def slab(row: int) -> int:
    return VMEMMAP + 64 * row


def cache(kind: str, name: str) -> str:
    return f"the slab cache {CACHES[SLAB_OF[kind]]:#x} ({name})"


@case
def slab_of_another_cache(model: Model) -> list[Expected]:
    # Two objects that contradict nothing: the struct of their page does.
    for vma in (piece(model, 3), piece(model, 4)):
        model.states[own(vma).address] = ObjectState.OTHER_CACHE
    where = f"the page at {RAM + OTHER_SLAB * PAGE:#x}, of the slab cache {CACHES[3]:#x} (dentry)"
    there = {own(piece(model, 3)), own(piece(model, 4))}
    return [
        (
            "AV501",
            slab(OTHER_SLAB),
            cache("anon_vmas", "anon_vma"),
            f"{len(there)} of them in {where}",
        )
    ]


@case
def avc_in_no_slab(model: Model) -> list[Expected]:
    model.states[piece(model, 5, mm=2).chain[1].address] = ObjectState.NO_SLAB
    where = f"1 of them in the page at {RAM + NO_SLAB * PAGE:#x}"
    return [("AV501", slab(NO_SLAB), cache("avcs", "anon_vma_chain"), where)]


@case
def variable_of_a_cache(model: Model) -> list[Expected]:
    model.named["avcs"] = CACHES[3]
    return [("AV501", VARIABLES[1], cache("avcs", "anon_vma_chain"), hex(CACHES[3]))]


@case
def vma_inside_an_object(model: Model) -> list[Expected]:
    model.states[piece(model, 5).address] = ObjectState.INSIDE
    where = f"1 of them in the page at {RAM:#x}, of {cache('vmas', 'vm_area_struct')}"
    return [("AV502", slab(0), cache("vmas", "vm_area_struct"), where)]


@case
def free_vma(model: Model) -> list[Expected]:
    vma = idle(model)
    model.states[vma.address] = ObjectState.FREE
    return [("AV503", vma, "allocated", "on a list of free objects")]


@case
def free_avc(model: Model) -> list[Expected]:
    avc = piece(model, 5, mm=2).chain[1]
    model.states[avc.address] = ObjectState.FREE
    return [("AV503", avc, "allocated", "on a list of free objects")]


@case
def free_root(model: Model) -> list[Expected]:
    anon_vma = root_of(piece(model, 5))
    model.states[anon_vma.address] = ObjectState.FREE
    return [("AV503", anon_vma, "allocated", "on a list of free objects")]


@case
def freelist_astray(model: Model) -> list[Expected]:
    model.broken_lists.append((RAM + 0x9020, SLAB_OF["avcs"], WILD))
    return [("AV504", slab(1), "another object of the slab, or NULL", hex(WILD))]


@case
def free_anon_vma_with_references(model: Model) -> list[Expected]:
    free = AnonVma(RAM + 0x9000, refcount=1)
    model.free_anon_vmas += [free, AnonVma(RAM + 0x9080)]
    return [("AV505", free, "0", "1")]


@case
def free_anon_vma_with_nodes(model: Model) -> list[Expected]:
    free = AnonVma(RAM + 0x9000, rb_root=RAM + 0x9120)
    model.free_anon_vmas.append(free)
    return [("AV505", free, "0x0", hex(free.rb_root))]


HOLDER = "a holder: KSM, migration, or a fork or a first fault in flight"


@case
def held_anon_vmas(model: Model) -> list[Expected]:
    # A root that its child holds, and the child, that nobody knows to hold. One without references
    # is free.
    root = AnonVma(RAM + 0x9000, root=RAM + 0x9000, refcount=1)
    child = AnonVma(RAM + 0x9080, root=root.address, refcount=2)
    model.lost_anon_vmas += [root, child, AnonVma(RAM + 0x9100, root=RAM + 0x9100)]
    return [
        ("AV506", root, HOLDER, "refcount 1, 1 of it by others of its family"),
        ("AV506", child, HOLDER, "refcount 2"),
    ]


@case
def anon_vma_of_unknown_vmas(model: Model) -> list[Expected]:
    lost = AnonVma(RAM + 0x9000, root=RAM + 0x9000, refcount=1, rb_root=RAM + 0x9120)
    model.lost_anon_vmas.append(lost)
    return [("AV506", lost, "in a VMA's chain", "refcount 1")]


def lost_avc(model: Model, vma: Vma) -> Avc:
    """An AVC that says where it belongs, and is not there."""
    avc = Avc(RAM + 0x9000, vma.address, own(vma).address, vma, own(vma))
    avc.next = avc.prev = avc.node
    model.lost_avcs.append(avc)
    return avc


@case
def avc_out_of_reach(model: Model) -> list[Expected]:
    vma = piece(model, 5, mm=2)
    where = "on the list of its VMA, and in the tree of its anon_vma"
    return [("AV506", lost_avc(model, vma), where, f"that of VMA {vma.address:#x}")]


# ---- AV601


@case
def low_bit_in_active(model: Model) -> list[Expected]:
    vma = piece(model, 5, mm=2)
    right = vma.anon_vma
    vma.anon_vma |= 4
    return [("AV601", vma, hex(right), hex(right | 4))]


@case
def low_bit_alone(model: Model) -> list[Expected]:
    vma = idle(model)
    vma.anon_vma = 1
    return [("AV601", vma, "0x0", "0x1")]


@case
def low_bit_in_avc_vma(model: Model) -> list[Expected]:
    avc = piece(model, 5, mm=2).chain[1]
    right = avc.vma
    avc.vma |= 1
    return [("AV601", avc, hex(right), hex(right | 1))]


@case
def low_bit_in_avc_anon_vma(model: Model) -> list[Expected]:
    avc = piece(model, 5, mm=2).chain[1]
    right = avc.anon_vma
    avc.anon_vma |= 2
    return [("AV601", avc, hex(right), hex(right | 2))]


@case
def low_bit_in_root(model: Model) -> list[Expected]:
    anon_vma = own(piece(model, 5, mm=2))
    right = anon_vma.root
    anon_vma.root |= 1
    return [("AV601", anon_vma, hex(right), hex(right | 1))]


@case
def low_bit_in_parent(model: Model) -> list[Expected]:
    anon_vma = own(piece(model, 5, mm=2))
    right = anon_vma.parent
    anon_vma.parent |= 1
    return [("AV601", anon_vma, hex(right), hex(right | 1))]


# ---- KSM: AV403 to AV404 with its references, AV705, AV706
#
# The file's anon_vma has a tree, three children and two rmap_items. Of what is gone, the root has
# an rmap_item and a child, and the child two rmap_items.


@case
def refcount_below_what_ksm_holds(model: Model) -> list[Expected]:
    anon_vma = own(file(model))
    anon_vma.refcount = 5
    return [("AV403", anon_vma, "at least 6", "5")]


@case
def refcount_above_what_ksm_holds(model: Model) -> list[Expected]:
    anon_vma = own(file(model))
    anon_vma.refcount = 7
    return [("AV404", anon_vma, "6", "7")]


@case
def held_by_ksm_alone_too_low(model: Model) -> list[Expected]:
    child = gone(model)[1]
    child.refcount = 1
    return [("AV403", child, "at least 2", "1")]


@case
def held_by_ksm_alone_too_high(model: Model) -> list[Expected]:
    child = gone(model)[1]
    child.refcount = 3
    return [("AV404", child, "2", "3")]


@case
def held_by_ksm_alone_and_freed(model: Model) -> list[Expected]:
    child = gone(model)[1]
    child.refcount = 0
    return [("AV403", child, "at least 2", "0")]


@case
def root_of_what_ksm_holds_alone(model: Model) -> list[Expected]:
    root = gone(model)[0]
    root.refcount = 1
    return [("AV403", root, "at least 2", "1")]


@case
def outlives_its_root(model: Model) -> list[Expected]:
    # Before v2.6.36 an anon_vma that KSM held did not hold its root.
    root = gone(model)[0]
    node = model.stable_nodes[0]
    node.items = [item for item in node.items if item.of_anon_vma is not root]
    node.rmap_hlist_len = len(node.items)
    root.refcount = 0
    return [("AV403", root, "at least 1", "0")]


@case
def counters_of_what_ksm_holds_alone(model: Model) -> list[Expected]:
    root = gone(model)[0]
    root.num_children = 1
    root.num_active_vmas = -1
    return [("AV401", root, "0", "1"), ("AV402", root, "0", "-1")]


@case
def rmap_item_wild(model: Model) -> list[Expected]:
    item = model.stable_nodes[0].items[1]
    item.anon_vma = WILD
    return [("AV706", item, "an anon_vma", hex(WILD))]


@case
def rmap_item_null(model: Model) -> list[Expected]:
    item = model.stable_nodes[0].items[0]
    item.anon_vma = 0
    return [("AV706", item, "an anon_vma", "0x0")]


@case
def rmap_item_with_a_low_bit(model: Model) -> list[Expected]:
    item = model.stable_nodes[1].items[1]
    item.anon_vma |= 1
    return [("AV706", item, "an anon_vma", hex(item.anon_vma))]


@case
def rmap_item_of_no_anon_vma(model: Model) -> list[Expected]:
    # What is there has a root, but not one that is its own.
    item = model.stable_nodes[1].items[1]
    stranger = AnonVma(RAM + 0x4000, root=piece(model, 0).address, refcount=1)
    stranger.parent = piece(model, 0).address
    model.anon_vmas.append(stranger)
    item.anon_vma = stranger.address
    return [("AV706", item, "an anon_vma", hex(stranger.address))]


@case
def rmap_item_of_a_free_anon_vma(model: Model) -> list[Expected]:
    # Its words are as they were when it was freed; the other one is held once too often.
    free = AnonVma(RAM + 0x4000, root=RAM + 0x4000, parent=RAM + 0x4000)
    model.anon_vmas.append(free)
    model.stable_nodes[1].items[1].anon_vma = free.address
    return [("AV403", free, "at least 1", "0"), ("AV404", gone(model)[1], "1", "2")]


@case
def rmap_hlist_len(model: Model) -> list[Expected]:
    node = model.stable_nodes[0]
    node.rmap_hlist_len = 4
    return [("AV705", node, "3", "4")]


@case
def rmap_items_go_round(model: Model) -> list[Expected]:
    node = model.stable_nodes[0]
    node.end = ChainEnd.LOOP
    return [("AV705", node, "NULL at its end", "an rmap_item that it met before")]


@case
def rmap_items_lead_astray(model: Model) -> list[Expected]:
    one, two = model.stable_nodes
    one.end, two.end = ChainEnd.WILD, ChainEnd.STRANGER
    return [
        ("AV705", one, "NULL at its end", "what cannot be right"),
        ("AV705", two, "NULL at its end", "no rmap_item of this node"),
    ]


@case
def head_of_another_node(model: Model) -> list[Expected]:
    one, two = model.stable_nodes
    one.items[2].head = two.address
    return [("AV705", one.items[2], hex(one.address), hex(two.address))]


# ---- all of them


# ---- AV003, AV004


@case
def detached_vma_in_the_tree(model: Model) -> list[Expected]:
    vma = piece(model, 4)
    vma.attached = False
    return [("AV003", vma, "false", "true")]


@case
def anon_vma_of_a_shared_mapping(model: Model) -> list[Expected]:
    vma = piece(model, 4)
    vma.vm_flags |= 0x8
    return [("AV004", vma, "VM_MAYWRITE without VM_SHARED", "0x10007b")]


@case
def anon_vma_of_a_mapping_that_may_not_be_written(model: Model) -> list[Expected]:
    vma = piece(model, 4)
    vma.vm_flags &= ~0x20
    return [("AV004", vma, "VM_MAYWRITE without VM_SHARED", "0x100053")]


# ---- AV106, AV107


def chain_of(vma: Vma) -> str:
    return " ".join(hex(member) for member in sorted(avc.anon_vma for avc in vma.chain))


@case
def double_reuse(model: Model) -> list[Expected]:
    # CVE-2022-42703, first state: one anon_vma is the active one of two VMAs whose chains differ,
    # and all counts are right.
    first, second = piece(model, 0, 1), piece(model, 1, 1)
    model.link(second, own(first))
    second.active = own(first)
    model.finish()
    return [("AV106", second, chain_of(first), chain_of(second))]


@case
def root_active_in_a_longer_chain(model: Model) -> list[Expected]:
    vma = piece(model, 0, 1)
    vma.active = root_of(vma)
    model.finish()
    home, mm = init(model).address, model.mms[1].address
    return [
        ("AV106", vma, hex(own(vma).address), chain_of(vma)),
        ("AV107", vma, f"mm {home:#x}", f"mm {mm:#x}"),
    ]


def test_anon_vma_shared_with_another_mm_under_degree() -> None:
    model = forest(without("num_children", "num_active_vmas", degree=80))
    vma = piece(model, 0, 1)
    vma.active = root_of(vma)
    model.finish()
    assert [finding.code for finding in found(model)] == ["AV106"]


# ---- AV303


@case
def write_lock_of_an_anon_vma_that_is_no_root(model: Model) -> list[Expected]:
    leaf = own(piece(model, 2, 2))
    leaf.write_locked = True
    return [("AV303", leaf, "not locked for write", "locked for write")]


@case
def lock_of_a_leaf_is_waited_for(model: Model) -> list[Expected]:
    leaf = own(piece(model, 5, mm=2))
    leaf.lock_state = LockState.QUEUED
    return [("AV303", leaf, "not waited for", "waited for by a writer")]


# ---- AV304


@case
def lock_of_a_root_has_an_unused_bit(model: Model) -> list[Expected]:
    root = root_of(piece(model, 5))
    root.lock_state = LockState.IMPOSSIBLE
    expected = "free, or held or waited for by tasks"
    return [("AV304", root, expected, "unused bits set, or more readers than there can be tasks")]


# ---- AV602


@case
def two_avcs_in_one_place(model: Model) -> list[Expected]:
    first, second = model.avcs[4], model.avcs[9]
    first.address = model.elsewhere(256)
    second.address = first.address + 8
    model.finish()
    return [("AV602", second, "64 bytes of its own", f"anon_vma_chain at {first.address:#x}")]


@case
def an_anon_vma_inside_a_vma(model: Model) -> list[Expected]:
    vma, anon_vma = piece(model, 5), own(piece(model, 3, 3))
    anon_vma.address = vma.address + 16
    for avc in anon_vma.tree:
        avc.anon_vma = anon_vma.address
    model.finish()
    size = model.era.vma.size
    return [("AV602", vma, f"{size} bytes of its own", f"anon_vma at {anon_vma.address:#x}")]


@pytest.mark.parametrize("name", CASES)
def test_broken(name: str) -> None:
    model = forest()
    expected = sorted((code, address(o), e, a) for code, o, e, a in CASES[name](model))
    assert sorted(map(key, found(model))) == expected
