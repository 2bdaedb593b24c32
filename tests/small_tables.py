"""A reverse map small enough to know by heart: two processes, three VMAs, a root and its child.

::

    PID 100  VMA_A [0x1000, 0x3000)  active ROOT, chain: AVC_A (ROOT)
             VMA_F [0x3000, 0x4000)  a file, no anon_vma
    PID 101  VMA_B [0x1000, 0x3000)  active LEAF, chain: AVC_L (LEAF), AVC_B (ROOT)

    tree of ROOT: AVC_A black at the top, AVC_B red at its right
    tree of LEAF: AVC_L black
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.kernel.era import Era, Record
from anonvma_inspect.report.facts import TargetFacts
from anonvma_inspect.tables import (
    NO_ROW,
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
    RmapItems,
    Slots,
    StableNodes,
    Tables,
    Tasks,
    Vmas,
)
from anonvma_inspect.target.memory import AddressSpace

BASE = 0xFFFF888000000000
MM_A, MM_B = BASE + 0x10000, BASE + 0x11000
VMA_A, VMA_F, VMA_B = BASE + 0x20000, BASE + 0x20100, BASE + 0x20200
AVC_A, AVC_B, AVC_L = BASE + 0x30000, BASE + 0x30040, BASE + 0x30080
ROOT, LEAF = BASE + 0x40000, BASE + 0x40080
FILE = BASE + 0x50000

HEAD, LIST, RB = 0x78, 0x10, 0x20

FACTS = TargetFacts(
    kind="elf-core",
    release="6.12.0-test",
    architecture="x86_64",
    era="maple tree, num_children, rb_leftmost",
    tag_scheme="none",
    layouts="btf",
    symbols="kallsyms",
)


def words(*values: int) -> NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)


def numbers(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def flags(*values: bool) -> NDArray[np.bool_]:
    return np.array(values, dtype=bool)


def make_record(struct: str, size: int, *names: str) -> Record:
    # Which fields exist is all that reports ask.
    fields: dict[str, Any] = dict.fromkeys(names)
    return Record(struct, size, fields)


def make_era(**changes: Any) -> Era:
    values: dict[str, Any] = {
        "features": ("maple tree", "num_children", "rb_leftmost"),
        "tag_scheme": "none",
        "page_size": 4096,
        "task": make_record("task_struct", 8192),
        "signal": make_record("signal_struct", 1024),
        "mm": make_record("mm_struct", 2048),
        "maple_node": make_record("maple_node", 256),
        "vma": make_record("vm_area_struct", 176),
        "avc": make_record("anon_vma_chain", 64),
        "anon_vma": make_record(
            "anon_vma", 104, "parent", "num_children", "num_active_vmas", "rb_leftmost"
        ),
    }
    return Era(**{**values, **changes})


def make_tables(
    comm_a: bytes = b"mother", comm_b: bytes = b"child", era: Era | None = None
) -> Tables:
    return Tables(
        era=era or make_era(),
        space=AddressSpace(np.array([[BASE, BASE + 0x100000]], dtype=np.uint64), 4096, BASE),
        tasks=Tasks(
            address=words(BASE + 0x1000, BASE + 0x3000),
            pid=numbers(100, 101),
            tgid=numbers(100, 101),
            comm=np.array([comm_a, comm_b], dtype="S16"),
            mm=numbers(0, 1),
        ),
        holders=Holders(words(), numbers(), np.array([], dtype="S16")),
        mms=Mms(
            address=words(MM_A, MM_B),
            mm_users=numbers(1, 1),
            map_count=numbers(2, 1),
            flags=words(0, 0),
            task=numbers(0, 1),
            listed=flags(True, True),
            walked=flags(True, True),
            whole=flags(True, True),
            write_locked=flags(False, False),
            lock_free=flags(True, True),
            lock_seq=words(0, 0),
            lock_owner=words(0, 0),
            lock_readers=numbers(0, 0),
            known=flags(True, True),
            start_brk=words(0x1000, 0x8000),
            brk=words(0x3000, 0x9000),
            start_stack=words(0x7000, 0x7000),
            vdso=words(0, 0),
        ),
        slots=Slots(
            mm=numbers(0, 0, 1),
            first=words(0x1000, 0x3000, 0x1000),
            last=words(0x2FFF, 0x3FFF, 0x2FFF),
            pointer=words(VMA_A, VMA_F, VMA_B),
            vma=numbers(0, 1, 2),
        ),
        vmas=Vmas(
            address=words(VMA_A, VMA_F, VMA_B),
            vm_start=words(0x1000, 0x3000, 0x1000),
            vm_end=words(0x3000, 0x4000, 0x3000),
            vm_flags=words(0x100073, 0x75, 0x100073),
            vm_pgoff=words(1, 2, 1),
            vm_file=words(0, FILE, 0),
            vm_mm=words(MM_A, MM_A, MM_B),
            anon_vma=words(ROOT, 0, LEAF),
            anon_vma_pointer=words(ROOT, 0, LEAF),
            anon_vma_tag=words(0, 0, 0),
            attached=flags(True, True, True),
            chain_next=words(AVC_A + LIST, VMA_F + HEAD, AVC_L + LIST),
            chain_prev=words(AVC_A + LIST, VMA_F + HEAD, AVC_B + LIST),
            chain_head=words(VMA_A + HEAD, VMA_F + HEAD, VMA_B + HEAD),
            key_first=words(1, 2, 1),
            key_last=words(2, 2, 2),
            mm=numbers(0, 0, 1),
            slot=numbers(0, 1, 2),
            active=numbers(0, NO_ROW, 1),
            chain_end=np.full(3, ChainEnd.CLOSED, dtype=np.uint8),
            chain_length=numbers(1, 0, 2),
        ),
        links=Links(vma=numbers(0, 2, 2), position=numbers(0, 0, 1), avc=numbers(0, 2, 1)),
        avcs=Avcs(
            address=words(AVC_A, AVC_B, AVC_L),
            vma=words(VMA_A, VMA_B, VMA_B),
            anon_vma=words(ROOT, ROOT, LEAF),
            next=words(VMA_A + HEAD, VMA_B + HEAD, AVC_B + LIST),
            prev=words(VMA_A + HEAD, AVC_L + LIST, VMA_B + HEAD),
            list_node=words(AVC_A + LIST, AVC_B + LIST, AVC_L + LIST),
            rb_parent_color=words(1, AVC_A + RB, 1),
            rb_left=words(0, 0, 0),
            rb_right=words(AVC_B + RB, 0, 0),
            rb_node=words(AVC_A + RB, AVC_B + RB, AVC_L + RB),
            rb_subtree_last=words(2, 2, 2),
            vma_row=numbers(0, 2, 2),
            anon_vma_row=numbers(0, 0, 1),
        ),
        anon_vmas=AnonVmas(
            address=words(ROOT, LEAF),
            root=words(ROOT, ROOT),
            parent=words(ROOT, ROOT),
            refcount=numbers(2, 1),
            num_children=numbers(2, 0),
            num_active_vmas=numbers(1, 1),
            degree=numbers(0, 0),
            rb_root=words(AVC_A + RB, AVC_L + RB),
            rb_leftmost=words(AVC_A + RB, AVC_L + RB),
            write_locked=flags(False, False),
            lock_state=np.zeros(2, dtype=np.uint8),
            lock_owner=words(0, 0),
            root_row=numbers(0, 0),
            parent_row=numbers(0, 0),
            tree_whole=flags(True, True),
            reached=flags(True, True),
            family_whole=flags(True, True),
        ),
        nodes=Nodes(
            anon_vma=numbers(0, 0, 1),
            avc=numbers(0, 1, 2),
            parent=numbers(NO_ROW, 0, NO_ROW),
            left=numbers(NO_ROW, NO_ROW, NO_ROW),
            right=numbers(1, NO_ROW, NO_ROW),
            depth=numbers(0, 1, 0),
            again=flags(False, False, False),
        ),
        stable_nodes=StableNodes(words(), numbers(), np.empty(0, dtype=np.uint8), numbers()),
        rmap_items=RmapItems(
            address=words(),
            anon_vma=words(),
            mm=words(),
            head=words(),
            page=words(),
            node=numbers(),
            anon_vma_row=numbers(),
            mm_row=numbers(),
            settled=flags(),
        ),
        ksm=Ksm(None, None),
        holes=Holes(words(), numbers(), np.array([], dtype=np.str_)),
        broken=Broken(
            mm=numbers(),
            address=words(),
            type=np.array([], dtype=np.str_),
            value=words(),
            problem=np.array([], dtype=np.str_),
        ),
        pids=(),
    )


def with_hole(tables: Tables) -> Tables:
    return dataclasses.replace(
        tables,
        holes=Holes(
            words(BASE + 0x60000), numbers(64), np.array(["anon_vma_chain"], dtype=np.str_)
        ),
    )
