"""What is read from real kernels equals the guest's own word.

The guest wrote down ``/proc/PID/maps`` and slabinfo before it was dumped, and the workloads what
they did; nothing here is compared with our own output.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from anonvma_inspect.collect import collect, file_paths
from anonvma_inspect.tables import NO_ROW, Tables
from anonvma_inspect.target import TargetOptions, open_target

from .captures import CAPTURES, Capture

# include/linux/mm.h
VM_READ, VM_WRITE, VM_EXEC, VM_MAYSHARE = 1, 2, 4, 0x80

every = pytest.mark.parametrize("capture", CAPTURES, ids=lambda capture: capture.name)
# ANON_VMA_LAZY makes anon_vmas later than the log tells.
FORK_TREES = [
    capture
    for capture in CAPTURES
    if capture.manifest["workload"] == "forktree"
    and "-lazy" not in capture.manifest["kernel"]["release"]
]


def test_there_are_captures() -> None:
    assert all(capture.core.exists() for capture in CAPTURES), "a manifest without its core"
    assert FORK_TREES


@dataclass(frozen=True)
class Mapping:
    """A line of ``/proc/PID/maps``."""

    start: int
    end: int
    permissions: str
    offset: int
    name: str

    @staticmethod
    def parse(line: str) -> Mapping:
        match = re.match(r"(\w+)-(\w+) (\S+) (\w+) \S+ \d+ ?(.*)", line)
        assert match, line
        start, end, permissions, offset, name = match.groups()
        return Mapping(int(start, 16), int(end, 16), permissions, int(offset, 16), name.strip())


def bracketed_name(tables: Tables, row: int, mm: int, release: str) -> str:
    """As ``get_vma_name()`` in fs/proc/task_mmu.c, where it follows from the mm's fields."""
    start, end = int(tables.vmas.vm_start[row]), int(tables.vmas.vm_end[row])
    if start == tables.mms.vdso[mm]:
        return "[vdso]"
    # 6.1 also calls a mapping that only touches the heap by its name; 6.12 does not.
    touching = release.startswith("6.1.")
    if start < tables.mms.brk[mm] + touching and end > tables.mms.start_brk[mm] - touching:
        return "[heap]"
    if start <= tables.mms.start_stack[mm] <= end:
        return "[stack]"
    return ""


def our_maps(capture: Capture, mm: int) -> list[Mapping]:
    tables = capture.tables
    vmas = tables.vmas
    rows = tables.slots.vma[tables.slots.mm == mm]
    paths = file_paths(capture.target, vmas.vm_file[rows])
    mappings = []
    release = capture.target.release
    for row in rows:
        flags = int(vmas.vm_flags[row])
        file = int(vmas.vm_file[row])
        permissions = "".join(
            letter if flags & bit else "-"
            for letter, bit in (("r", VM_READ), ("w", VM_WRITE), ("x", VM_EXEC))
        ) + ("s" if flags & VM_MAYSHARE else "p")
        mappings.append(
            Mapping(
                int(vmas.vm_start[row]),
                int(vmas.vm_end[row]),
                permissions,
                int(vmas.vm_pgoff[row]) * tables.era.page_size if file else 0,
                paths[file].decode() if file else bracketed_name(tables, int(row), mm, release),
            )
        )
    return mappings


@every
def test_vmas_are_those_of_proc_maps(capture: Capture) -> None:
    tables = capture.tables
    processes = {process["tgid"]: process for process in capture.processes()}
    assert set(tables.tasks.tgid.tolist()) == set(processes)
    for tgid, process in processes.items():
        theirs = [Mapping.parse(line) for line in process["maps"]]
        mm = int(tables.tasks.mm[np.flatnonzero(tables.tasks.tgid == tgid)[0]])
        ours = our_maps(capture, mm)
        # Names such as [vvar] and [anon:...] do not follow from the mm's fields.
        known = ("[heap]", "[stack]", "[vdso]")
        theirs = [
            mapping
            if not mapping.name.startswith("[") or mapping.name in known
            else Mapping(mapping.start, mapping.end, mapping.permissions, mapping.offset, "")
            for mapping in theirs
            if mapping.name != "[vsyscall]"
        ]
        assert ours == theirs, f"process {tgid}"


@every
def test_keys_of_program_segments(capture: Capture) -> None:
    """Private mappings of a file that no workload moves, where the guest shows them.

    ``__mmap_region()`` in mm/vma.c of 7.3 counts their anonymous pages by the address; before, a
    page's offset is that in the file.
    """
    tables, vmas = capture.tables, capture.tables.vmas
    by_address = tuple(map(int, capture.target.release.split(".")[:2])) >= (7, 3)
    compared = 0
    for process in capture.processes():
        mm = tables.tasks.mm[np.flatnonzero(tables.tasks.tgid == process["tgid"])[0]]
        rows = tables.slots.vma[tables.slots.mm == mm]
        row_at = dict(zip(vmas.vm_start[rows].tolist(), rows.tolist(), strict=True))
        for mapping in map(Mapping.parse, process["maps"]):
            if mapping.name in ("/bin/busybox", f"/lab/{capture.manifest['workload']}"):
                row = row_at[mapping.start]
                first = (mapping.start if by_address else mapping.offset) // tables.era.page_size
                pages = (mapping.end - mapping.start) // tables.era.page_size
                assert vmas.key_first[row] == first
                assert vmas.key_last[row] == first + pages - 1
                compared += 1
    assert compared


@every
def test_threads_are_those_of_proc(capture: Capture) -> None:
    ours: dict[int, set[int]] = {}
    for tgid, pid in zip(capture.tables.tasks.tgid, capture.tables.tasks.pid, strict=True):
        ours.setdefault(int(tgid), set()).add(int(pid))
    for process in capture.processes():
        # A zombie (a leader that exited before its threads did) has no mm any more.
        alive = {
            int(thread.split()[0])
            for thread in process["threads"]
            if thread.split()[1] not in ("Z", "X")
        }
        assert ours[process["tgid"]] == alive


@every
def test_everything_was_there(capture: Capture) -> None:
    tables = capture.tables
    assert tables.complete
    assert not len(tables.broken.address)
    assert tables.mms.whole.all()
    assert tables.anon_vmas.tree_whole.all()
    assert tables.anon_vmas.family_whole.all()
    assert (tables.nodes.avc != NO_ROW).all()


@every
def test_counts_agree_with_slabinfo(capture: Capture) -> None:
    """The free objects of per-CPU slabs count as active there; KFENCE's objects not at all."""
    word = capture.manifest["word"]
    slab = {name: figures.split()[0] for name, figures in word["slab"]["anon_vma"].items()}
    fenced = re.search(r"currently allocated: (\d+)", word["facts"].get("kfence", ""))
    active = int(slab["objects"])
    slack = int(slab["cpu_slabs"]) * int(slab["objs_per_slab"])
    slack += int(slab.get("slabs_cpu_partial", "0").split("(")[0])
    reached = int(capture.tables.anon_vmas.reached.sum())
    assert reached <= active + (int(fenced[1]) if fenced else 0)
    # From 7.0 on free objects are kept in sheaves, whose number no file tells; a cache that was
    # shrunk has none.
    shrunk = "shrink=1" in capture.manifest["guest"]["witness"]
    if shrunk or int(capture.target.release.split(".")[0]) < 7:
        assert reached >= active - slack


class ForkTree:
    """What the ``forktree`` workload's log says became of every VMA of its arena.

    An anon_vma is named by the process and the VMA that it was made for.
    """

    def __init__(self, log: list[Any]) -> None:
        self.pid: dict[int, int] = {}
        self.active: dict[int, dict[int, tuple[int, int] | None]] = {}
        self.parent: dict[tuple[int, int], tuple[int, int]] = {}
        for event in log:
            getattr(self, "_" + event["event"])(event)

    def _arena(self, event: Any) -> None:
        self._base = int(event["base"], 16)
        self._stride: int = event["stride"]
        self._pages = event["pages"]
        self._root = event["index"]
        self.pid[event["index"]] = event["pid"]
        self.active[event["index"]] = {
            self._address(slot, 0): None for slot in range(event["slots"])
        }

    def _address(self, slot: int, page: int) -> int:
        return self._base + (slot * self._stride + page) * 4096

    def _map(self, event: Any) -> None:
        pass

    def _touch(self, event: Any) -> None:
        index = event["index"]
        vmas = self.active[index]
        for touched in filter(None, event["pages"].split(",")):
            slot, page = map(int, touched.split(":"))
            start = max(start for start in vmas if start <= self._address(slot, page))
            if vmas[start] is None:
                # Unfaulted, with a gap on either side: a root of its own.
                made = (index, start)
                vmas[start] = self.parent[made] = made

    def _split(self, event: Any) -> None:
        vmas = self.active[event["index"]]
        whole = vmas[self._address(event["slot"], 0)]
        for page in (event["page"], event["page"] + event["pages"]):
            vmas[self._address(event["slot"], page)] = whole

    def _fork(self, event: Any) -> None:
        index = event["index"]
        self.pid[index] = event["pid"]
        self.active[index] = {}
        for start, inherited in self.active[event["parent"]].items():
            made = None if inherited is None else (index, start)
            if made is not None and inherited is not None:
                self.parent[made] = inherited
            self.active[index][start] = made


@pytest.mark.parametrize("capture", FORK_TREES, ids=lambda capture: capture.name)
def test_fork_tree_is_that_of_the_log(capture: Capture) -> None:
    tables = capture.tables
    tree = ForkTree(capture.manifest["word"]["log"])
    assert len(tree.pid) > 10
    address_of: dict[tuple[int, int], int] = {}
    compared = 0
    for index, vmas in tree.active.items():
        task = np.flatnonzero(tables.tasks.pid == tree.pid[index])[0]
        rows = tables.slots.vma[tables.slots.mm == tables.tasks.mm[task]]
        by_start = {int(tables.vmas.vm_start[row]): row for row in rows}
        for start, made in vmas.items():
            active = int(tables.vmas.active[by_start[start]])
            if made is None:
                assert active == NO_ROW, f"process {tree.pid[index]} at {start:#x}"
                continue
            assert active != NO_ROW
            assert address_of.setdefault(made, active) == active
            compared += 1
    assert len(set(address_of.values())) == len(address_of), "one object for each made"
    for made, inherited in tree.parent.items():
        row, parent = address_of[made], address_of[inherited]
        assert tables.anon_vmas.parent_row[row] == parent
        oldest = inherited
        while tree.parent[oldest] != oldest:
            oldest = tree.parent[oldest]
        assert tables.anon_vmas.root_row[row] == address_of[oldest]
    assert compared > 100


@pytest.mark.parametrize(
    "capture",
    [c for c in CAPTURES if c.manifest_path.with_suffix(".map").exists()],
    ids=lambda capture: capture.name,
)
def test_symbols_are_found_without_their_file(capture: Capture) -> None:
    target = open_target(TargetOptions(core=str(capture.core)))
    assert target.symbols_source in ("kallsyms-search", "search")
    assert target.symbols.items() <= capture.target.symbols.items()
    assert np.array_equal(target.space.ram, capture.target.space.ram)
    ours, theirs = collect(target), capture.tables
    assert ours.complete == theirs.complete
    for name in ("tasks", "mms", "vmas", "avcs", "anon_vmas"):
        columns = vars(getattr(theirs, name))
        for column, values in columns.items():
            if isinstance(values, np.ndarray):
                assert np.array_equal(getattr(getattr(ours, name), column), values), column
