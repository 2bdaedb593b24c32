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
from anonvma_inspect.tables import Holes, Ksm, Tables

from .handmade import RAM, Model

BASE = RAM
MM_A, MM_B = BASE + 0x10000, BASE + 0x11000
VMA_A, VMA_F, VMA_B = BASE + 0x20000, BASE + 0x20100, BASE + 0x20200
AVC_A, AVC_B, AVC_L = BASE + 0x30000, BASE + 0x30040, BASE + 0x30080
ROOT, LEAF = BASE + 0x40000, BASE + 0x40080
FILE = BASE + 0x50000

RB = 0x20

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
    model = Model(era or make_era())
    mother, child = model.at(MM_A).mm("a"), model.at(MM_B).mm("b")
    vma_a = model.at(VMA_A).map(mother, 1, 2)
    model.at(VMA_F).map(mother, 3, 1, 2, FILE).vm_flags = 0x75
    vma_b = model.at(VMA_B).map(child, 1, 2)
    vma_a.active = model.at(ROOT).new_anon_vma(None)
    vma_b.active = model.at(LEAF).new_anon_vma(vma_a.active)
    avc_a = model.at(AVC_A).link(vma_a, vma_a.active)
    avc_b = model.at(AVC_B).link(vma_b, vma_a.active)
    model.at(AVC_L).link(vma_b, vma_b.active)
    model.finish()
    # The kernel puts what was inserted later to the right of its equal.
    vma_a.active.rb_root = avc_a.rb
    avc_a.rb_parent_color, avc_a.rb_right = 1, avc_b.rb
    avc_b.rb_parent_color, avc_b.rb_left = avc_a.rb, 0
    tables = model.tables()
    return dataclasses.replace(
        tables,
        tasks=dataclasses.replace(tables.tasks, comm=np.array([comm_a, comm_b], dtype="S16")),
        mms=dataclasses.replace(
            tables.mms,
            start_brk=words(0x1000, 0x8000),
            brk=words(0x3000, 0x9000),
            start_stack=words(0x7000, 0x7000),
        ),
        ksm=Ksm(None, None),
        allocation=None,
    )


def with_hole(tables: Tables) -> Tables:
    return dataclasses.replace(
        tables,
        holes=Holes(
            words(BASE + 0x60000), numbers(64), np.array(["anon_vma_chain"], dtype=np.str_)
        ),
    )
