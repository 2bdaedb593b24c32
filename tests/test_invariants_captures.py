"""One wrong word in a real kernel's memory: the audit names the object, and the word.

Each field that the checks read is changed in a captured kernel, in several ways, one at a time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from anonvma_inspect.collect import collect_audit
from anonvma_inspect.invariants.base import Severity
from anonvma_inspect.invariants.catalogue import audit
from anonvma_inspect.kernel.era import Record
from anonvma_inspect.tables import Tables
from anonvma_inspect.target.memory import OverlayMemory, U64Column

from .captures import CAPTURES

WILD = 0x4141414141414148
POISON = 0xDEAD000000000122

FIELDS = {
    "vm_area_struct": (
        *("vm_start", "vm_end", "vm_mm", "vm_pgoff", "anon_vma"),
        *("anon_vma_chain_next", "anon_vma_chain_prev"),
    ),
    "anon_vma_chain": (
        *("vma", "anon_vma", "same_vma_next", "same_vma_prev"),
        *("rb_parent_color", "rb_left", "rb_right", "rb_subtree_last"),
    ),
    "anon_vma": (
        *("root", "parent", "refcount", "num_children", "num_active_vmas"),
        *("rb_node", "rb_leftmost"),
    ),
    "mm_struct": ("map_count",),
}
# What pointers may be confused with: something of the same kind.
POINTERS = {
    "vm_mm": "mms",
    "vma": "vmas",
    "anon_vma": "anon_vmas",
    "root": "anon_vmas",
    "parent": "anon_vmas",
    "anon_vma_chain_next": "list nodes",
    "anon_vma_chain_prev": "list nodes",
    "same_vma_next": "list nodes",
    "same_vma_prev": "list nodes",
    "rb_left": "tree nodes",
    "rb_right": "tree nodes",
    "rb_parent_color": "tree nodes",
    "rb_node": "tree nodes",
    "rb_leftmost": "tree nodes",
}


@dataclass(frozen=True)
class Corruption:
    """A field of an object, and what to make of it."""

    capture: str
    struct: str
    field: str
    how: str

    def __str__(self) -> str:
        return f"{self.capture}-{self.struct}.{self.field}-{self.how}"


def corruptions() -> Iterator[Corruption]:
    for name in ("forktree-6.12", "vmaops-6.1"):
        for struct, fields in FIELDS.items():
            for field in fields:
                for how in ("another", "wild", "poison") if field in POINTERS else ("+1", "-1"):
                    yield Corruption(name, struct, field, how)


def objects(tables: Tables, struct: str, field: str) -> U64Column:
    if struct == "vm_area_struct" and field == "vm_pgoff":
        # A single tree may hold a VMA at more than one offset; several leave no choice.
        leaf = np.zeros(len(tables.avcs.address), dtype=bool)
        leaf[(tables.avcs.rb_left == 0) & (tables.avcs.rb_right == 0)] = True
        leaves = np.bincount(
            tables.links.vma[leaf[tables.links.avc]], minlength=len(tables.vmas.address)
        )
        return tables.vmas.address[leaves > 1]
    return {
        "vm_area_struct": tables.vmas.address,
        "anon_vma_chain": tables.avcs.address,
        "anon_vma": tables.anon_vmas.address,
        "mm_struct": tables.mms.address,
    }[struct]


def same_kind(tables: Tables, field: str) -> U64Column:
    return {
        "mms": tables.mms.address,
        "vmas": tables.vmas.address,
        "anon_vmas": tables.anon_vmas.address,
        "list nodes": np.concatenate([tables.vmas.chain_head, tables.avcs.list_node]),
        "tree nodes": tables.avcs.rb_node,
    }[POINTERS[field]]


def record_of(tables: Tables, struct: str) -> Record:
    era = tables.era
    return next(r for r in (era.vma, era.avc, era.anon_vma, era.mm) if r.struct == struct)


@pytest.mark.parametrize("corruption", list(corruptions()), ids=str)
def test_one_wrong_word(corruption: Corruption) -> None:
    capture = next(capture for capture in CAPTURES if capture.name == corruption.capture)
    target, tables = capture.target, capture.tables
    rng = random.Random(str(corruption))
    address = int(rng.choice(objects(tables, corruption.struct, corruption.field)))
    field = record_of(tables, corruption.struct).fields[corruption.field]
    place = address + field.offset
    shift = 8 * (place % 8)
    (row,), _ = target.memory.gather(np.array([place - place % 8], dtype=np.uint64), 8)
    word = int.from_bytes(row.tobytes(), "little")
    mask = (1 << 8 * field.size) - 1
    old = word >> shift & mask
    values = {
        "another": lambda: int(rng.choice(same_kind(tables, corruption.field))),
        "wild": lambda: WILD,
        "poison": lambda: POISON,
        "+1": lambda: (old + 1) & mask,
        "-1": lambda: (old - 1) & mask,
    }
    new = values[corruption.how]()
    while new == old:
        new = values[corruption.how]()
    overlay = OverlayMemory(
        target.memory, {place - place % 8: word & ~(mask << shift) | new << shift}
    )
    broken = audit(collect_audit(replace(target, memory=overlay), leaks=True))
    assert not broken.failures
    findings = list(broken.findings())
    words = {finding.word for finding in findings}
    assert place in words or address in {f.object_address for f in findings}
    if corruption.field != "refcount":
        assert any(finding.severity is Severity.ERROR for finding in findings)
    # One wrong word is no landslide.
    assert len(findings) <= 6
