"""Which fields a kernel has, and where: everything that the walks need, resolved up front.

Fields decide, never a release number: distributions backport. A kernel that lacks a field without
which a walk would be wrong is refused by name; one that has a field's older or newer form gets that
form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.errors import TargetError
from anonvma_inspect.kernel.tags import NO_TAGS, TagScheme
from anonvma_inspect.target.layouts import Field, Layouts

__all__ = ("Era", "Record", "resolve_era", "resolve_record")

_UNSIGNED = {1: "<u1", 2: "<u2", 4: "<u4", 8: "<u8"}
# No struct here comes near; a damaged BTF must not decide how much memory a row takes.
_MAX_SIZE = 1 << 16
_SIGNED = {1: "<i1", 2: "<i2", 4: "<i4", 8: "<i8"}


@dataclass(frozen=True)
class Record:
    """One struct of the kernel's: its size, and the fields of it that are read.

    :ivar struct: C name, without ``struct``.
    :ivar size: Bytes.
    :ivar fields: By the name used here, which is the kernel's. A field that this kernel lacks is
        not in it.
    """

    struct: str
    size: int
    fields: Mapping[str, Field]

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def offset(self, name: str) -> int:
        """Bytes from the start of the struct to a field."""
        return self.fields[name].offset

    def column(self, rows: NDArray[np.uint8], name: str, at: int = 0) -> NDArray[np.uint64]:
        """Cut one unsigned (or pointer) field, or a bit-field, out of rows.

        :param rows: Shape (n, size): bytes of the struct from ``at`` on.
        :return: ``uint64``.
        """
        words = self._cut(rows, name, at, _UNSIGNED).astype(np.uint64)
        field = self.fields[name]
        if field.bit_offset is None or field.bit_size is None:
            return words
        bits: NDArray[np.uint64] = words >> np.uint64(field.bit_offset)
        return bits & np.uint64((1 << field.bit_size) - 1)

    def signed(self, rows: NDArray[np.uint8], name: str, at: int = 0) -> NDArray[np.int64]:
        """Cut one field out of rows as :meth:`as_signed` has it."""
        return self.as_signed(name, self.column(rows, name, at))

    def as_signed(self, name: str, column: NDArray[np.uint64]) -> NDArray[np.int64]:
        """A column of an unsigned field as signed numbers of the field's own width.

        Counters of the kernel's are mostly unsigned; read as signed, one that fell below 0 shows.
        """
        return (
            column.astype(_UNSIGNED[self.fields[name].size])
            .view(_SIGNED[self.fields[name].size])
            .astype(np.int64)
        )

    def _cut(
        self, rows: NDArray[np.uint8], name: str, at: int, types: Mapping[int, str]
    ) -> NDArray[np.generic]:
        field = self.fields[name]
        # A strided view over the rows: only the field's bytes are copied, and only once.
        rows = np.ascontiguousarray(rows)
        return np.ndarray(
            shape=(len(rows),),
            dtype=types[field.size],
            buffer=rows.data if len(rows) else bytes(field.end),
            offset=field.offset - at,
            strides=(rows.shape[1],),
        )


@dataclass(frozen=True)
class Era:
    """The structures of one kernel, as far as the anonymous reverse map goes.

    :ivar features: What tells this kernel from others, for people: ``("maple tree", ...)``.
    :ivar maple_node: ``None`` where VMAs are in a red-black tree.
    :ivar tags: How ``vma->anon_vma`` is encoded. (Which fields there are does not tell that.)
    """

    features: tuple[str, ...]
    page_size: int
    task: Record
    signal: Record
    mm: Record
    maple_node: Record | None
    vma: Record
    avc: Record
    anon_vma: Record
    tags: TagScheme = NO_TAGS

    @property
    def tag_scheme(self) -> str:
        """The name of the encoding: ``none``, ``unfaulted`` or ``lazy``."""
        return self.tags.name

    @property
    def name(self) -> str:
        """The features in one line."""
        return ", ".join(self.features)

    @property
    def has_parent(self) -> bool:
        """``anon_vma.parent`` exists (since v3.19); with it came the rule of reuse."""
        return "parent" in self.anon_vma

    @property
    def has_separate_counts(self) -> bool:
        """``num_children`` and ``num_active_vmas`` (since v6.0, and in stable trees before)."""
        return "num_children" in self.anon_vma

    @property
    def has_degree(self) -> bool:
        """``degree``, their sum (v3.19 to v5.19)."""
        return "degree" in self.anon_vma

    @property
    def has_leftmost(self) -> bool:
        """The interval tree caches its first node (since v4.14)."""
        return "rb_leftmost" in self.anon_vma


# The fields that the walks need, in the spelling of resolve_record().
_TASK = (
    "tasks_next=tasks.next",
    "tasks_prev=tasks.prev",
    "thread_node_next=thread_node.next",
    "thread_node_prev=thread_node.prev",
    "signal",
    "mm",
    "pid",
    "tgid",
    "comm",
    "flags",
    # real_start_time before v5.5.
    "?start_boottime=start_boottime|real_start_time",
    "?self_exec_id",
)
_SIGNAL = ("thread_head_next=thread_head.next", "thread_head_prev=thread_head.prev")
_MM = (
    "pgd",
    "mm_users=mm_users.counter",
    "map_count",
    # Since Linux kernel commit "mm: add bitmap mm->flags field" (in v6.18) a bitmap.
    "mm_flags=flags.__mm_flags|flags",
    # Since Linux kernel commit 763ecb035029 ("mm: remove the vma linked list") (in v6.1) VMAs are
    # in a maple tree only; before, in a red-black tree and a list.
    "?ma_root=mm_mt.ma_root",
    "?ma_flags=mm_mt.ma_flags",
    "?mm_rb_node=mm_rb.rb_node",
    # mmap_sem before v5.8. PREEMPT_RT has another rw_semaphore.
    "?mmap_lock_count=mmap_lock.count.counter|mmap_sem.count.counter",
    "?mmap_lock_readers=mmap_lock.rwbase.readers.counter",
    # Since Linux kernel commit 5e31275cc997 ("mm: add per-VMA lock and helper functions to control
    # it") (in v6.4) it counts how often a writer gave mmap_lock back; since eb449bd96954 ("mm:
    # convert mm_lock_seq to a proper seqcount") (in v6.14) also how often one took it.
    "?mm_lock_seq=mm_lock_seq.sequence|mm_lock_seq",
    # Since v5.3 who holds it for write is an atomic_long_t, with flags.
    "?mmap_lock_owner=mmap_lock.owner.counter|mmap_lock.rwbase.rtmutex.owner",
    "start_brk",
    "brk",
    "start_stack",
    "?vdso=context.vdso",
    # x86-64, since v4.15.
    "?ctx_id=context.ctx_id",
)
_MAPLE_NODE = (
    "parent",
    "mr64_pivot=mr64.pivot",
    "mr64_slot=mr64.slot",
    "mr64_meta_end=mr64.meta.end",
    "ma64_pivot=ma64.pivot",
    "ma64_slot=ma64.slot",
    "ma64_meta_end=ma64.meta.end",
)
_VMA = (
    "vm_start",
    "vm_end",
    "vm_mm",
    "vm_flags",
    # vma_flags_t beside it, by v7.2.
    "?vma_flags=flags",
    "vm_pgoff",
    "vm_file",
    "anon_vma",
    "anon_vma_chain",
    "anon_vma_chain_next=anon_vma_chain.next",
    "anon_vma_chain_prev=anon_vma_chain.prev",
    # The key of the anonymous interval tree since v7.3; before, it is vm_pgoff.
    "?anon_pgoff_lo=__vm_anon_pgoff_lo",
    "?anon_pgoff_hi=__vm_anon_pgoff_hi",
    # Whether it is in its mm's tree: since v6.4 a flag, since v6.15 a reference count.
    "?detached",
    "?vm_refcnt=vm_refcnt.refs.counter",
    # ANON_VMA_LAZY's vma_get(): what the proposal counts in is not known; a lab kernel's name.
    "?root_refs=anon_root_refs.counter",
)
# The red-black tree and the list of VMAs, up to v6.0.
_VMA_RB = (
    "vm_rb",
    "vm_rb_parent_color=vm_rb.__rb_parent_color",
    "vm_rb_left=vm_rb.rb_left",
    "vm_rb_right=vm_rb.rb_right",
    "vm_next",
    "vm_prev",
)
_AVC = (
    "vma",
    "anon_vma",
    "same_vma",
    "same_vma_next=same_vma.next",
    "same_vma_prev=same_vma.prev",
    "rb",
    "rb_parent_color=rb.__rb_parent_color",
    "rb_left=rb.rb_left",
    "rb_right=rb.rb_right",
    "rb_subtree_last",
)
_ANON_VMA = (
    "root",
    "refcount=refcount.counter",
    # Since Linux kernel commit f808c13fd373 ("lib/interval_tree: fast overlap detection") (in
    # v4.14) the root of the tree is an rb_root_cached.
    "rb_node=rb_root.rb_root.rb_node|rb_root.rb_node",
    "?rb_leftmost=rb_root.rb_leftmost",
    "?parent",
    # Since Linux kernel commit 2555283eb40d ("mm/rmap: Fix anon_vma->degree ambiguity leading to
    # double-reuse") (in v6.0, and in stable trees) two counters instead of one.
    "?num_children",
    "?num_active_vmas",
    "?degree",
    "?rwsem_count=rwsem.count.counter",
    "?rwsem_readers=rwsem.rwbase.readers.counter",
    "?rwsem_owner=rwsem.owner.counter",
    "?rwsem_rt_owner=rwsem.rwbase.rtmutex.owner",
)


def resolve_era(layouts: Layouts, page_size: int, release: str) -> Era:
    """Find every field that the walks need.

    :param page_size: Bytes.
    :param release: For messages.
    :raises TargetError: if the kernel fits no era that is understood; it names what is missing.
    """
    missing: list[str] = []
    task = resolve_record(layouts, "task_struct", _TASK, missing)
    signal = resolve_record(layouts, "signal_struct", _SIGNAL, missing)
    mm = resolve_record(layouts, "mm_struct", _MM, missing)
    maple_node = None
    if "ma_root" in mm and "ma_flags" in mm:
        maple_node = resolve_record(layouts, "maple_node", _MAPLE_NODE, missing)
    elif "mm_rb_node" not in mm:
        missing.append("mm_struct.mm_mt (or .mm_rb)")
    vma_fields = _VMA if maple_node is not None else (*_VMA, *_VMA_RB)
    vma = resolve_record(layouts, "vm_area_struct", vma_fields, missing)
    avc = resolve_record(layouts, "anon_vma_chain", _AVC, missing)
    anon_vma = resolve_record(layouts, "anon_vma", _ANON_VMA, missing)
    if "num_children" not in anon_vma and "degree" not in anon_vma:
        missing.append("anon_vma.num_children (or .degree)")
    if ("num_children" in anon_vma) != ("num_active_vmas" in anon_vma):
        missing.append("one of anon_vma.num_children and .num_active_vmas")
    if "mmap_lock_count" not in mm and "mmap_lock_readers" not in mm:
        missing.append("mm_struct.mmap_lock.count")
    if "rwsem_count" not in anon_vma and "rwsem_readers" not in anon_vma:
        missing.append("anon_vma.rwsem.count")
    if missing:
        raise TargetError(
            f"the structures of this kernel ({release}) are of no era that is understood: "
            f"{', '.join(missing)} not found"
        )
    return Era(
        features=_features(mm, vma, anon_vma),
        page_size=page_size,
        task=task,
        signal=signal,
        mm=mm,
        maple_node=maple_node,
        vma=vma,
        avc=avc,
        anon_vma=anon_vma,
    )


def resolve_record(
    layouts: Layouts, struct: str, spellings: tuple[str, ...], missing: list[str]
) -> Record:
    """Find the fields of one struct.

    :param spellings: ``name``, or ``name=path`` with the member's path, or
        ``name=path|older path``; with a leading ``?`` if some kernels lack it.
    :param missing: What is needed and not found is appended here.
    """
    size = layouts.size(struct)
    if size is None or size > _MAX_SIZE:
        missing.append(f"struct {struct}")
        return Record(struct, 0, {})
    fields = {}
    for spelling in spellings:
        name, _, paths = spelling.lstrip("?").partition("=")
        for path in (paths or name).split("|"):
            field = layouts.field(struct, path)
            if field is not None:
                fields[name] = field
                break
        else:
            if not spelling.startswith("?"):
                missing.append(f"{struct}.{(paths or name).split('|')[0]}")
    return Record(struct, size, fields)


def _features(mm: Record, vma: Record, anon_vma: Record) -> tuple[str, ...]:
    return (
        "maple tree" if "ma_root" in mm else "rb tree of VMAs",
        "num_children" if "num_children" in anon_vma else "degree",
        *(("rb_leftmost",) if "rb_leftmost" in anon_vma else ()),
        *(("anon pgoff",) if "anon_pgoff_lo" in vma else ()),
        *(("PREEMPT_RT",) if "mmap_lock_readers" in mm else ()),
    )
