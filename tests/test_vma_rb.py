"""Red-black trees of VMAs, as they are up to v6.0."""

from __future__ import annotations

import dataclasses

import numpy as np

from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.collect.vma_rb import walk_rb_trees
from anonvma_inspect.target.memory import AddressSpace, SegmentMemory

from .captures import CAPTURES

BASE, MM = 0xFFFF888000000000, 0xFFFF888001000000


def test_chain_of_left_children() -> None:
    """No red-black tree is so deep; whoever made it would have the walk go on level by level."""
    capture = next(capture for capture in CAPTURES if capture.name == "forktree-5.10")
    vma, count = capture.tables.era.vma, 1000
    data = np.zeros((count, 256), dtype=np.uint8)
    words = data.view("<u8")
    address = BASE + np.arange(count, dtype=np.uint64) * np.uint64(256)
    node = address + np.uint64(vma.offset("vm_rb"))
    # All of them black.
    words[:, vma.offset("vm_rb_parent_color") // 8] = 1
    words[1:, vma.offset("vm_rb_parent_color") // 8] |= node[:-1]
    words[:-1, vma.offset("vm_rb_left") // 8] = node[1:]
    words[:, vma.offset("vm_mm") // 8] = MM
    bounds = [np.array([word], dtype=np.uint64) for word in (BASE, data.size, 0)]
    ram = np.array([[BASE, BASE + (32 << 20)]], dtype=np.uint64)
    target = dataclasses.replace(
        capture.target,
        memory=SegmentMemory(data.reshape(-1), *bounds),
        space=AddressSpace(ram, 4096, BASE),
    )
    reader = Reader(target, None)
    mms, roots = np.array([MM], dtype=np.uint64), node[:1]
    slots, whole = walk_rb_trees(reader, capture.tables.era, np.array([0]), mms, roots)
    assert not whole.any()
    # As far as it was followed.
    assert np.array_equal(slots.pointer, address[: len(slots.pointer)][::-1])
    assert 0 < len(slots.pointer) < 256
    broken = reader.broken_words(np.array([0]))
    assert broken.problem.tolist() == ["the tree of VMAs is deeper than any red-black tree"]
