"""Saving what an audit reads."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np

from anonvma_inspect.collect.audit import collect_audit
from anonvma_inspect.collect.hugetlb import read_hugetlb
from anonvma_inspect.collect.ksm import KSM_WALK
from anonvma_inspect.collect.locks import LOCKS_WALK, collect_locks
from anonvma_inspect.collect.pages import PAGES_WALK
from anonvma_inspect.collect.paths import file_paths
from anonvma_inspect.collect.reader import Progress
from anonvma_inspect.collect.slabs import LEAKS_WALK, SLABS_WALK
from anonvma_inspect.collect.stacks import save_calls
from anonvma_inspect.collect.swap_cache import SWAP_CACHE_WALK
from anonvma_inspect.errors import UsageError
from anonvma_inspect.tables import Tables
from anonvma_inspect.target.memory import RecordingMemory
from anonvma_inspect.target.snapshot import SnapshotHeader, compress, pack
from anonvma_inspect.target.target import Target

__all__ = ("Saved", "check_output", "save_snapshot")

# Types that a snapshot describes whole, and enumerators. What the walks read is here, and what a
# person who opens the file in drgn wants to look at: the rest of the same objects.
_TYPES = (
    "ANON_VMA_TREE_PARENT",
    "ANON_VMA_TREE_VMA",
    "ANON_VMA_UNFAULTED",
    "address_space",
    "anon_vma",
    "anon_vma_chain",
    "clocksource",
    "cpumask",
    "dentry",
    "file",
    "folio",
    "inode",
    "kfence_metadata",
    "kmem_cache",
    "kmem_cache_cpu",
    "kmem_cache_node",
    "kmem_cache_per_node_ptrs",
    "ksm_rmap_item",
    "ksm_stable_node",
    "list_head",
    "maple_node",
    "maple_tree",
    "mm_struct",
    "mount",
    "node_barn",
    "page",
    "pageflags",
    "path",
    "qstr",
    "rb_node",
    "rb_root_cached",
    "rmap_item",
    "rq",
    "rt_mutex_waiter",
    "rw_semaphore",
    "rwsem_waiter",
    "signal_struct",
    "slab",
    "slab_sheaf",
    "slub_percpu_sheaves",
    "stable_node",
    "swap_cluster_info",
    "swap_info_struct",
    "swap_table",
    "task_struct",
    "vfsmount",
    "vm_area_struct",
    "xa_node",
)
# Fields that no walk reads yet, but that tell who holds a lock and what a process was doing.
_FIELDS = {
    "task_struct": ("__state", "state", "exit_state", "on_cpu", "real_parent", "group_leader"),
    # Before v6.1 drgn walks the list of VMAs from mmap on.
    "mm_struct": ("mm_count", "mmap", "mmap_lock", "mm_lock_seq", "owner", "total_vm"),
}
_VARIABLES = ("page_offset_base", "vmemmap_base")


@dataclasses.dataclass(frozen=True)
class Saved:
    """What was written.

    :ivar bytes: Length of the file.
    :ivar tables: What it holds.
    """

    path: str
    bytes: int
    anonymized: bool
    tables: Tables


def check_output(path: str, *, force: bool) -> None:
    """Refuse a file that cannot or must not be written, before the target is opened.

    :raises UsageError: if it exists and ``force`` is not set, or cannot be made.
    """
    if not path:
        raise UsageError("-o needs the name of the file to write")
    output = Path(path).resolve()
    if output.is_dir():
        raise UsageError(f"{path}: a directory; name the file to write")
    # The new file takes the name of the old: a device would be gone for everybody.
    if output.exists() and not output.is_file():
        raise UsageError(f"{path}: a device or a pipe; name the file to write")
    if output.exists() and not force:
        raise UsageError(f"{path}: exists already; --force overwrites it")
    parent = output.parent
    if not parent.is_dir():
        raise UsageError(f"{path}: there is no directory {parent}")
    if not os.access(parent, os.W_OK):
        raise UsageError(f"{path}: no permission to write in {parent}")


def save_snapshot(
    target: Target,
    path: str,
    *,
    force: bool = False,
    anonymize: bool = False,
    pages: bool = False,
    progress: Progress | None = None,
) -> Saved:
    """Write a snapshot of a target: everything that an audit of it reads, and nothing else.

    :param path: A name that ends in ``.xz`` is compressed.
    :param force: Overwrite an existing file.
    :param anonymize: Leave out the names of commands and files.
    :param pages: Also what page tables and folios say.
    :raises UsageError: if the file cannot or must not be written.
    :raises TargetError: if the target has no BTF to take the needed types from.
    """
    check_output(path, force=force)
    # What is not in a snapshot does not come into one made of it.
    anonymize = anonymize or (target.walks is not None and "file names" not in target.walks)
    btf = target.load_btf().reduce(_TYPES)
    recording = RecordingMemory(target.memory)
    recorded = dataclasses.replace(target, memory=recording)
    tables = collect_audit(recorded, progress=progress, leaks=True, deep=int(pages))
    names = tables.tasks.address + np.uint64(tables.era.task.offset("comm"))
    for struct, addresses in (
        ("task_struct", tables.tasks.address),
        ("mm_struct", tables.mms.address),
    ):
        for name in _FIELDS[struct]:
            field = target.layouts.field(struct, name)
            if field is not None:
                recording.gather(addresses + np.uint64(field.offset), field.size)
    # Variables that tell whoever opens the file as a plain dump where things lie.
    for name in _VARIABLES:
        if name in target.symbols:
            recording.gather(np.array([target.symbols[name]], dtype=np.uint64), 8)
    walks = ["audit"]
    if target.walks is None or KSM_WALK in target.walks:
        walks.append(KSM_WALK)
    allocation = tables.allocation
    if allocation is not None and allocation.not_read is None:
        walks.append(SLABS_WALK)
        if allocation.unreached is not None:
            walks.append(LEAKS_WALK)
    if tables.pages is not None and tables.pages.not_read is None:
        walks.append(PAGES_WALK)
        if tables.pages.swapped.not_read is None:
            walks.append(SWAP_CACHE_WALK)
        # No rule is about these, but rmap can be asked for them.
        read_hugetlb(recorded, tables)
    functions: dict[str, list[int]] = {}
    locks = collect_locks(recorded, tables).locks
    if locks is not None and locks.missing is None:
        saved = save_calls(target, recording, locks.tasks)
        functions = {name: list(ends) for name, ends in saved.items()}
        comm = np.uint64(tables.era.task.offset("comm"))
        names = np.concatenate([names, locks.tasks.address + comm])
        walks.append(LOCKS_WALK)
    if not anonymize:
        file_paths(recorded, tables.vmas.vm_file)
        walks.append("file names")
    header = SnapshotHeader(
        release=target.release,
        machine=target.architecture,
        page_size=target.page_size,
        ram=[[int(start), int(end)] for start, end in target.space.ram],
        direct_map=target.space.direct_map,
        symbols={name: target.symbols[name] for name in sorted(target.symbols)},
        walks=walks,
        anonymized=anonymize,
        functions=functions,
        registers=[list(cpu) for cpu in target.registers],
    )
    blank = bytes(tables.era.task.fields["comm"].size)
    data = pack(
        header,
        btf,
        target.vmcoreinfo,
        target.memory,
        recording.ranges(),
        {int(address): blank for address in names} if anonymize else None,
    )
    if path.endswith(".xz"):
        data = compress(data)
    _write(Path(path), data)
    return Saved(path, len(data), anonymize, tables)


# The name appears only when the file is whole.
def _write(path: Path, data: bytes) -> None:
    real = path.resolve()
    part = real.with_name(f"{real.name}.{os.getpid()}.part")
    try:
        part.touch(exist_ok=False)
        try:
            part.write_bytes(data)
            part.replace(real)
        except BaseException:
            part.unlink()
            raise
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from None
