"""A state of the model as a real kernel would have it in memory.

Only what an object has by the model is written; the rest of it is garbage, so that nobody can read
more than there is to know without being found out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target import Target
from anonvma_inspect.target.btf import Btf
from anonvma_inspect.target.layouts import Field
from anonvma_inspect.target.memory import AddressSpace

from .layouts import btf_of, layouts_of
from .objects import AnonVma, Avc, Machine, Mm, Parent, Process, RootVma, Vma
from .rbtree import LEFT, Node
from .slabs import PAGE, Ram
from .tagged import Tags

__all__ = ("Image", "pid_of")

_KERNEL = 0xFFFFFFFF81000000
_PF_KTHREAD = 0x200000
#: ``VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC``, which private mappings of ours have.
_VM_MAY = 0x70
# Of lib/maple_tree.c, see anonvma_inspect.kernel.maple.
_LEAF_64, _ARANGE_64 = 1, 3
_MAPLE_SLOTS = {_LEAF_64: 16, _ARANGE_64: 10}
_MAX = 2**64 - 1

_DEFAULT_TAGS = {"7.0-lazy": Tags(vma=1, parent=2), "7.3-unfaulted": Tags(unfaulted=1)}

T = TypeVar("T")


def pid_of(process: int) -> int:
    """The pid of a process in an image."""
    return 100 + process


class Image:
    """Lays out one machine, again and again as it goes on; objects stay where they are.

    :param seed: Decides where that is.
    :param name: What the processes are called, with their numbers behind it.
    :param tags: What a kernel of a proposal puts into ``vma->anon_vma``; by default, as it likes.
    """

    def __init__(
        self, machine: Machine, seed: int = 0, name: str = "model", tags: Tags | None = None
    ) -> None:
        self.machine = machine
        self.name = name
        self.tags = tags or _DEFAULT_TAGS.get(machine.rules.name)
        self.layouts = layouts_of(machine.rules, self.tags)
        self.ram = Ram(seed)
        size = self.layouts.size("task_struct")
        assert size is not None
        self.ram.add_segment(_KERNEL, -(-size // PAGE) * PAGE)
        self._fields: dict[tuple[str, str], Field | None] = {}

    # ---- single fields

    def _field(self, struct: str, path: str) -> Field | None:
        if (struct, path) not in self._fields:
            self._fields[struct, path] = self.layouts.field(struct, path)
        return self._fields[struct, path]

    def _offset(self, struct: str, path: str) -> int:
        field = self._field(struct, path)
        assert field is not None, f"{struct}.{path}"
        return field.offset

    # Writes a field, under the first of several names that this kernel has; none: not at all.
    def _put(self, struct: str, address: int, value: int | bytes, *paths: str) -> None:
        for path in paths:
            field = self._field(struct, path)
            if field is not None:
                if isinstance(value, int):
                    value = (value % (1 << 8 * field.size)).to_bytes(field.size, "little")
                self.ram.write(address + field.offset, value)
                return

    def at(self, struct: str, who: Hashable) -> int:
        """Address of an object of the model."""
        size = self.layouts.size(struct)
        assert size is not None, struct
        return self.ram.place(struct, size, who)

    # ---- the whole

    def target(self) -> Target:
        """The machine as it is now, as a target."""
        machine = self.machine
        for struct, live in (
            ("anon_vma", machine.live(AnonVma)),
            ("anon_vma_chain", machine.live(Avc)),
            ("vm_area_struct", machine.live(Vma)),
            ("mm_struct", machine.live(Mm)),
            ("task_struct", iter([*machine.processes.values(), machine.leaving, "kthreadd"])),
        ):
            self.ram.keep(struct, set(live))
        self.ram.keep("maple_node", set())
        self._write_tasks()
        for mm in machine.live(Mm):
            self._write_mm(mm)
        for vma in machine.live(Vma):
            self._write_vma(vma)
        for avc in machine.live(Avc):
            self._write_avc(avc)
        for anon_vma in machine.live(AnonVma):
            self._write_anon_vma(anon_vma)
        ram = np.array([[self.ram.base, self.ram.base + self.ram.size]], dtype=np.uint64)
        return Target(
            kind="elf-core",
            release=machine.rules.name,
            architecture="x86_64",
            page_size=PAGE,
            path="the model",
            live=False,
            memory=self.ram.memory(),
            space=AddressSpace(ram, PAGE, self.ram.base),
            layouts=self.layouts,
            symbols={"init_task": _KERNEL},
            symbols_source="kallsyms",
            vmcoreinfo=b"",
            load_btf=self._load_btf,
        )

    def _load_btf(self) -> Btf:
        btf = btf_of(self.machine.rules, self.tags)
        if btf is None:
            raise TargetError("this era has no BTF of its own")
        return btf

    def _write_tasks(self) -> None:
        task = "task_struct"
        leaving = self.machine.leaving
        processes = [*self.machine.processes.values(), *([leaving] if leaving else [])]
        tasks = [_KERNEL, self.at(task, "kthreadd"), *(self.at(task, each) for each in processes)]
        self._write_list([at + self._offset(task, "tasks") for at in tasks])
        for pid, at in enumerate(tasks[:2], start=0):
            self._write_task(at, 2 * pid, (b"swapper/0", b"kthreadd")[pid], 0, _PF_KTHREAD)
        for process in processes:
            comm = f"{self.name}-{process.index}".encode()
            mm = 0 if process is leaving else self.at("mm_struct", process.mm)
            self._write_task(self.at(task, process), pid_of(process.index), comm, mm, 0)

    def _write_task(self, at: int, pid: int, comm: bytes, mm: int, flags: int) -> None:
        signal = self.at("signal_struct", at)
        head = signal + self._offset("signal_struct", "thread_head")
        self._write_list([head, at + self._offset("task_struct", "thread_node")])
        for name, value in (
            *(("signal", signal), ("mm", mm), ("pid", pid), ("tgid", pid), ("flags", flags)),
            ("comm", comm.ljust(16, b"\0")),
        ):
            self._put("task_struct", at, value, name)

    # A circular list through nodes of whatever they are in.
    def _write_list(self, nodes: Sequence[int]) -> None:
        for node, after in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
            self.ram.write(node, after.to_bytes(8, "little"))
            self.ram.write(after + 8, node.to_bytes(8, "little"))

    # ---- address spaces

    def _write_mm(self, mm: Mm) -> None:
        struct, at = "mm_struct", self.at("mm_struct", mm)
        if self._field(struct, "mm_mt") is not None:
            root, height = self._write_maple(mm, at + self._offset(struct, "mm_mt"))
            self._put(struct, at, root, "mm_mt.ma_root")
            self._put(struct, at, 0x303 | height << 2, "mm_mt.ma_flags")
        else:
            top = self._write_vma_tree(mm.vmas, 0, len(mm.vmas).bit_length() - 1, 0)
            self._put(struct, at, top, "mm_rb.rb_node")
            vmas = [0, *(self.at("vm_area_struct", vma) for vma in mm.vmas), 0]
            self._put(struct, at, vmas[1], "mmap")
            for before, vma, after in zip(vmas, vmas[1:-1], vmas[2:], strict=False):
                self._put("vm_area_struct", vma, before, "vm_prev")
                self._put("vm_area_struct", vma, after, "vm_next")
        self._put(struct, at, self.ram.place("pgd", PAGE, mm), "pgd")
        self._put(struct, at, mm.users, "mm_users.counter")
        self._put(struct, at, len(mm.vmas), "map_count")
        self._put(struct, at, 0, "flags.__mm_flags", "flags")
        self._write_rwsem(struct, at, "mmap_lock", mm.writer)
        for name in ("start_brk", "brk", "start_stack", "context.vdso"):
            self._put(struct, at, 0, name)

    # Free, or held for write. On PREEMPT_RT READER_BIAS or WRITER_BIAS, include/linux/rwbase_rt.h.
    def _write_rwsem(self, struct: str, at: int, name: str, writer: Process | None) -> None:
        owner = 0 if writer is None else self.at("task_struct", writer)
        self._put(struct, at, int(writer is not None), f"{name}.count.counter")
        readers = 1 << (31 if writer is None else 30)
        self._put(struct, at, readers, f"{name}.rwbase.readers.counter")
        self._put(struct, at, owner, f"{name}.owner.counter", f"{name}.rwbase.rtmutex.owner")

    # The red-black tree of VMAs, up to v6.0: as flat as can be, its last level red.
    def _write_vma_tree(self, vmas: list[Vma], level: int, last: int, parent: int) -> int:
        if not vmas:
            return 0
        middle = len(vmas) // 2
        at = self.at("vm_area_struct", vmas[middle])
        node = at + self._offset("vm_area_struct", "vm_rb")
        left = self._write_vma_tree(vmas[:middle], level + 1, last, node)
        right = self._write_vma_tree(vmas[middle + 1 :], level + 1, last, node)
        black = level == 0 or level < last
        self._write_rb("vm_area_struct", at, "vm_rb", parent | black, left, right)
        return node

    def _write_rb(
        self, struct: str, at: int, name: str, parent_color: int, left: int, right: int
    ) -> None:
        self._put(struct, at, parent_color, f"{name}.__rb_parent_color")
        self._put(struct, at, left, f"{name}.rb_left")
        self._put(struct, at, right, f"{name}.rb_right")

    # ma_root and the height of the maple tree of an mm, bottom up; the nodes are as full as can be.
    def _write_maple(self, mm: Mm, tree: int) -> tuple[int, int]:
        if not mm.vmas:
            return 0, 0
        # Last index, and what is there; NULL between VMAs and behind them.
        level: list[tuple[int, int]] = []
        end = 0
        for vma in mm.vmas:
            if vma.start > end:
                level.append((vma.start * PAGE - 1, 0))
            level.append((vma.end * PAGE - 1, self.at("vm_area_struct", vma)))
            end = vma.end
        level.append((_MAX, 0))
        kind, height = _LEAF_64, 0
        while height == 0 or len(level) > 1:
            slots = _MAPLE_SLOTS[kind]
            nodes = [level[first : first + slots] for first in range(0, len(level), slots)]
            level = [
                (node[-1][0], self._write_maple_node(mm, (height, place), kind, node))
                for place, node in enumerate(nodes)
            ]
            kind, height = _ARANGE_64, height + 1
        root = level[0][1]
        self._put("maple_node", root & ~0xFF, tree | 1, "parent")
        return root | 2, height

    def _write_maple_node(
        self, mm: Mm, place: tuple[int, int], kind: int, slots: list[tuple[int, int]]
    ) -> int:
        at = self.at("maple_node", (mm, place))
        prefix = "mr64" if kind == _LEAF_64 else "ma64"
        pivots = [last for last, _ in slots][: _MAPLE_SLOTS[kind] - 1]
        pivots += [0] * (_MAPLE_SLOTS[kind] - 1 - len(pivots))
        if kind == _ARANGE_64 or len(slots) < _MAPLE_SLOTS[kind]:
            # In a leaf that is not full the metadata lie in the last slot.
            self._put("maple_node", at, len(slots) - 1, f"{prefix}.meta.end")
        for name, values in (("pivot", pivots), ("slot", [entry for _, entry in slots])):
            packed = np.array(values, dtype="<u8").tobytes()
            self._put("maple_node", at, packed, f"{prefix}.{name}")
        if kind == _ARANGE_64:
            for number, (_, child) in enumerate(slots):
                # mas_set_parent(): the slot, and that the parent is one of 64-bit ranges.
                self._put("maple_node", child & ~0xFF, at | number << 3 | 6, "parent")
        return at | kind << 3 | 4

    # ---- the reverse map

    def word(self, vma: Vma) -> int:
        """``vma->anon_vma``, with its tag."""
        tags = self.tags or Tags()
        assert [vma.anon_vma, vma.lazy, vma.unfaulted or None].count(None) >= 2
        if isinstance(vma.lazy, RootVma):
            return self.at("vm_area_struct", vma.lazy.vma) | tags.vma
        if isinstance(vma.lazy, Parent):
            return self.at("anon_vma", vma.lazy.anon_vma) | tags.parent
        if vma.unfaulted:
            return tags.unfaulted
        return 0 if vma.anon_vma is None else self.at("anon_vma", vma.anon_vma)

    def _write_vma(self, vma: Vma) -> None:
        struct, at = "vm_area_struct", self.at("vm_area_struct", vma)
        file = 0 if vma.file is None else self.at("file", vma.file)
        attached = vma in vma.mm.vmas
        for name, value in (
            *(("vm_start", vma.start * PAGE), ("vm_end", vma.end * PAGE)),
            *(("vm_pgoff", vma.pgoff), ("vm_flags", vma.flags | _VM_MAY), ("vm_file", file)),
            *(("vm_mm", self.at("mm_struct", vma.mm)), ("anon_vma", self.word(vma))),
            ("__vm_anon_pgoff_lo", vma.anon_pgoff & 0xFFFFFFFF),
            ("__vm_anon_pgoff_hi", vma.anon_pgoff >> 32),
            # Attached: not detached (v6.4), or with one reference (v6.15).
            *(("detached", not attached), ("vm_refcnt", attached)),
            ("anon_root_refs.counter", vma.holders),
        ):
            self._put(struct, at, value, name)
        self._write_list(
            [
                at + self._offset(struct, "anon_vma_chain"),
                *(
                    self.at("anon_vma_chain", avc) + self._offset("anon_vma_chain", "same_vma")
                    for avc in vma.chain
                ),
            ]
        )

    def _rb(self, node: Node | None) -> int:
        if node is None:
            return 0
        return self.at("anon_vma_chain", node.owner) + self._offset("anon_vma_chain", "rb")

    def _write_avc(self, avc: Avc) -> None:
        struct, at = "anon_vma_chain", self.at("anon_vma_chain", avc)
        self._put(struct, at, self.at("vm_area_struct", avc.vma), "vma")
        self._put(struct, at, self.at("anon_vma", avc.anon_vma), "anon_vma")
        self._put(struct, at, self._subtree_last(avc.rb), "rb_subtree_last")
        parent_color = self._rb(avc.rb.parent) | (not avc.rb.red)
        left, right = (self._rb(child) for child in avc.rb.child)
        self._write_rb(struct, at, "rb", parent_color, left, right)

    def _subtree_last(self, node: Node) -> int:
        vma: Vma = node.owner.vma
        below = [self._subtree_last(child) for child in node.child if child is not None]
        return max([self.machine.key(vma) + vma.end - vma.start - 1, *below])

    def _write_anon_vma(self, anon_vma: AnonVma) -> None:
        struct, at = "anon_vma", self.at("anon_vma", anon_vma)
        first = anon_vma.tree.root
        while first is not None and first.child[LEFT] is not None:
            first = first.child[LEFT]
        # The parent of one that only a pin holds may be gone: nobody may follow it.
        for value, *names in (
            (self.at(struct, anon_vma.root), "root"),
            (self.at(struct, anon_vma.parent), "parent"),
            (anon_vma.refcount, "refcount.counter"),
            (anon_vma.num_children, "num_children"),
            (anon_vma.num_active_vmas, "num_active_vmas"),
            (anon_vma.degree, "degree"),
            (self._rb(anon_vma.tree.root), "rb_root.rb_root.rb_node", "rb_root.rb_node"),
            (self._rb(first), "rb_root.rb_leftmost"),
        ):
            self._put(struct, at, value, *names)
        self._write_rwsem(struct, at, "rwsem", anon_vma.writer)
