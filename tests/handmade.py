"""Tables made by hand: small families of anon_vmas, right in every word, to be broken in one.

A :class:`Model` holds objects with addresses and words, as the kernel would have them; the few
operations are those of mm/rmap.c in short (:meth:`Model.fault`, :meth:`Model.fork`,
:meth:`Model.split`, :meth:`Model.leave`), and one of mm/ksm.c (:meth:`Model.merge`).
:meth:`Model.finish` fills in the words, :meth:`Model.tables` reads them as the docstrings of
:mod:`anonvma_inspect.tables` say, word by word, with nothing of collect.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from anonvma_inspect.kernel.era import Era, Record
from anonvma_inspect.kernel.ksm import KsmRecords
from anonvma_inspect.tables import (
    NO_ROW,
    Allocation,
    AnonVmas,
    Avcs,
    Broken,
    ChainEnd,
    Holders,
    Holes,
    Ksm,
    Links,
    Mms,
    Nodes,
    ObjectState,
    Placement,
    RmapItems,
    Slabs,
    Slots,
    StableNodes,
    Tables,
    Tasks,
    Unreached,
    Vmas,
)
from anonvma_inspect.target.layouts import Field
from anonvma_inspect.target.memory import AddressSpace

__all__ = ("ERA", "RAM", "Model", "forest", "without")

RAM = 0xFFFF888000000000
RAM_END = RAM + (1 << 30)
PAGE = 4096
# Structs of pages: the slab of each kind of objects, one of another cache, and a page that is none.
VMEMMAP = 0xFFFFEA0000000000
SLAB_OF = {"vmas": 0, "avcs": 1, "anon_vmas": 2}
OTHER_SLAB, NO_SLAB = 3, 4
CACHES = (RAM + 0x100, RAM + 0x200, RAM + 0x300, RAM + 0x400, 0)
VARIABLES = (RAM + 0x500, RAM + 0x508, RAM + 0x510)
CACHE_NAMES = (b"vm_area_struct", b"anon_vma_chain", b"anon_vma", b"dentry")


def _record(struct: str, size: int, **offsets: int) -> Record:
    fields = {}
    for name, offset in offsets.items():
        kind = "pointer" if name in ("anon_vma", "vma", "root", "parent", "vm_mm") else "integer"
        width = 4 if name in ("refcount", "map_count", "mm_users") else 8
        fields[name] = Field(offset, width, kind, "unsigned long")
    return Record(struct, size, fields)


ERA = Era(
    features=("handmade",),
    page_size=PAGE,
    task=_record("task_struct", 64),
    signal=_record("signal_struct", 64),
    mm=_record("mm_struct", 1024, map_count=64, mm_flags=72, mmap_lock_owner=80),
    maple_node=_record("maple_node", 256),
    vma=_record(
        "vm_area_struct",
        176,
        vm_start=0,
        vm_end=8,
        vm_mm=16,
        vm_flags=32,
        detached=40,
        anon_vma_chain=64,
        anon_vma_chain_next=64,
        anon_vma_chain_prev=72,
        anon_vma=80,
        vm_pgoff=96,
        vm_file=104,
    ),
    avc=_record(
        "anon_vma_chain",
        64,
        vma=0,
        anon_vma=8,
        same_vma=16,
        same_vma_next=16,
        same_vma_prev=24,
        rb=32,
        rb_parent_color=32,
        rb_right=40,
        rb_left=48,
        rb_subtree_last=56,
    ),
    anon_vma=_record(
        "anon_vma",
        96,
        root=0,
        rwsem_count=8,
        rwsem_owner=16,
        refcount=48,
        num_children=56,
        num_active_vmas=64,
        parent=72,
        rb_node=80,
        rb_leftmost=88,
    ),
)


KSM = KsmRecords(
    _record("ksm_rmap_item", 64, anon_vma=8, mm=16, address=24, head=40, hlist=48),
    _record("ksm_stable_node", 64, hlist=40, rmap_hlist_len=56),
    (),
)


def without(*fields: str, **others: int) -> Era:
    """An era whose anon_vmas lack some fields and have others."""
    record = ERA.anon_vma
    kept = {name: place for name, place in record.fields.items() if name not in fields}
    kept |= {name: Field(at, 8, "integer", "unsigned long") for name, at in others.items()}
    return replace(ERA, anon_vma=Record(record.struct, record.size, kept))


@dataclass(eq=False)
class Task:
    address: int
    pid: int
    comm: bytes
    mm: Mm


@dataclass(eq=False)
class Mm:
    address: int
    map_count: int = 0
    flags: int = 0
    mm_users: int = 1
    write_locked: bool = False
    lock_free: bool = True
    lock_seq: int = 0
    lock_owner: int = 0
    lock_readers: int = 0
    walked: bool = True
    whole: bool = True
    #: first, last, pointer.
    slots: list[tuple[int, int, int]] = field(default_factory=list)
    vmas: list[Vma] = field(default_factory=list)


@dataclass(eq=False)
class Vma:
    address: int
    vm_start: int
    vm_end: int
    vm_mm: int
    vm_pgoff: int
    vm_file: int = 0
    vm_flags: int = 0x100073
    attached: bool = True
    anon_vma: int = 0
    next: int = 0
    prev: int = 0
    #: What the words follow from: the list in order, and what is active.
    chain: list[Avc] = field(default_factory=list)
    active: AnonVma | None = None
    #: What it has instead: the flag of ANON_VMA_UNFAULTED; under ANON_VMA_LAZY a root VMA, or the
    #: anon_vma of the VMA that fork copied.
    unfaulted: bool = False
    root_refs: int = 1
    lazy: Vma | AnonVma | None = None

    @property
    def head(self) -> int:
        """Address of the list head."""
        return self.address + ERA.vma.offset("anon_vma_chain")

    @property
    def key_first(self) -> int:
        return self.vm_pgoff

    @property
    def key_last(self) -> int:
        return (self.vm_pgoff + (self.vm_end - self.vm_start) // PAGE - 1) % 2**64


@dataclass(eq=False)
class Avc:
    address: int
    vma: int
    anon_vma: int
    of_vma: Vma
    of_anon_vma: AnonVma
    next: int = 0
    prev: int = 0
    rb_parent_color: int = 0
    rb_left: int = 0
    rb_right: int = 0
    rb_subtree_last: int = 0

    @property
    def node(self) -> int:
        """Address of ``same_vma``."""
        return self.address + ERA.avc.offset("same_vma")

    @property
    def rb(self) -> int:
        """Address of ``rb``."""
        return self.address + ERA.avc.offset("rb")


@dataclass(eq=False)
class AnonVma:
    address: int
    root: int = 0
    parent: int = 0
    refcount: int = 0
    num_children: int = 0
    num_active_vmas: int = 0
    degree: int = 0
    rb_root: int = 0
    rb_leftmost: int = 0
    write_locked: bool = False
    lock_owner: int = 0
    #: As a LockState, if it is not held for write.
    lock_state: int = 0
    #: In order of insertion.
    tree: list[Avc] = field(default_factory=list)
    of_parent: AnonVma | None = None


@dataclass(eq=False)
class RmapItem:
    address: int
    anon_vma: int
    mm: int
    page: int
    head: int
    of_anon_vma: AnonVma


@dataclass(eq=False)
class StableNode:
    address: int
    rmap_hlist_len: int = 0
    end: ChainEnd = ChainEnd.CLOSED
    items: list[RmapItem] = field(default_factory=list)


class Model:
    """A machine's anonymous reverse map.

    :ivar holes: Addresses of objects that the target does not have.
    """

    def __init__(self, era: Era = ERA) -> None:
        self.era = era
        self._next = RAM + 0x10000
        self.tasks: list[Task] = []
        self.mms: list[Mm] = []
        self.vmas: list[Vma] = []
        self.avcs: list[Avc] = []
        self.anon_vmas: list[AnonVma] = []
        self.stable_nodes: list[StableNode] = []
        self.ksm_missing: str | None = None
        self.holes: set[int] = set()
        self.broken: list[tuple[Mm | None, int, str, int, str]] = []
        self.pids: tuple[int, ...] = ()
        # What the slab allocator says: ObjectState by address, where it is not ALLOCATED; what the
        # variables point to, where it is not the right cache; words of freelists that lead astray,
        # with their slab and what they lead to; and objects that are in use, though nothing leads
        # to them, or free.
        self.states: dict[int, ObjectState] = {}
        self.named: dict[str, int] = {}
        self.broken_lists: list[tuple[int, int, int]] = []
        self.lost_avcs: list[Avc] = []
        self.lost_anon_vmas: list[AnonVma] = []
        self.free_anon_vmas: list[AnonVma] = []

    def _allocate(self, size: int) -> int:
        address = self._next
        self._next += -(-size // 64) * 64
        return address

    def at(self, address: int) -> Model:
        """Make what comes next from an address on."""
        self._next = address
        return self

    def elsewhere(self, size: int) -> int:
        """Memory for an object that is to lie where no other is."""
        return self._allocate(size)

    def mm(self, comm: str | None = None) -> Mm:
        """A new mm, with a task unless ``comm`` is left out."""
        mm = Mm(self._allocate(1024))
        self.mms.append(mm)
        if comm is not None:
            pid = 100 + len(self.tasks)
            self.tasks.append(Task(self._allocate(64), pid, comm.encode(), mm))
        return mm

    def map(self, mm: Mm, page: int, pages: int, pgoff: int | None = None, file: int = 0) -> Vma:
        """A new mapping; private, and of nothing yet."""
        vma = Vma(
            self._allocate(176),
            page * PAGE,
            (page + pages) * PAGE,
            mm.address,
            page if pgoff is None else pgoff,
            file,
        )
        self.vmas.append(vma)
        mm.vmas.append(vma)
        return vma

    def new_anon_vma(self, parent: AnonVma | None) -> AnonVma:
        """One that nothing is in yet."""
        anon_vma = AnonVma(self._allocate(96), of_parent=parent)
        self.anon_vmas.append(anon_vma)
        return anon_vma

    def link(self, vma: Vma, anon_vma: AnonVma) -> Avc:
        """A new AVC: first on the list, and in the tree."""
        avc = Avc(self._allocate(64), vma.address, anon_vma.address, vma, anon_vma)
        self.avcs.append(avc)
        vma.chain.insert(0, avc)
        anon_vma.tree.append(avc)
        return avc

    def fault(self, vma: Vma) -> AnonVma:
        """The first anonymous page, as ``__anon_vma_prepare()``."""
        vma.active = self.new_anon_vma(None)
        self.link(vma, vma.active)
        return vma.active

    def _clone(self, new: Vma, old: Vma) -> None:
        for avc in reversed(old.chain):
            self.link(new, avc.of_anon_vma)

    def split(self, vma: Vma, page: int) -> Vma:
        """Cut a mapping in two, as ``__split_vma()``.

        :return: The upper part.
        """
        mm = next(mm for mm in self.mms if mm.address == vma.vm_mm)
        shift = page - vma.vm_start // PAGE
        pages = vma.vm_end // PAGE - page
        new = self.map(mm, page, pages, vma.vm_pgoff + shift, vma.vm_file)
        vma.vm_end = page * PAGE
        new.active = vma.active
        self._clone(new, vma)
        return new

    def fault_lazily(self, vma: Vma, root: Vma | None = None) -> None:
        """The first anonymous page, as ``vma_prepare_anon_vma_lazy()`` of ANON_VMA_LAZY.

        :param root: The root VMA that the VMA shares, as ``vma_link_anon_vma_lazy_root()``.
        """
        vma.lazy = root or vma

    def copy_lazily(self, old: Vma, child: Mm) -> Vma:
        """A copy in a child, as ``vma_fork_anon_vma_lazy()``: without an anon_vma of its own."""
        pages = (old.vm_end - old.vm_start) // PAGE
        new = self.map(child, old.vm_start // PAGE, pages, old.vm_pgoff, old.vm_file)
        self._clone(new, old)
        new.lazy = old.active
        return new

    def unmap(self, mm: Mm, vma: Vma) -> None:
        """Unmap a VMA that others have as their root VMA, which therefore lives on."""
        mm.vmas.remove(vma)
        vma.attached = False
        vma.lazy = None

    def fork(self, parent: Mm, comm: str) -> Mm:
        """A child with copies of all mappings, as ``dup_mmap()`` and ``anon_vma_fork()``."""
        child = self.mm(comm)
        for old in parent.vmas:
            pages = (old.vm_end - old.vm_start) // PAGE
            new = self.map(child, old.vm_start // PAGE, pages, old.vm_pgoff, old.vm_file)
            if old.active is not None:
                self._clone(new, old)
                new.active = self.new_anon_vma(old.active)
                self.link(new, new.active)
        return child

    def leave(self, mm: Mm) -> None:
        """The process ends, as ``exit_mmap()``; what is held by others alone stays."""
        for vma in mm.vmas:
            for avc in vma.chain:
                avc.of_anon_vma.tree.remove(avc)
                self.avcs.remove(avc)
            self.vmas.remove(vma)
        self.mms.remove(mm)
        self.tasks = [task for task in self.tasks if task.mm is not mm]

    def merge(self, *places: tuple[Vma, int]) -> StableNode:
        """One page that ksmd merged, as ``try_to_merge_with_ksm_page()``.

        :param places: A VMA, and the number of the page in it.
        """
        node = StableNode(self._allocate(64))
        self.stable_nodes.append(node)
        for vma, page in places:
            assert vma.active is not None
            node.items.append(
                RmapItem(
                    self._allocate(64),
                    vma.active.address,
                    vma.vm_mm,
                    # STABLE_FLAG
                    vma.vm_start + page * PAGE | 0x200,
                    node.address,
                    vma.active,
                )
            )
        return node

    # ---- filling in the words

    def finish(self) -> Model:
        """Make all words follow from what was done."""
        for mm in self.mms:
            mm.vmas.sort(key=lambda vma: vma.vm_start)
            mm.slots = [(vma.vm_start, vma.vm_end - 1, vma.address) for vma in mm.vmas]
            mm.map_count = len(mm.vmas)
        for vma in self.vmas:
            vma.anon_vma = self._word(vma)
            mapped = any(vma in mm.vmas for mm in self.mms)
            vma.root_refs = mapped + sum(other.lazy is vma for other in self.vmas)
            self.finish_list(vma)
        for node in self.stable_nodes:
            node.rmap_hlist_len = len(node.items)
        in_use = [a for a in self.anon_vmas if a.tree or self._held(a)]
        in_use += [_root_of(a) for a in in_use]
        self.anon_vmas = [a for a in self.anon_vmas if a in in_use]
        children = Counter(a.of_parent or a for a in self.anon_vmas if a.tree)
        active = Counter(vma.active for vma in self.vmas)
        members = Counter(_root_of(a) for a in self.anon_vmas)
        for anon_vma in self.anon_vmas:
            root = _root_of(anon_vma)
            anon_vma.root, anon_vma.parent = root.address, (anon_vma.of_parent or anon_vma).address
            anon_vma.num_children, anon_vma.num_active_vmas = children[anon_vma], active[anon_vma]
            anon_vma.degree = anon_vma.num_children + anon_vma.num_active_vmas
            others = members[anon_vma] - 1 if anon_vma is root else 0
            lazy = sum(vma.lazy is anon_vma for vma in self.vmas)
            anon_vma.refcount = bool(anon_vma.tree) + self._held(anon_vma) + lazy + others
            self._finish_tree(anon_vma)
        return self

    def finish_list(self, vma: Vma) -> None:
        """Make the words of a VMA's list follow from what is on it."""
        nodes = [vma.head, *(avc.node for avc in vma.chain), vma.head]
        vma.next, vma.prev = nodes[1], nodes[-2]
        for index, avc in enumerate(vma.chain):
            avc.prev, avc.next = nodes[index], nodes[index + 2]

    def _word(self, vma: Vma) -> int:
        tags = self.era.tags
        if isinstance(vma.lazy, Vma):
            return vma.lazy.address | tags.vma
        if vma.lazy is not None:
            return vma.lazy.address | tags.parent
        if vma.unfaulted:
            return tags.unfaulted
        return 0 if vma.active is None else vma.active.address

    # How many references KSM holds.
    def _held(self, anon_vma: AnonVma) -> int:
        return sum(item.of_anon_vma is anon_vma for n in self.stable_nodes for item in n.items)

    def _finish_tree(self, anon_vma: AnonVma) -> None:
        order = sorted(anon_vma.tree, key=lambda avc: avc.of_vma.key_first)
        # A tree as flat as can be, its last level red, is a red-black tree.
        last_level = len(order).bit_length() - 1
        top = _build(order, 0, last_level, 0)
        anon_vma.rb_root = 0 if top is None else top.rb
        anon_vma.rb_leftmost = order[0].rb if order else 0

    # ---- reading them

    def tables(self) -> Tables:
        """Read all words, starting from the mms."""
        return _Reader(self).tables()


def _root_of(anon_vma: AnonVma) -> AnonVma:
    while anon_vma.of_parent is not None:
        anon_vma = anon_vma.of_parent
    return anon_vma


def _build(order: list[Avc], level: int, last_level: int, parent: int) -> Avc | None:
    if not order:
        return None
    middle = len(order) // 2
    avc = order[middle]
    red = level == last_level and level > 0
    avc.rb_parent_color = parent | (0 if red else 1)
    left = _build(order[:middle], level + 1, last_level, avc.rb)
    right = _build(order[middle + 1 :], level + 1, last_level, avc.rb)
    avc.rb_left = 0 if left is None else left.rb
    avc.rb_right = 0 if right is None else right.rb
    below = [child.rb_subtree_last for child in (left, right) if child is not None]
    avc.rb_subtree_last = max([avc.of_vma.key_last, *below])
    return avc


@dataclass(eq=False)
class _Place:
    """A place in a tree, as the walk met it."""

    tree: AnonVma
    avc: Avc
    parent: _Place | None
    is_left: bool
    depth: int
    again: bool
    left: _Place | None = None
    right: _Place | None = None

    def in_order(self) -> list[_Place]:
        return [
            *(self.left.in_order() if self.left else ()),
            self,
            *(self.right.in_order() if self.right else ()),
        ]


class _Reader:
    def __init__(self, model: Model) -> None:
        self.model = model
        self.objects = {
            kind: {o.address: o for o in getattr(model, kind)}
            for kind in ("vmas", "avcs", "anon_vmas")
        }
        self.space = AddressSpace(np.array([[RAM, RAM_END]], dtype=np.uint64), PAGE, RAM)
        self.holes: set[tuple[int, int, str]] = set()
        self.vmas: dict[int, Vma] = {}
        self.avcs: dict[int, Avc] = {}
        self.anon_vmas: dict[int, AnonVma] = {}
        self.ends: dict[int, ChainEnd] = {}
        self.chains: dict[int, list[Avc]] = {}
        self.tops: dict[int, _Place] = {}
        self.whole: dict[int, bool] = {}
        self.met: set[int] = set()

    def wild(self, address: int) -> bool:
        return address % 8 != 0 or not RAM <= address < RAM_END - 256

    # The object at an address; None if it is in a hole, or if no such object is there.
    def find(self, kind: str, address: int) -> Any:
        size = {"vmas": 176, "avcs": 64, "anon_vmas": 96}[kind]
        if self.wild(address):
            return None
        found = self.objects[kind].get(address)
        if found is None or address not in self.model.holes:
            return found
        struct = {"vmas": "vm_area_struct", "avcs": "anon_vma_chain", "anon_vmas": "anon_vma"}
        self.holes.add((address, size, struct[kind]))
        return None

    def tables(self) -> Tables:
        for mm in self.model.mms:
            if mm.walked:
                for _, _, pointer in mm.slots:
                    self.add_vma(pointer)
        for node in self.model.stable_nodes:
            for item in node.items:
                self.add_anon_vma(item.anon_vma)
        size = -1
        while size != (size := len(self.vmas) + len(self.avcs) + len(self.anon_vmas)):
            for vma in list(self.vmas.values()):
                self.walk_chain(vma)
                if vma.anon_vma & 7 == self.model.era.tags.vma and vma.anon_vma & 7:
                    self.add_vma(vma.anon_vma & ~7)
                else:
                    self.add_anon_vma(vma.anon_vma & ~7)
            for avc in list(self.avcs.values()):
                self.add_anon_vma(avc.anon_vma)
                self.add_vma(avc.vma)
            for anon_vma in list(self.anon_vmas.values()):
                self.add_anon_vma(anon_vma.root)
                if anon_vma.rb_root:
                    self.add_anon_vma(anon_vma.parent)
        return self.columns()

    # What vma->anon_vma leads to, if that is the VMA's own anon_vma.
    def own(self, vma: Vma) -> int:
        tag, tags = vma.anon_vma & 7, self.model.era.tags
        known = tags.certain and (tags.name != "lazy" or (tags.vma and tags.parent))
        if tag and (tag in (tags.vma, tags.parent) or not known):
            return 0
        return vma.anon_vma & ~7

    def add_vma(self, address: int) -> None:
        vma = self.find("vmas", address)
        if vma is not None:
            self.vmas[address] = vma

    def add_anon_vma(self, address: int) -> None:
        anon_vma = self.find("anon_vmas", address)
        if anon_vma is not None and address not in self.anon_vmas:
            self.anon_vmas[address] = anon_vma
            self.walk_tree(anon_vma)

    def walk_chain(self, vma: Vma) -> None:
        if vma.address in self.chains:
            return
        chain: list[Avc] = []
        self.chains[vma.address] = chain
        origin, node = vma.head, vma.next
        while node != vma.head:
            address = node - ERA.avc.offset("same_vma")
            avc = self.find("avcs", address)
            if self.wild(address):
                self.ends[vma.address] = ChainEnd.WILD
            elif avc in chain:
                self.ends[vma.address] = ChainEnd.LOOP
            elif address in self.model.holes:
                self.ends[vma.address] = ChainEnd.HOLE
            elif avc is None or (avc.vma != vma.address and avc.prev != origin):
                self.ends[vma.address] = ChainEnd.STRANGER
            else:
                chain.append(avc)
                self.avcs[avc.address] = avc
                origin, node = avc.node, avc.next
                continue
            return
        self.ends[vma.address] = ChainEnd.CLOSED

    def walk_tree(self, anon_vma: AnonVma) -> None:
        self.whole[anon_vma.address] = True
        front: list[tuple[int, _Place | None, bool]] = [(anon_vma.rb_root & ~1, None, False)]
        while front:
            pointer, parent, is_left = front.pop(0)
            if not pointer:
                continue
            avc = self.find("avcs", pointer - ERA.avc.offset("rb"))
            if avc is None:
                self.whole[anon_vma.address] = False
                continue
            self.avcs[avc.address] = avc
            depth = 0 if parent is None else parent.depth + 1
            again = avc.address in self.met
            place = _Place(anon_vma, avc, parent, is_left, depth, again)
            if parent is None:
                self.tops[anon_vma.address] = place
            elif is_left:
                parent.left = place
            else:
                parent.right = place
            above = 0 if parent is None else parent.avc.rb
            agrees = avc.anon_vma == anon_vma.address or avc.rb_parent_color & ~3 == above
            if again or not agrees:
                self.whole[anon_vma.address] = False
                continue
            self.met.add(avc.address)
            front += [(avc.rb_left, place, True), (avc.rb_right, place, False)]

    def holders(self) -> Holders:
        owners = {mm.lock_owner for mm in self.model.mms}
        owners |= {anon_vma.lock_owner for anon_vma in self.model.anon_vmas}
        tasks = [task for task in self.model.tasks if task.address in owners]
        return Holders(
            address=_words([task.address for task in tasks]),
            pid=_numbers([task.pid for task in tasks]),
            comm=np.array([task.comm for task in tasks], dtype="S16"),
        )

    # ---- columns

    def columns(self) -> Tables:
        model = self.model
        vmas = [self.vmas[address] for address in sorted(self.vmas)]
        avcs = [self.avcs[address] for address in sorted(self.avcs)]
        anon_vmas = [self.anon_vmas[address] for address in sorted(self.anon_vmas)]
        vma_row = {vma.address: row for row, vma in enumerate(vmas)}
        avc_row = {avc.address: row for row, avc in enumerate(avcs)}
        av_row = {anon_vma.address: row for row, anon_vma in enumerate(anon_vmas)}
        mms = sorted(model.mms, key=lambda mm: not any(task.mm is mm for task in model.tasks))
        mm_row = {mm.address: row for row, mm in enumerate(mms)}
        task_of = {task.mm.address: row for row, task in reversed(list(enumerate(model.tasks)))}

        slots = [(mm_row[mm.address], *slot) for mm in mms if mm.walked for slot in mm.slots]
        slot_of: dict[int, int] = {}
        for row, (mm, _, _, pointer) in enumerate(slots):
            if pointer in vma_row and self.vmas[pointer].vm_mm == mms[mm].address:
                slot_of[pointer] = row
        links = [
            (vma_row[vma.address], position, avc_row[avc.address])
            for vma in vmas
            for position, avc in enumerate(self.chains[vma.address])
        ]
        places = [
            place
            for anon_vma in anon_vmas
            if anon_vma.address in self.tops
            for place in self.tops[anon_vma.address].in_order()
        ]
        place_row = {id(place): row for row, place in enumerate(places)}
        holes = sorted(self.holes)
        return Tables(
            era=model.era,
            space=self.space,
            tasks=Tasks(
                address=_words([task.address for task in model.tasks]),
                pid=_numbers([task.pid for task in model.tasks]),
                tgid=_numbers([task.pid for task in model.tasks]),
                comm=np.array([task.comm for task in model.tasks], dtype="S16"),
                start_boottime=_words([0 for _ in model.tasks]),
                self_exec_id=_words([0 for _ in model.tasks]),
                mm=_numbers([mm_row[task.mm.address] for task in model.tasks]),
            ),
            holders=self.holders(),
            mms=Mms(
                address=_words([mm.address for mm in mms]),
                mm_users=_numbers([mm.mm_users for mm in mms]),
                map_count=_numbers([mm.map_count for mm in mms]),
                flags=_words([mm.flags for mm in mms]),
                task=_numbers([task_of.get(mm.address, NO_ROW) for mm in mms]),
                listed=_flags([mm.address in task_of for mm in mms]),
                walked=_flags([mm.walked for mm in mms]),
                whole=_flags([mm.whole for mm in mms]),
                write_locked=_flags([mm.write_locked for mm in mms]),
                lock_free=_flags([mm.lock_free and not mm.write_locked for mm in mms]),
                lock_seq=_words([mm.lock_seq for mm in mms]),
                ctx_id=_words([0 for _ in mms]),
                lock_owner=_words([mm.lock_owner for mm in mms]),
                lock_readers=_numbers([mm.lock_readers for mm in mms]),
                known=_flags([True for _ in mms]),
                start_brk=_words([0] * len(mms)),
                brk=_words([0] * len(mms)),
                start_stack=_words([0] * len(mms)),
                vdso=_words([0] * len(mms)),
            ),
            slots=Slots(
                mm=_numbers([slot[0] for slot in slots]),
                first=_words([slot[1] for slot in slots]),
                last=_words([slot[2] for slot in slots]),
                pointer=_words([slot[3] for slot in slots]),
                vma=_numbers([vma_row.get(slot[3], NO_ROW) for slot in slots]),
            ),
            vmas=Vmas(
                address=_words([vma.address for vma in vmas]),
                vm_start=_words([vma.vm_start for vma in vmas]),
                vm_end=_words([vma.vm_end for vma in vmas]),
                vm_flags=_words([vma.vm_flags for vma in vmas]),
                vm_pgoff=_words([vma.vm_pgoff for vma in vmas]),
                vm_file=_words([vma.vm_file for vma in vmas]),
                vm_mm=_words([vma.vm_mm for vma in vmas]),
                anon_vma=_words([vma.anon_vma for vma in vmas]),
                anon_vma_pointer=_words([vma.anon_vma & ~7 for vma in vmas]),
                anon_vma_tag=_words([vma.anon_vma & 7 for vma in vmas]),
                attached=_flags([vma.attached for vma in vmas]),
                chain_next=_words([vma.next for vma in vmas]),
                chain_prev=_words([vma.prev for vma in vmas]),
                chain_head=_words([vma.head for vma in vmas]),
                key_first=_words([vma.key_first for vma in vmas]),
                key_last=_words([vma.key_last for vma in vmas]),
                mm=_numbers([mm_row.get(vma.vm_mm, NO_ROW) for vma in vmas]),
                slot=_numbers([slot_of.get(vma.address, NO_ROW) for vma in vmas]),
                root_refs=_numbers([vma.root_refs for vma in vmas]),
                active=_numbers([av_row.get(self.own(vma), NO_ROW) for vma in vmas]),
                chain_end=np.array([self.ends[vma.address] for vma in vmas], dtype=np.uint8),
                chain_length=_numbers([len(self.chains[vma.address]) for vma in vmas]),
            ),
            links=Links(
                vma=_numbers([link[0] for link in links]),
                position=_numbers([link[1] for link in links]),
                avc=_numbers([link[2] for link in links]),
            ),
            avcs=Avcs(
                address=_words([avc.address for avc in avcs]),
                vma=_words([avc.vma for avc in avcs]),
                anon_vma=_words([avc.anon_vma for avc in avcs]),
                next=_words([avc.next for avc in avcs]),
                prev=_words([avc.prev for avc in avcs]),
                list_node=_words([avc.node for avc in avcs]),
                rb_parent_color=_words([avc.rb_parent_color for avc in avcs]),
                rb_left=_words([avc.rb_left for avc in avcs]),
                rb_right=_words([avc.rb_right for avc in avcs]),
                rb_node=_words([avc.rb for avc in avcs]),
                rb_subtree_last=_words([avc.rb_subtree_last for avc in avcs]),
                vma_row=_numbers([vma_row.get(avc.vma, NO_ROW) for avc in avcs]),
                anon_vma_row=_numbers([av_row.get(avc.anon_vma, NO_ROW) for avc in avcs]),
            ),
            anon_vmas=self.anon_vma_columns(anon_vmas, av_row),
            nodes=Nodes(
                anon_vma=_numbers([av_row[place.tree.address] for place in places]),
                avc=_numbers([avc_row[place.avc.address] for place in places]),
                parent=_numbers([_row(place_row, place.parent) for place in places]),
                left=_numbers([_row(place_row, place.left) for place in places]),
                right=_numbers([_row(place_row, place.right) for place in places]),
                depth=_numbers([place.depth for place in places]),
                again=_flags([place.again for place in places]),
            ),
            stable_nodes=self.stable_node_columns(),
            rmap_items=self.rmap_item_columns(mm_row, av_row),
            ksm=Ksm(KSM, model.ksm_missing),
            holes=Holes(
                address=_words([hole[0] for hole in holes]),
                size=_numbers([hole[1] for hole in holes]),
                needed_for=np.array([hole[2] for hole in holes], dtype=np.str_),
            ),
            broken=Broken(
                mm=_numbers(
                    [NO_ROW if mm is None else mm_row[mm.address] for mm, *_ in model.broken]
                ),
                address=_words([row[1] for row in model.broken]),
                type=np.array([row[2] for row in model.broken], dtype=np.str_),
                value=_words([row[3] for row in model.broken]),
                problem=np.array([row[4] for row in model.broken], dtype=np.str_),
            ),
            pids=model.pids,
            allocation=self.allocation(vmas, avcs, anon_vmas),
        )

    def allocation(self, vmas: list[Vma], avcs: list[Avc], anon_vmas: list[AnonVma]) -> Allocation:
        model = self.model

        def placement(kind: str, objects: list[Any]) -> Placement:
            states = [model.states.get(o.address, ObjectState.ALLOCATED) for o in objects]
            where = {ObjectState.OTHER_CACHE: OTHER_SLAB, ObjectState.NO_SLAB: NO_SLAB}
            slabs = [where.get(state, SLAB_OF[kind]) for state in states]
            return Placement(
                CACHES[SLAB_OF[kind]],
                VARIABLES[SLAB_OF[kind]],
                model.named.get(kind, CACHES[SLAB_OF[kind]]),
                _words([o.address for o in objects]),
                _numbers(slabs),
                np.array(states, dtype=np.uint8),
            )

        lost = sorted(model.lost_avcs, key=lambda avc: avc.address)
        held = sorted(model.lost_anon_vmas, key=lambda a: a.address)
        free = sorted(model.free_anon_vmas, key=lambda a: a.address)
        mm_of = {vma.address: vma.vm_mm for vma in model.vmas}
        return Allocation(
            not_read=None,
            free_not_read=None,
            slabs=Slabs(
                address=_words([VMEMMAP + 64 * row for row in range(len(CACHES))]),
                base=_words([RAM + PAGE * row for row in range(len(CACHES))]),
                cache=_words(list(CACHES)),
            ),
            vmas=placement("vmas", vmas),
            avcs=placement("avcs", avcs),
            anon_vmas=placement("anon_vmas", anon_vmas),
            cache_names=dict(zip(CACHES, CACHE_NAMES, strict=False)),
            slab_struct="slab",
            cache_offset=8,
            broken_word=_words([word for word, _, _ in model.broken_lists]),
            broken_slab=_numbers([slab for _, slab, _ in model.broken_lists]),
            broken_value=_words([value for _, _, value in model.broken_lists]),
            unreached=Unreached(
                vmas=_words([]),
                avcs=_words([avc.address for avc in lost]),
                avc_vma=_words([avc.vma for avc in lost]),
                avc_anon_vma=_words([avc.anon_vma for avc in lost]),
                avc_linked=_flags([not self.wild(avc.next) for avc in lost]),
                avc_mm=_words([mm_of.get(avc.vma, 0) for avc in lost]),
                anon_vmas=_words([a.address for a in held]),
                anon_vma_refcount=_numbers([a.refcount for a in held]),
                anon_vma_rb_root=_words([a.rb_root for a in held]),
                anon_vma_root=_words([a.root for a in held]),
                free_anon_vmas=_words([a.address for a in free]),
                free_refcount=_numbers([a.refcount for a in free]),
                free_rb_root=_words([a.rb_root for a in free]),
            ),
        )

    def anon_vma_columns(self, anon_vmas: list[AnonVma], av_row: dict[int, int]) -> AnonVmas:
        reached = {vma.anon_vma & ~7 for vma in self.vmas.values()}
        reached |= {avc.anon_vma for chain in self.chains.values() for avc in chain}
        reached |= self.held()
        reached |= {a.root for a in anon_vmas if a.address in reached}
        whole = {a.address: self.whole[a.address] for a in anon_vmas}
        # A family is whole if all its trees are, and the chains of all VMAs in them.
        spoiled = set()
        for a in anon_vmas:
            top = self.tops.get(a.address)
            vmas = [place.avc.vma for place in top.in_order()] if top else []
            if not whole[a.address] or any(not self.is_sound(vma) for vma in vmas):
                spoiled |= {a.root, a.address}
        for vma in self.vmas.values():
            if not self.is_sound(vma.address):
                members = [avc.anon_vma for avc in self.chains[vma.address]]
                for address in [*members, vma.anon_vma & ~7]:
                    if address in self.anon_vmas:
                        spoiled |= {self.anon_vmas[address].root, address}
        return AnonVmas(
            address=_words([a.address for a in anon_vmas]),
            root=_words([a.root for a in anon_vmas]),
            parent=_words([a.parent for a in anon_vmas]),
            refcount=_numbers([a.refcount for a in anon_vmas]),
            num_children=_numbers([a.num_children for a in anon_vmas]),
            num_active_vmas=_numbers([a.num_active_vmas for a in anon_vmas]),
            degree=_numbers([a.degree for a in anon_vmas]),
            rb_root=_words([a.rb_root for a in anon_vmas]),
            rb_leftmost=_words([a.rb_leftmost for a in anon_vmas]),
            write_locked=_flags([a.write_locked for a in anon_vmas]),
            lock_state=np.array(
                [a.lock_state or int(a.write_locked) for a in anon_vmas], dtype=np.uint8
            ),
            lock_owner=_words([a.lock_owner for a in anon_vmas]),
            root_row=_numbers([av_row.get(a.root, NO_ROW) for a in anon_vmas]),
            parent_row=_numbers(
                [av_row.get(a.parent, NO_ROW) if a.rb_root else NO_ROW for a in anon_vmas]
            ),
            tree_whole=_flags([whole[a.address] for a in anon_vmas]),
            reached=_flags([a.address in reached for a in anon_vmas]),
            family_whole=_flags(
                [a.root not in spoiled and a.address not in spoiled for a in anon_vmas]
            ),
        )

    def settled(self, node: StableNode, item: RmapItem) -> bool:
        whole = node.end is ChainEnd.CLOSED and node.rmap_hlist_len == len(node.items)
        return whole and item.head == node.address

    def held(self) -> set[int]:
        named = {
            item.anon_vma
            for node in self.model.stable_nodes
            for item in node.items
            if self.settled(node, item)
        }
        return {a.address for a in self.anon_vmas.values() if a.address in named and self.looks(a)}

    # Whether something about it is as an anon_vma is.
    def looks(self, anon_vma: AnonVma) -> bool:
        top = self.tops.get(anon_vma.address)
        if top and any(place.avc.anon_vma == anon_vma.address for place in top.in_order()):
            return True
        root = self.anon_vmas.get(anon_vma.root)
        empty = anon_vma.rb_root & ~1 == 0 and not anon_vma.rb_leftmost
        return (
            empty
            and root is not None
            and root.root == root.address
            and (not self.model.era.has_parent or root.parent == root.address)
        )

    def stable_node_columns(self) -> StableNodes:
        nodes = sorted(self.model.stable_nodes, key=lambda node: node.address)
        return StableNodes(
            address=_words([node.address for node in nodes]),
            rmap_hlist_len=_numbers([node.rmap_hlist_len for node in nodes]),
            list_end=np.array([node.end for node in nodes], dtype=np.uint8),
            listed=_numbers([len(node.items) for node in nodes]),
        )

    def rmap_item_columns(self, mm_row: dict[int, int], av_row: dict[int, int]) -> RmapItems:
        nodes = sorted(self.model.stable_nodes, key=lambda node: node.address)
        items = sorted(
            ((node, item) for node in nodes for item in node.items),
            key=lambda pair: pair[1].address,
        )
        return RmapItems(
            address=_words([item.address for _, item in items]),
            anon_vma=_words([item.anon_vma for _, item in items]),
            mm=_words([item.mm for _, item in items]),
            head=_words([item.head for _, item in items]),
            page=_words([item.page for _, item in items]),
            linear_page_index=_words([0 for _ in items]),
            node=_numbers([nodes.index(node) for node, _ in items]),
            anon_vma_row=_numbers([av_row.get(item.anon_vma, NO_ROW) for _, item in items]),
            mm_row=_numbers([mm_row.get(item.mm, NO_ROW) for _, item in items]),
            settled=_flags([self.settled(node, item) for node, item in items]),
        )

    def is_sound(self, vma: int) -> bool:
        if vma not in self.vmas or self.ends[vma] is not ChainEnd.CLOSED:
            return False
        word = self.vmas[vma].anon_vma
        tags = self.model.era.tags
        if word & 7 and not tags.certain:
            return False
        active = 0 if word & 7 and word & 7 == tags.vma else word & ~7
        return (not active or active in self.anon_vmas) and all(
            avc.anon_vma in self.anon_vmas for avc in self.chains[vma]
        )


def _row(rows: dict[int, int], place: _Place | None) -> int:
    return NO_ROW if place is None else rows[id(place)]


def _words(values: list[int]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(values, dtype=np.uint64)


def _numbers(values: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


def _flags(values: list[bool]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.array(values, dtype=bool)


def forest(era: Era = ERA) -> Model:
    """Four processes: init forked left and right, left forked leaf.

    init has twelve pieces of one faulted mapping (so that trees are deep), one mapping that nothing
    was written to, and a private file mapping. KSM merged the first two pages of that with pages of
    two processes that are gone: it alone still holds their anon_vmas, a root and its child.
    """
    model = Model(era)
    init = model.mm("init")
    heap = model.map(init, 0x1000, 24)
    model.fault(heap)
    for piece in range(1, 12):
        model.split(init.vmas[-1], 0x1000 + 2 * piece)
    model.map(init, 0x2000, 4)
    model.fault(model.map(init, 0x3000, 2, pgoff=7, file=RAM + 0x8000))
    left = model.fork(init, "left")
    model.fork(left, "leaf")
    model.fork(init, "right")
    gone = model.mm("gone")
    model.fault(model.map(gone, 0x4000, 2))
    child = model.fork(gone, "gone too")
    model.merge((init.vmas[-1], 0), (gone.vmas[0], 0), (child.vmas[0], 1))
    model.merge((init.vmas[-1], 1), (child.vmas[0], 0))
    model.leave(gone)
    model.leave(child)
    return model.finish()
