"""The ``anon_vma_chain`` list of each VMA."""

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
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.invariants.facts import Facts
from anonvma_inspect.invariants.lists import LIST_POISON
from anonvma_inspect.tables import (
    NO_ROW,
    ChainEnd,
    I64Column,
    PointerState,
    RowColumn,
    find_rows,
    marked,
)
from anonvma_inspect.target.memory import BoolColumn, U64Column

__all__ = ("INVARIANTS",)

# Up to so many entries, those of a chain are compared each with each.
_SHORT_CHAIN = 12


def _check_chain_links(facts: Facts) -> Verdict:
    # * next of each entry and of the head is answered by prev, and prev by next.
    # * No word of a list is poison, NULL or wild, and none leads to what is no entry of it.
    # Which of two words that disagree is wrong, is worked out in lists.py.
    tables = facts.tables
    words = facts.list_words
    state = words.pointer_state
    poison = np.isin(words.value, LIST_POISON)
    wild = ((state == PointerState.WILD) | (state == PointerState.NULL)) & ~poison
    stranger = (words.expected == 0) & ~poison & ~wild
    astray = ~poison & ~wild & ~stranger
    groups = []
    for which, what in (
        (poison, "is poison, as list_del() leaves it, in an entry that is in use"),
        (wild, "cannot be the address of an entry"),
        (stranger, "does not lead to an entry of its list"),
        (astray, "disagrees with the other entries"),
    ):
        for in_vma in (True, False):
            for is_next, name in ((True, "next"), (False, "prev")):
                rows = np.flatnonzero(which & (words.in_vma == in_vma) & (words.is_next == is_next))
                expected = address_text(
                    words.expected[rows], words.expected[rows] != 0, "an entry of the list"
                )
                actual = address_text(words.value[rows])
                owner = words.owner[rows]
                if in_vma:
                    message = f"{name} of a list head, vma->anon_vma_chain, {what}"
                    groups.append(
                        facts.of_vmas(message, owner, f"anon_vma_chain_{name}", expected, actual)
                    )
                else:
                    message = f"{name} in avc->same_vma {what}"
                    groups.append(
                        facts.of_avcs(message, owner, f"same_vma_{name}", expected, actual)
                    )
    walked = tables.vmas.chain_end != ChainEnd.NOT_WALKED
    return Verdict(int(np.count_nonzero(walked)), groups)


def _check_chain_owner(facts: Facts) -> Verdict:
    # * avc->vma of each entry of a list is the VMA whose list it is.
    tables = facts.tables
    links, vmas = tables.links, tables.vmas
    wrong = np.flatnonzero(facts.avc_vma[links.avc] != vmas.address[links.vma])
    # An AVC that is on its own VMA's list as well has not a wrong owner, but a wrong place.
    wrong = wrong[~facts.link_owned[facts.link_of_avc[links.avc[wrong]]]]
    avc, vma = links.avc[wrong], links.vma[wrong]
    return Verdict(
        len(links.avc),
        [
            facts.of_avcs(
                "an AVC on a VMA's list names another VMA",
                avc,
                "vma",
                address_text(vmas.address[vma]),
                address_text(tables.avcs.vma[avc]),
            )
        ],
    )


def _check_chain_duplicate(facts: Facts) -> Verdict:
    # * No two AVCs on a list lead to the same anon_vma.
    tables = facts.tables
    links = tables.links
    rows = _repeated(links.vma, facts.link_anon_vma, tables.vmas.chain_length)
    # Of those that share an anon_vma, one that is not in its tree has the wrong word; else the
    # ones behind the first are too many.
    avc = links.avc[rows]
    stray = facts.link_tree[rows] != facts.link_anon_vma[rows]
    order = np.lexsort((links.position[rows], stray, facts.link_anon_vma[rows], links.vma[rows]))
    rows, avc = rows[order], avc[order]
    behind = np.zeros(len(rows), dtype=bool)
    behind[1:] = (links.vma[rows[1:]] == links.vma[rows[:-1]]) & (
        facts.link_anon_vma[rows[1:]] == facts.link_anon_vma[rows[:-1]]
    )
    # The same AVC met twice is a list that loops.
    behind[1:] &= avc[1:] != avc[:-1]
    surplus = avc[behind]
    return Verdict(
        len(links.avc),
        [
            facts.of_avcs(
                "a second AVC connects the same VMA and anon_vma",
                surplus,
                "anon_vma",
                always("an anon_vma that is not in the chain yet"),
                address_text(tables.avcs.anon_vma[surplus]),
            )
        ],
    )


# Entries whose anon_vma some other entry of the chain has, too.
def _repeated(vma: RowColumn, anon_vma: RowColumn, length: I64Column) -> RowColumn:
    # Sorting all of them takes far longer than comparing each with the few that stand before it.
    found = np.zeros(len(vma), dtype=bool)
    longest = int(length.max()) if len(length) else 0
    for distance in range(1, min(longest, _SHORT_CHAIN)):
        same = (anon_vma[distance:] == anon_vma[:-distance]) & (vma[distance:] == vma[:-distance])
        found[distance:] |= same
        found[:-distance] |= same
    found &= anon_vma != NO_ROW
    if longest <= _SHORT_CHAIN:
        return np.flatnonzero(found)
    long = np.flatnonzero((length > _SHORT_CHAIN)[vma] & (anon_vma != NO_ROW))
    order = long[np.lexsort((anon_vma[long], vma[long]))]
    same = (vma[order[1:]] == vma[order[:-1]]) & (anon_vma[order[1:]] == anon_vma[order[:-1]])
    found[order[1:][same]] = True
    found[order[:-1][same]] = True
    return np.flatnonzero(found)


def _check_chain_root(facts: Facts) -> Verdict:
    # * All anon_vmas of a chain have one root.
    # * That root is in the chain.
    # * The parent of each is in the chain.
    # The first is told of any entries that are known; that something is not in a chain only of
    # chains that are known as a whole.
    groups, rootless = _check_one_root(facts)
    if facts.era.has_parent:
        groups += _check_parents_in_chain(facts, rootless)
    chains = int(np.count_nonzero(facts.tables.vmas.chain_length))
    return Verdict(chains, groups)


# Also the rows of the VMAs whose chains lack their root.
def _check_one_root(facts: Facts) -> tuple[list[Violations], RowColumn]:
    tables = facts.tables
    vmas, anon_vmas = tables.vmas, tables.anon_vmas
    itself = np.arange(len(anon_vmas.address))
    own_root = facts.root_row == itself
    # What the parent pointer says of being a root, if there is one.
    own_parent = facts.parent_row == itself if facts.era.has_parent else own_root
    links = _links_to_judge(facts, own_root & own_parent)
    chain, member = tables.links.vma[links], facts.link_anon_vma[links]
    certain = facts.link_certain[links] & (member != NO_ROW)

    def first_by_chain(which: BoolColumn) -> RowColumn:
        # The anon_vma of the first entry of each chain for which something holds.
        rows = np.flatnonzero(which)[::-1]
        first = np.full(len(vmas.address), NO_ROW, dtype=np.int64)
        first[chain[rows]] = member[rows]
        return first

    # The root that a chain goes by: a member that is a root by both pointers, or by one.
    chosen = np.full(len(vmas.address), NO_ROW, dtype=np.int64)
    for is_root in (own_parent, own_root, own_root & own_parent):
        found = first_by_chain(certain & take(is_root, member, False))
        chosen = np.where(found != NO_ROW, found, chosen)
    reference = chosen[chain]
    judged = np.flatnonzero(certain & (reference != NO_ROW))
    wrong = judged[facts.root[member[judged]] != anon_vmas.address[reference[judged]]]
    # One wrong root shows in every chain that the anon_vma is in.
    rows, first = np.unique(member[wrong], return_index=True)
    expected = reference[wrong[first]]
    groups = [
        facts.of_anon_vmas(
            "an anon_vma has another root than the chain that it is in",
            rows,
            "root",
            address_text(anon_vmas.address[expected]),
            address_text(anon_vmas.root[rows]),
        )
    ]
    # Chains without any root. An anon_vma that is alone in a chain and its own parent must be its
    # own root; otherwise the chain has lost the root's AVC, which is said of the VMA.
    bare = marked(len(vmas.address), chain) & facts.chain_whole & (chosen == NO_ROW)
    bare &= ~marked(len(vmas.address), chain[~certain])
    member_of = first_by_chain(certain)
    single = bare & (vmas.chain_length == 1)
    if facts.era.has_parent:
        single &= take(own_parent, member_of, False)
    alone = np.unique(member_of[single])
    lost = np.flatnonzero(bare & ~single)
    root_of = facts.root[member_of[lost]]
    groups += [
        facts.of_anon_vmas(
            "an anon_vma that is alone in its chain is not its own root",
            alone,
            "root",
            address_text(anon_vmas.address[alone]),
            address_text(anon_vmas.root[alone]),
        ),
        facts.of_vmas(
            "the root of the anon_vmas in a chain is not in that chain",
            lost,
            None,
            address_text(root_of),
            always("not in the chain"),
        ),
    ]
    return groups, lost


# Entries of those chains in which not all is plainly in order: every anon_vma known, of one root,
# and that among them.
def _links_to_judge(facts: Facts, is_root: BoolColumn) -> RowColumn:
    links = facts.tables.links
    member = facts.link_anon_vma
    odd = ~facts.link_certain | (member == NO_ROW)
    root = take(facts.root, member, 0)
    odd[1:] |= (root[1:] != root[:-1]) & (links.vma[1:] == links.vma[:-1])
    count = len(facts.tables.vmas.address)
    fine = marked(count, links.vma[take(is_root, member, False)])
    fine[links.vma[odd]] = False
    return np.flatnonzero(~fine[links.vma])


def _check_parents_in_chain(facts: Facts, rootless: RowColumn) -> list[Violations]:
    of_child, of_vma, parent = facts.stray_parents
    # That a root is missing was said.
    parent_row = find_rows(facts.tables.anon_vmas.address, parent)
    is_root = take(facts.root_row, parent_row, NO_ROW) == parent_row
    said = is_root & (parent_row != NO_ROW) & np.isin(of_vma, rootless)
    of_vma, parent = of_vma[~said], parent[~said]
    # A word that cannot be right in itself is AV302's.
    wild = facts.wild(facts.parent[of_child], facts.parent_row[of_child], facts.era.anon_vma)
    of_child = of_child[~wild]
    return [
        facts.of_anon_vmas(
            "the parent of an anon_vma is not in the chains that the anon_vma is in",
            of_child,
            "parent",
            always("an anon_vma of the same chains"),
            address_text(facts.tables.anon_vmas.parent[of_child]),
        ),
        facts.of_vmas(
            "the parent of an anon_vma in a chain is not in that chain",
            of_vma,
            None,
            address_text(parent),
            always("not in the chain"),
        ),
    ]


def _check_active_in_chain(facts: Facts) -> Verdict:
    # * vma->anon_vma is NULL if the chain is empty, and only then.
    # * Else it is an anon_vma of the chain.
    # Where a tag in it means something (era.tags), vma->anon_vma leads elsewhere, and AV604 and
    # AV606 tell of the chain. A low bit that means nothing is AV601's or AV603's finding.
    tables = facts.tables
    vmas, links = tables.vmas, tables.links
    count = len(vmas.address)
    pointer, active = vmas.anon_vma_pointer, vmas.active
    judged = vmas.chain_end != ChainEnd.NOT_WALKED
    if facts.era.tags.name != "none":
        judged &= ~facts.explained & facts.era.tags.understood(vmas.anon_vma_tag)
    is_null = pointer == 0
    record = facts.era.anon_vma
    wild = judged & ~is_null & facts.wild(pointer, active, record)
    has_entry = marked(count, links.vma[facts.link_owned])

    bare = judged & is_null & has_entry
    null, flagged = bare & (vmas.anon_vma == 0), bare & (vmas.anon_vma != 0)
    # A list that both words of the head say is empty.
    head = vmas.chain_head
    empty = (vmas.chain_next == head) & (vmas.chain_prev == head)
    idle = judged & ~is_null & ~wild & empty
    # In the chain: by what the entries say, or by the tree that one of them is in.
    present = marked(count, links.vma[facts.avc_anon_vma[links.avc] == pointer[links.vma]])
    doubtful = np.flatnonzero(~facts.link_certain & (facts.link_tree != NO_ROW))
    at = links.vma[doubtful]
    present |= marked(count, at[facts.link_tree[doubtful] == active[at]])
    missing = judged & ~is_null & ~wild & facts.chain_whole & (vmas.chain_length > 0) & ~present
    # Which it must be is clear only if there is one.
    exact = (vmas.chain_length == 1) & facts.chain_whole
    groups = []
    for which, message, no_entry in (
        (null, "vma->anon_vma is NULL, but its chain is not empty", False),
        (flagged, "vma->anon_vma has no pointer, but its chain is not empty", False),
        (idle, "vma->anon_vma is set, but its chain is empty", True),
        (wild, "vma->anon_vma cannot be the address of an anon_vma", False),
        (missing, "vma->anon_vma is not in the VMA's chain", False),
    ):
        rows = np.flatnonzero(which)
        expected = always("0x0") if no_entry else _active_text(facts, rows, exact)
        groups.append(
            facts.of_vmas(message, rows, "anon_vma", expected, address_text(vmas.anon_vma[rows]))
        )
    return Verdict(int(np.count_nonzero(judged)), groups)


# What the first entry of each chain leads to.
def _first_entry(facts: Facts) -> U64Column:
    links = facts.tables.links
    first = np.zeros(len(facts.tables.vmas.address), dtype=np.uint64)
    rows = np.flatnonzero(links.position == 0)
    first[links.vma[rows]] = facts.avc_anon_vma[links.avc[rows]]
    return first


def _active_text(facts: Facts, rows: RowColumn, exact: BoolColumn) -> Text:
    if not len(rows):
        return always("")
    vmas, first = facts.tables.vmas, _first_entry(facts)
    empty = (vmas.chain_length[rows] == 0) & facts.chain_whole[rows]
    known = exact[rows] | empty
    value = np.where(empty, np.uint64(0), first[rows])
    return address_text(value, known, "an anon_vma of its chain")


_LIST_LOCK = (
    "The mm's mmap_lock for write, or for read together with page_table_lock where a fault "
    "prepares the first anon_vma (no other entry can be there then)."
)

INVARIANTS = (
    Invariant(
        code="AV101",
        slug="chain-links",
        severity=Severity.ERROR,
        statement=(
            "A VMA's list of AVCs is circular, next and prev agree everywhere, and no word is "
            "poison."
        ),
        why=(
            "AVCs come onto vma->anon_vma_chain by list_add() and leave it by list_del() only, "
            "which keep both directions in step; list_del() poisons what it takes out, before it "
            "is freed. An empty list has both pointers at its own head. Where two words disagree, "
            "the others around them mostly tell which one is wrong, and that one is reported."
        ),
        consequence=(
            "Clone, fork and unlink walk this list in both directions: they copy or free the wrong "
            "AVCs, leave some in the trees after their VMA is freed, or run in circles."
        ),
        lock=_LIST_LOCK,
        source=(
            "anon_vma_chain_assign() (anon_vma_chain_link() in v6.1), anon_vma_clone() and "
            "unlink_anon_vmas() in mm/rmap.c (v6.1, v6.12); include/linux/list.h and poison.h."
        ),
        eras="v2.6.34 and later.",
        objects="lists",
        check=_check_chain_links,
    ),
    Invariant(
        code="AV102",
        slug="chain-owner",
        severity=Severity.ERROR,
        statement="An AVC on a VMA's list names that VMA in avc->vma.",
        why=(
            "Both are set in one place, when the AVC is linked, and avc->vma never changes after "
            "that. A VMA that takes over another's anon_vmas gets AVCs of its own."
        ),
        consequence=(
            "The reverse map goes from the tree to avc->vma: it looks for a page in the wrong "
            "mapping, so reclaim or migration misses one that has it mapped; and the key that the "
            "tree is ordered by is the wrong VMA's."
        ),
        lock=_LIST_LOCK,
        source="anon_vma_chain_assign() (v6.12), anon_vma_chain_link() (v6.1) in mm/rmap.c.",
        eras="v2.6.34 and later.",
        objects="AVCs on lists",
        check=_check_chain_owner,
    ),
    Invariant(
        code="AV103",
        slug="chain-duplicate",
        severity=Severity.ERROR,
        statement="One VMA and one anon_vma are connected by at most one AVC.",
        why=(
            "A chain starts with a single new AVC, and is copied whole into an empty one; what "
            "fork adds leads to a new anon_vma. Merging gives a VMA another's chain only if it has "
            "none itself."
        ),
        consequence=(
            "Walks come to the VMA twice for each page. Mostly the surplus entry stands in place "
            "of one that is missing, and pages of that anon_vma are not found in the VMA."
        ),
        lock="The mm's mmap_lock, and the root's rwsem for write.",
        source=(
            "__anon_vma_prepare(), anon_vma_clone(), anon_vma_fork() in mm/rmap.c (v6.1, v6.12); "
            "for merging, __vma_adjust() in mm/mmap.c (v6.1), dup_anon_vma() in mm/vma.c (v6.12)."
        ),
        eras="v2.6.34 and later.",
        objects="AVCs on lists",
        check=_check_chain_duplicate,
    ),
    Invariant(
        code="AV104",
        slug="chain-root",
        severity=Severity.ERROR,
        statement=(
            "All anon_vmas of a chain have one root; that root, and the parent of each, are in the "
            "chain."
        ),
        why=(
            "Fork gives a child VMA a copy of the whole parent chain and at most one new anon_vma, "
            "whose root is that of the parent's active one and whose parent is that one. So a "
            "chain never mixes families, and nobody's ancestors leave it before the VMA does."
        ),
        consequence=(
            "Code that walks a chain holds one lock, the root's: with two roots it changes trees "
            "that it has not locked, or warns in lock_anon_vma_root(). With the root or a parent "
            "missing, pages that were mapped before a fork are not found in this VMA."
        ),
        lock="The mm's mmap_lock, and the root's rwsem for write.",
        source=(
            "lock_anon_vma_root(), anon_vma_clone(), anon_vma_fork() in mm/rmap.c (v6.1, v6.12)."
        ),
        eras="One root: v2.6.36 and later. Parents in the chain: v3.19 and later, with the field.",
        schemes=(
            "In force. ANON_VMA_LAZY as posted can break it itself: a VMA that is upgraded takes "
            "the anon_vma of a neighbour even if that has a longer chain, and not the chain."
        ),
        objects="chains",
        check=_check_chain_root,
    ),
    Invariant(
        code="AV105",
        slug="active-in-chain",
        severity=Severity.ERROR,
        statement="vma->anon_vma is NULL exactly if the chain is empty, else it is in the chain.",
        why=(
            "The first anon_vma of a VMA is set together with its first AVC. A copy of a VMA gets "
            "the chain with the pointer, fork points it at the anon_vma that it adds or reuses, "
            "both of the chain, and unlinking leaves neither behind."
        ),
        consequence=(
            "A fault stores vma->anon_vma in the new page: later nobody finds this VMA from the "
            "page, so it is neither reclaimed nor migrated correctly; once that anon_vma is freed, "
            "the page has a pointer into freed memory."
        ),
        lock=_LIST_LOCK,
        source=(
            "__anon_vma_prepare(), anon_vma_clone(), anon_vma_fork(), unlink_anon_vmas() in "
            "mm/rmap.c (v6.1, v6.12)."
        ),
        eras="v2.6.34 and later.",
        schemes=(
            "Weakened: in force for plain pointers and NULL. Of an unfaulted VMA, and of one that "
            "leads to a root VMA, AV604 says that the chain is empty; of one with its parent's "
            "anon_vma, AV606 says that this is in the chain."
        ),
        objects="VMAs",
        check=_check_active_in_chain,
    ),
)
