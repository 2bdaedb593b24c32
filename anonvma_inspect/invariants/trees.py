"""The interval tree of each anon_vma."""

from __future__ import annotations

import numpy as np

from anonvma_inspect.invariants.base import (
    Invariant,
    Severity,
    Text,
    Verdict,
    Violations,
    address_text,
    always,
)
from anonvma_inspect.invariants.colours import find_wrong_colours
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.invariants.facts import Facts
from anonvma_inspect.invariants.shape import find_heirs, is_child
from anonvma_inspect.kernel.era import Era
from anonvma_inspect.kernel.tags import has_lock_mark, rb_parent
from anonvma_inspect.tables import NO_ROW, PointerState, RowColumn, marked
from anonvma_inspect.target.memory import U64Column, starts_run

__all__ = ("INVARIANTS",)

# include/linux/rbtree_augmented.h: the colour is bit 0 of __rb_parent_color; a struct rb_node is
# aligned to longs, and nothing uses bit 1.
_RB_SPARE_BIT = np.uint64(2)


def _check_avc_in_tree(facts: Facts) -> Verdict:
    # * avc->anon_vma of each AVC on a list can be one.
    # * Each AVC on a list is in the tree of that anon_vma, if all of the tree is known.
    # One that is in another's tree is AV202's finding; one that is met twice, AV203's.
    tables = facts.tables
    avcs, anon_vmas = tables.avcs, tables.anon_vmas
    orphans = facts.orphans
    anon_vma = facts.avc_anon_vma_row[orphans]
    wild = orphans[facts.wild(facts.avc_anon_vma[orphans], anon_vma, facts.era.anon_vma)]
    judged = take(facts.tree_whole, anon_vma, False)
    missing, anon_vma = orphans[judged], anon_vma[judged]

    # A tree that is empty although several lists say otherwise: its root pointer is wrong.
    bare = facts.tree_pointer[anon_vma] == 0
    emptied = np.unique(anon_vma[bare])
    missing, anon_vma = missing[~bare], anon_vma[~bare]

    # Of a subtree that is cut off, its top: what is below hangs together with it by two words each.
    above = facts.find_node(rb_parent(avcs.rb_parent_color[missing]))
    inner = np.flatnonzero(above != NO_ROW)
    inner = inner[marked(len(avcs.address), missing)[above[inner]]]
    hanging = np.zeros(len(missing), dtype=bool)
    hanging[inner] = is_child(facts, missing[inner], above[inner])
    tops = np.bincount(anon_vma[~hanging], minlength=len(anon_vmas.address))
    shown = ~hanging | (tops[anon_vma] == 0)
    cut, cut_from = missing[shown], anon_vma[shown]
    # The word that does not lead to it any more, if it is known.
    word = np.zeros(len(avcs.address), dtype=np.uint64)
    word[facts.tree_pointers.lost] = facts.tree_pointers.lost_word
    top = np.zeros(len(emptied), dtype=np.uint64)
    groups = [
        facts.of_avcs(
            "avc->anon_vma of an AVC on a list cannot be the address of an anon_vma",
            wild,
            "anon_vma",
            always("an anon_vma"),
            address_text(avcs.anon_vma[wild]),
        ),
        facts.of_anon_vmas(
            "the tree of an anon_vma is empty, but AVCs on lists belong in it",
            emptied,
            "rb_node",
            _heir_text(facts, top, emptied, "a node"),
            address_text(anon_vmas.rb_root[emptied]),
        ),
        facts.of_avcs(
            "an AVC on a list is not in the tree of its anon_vma",
            cut,
            None,
            address_text(anon_vmas.address[cut_from]),
            always("in no tree"),
            word=word[cut],
        ),
    ]
    return Verdict(int(np.count_nonzero(facts.link_of_avc != NO_ROW)), groups)


def _heir_text(facts: Facts, node: U64Column, anon_vma: RowColumn, otherwise: str) -> Text:
    heir = find_heirs(facts, node, anon_vma)
    return address_text(heir, heir != 0, otherwise)


def _check_tree_stranger(facts: Facts) -> Verdict:
    # * avc->anon_vma of each node of a tree is the anon_vma whose tree it is.
    # * avc->vma is a VMA, and the AVC is on its list.
    # * That VMA is in the tree of its mm.
    # The last is told only of mms that are known as a whole. That an AVC is not on a list is told
    # only of lists that are known as a whole and in order.
    tables = facts.tables
    nodes, avcs, vmas, mms = tables.nodes, tables.avcs, tables.vmas, tables.mms
    real = facts.node_real
    foreign = np.flatnonzero(real & ~facts.node_owned)
    stray, tree = nodes.avc[foreign], facts.node_tree[foreign]

    off_list = np.flatnonzero((facts.node_of_avc != NO_ROW) & (facts.link_of_avc == NO_ROW))
    vma = facts.avc_vma_row[off_list]
    state = facts.state(facts.avc_vma[off_list], vma, facts.era.vma)
    lost = off_list[(state != PointerState.OBJECT) & (state != PointerState.HOLE)]
    unlisted = off_list[take(facts.chain_sound, vma, False)]

    judged = mms.walked & mms.whole & facts.mm_judged
    absent = np.flatnonzero((vmas.slot == NO_ROW) & (vmas.mm != NO_ROW))
    absent = absent[judged[vmas.mm[absent]]]
    if len(absent):
        # One that is in another mm's tree has a wrong vm_mm (AV001).
        elsewhere = tables.slots.vma[facts.mm_judged[tables.slots.mm]]
        absent = absent[~marked(len(vmas.address), elsewhere)[absent]]
        # A VMA that only a wrong avc->vma leads to is none; this one has its AVCs on its list.
        by_list = nodes.avc[real]
        by_list = by_list[facts.link_of_avc[by_list] != NO_ROW]
        by_list = by_list[facts.avc_vma_row[by_list] == facts.home[by_list]]
        absent = absent[marked(len(vmas.address), facts.home[by_list])[absent]]
    groups = [
        facts.of_avcs(
            "avc->anon_vma is not the anon_vma in whose tree the AVC is",
            stray,
            "anon_vma",
            address_text(tables.anon_vmas.address[tree]),
            address_text(avcs.anon_vma[stray]),
            anon_vma=tree,
        ),
        facts.of_avcs(
            "avc->vma of an AVC in a tree does not lead to a VMA",
            lost,
            "vma",
            always("a VMA"),
            address_text(avcs.vma[lost]),
        ),
        facts.of_avcs(
            "an AVC in a tree is not on the list of the VMA that it names",
            unlisted,
            None,
            address_text(facts.avc_vma[unlisted]),
            always("on no list"),
        ),
        facts.of_vmas(
            "a VMA in an anon_vma's tree is not in the tree of its mm",
            absent,
            None,
            address_text(vmas.vm_mm[absent]),
            always("not in that mm"),
        ),
    ]
    return Verdict(int(np.count_nonzero(real)), groups)


def _check_rb_shape(facts: Facts) -> Verdict:
    # * rb_root and each child pointer is NULL or leads to a node of this tree, and no node is met
    #   twice.
    # * The parent pointer of each node leads back.
    # * Bit 1 of __rb_parent_color is clear.
    # * The root is black, no red node has a red child, and all paths down have equally many black
    #   nodes; of trees that are known as a whole and whose pointers are in order.
    tables = facts.tables
    nodes, avcs = tables.nodes, tables.avcs
    real = facts.node_real
    pointers = facts.tree_pointers
    back = nodes.avc[pointers.back]
    spare = nodes.avc[real & ((facts.node_word & _RB_SPARE_BIT) != 0)]
    groups = [
        facts.of_avcs(
            "the parent pointer of a node does not lead to the node above it",
            back,
            "rb_parent_color",
            address_text(facts.node_parent[pointers.back]),
            address_text(rb_parent(avcs.rb_parent_color[back])),
        ),
        _child_pointers(facts, pointers.parent[pointers.is_left], "rb_left", avcs.rb_left),
        _child_pointers(facts, pointers.parent[~pointers.is_left], "rb_right", avcs.rb_right),
        facts.of_anon_vmas(
            "rb_root of an anon_vma does not lead to a tree of its AVCs",
            pointers.roots,
            "rb_node",
            _heir_text(
                facts, np.zeros(len(pointers.roots), dtype=np.uint64), pointers.roots, "a node"
            ),
            address_text(tables.anon_vmas.rb_root[pointers.roots]),
        ),
        facts.of_avcs(
            "a bit is set in __rb_parent_color that no red-black tree uses",
            spare,
            "rb_parent_color",
            address_text(avcs.rb_parent_color[spare] & ~_RB_SPARE_BIT),
            address_text(avcs.rb_parent_color[spare]),
        ),
        # Where no AVC is of this anon_vma, what looks like a tree is none.
        *find_wrong_colours(facts, ~pointers.damaged & (facts.nodes_in_tree > 0)),
    ]
    return Verdict(int(np.count_nonzero(real)), groups)


def _child_pointers(facts: Facts, rows: RowColumn, name: str, words: U64Column) -> Violations:
    avcs = facts.tables.avcs
    tree = facts.node_tree[facts.node_of_avc[rows]]
    return facts.of_avcs(
        f"{name} of a node does not lead to a node below it",
        rows,
        name,
        _heir_text(facts, avcs.rb_node[rows], tree, "a node or 0x0"),
        address_text(words[rows]),
        anon_vma=tree,
    )


def _key_field(facts: Facts) -> str:
    return "anon_pgoff_lo" if "anon_pgoff_lo" in facts.era.vma else "vm_pgoff"


def _check_rb_order(facts: Facts) -> Verdict:
    # * The last page of a VMA is not before its first: the sum does not wrap.
    # * In order, the first pages of a tree's VMAs never decrease.
    # An AVC has no key of its own, so a VMA is what is reported, once for all trees that it is in.
    vmas, keys = facts.tables.vmas, facts.keys
    wraps = marked(len(vmas.address), keys.home)
    wraps &= vmas.key_last < vmas.key_first
    wrapped = np.flatnonzero(wraps)
    rows, low, high = keys.misplaced
    kept = ~wraps[rows]
    rows, low, high = rows[kept], low[kept], high[kept]

    def between(index: int) -> str:
        return f"{int(low[index]):#x} to {int(high[index]):#x}"

    groups = [
        facts.of_vmas(
            "the page offsets of a VMA wrap round",
            wrapped,
            _key_field(facts),
            always("a first page before the last"),
            address_text(vmas.key_first[wrapped]),
        ),
        facts.of_vmas(
            "a VMA is not where its page offset belongs in a tree",
            rows,
            _key_field(facts),
            between,
            address_text(vmas.key_first[rows]),
        ),
    ]
    return Verdict(int(np.count_nonzero(keys.known)), groups)


def _check_subtree_last(facts: Facts) -> Verdict:
    # * rb_subtree_last of each node is the largest of its own last page and its children's
    #   rb_subtree_last.
    # * Where a child is not known, it is not smaller than the node's own last page.
    # If several nodes of one VMA disagree, or one of a VMA that is out of order (AV204), then the
    # VMA's page offsets are wrong, not the nodes' words; and so they are if the word is what an
    # anonymous VMA that was never moved must have.
    tables, keys = facts.tables, facts.keys
    vmas, avcs = tables.vmas, tables.avcs
    wrong = np.flatnonzero(keys.wrong_last)
    home = keys.home[wrong]
    count = np.bincount(home, minlength=len(vmas.address))
    of_vma = (count > 1) | marked(len(vmas.address), keys.misplaced[0])
    of_vma[home[keys.fits_unmoved(wrong)]] = True
    rows = np.flatnonzero(of_vma & (count > 0))
    stored = np.zeros(len(vmas.address), dtype=np.uint64)
    stored[home[::-1]] = keys.stored[wrong[::-1]]
    nodes = wrong[~of_vma[home]]
    avc = tables.nodes.avc[nodes]
    settled = keys.settled[nodes]
    known = address_text(keys.computed[nodes])

    def largest(index: int) -> str:
        return known(index) if settled[index] else f"at least {known(index)}"

    groups = [
        facts.of_vmas(
            "the last page of a VMA is not what the trees that it is in were made with",
            rows,
            _key_field(facts),
            address_text(stored[rows]),
            address_text(vmas.key_last[rows]),
        ),
        facts.of_avcs(
            "rb_subtree_last is not the largest last page of the node and those below it",
            avc,
            "rb_subtree_last",
            largest,
            address_text(avcs.rb_subtree_last[avc]),
        ),
    ]
    return Verdict(int(np.count_nonzero(keys.known)), groups)


def _check_leftmost(facts: Facts) -> Verdict:
    # * rb_leftmost is NULL if the tree is empty, and only then.
    # * Else it is the first node in order.
    # The first node that is known is the first of all if it has no left child: then only left turns
    # lead to it.
    tables = facts.tables
    nodes, avcs, anon_vmas = tables.nodes, tables.avcs, tables.anon_vmas
    judged = facts.believed & (facts.borrowed_from == NO_ROW)
    judged[facts.tree_pointers.roots] = False
    empty = facts.tree_pointer == 0
    leftmost = anon_vmas.rb_leftmost
    full = np.flatnonzero(judged & empty & (leftmost != 0))
    # One that leads to an AVC of this anon_vma is right, and rb_root is not (AV201).
    first_avc = facts.find_node(leftmost[full])
    says = take(facts.avc_anon_vma_row, first_avc, NO_ROW)
    full = full[says != full]

    # In the order of nodes, the first row of each tree.
    top = np.flatnonzero(starts_run(nodes.anon_vma))
    top = top[facts.node_real[top] & (avcs.rb_left[nodes.avc[top]] == 0)]
    top = top[judged[nodes.anon_vma[top]]]
    # A NULL that should lead on (AV203) ends nothing.
    cut = facts.tree_pointers.parent[facts.tree_pointers.is_left]
    top = top[~np.isin(nodes.avc[top], cut)]
    first = avcs.rb_node[nodes.avc[top]]
    tree = nodes.anon_vma[top]
    differs = leftmost[tree] != first
    wrong, first = tree[differs], first[differs]

    known = marked(len(anon_vmas.address), tree)
    unknown = np.flatnonzero(judged & ~empty & ~known)
    pointer = leftmost[unknown] - np.uint64(facts.era.avc.offset("rb"))
    unknown = unknown[(leftmost[unknown] == 0) | tables.space.wild(pointer, facts.era.avc.size)]
    message = "rb_leftmost is not the first node of the tree"
    groups = [
        facts.of_anon_vmas(
            "rb_leftmost is set, but the tree is empty",
            full,
            "rb_leftmost",
            always("0x0"),
            address_text(leftmost[full]),
        ),
        facts.of_anon_vmas(
            message, wrong, "rb_leftmost", address_text(first), address_text(leftmost[wrong])
        ),
        facts.of_anon_vmas(
            message,
            unknown,
            "rb_leftmost",
            always("a node"),
            address_text(leftmost[unknown]),
        ),
    ]
    return Verdict(int(np.count_nonzero(judged)), groups)


def _has_leftmost(era: Era) -> str | None:
    return None if era.has_leftmost else "this kernel does not cache the first node of a tree"


def _check_lock_mark(facts: Facts) -> Verdict:
    # * The low bit of rb_root.rb_node is set only in a root, and only while that is write-locked.
    anon_vmas = facts.tables.anon_vmas
    mark = facts.believed & (has_lock_mark(anon_vmas.rb_root) != 0)
    # Where the word is wrong as a whole (AV203), a bit of it means nothing.
    mark[facts.tree_pointers.roots] = False
    is_root = facts.root == anon_vmas.address
    groups = []
    for which, message in (
        (mark & ~is_root, "mm_take_all_locks()'s mark is on an anon_vma that is no root"),
        (
            mark & is_root & ~facts.root_writer,
            "mm_take_all_locks()'s mark is on a root that nobody has write-locked",
        ),
    ):
        rows = np.flatnonzero(which)
        groups.append(
            facts.of_anon_vmas(
                message,
                rows,
                "rb_node",
                address_text(facts.tree_pointer[rows]),
                address_text(anon_vmas.rb_root[rows]),
            )
        )
    return Verdict(int(np.count_nonzero(facts.believed)), groups)


_TREE_LOCK = "The rwsem of the anon_vma's root, for write."
_TREE_CONSEQUENCE = (
    "Walks from a page to its mappings miss some of them, so that a page is reclaimed, migrated or "
    "split while it is still mapped; or they never end."
)

INVARIANTS = (
    Invariant(
        code="AV201",
        slug="avc-in-tree",
        severity=Severity.ERROR,
        statement="Each AVC on a VMA's list is in the interval tree of its anon_vma.",
        why=(
            "An AVC is put on the list and into the tree, and taken out of both, by the same "
            "operations. What they leave in between is only to be seen while they hold their "
            "locks: taken out of the trees are the AVCs of a VMA whose bounds are changing, and "
            "those that unlink_anon_vmas() has yet to free."
        ),
        consequence=(
            "Pages of that anon_vma that this VMA maps are not found in it: they stay mapped when "
            "they are migrated or freed. Removing the AVC later corrupts whatever tree its stale "
            "pointers lead to."
        ),
        lock=f"{_TREE_LOCK} The list: the mm's mmap_lock.",
        source=(
            "__anon_vma_prepare(), anon_vma_clone(), anon_vma_fork(), unlink_anon_vmas() in "
            "mm/rmap.c; anon_vma_interval_tree_pre_update_vma() in mm/mmap.c (v6.1) or mm/vma.c "
            "(v6.12)."
        ),
        eras=(
            "Trees: v3.7 and later (lists before). In 7.x cloning fills the list before it takes "
            "the root's lock."
        ),
        objects="AVCs on lists",
        check=_check_avc_in_tree,
    ),
    Invariant(
        code="AV202",
        slug="tree-stranger",
        severity=Severity.ERROR,
        statement=(
            "Each node of an anon_vma's tree is an AVC of that anon_vma, on the list of its VMA, "
            "which is in its mm."
        ),
        why=(
            "avc->anon_vma and avc->vma are set once, before the AVC is inserted. It leaves the "
            "tree before the list, and the VMA's AVCs are unlinked before the VMA is freed. Fork, "
            "split, merge and unmap have VMAs in trees that are not in the mm yet, or any more, "
            "while they hold the mmap_lock; of an mm without users nothing is said."
        ),
        consequence=(
            "The reverse map follows avc->vma to a VMA that is freed or has nothing to do with the "
            "page, and looks into page tables that may be gone."
        ),
        lock=f"{_TREE_LOCK} The list and the mm: its mmap_lock.",
        source=(
            "anon_vma_chain_assign() (v6.12), anon_vma_chain_link() (v6.1), unlink_anon_vmas() in "
            "mm/rmap.c; rmap_walk_anon() follows avc->vma."
        ),
        eras="v3.7 and later.",
        objects="nodes",
        check=_check_tree_stranger,
    ),
    Invariant(
        code="AV203",
        slug="rb-shape",
        severity=Severity.ERROR,
        statement=(
            "Each interval tree is a red-black tree: pointers agree, the root is black, no red "
            "node has a red child, all paths have equally many black nodes."
        ),
        why=(
            "Insertion and removal keep these rules, and nothing else writes to the nodes. A node "
            "that agrees neither with the tree nor with the node above it is where a wrong pointer "
            "leads; where a pointer and the one back disagree, a third word tells which is wrong. "
            "If changing one node's colour would make a tree sound, that node is reported. "
            "mm_take_all_locks()'s mark in rb_root is left out here (see AV207)."
        ),
        consequence=(
            f"{_TREE_CONSEQUENCE} The next insertion or removal nearby spreads the damage, or "
            "follows a wild pointer."
        ),
        lock=_TREE_LOCK,
        source=(
            "__rb_insert(), ____rb_erase_color() in lib/rbtree.c; rb_link_node() in "
            "include/linux/rbtree.h; mm/interval_tree.c (v6.1, v6.12)."
        ),
        eras="v3.7 and later.",
        objects="nodes",
        check=_check_rb_shape,
    ),
    Invariant(
        code="AV204",
        slug="rb-order",
        severity=Severity.ERROR,
        statement="In the order of an interval tree, the VMAs' first pages never decrease.",
        why=(
            "A node is inserted to the left of what starts behind it and to the right of the rest; "
            "equal keys are legal. The key is the VMA's page offset, not its address. Whoever "
            "changes it takes the VMA's AVCs out of all trees first and inserts them again after "
            "that. A VMA's last page is not before its first: mmap() refuses offsets that wrap."
        ),
        consequence=_TREE_CONSEQUENCE,
        lock=f"{_TREE_LOCK} The VMA's offsets: the mm's mmap_lock, too.",
        source=(
            "INTERVAL_TREE_DEFINE in include/linux/interval_tree_generic.h, avc_start_pgoff() in "
            "mm/interval_tree.c; anon_vma_interval_tree_pre_update_vma() and _post_update_vma() "
            "in mm/mmap.c (v6.1) or mm/vma.c (v6.12)."
        ),
        eras="v3.7 and later; by vm_pgoff up to 7.2, by the anonymous page offset of 7.3.",
        objects="nodes",
        check=_check_rb_order,
    ),
    Invariant(
        code="AV205",
        slug="rb-subtree-last",
        severity=Severity.ERROR,
        statement=(
            "rb_subtree_last of a node is the largest last page of its VMA and of those below it."
        ),
        why=(
            "Insertion, removal and rotation keep it; a walk goes into a subtree only if it "
            "reaches up to the page looked for. Each node is compared with what its children have "
            "stored, so that one wrong word is one finding and not one for each node above."
        ),
        consequence=(
            "If it is too small, walks skip the subtree and miss mappings: pages are freed or "
            "moved while they are mapped. If it is too large, walks only take longer."
        ),
        lock=_TREE_LOCK,
        source=(
            "INTERVAL_TREE_DEFINE in include/linux/interval_tree_generic.h, "
            "RB_DECLARE_CALLBACKS_MAX in include/linux/rbtree_augmented.h, avc_last_pgoff() in "
            "mm/interval_tree.c (v6.1, v6.12)."
        ),
        eras="v3.7 and later.",
        objects="nodes",
        check=_check_subtree_last,
    ),
    Invariant(
        code="AV206",
        slug="rb-leftmost",
        severity=Severity.ERROR,
        statement="rb_leftmost of an anon_vma's tree is its first node; NULL if it is empty.",
        why="Insertion tells whether it went left all the way down, removal moves it on.",
        consequence=(
            "Walks compare the first node's start with what they look for before they start: they "
            "miss all mappings, or follow a pointer to a freed AVC."
        ),
        lock=_TREE_LOCK,
        source=(
            "rb_insert_augmented_cached(), rb_erase_augmented_cached() in "
            "include/linux/rbtree_augmented.h; ITPREFIX##_iter_first() in "
            "include/linux/interval_tree_generic.h (v6.1, v6.12)."
        ),
        eras="v4.14 and later, where rb_root is an rb_root_cached.",
        objects="anon_vmas",
        check=_check_leftmost,
        applies=_has_leftmost,
    ),
    Invariant(
        code="AV207",
        slug="lock-mark",
        severity=Severity.ERROR,
        statement=(
            "The low bit of rb_root.rb_node is set only in a root anon_vma that is write-locked."
        ),
        why=(
            "mm_take_all_locks() locks each family once, and marks the root's rb_node to know it "
            "again; it takes the mark away before it unlocks. Everybody else who reads the pointer "
            "holds that lock."
        ),
        consequence=(
            "The next walk or insertion follows a misaligned pointer; mm_take_all_locks() takes "
            "the family for locked and leaves it out, or stops at BUG()."
        ),
        lock="The root's rwsem for write, and mm_all_locks_mutex.",
        source=(
            "vm_lock_anon_vma(), vm_unlock_anon_vma() in mm/mmap.c (v6.1) or mm/vma.c (v6.12)."
        ),
        eras="v3.7 and later; before, the mark was in head.next.",
        objects="anon_vmas",
        check=_check_lock_mark,
    ),
)
