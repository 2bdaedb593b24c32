"""Insertion into a tree, and removal from it, half done (lib/rbtree.c, v5.10 to v7.3)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from anonvma_inspect.in_flight import kinds
from anonvma_inspect.in_flight.draft import Draft
from anonvma_inspect.in_flight.operation import Operation
from anonvma_inspect.in_flight.scene import Scene
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.kernel.tags import rb_parent, strip_lock_mark
from anonvma_inspect.tables import NO_ROW

__all__ = ("recognise",)

_KINDS = kinds.TREE_SHAPE

# Rules that look at the shape of trees.
_CODES = ("AV203", "AV205", "AV206")
# A node and those around it: what one step of the repair writes to.
_MAX_WORDS = 3


def recognise(scene: Scene) -> Iterator[Operation]:
    """Trees in which colours, pointers or ``rb_subtree_last`` are wrong in one place.

    Whoever inserts or removes a node repairs the tree step by step from there to the root; between
    two steps the rules are broken at one node. That is so in no more than one tree of a family, and
    its writer must be at work on the mm of a VMA of that tree.
    """
    facts = scene.facts
    places: dict[int, list[int]] = {}
    for code in _CODES:
        for group in scene.violations(code):
            # What is said of VMAs is said of their page offsets.
            rows = np.empty(0, dtype=np.int64) if group.anon_vma is None else group.anon_vma
            if group.object_type == scene.tables.era.vma.struct:
                continue
            roots = take(facts.root_row, rows, NO_ROW)
            held = take(facts.root_writer, roots, False)
            for top, row in zip(roots[held].tolist(), rows[held].tolist(), strict=True):
                places.setdefault(top, []).append(row)
    for root, trees in places.items():
        if len(set(trees)) > 1 or len(trees) > _MAX_WORDS:
            continue
        tree = trees[0]
        if not _is_at_work(scene, root, tree) or not _has_its_own_words(scene, tree):
            continue

        def settle(draft: Draft, tree: int = tree) -> None:
            draft.lay_out(tree)

        yield Operation(
            "rebalance", scene.root_lock(root), _KINDS, settle, anon_vmas=frozenset((tree,))
        )


# All words lead to AVCs of this anon_vma, or are the last page of one of them: each is right, was
# right a moment ago, or will be soon.
def _has_its_own_words(scene: Scene, tree: int) -> bool:
    tables, facts = scene.tables, scene.facts
    avcs = tables.avcs
    member = np.flatnonzero(facts.avc_known & (facts.avc_anon_vma_row == tree))
    last = tables.vmas.key_last[facts.home[member]]
    pointers = [
        strip_lock_mark(tables.anon_vmas.rb_root[[tree]]),
        tables.anon_vmas.rb_leftmost[[tree]],
        rb_parent(avcs.rb_parent_color[member]),
        avcs.rb_left[member],
        avcs.rb_right[member],
    ]
    words = np.concatenate(pointers)
    inside = np.isin(words, avcs.rb_node[member]) | (words == 0)
    return bool(inside.all() and np.isin(avcs.rb_subtree_last[member], last).all())


# The writer works on some mm with a VMA in the tree, or whose VMA has just left it.
def _is_at_work(scene: Scene, root: int, tree: int) -> bool:
    tables, facts = scene.tables, scene.facts
    avcs = np.flatnonzero(facts.avc_known & (facts.avc_anon_vma_row == tree))
    mm = np.unique(take(tables.vmas.mm, facts.home[avcs], NO_ROW))
    return any(scene.works_on(root, each) for each in mm[mm != NO_ROW].tolist())
