"""Insertion into a tree, and removal from it, half done (lib/rbtree.c, v5.10 to v7.3)."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from anonvma_inspect.in_flight import kinds
from anonvma_inspect.in_flight.draft import Draft
from anonvma_inspect.in_flight.operation import Operation
from anonvma_inspect.in_flight.scene import Scene
from anonvma_inspect.in_flight.unlink import families_with_an_unseen_vma
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.invariants.shape import is_child
from anonvma_inspect.kernel.tags import rb_parent, strip_lock_mark
from anonvma_inspect.tables import NO_ROW, RowColumn
from anonvma_inspect.target.memory import BoolColumn

__all__ = ("recognise",)

_KINDS = (*kinds.TREE_SHAPE, *kinds.OUT_OF_TREE)

# Rules that look at the shape of trees.
_CODES = ("AV203", "AV205", "AV206")
# A node and those around it: what one step of the repair writes to.
_MAX_WORDS = 3
# A VMA that is taken out of all of its trees can leave that many of which this could be said.
_MAX_TREES = 256
# MAX_LFS_FILESIZE, include/linux/fs.h, in pages of 4 KiB: what no mapping goes beyond.
_LAST_PAGE = np.uint64((1 << 51) - 1)


def recognise(scene: Scene) -> Iterator[Operation]:
    """Trees in which colours, pointers or ``rb_subtree_last`` are wrong in one place.

    Whoever inserts or removes a node repairs the tree step by step from there to the root; between
    two steps the rules are broken at one node. In the middle of a rotation, or of putting the next
    node in the place of one with two children, nothing leads to the node that is to move up, nor to
    what is below it. That is so in no more than one tree of a family. Its writer must be at work on
    the mm of a VMA of that tree, or have taken a VMA from the family that nothing leads to now.
    """
    facts = scene.facts
    broken: dict[int, list[int]] = defaultdict(list)
    for code in _CODES:
        for group in scene.violations(code):
            # What is said of VMAs is said of their page offsets.
            if group.anon_vma is None or group.object_type == scene.tables.era.vma.struct:
                continue
            for tree in group.anon_vma[take(scene.family_held, group.anon_vma, False)].tolist():
                broken[int(facts.root_row[tree])].append(tree)
    cut = _cut_off(scene)
    trees: dict[int, set[int]] = defaultdict(set)
    for tree in itertools.islice(cut, _MAX_TREES):
        trees[int(facts.root_row[tree])].add(tree)
    unseen = families_with_an_unseen_vma(scene)
    for root in broken.keys() | trees.keys():
        wrong = broken.get(root, [])
        if len(set(wrong)) > 1 or len(wrong) > _MAX_WORDS:
            continue
        for tree in set(wrong) or trees[root]:
            if len(cut.get(tree, ())) > _MAX_WORDS:
                continue
            if root not in unseen and not _is_at_work(scene, root, tree):
                continue
            parts = [part for top in cut.get(tree, ()) for part in _subtree(scene, top, tree)]
            if not _leads_inside(scene, tree, parts) or not _may_be_stale(scene, tree):
                continue

            def settle(draft: Draft, tree: int = tree, parts: list[int] = parts) -> None:
                for avc in parts:
                    draft.put_back(avc)
                draft.lay_out(tree)

            yield Operation(
                "rebalance", scene.root_lock(root), _KINDS, settle, anon_vmas=frozenset((tree,))
            )


# AVCs that nothing in their tree leads to, although they lead there, as in the middle of a rotation
# or of an exchange (rb_erase_augmented()): the child that the one above has instead is one of their
# own, or one of theirs is the one above, or in the tree; or the one above is being inserted, and
# nothing else leads to it. By row of the anon_vma.
def _cut_off(scene: Scene) -> dict[int, list[int]]:
    facts, avcs = scene.facts, scene.tables.avcs
    rows = facts.orphans
    tree = facts.avc_anon_vma_row[rows]
    kept = take(scene.family_held, tree, False) & (take(facts.tree_pointer, tree, 0) != 0)
    rows, tree = rows[kept], tree[kept]
    parent = rb_parent(avcs.rb_parent_color[rows])
    above = facts.find_node(parent)
    children = avcs.rb_left[rows], avcs.rb_right[rows]
    fits = (above == NO_ROW) & (parent != 0)
    for pointer in children:
        child = facts.find_node(pointer)
        fits |= scene.in_tree(child) & (child != NO_ROW) & _is_of(scene, child, tree)
        fits |= (child != NO_ROW) & (child == above)
    beside = _is_of(scene, above, tree)
    for pointer, other in zip(children, (avcs.rb_right, avcs.rb_left), strict=True):
        fits |= beside & (take(other, above, 0) == pointer)
    hanging = beside.copy()
    hanging[beside] = is_child(facts, rows[beside], above[beside])
    found: dict[int, list[int]] = defaultdict(list)
    for row, of in zip(rows[fits & ~hanging].tolist(), tree[fits & ~hanging].tolist(), strict=True):
        found[of].append(row)
    return found


def _is_of(scene: Scene, avcs: RowColumn, anon_vmas: RowColumn) -> BoolColumn:
    of = take(scene.facts.avc_anon_vma_row, avcs, NO_ROW)
    same: BoolColumn = (of == anon_vmas) & (anon_vmas != NO_ROW)
    return same


# An AVC that is cut off, and those below it that are cut off with it.
def _subtree(scene: Scene, top: int, tree: int) -> list[int]:
    facts, avcs = scene.facts, scene.tables.avcs
    lost = set(facts.orphans[facts.avc_anon_vma_row[facts.orphans] == tree].tolist())
    part, left = [], [top]
    while left:
        avc = left.pop()
        if avc not in lost:
            continue
        lost.discard(avc)
        part.append(avc)
        pointers = np.array([avcs.rb_left[avc], avcs.rb_right[avc]], dtype=np.uint64)
        left += facts.find_node(pointers).tolist()
    return part


# AVCs that say that they are of an anon_vma, in its tree or not.
def _avcs_of(scene: Scene, anon_vma: int) -> RowColumn:
    facts = scene.facts
    rows: RowColumn = np.flatnonzero(facts.avc_known & (facts.avc_anon_vma_row == anon_vma))
    return rows


# All pointers lead to AVCs of this anon_vma, or to the one that is being inserted or removed, whose
# VMA nothing may lead to: each is right, was right a moment ago, or will be soon. Of what is in the
# tree, and of what is cut off from it.
def _leads_inside(scene: Scene, tree: int, part: list[int]) -> bool:
    tables, avcs = scene.tables, scene.tables.avcs
    all_of_it = _avcs_of(scene, tree)
    member = np.append(all_of_it[scene.in_tree(all_of_it)], np.array(part, dtype=np.int64))
    pointers = [
        strip_lock_mark(tables.anon_vmas.rb_root[[tree]]),
        tables.anon_vmas.rb_leftmost[[tree]],
        rb_parent(avcs.rb_parent_color[member]),
        avcs.rb_left[member],
        avcs.rb_right[member],
    ]
    words = np.concatenate(pointers)
    node = avcs.rb_node[all_of_it]
    outside = words[~np.isin(words, node) & (words != 0)]
    if not len(outside):
        return True
    # Objects of one cache lie in step.
    step = np.gcd.reduce(node - node.min())
    away = abs(int(outside[0]) - int(node[0]))
    first = outside[:1] - np.uint64(tables.era.avc.offset("rb"))
    wild = tables.space.wild(first, tables.era.avc.size)
    one = len(outside) <= 2 and (outside == outside[0]).all()
    return bool(one and not wild[0] and (step == 0 or away % int(step) == 0))


# Each rb_subtree_last that is wrong is one that insertion or removal leaves for a moment. One that
# is too small is of the node that a rotation has moved up: what it had when the node that is below
# it now was above, before it gave that one its inner child. One that is too large is of that node
# below; or of one on the way down to where a node is to be inserted, or up from where one was, and
# all above it are as large.
def _may_be_stale(scene: Scene, tree: int) -> bool:
    facts, nodes = scene.facts, scene.tables.nodes
    keys = facts.keys
    stored = keys.stored
    wrong = np.flatnonzero(keys.wrong_last & (facts.node_tree == tree))
    is_large = stored[wrong] > keys.computed[wrong]
    small, large = wrong[~is_large], wrong[is_large]
    rotated = np.zeros(len(small), dtype=bool)
    for down, kept in ((nodes.left, nodes.right), (nodes.right, nodes.left)):
        inner = take(kept, down[small], NO_ROW)
        had = np.maximum(take(stored, kept[small], 0), take(stored, inner, 0))
        had = np.maximum(had, keys.last[small])
        rotated |= (down[small] != NO_ROW) & (stored[small] == had)
    if len(small) > 1 or not rotated.all():
        return False
    above = nodes.parent[large]
    on_the_way = (above == NO_ROW) | np.isin(above, small)
    on_the_way |= take(stored, above, 0) >= stored[large]
    last = scene.tables.vmas.key_last[facts.home[_avcs_of(scene, tree)]]
    known = np.isin(stored[large], last)
    known |= stored[large] <= _LAST_PAGE
    return bool((on_the_way & known).all())


# The writer works on some mm with a VMA in the tree, or whose VMA has just left it.
def _is_at_work(scene: Scene, root: int, tree: int) -> bool:
    tables, facts = scene.tables, scene.facts
    mm = np.unique(take(tables.vmas.mm, facts.home[_avcs_of(scene, tree)], NO_ROW))
    return any(scene.works_on(root, each) for each in mm[mm != NO_ROW].tolist())
