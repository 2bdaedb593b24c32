"""What the checks share: things that follow from the tables, each worked out once.

Two ideas keep one wrong word from being reported many times over:

* A word with low bits that no kernel sets is read without them here, as whoever reads it in the
  kernel would not; that it has them is AV601's finding, and no other's.
* Where two words contradict each other, a third one often tells which is wrong. So an AVC has a
  *home*: the VMA whose list it is on, whatever ``avc->vma`` says; and an anon_vma is *believed*
  only if something beside the one pointer to it says that it is one.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.invariants.base import Text, Violations
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.invariants.keys import Keys
from anonvma_inspect.invariants.lists import ListWords, find_wrong_words
from anonvma_inspect.invariants.page_facts import PageFacts
from anonvma_inspect.invariants.shape import TreePointers, find_wrong_pointers
from anonvma_inspect.kernel.era import Record
from anonvma_inspect.kernel.tags import AnonVmaKind, rb_parent, strip_lock_mark
from anonvma_inspect.tables import (
    NO_ROW,
    ChainEnd,
    I64Column,
    PointerState,
    RowColumn,
    Tables,
    U8Column,
    find_rows,
    marked,
)
from anonvma_inspect.target.memory import BoolColumn, U64Column

__all__ = ("NOT_SURE", "TAG_BITS", "Facts")

#: Why rules that turn on tags in ``vma->anon_vma`` are not checked; every answer says more of it.
NOT_SURE = "which scheme the tags in vma->anon_vma are of is not sure"
#: Low bits that a pointer to a slab object never has.
TAG_BITS = np.uint64(7)
# include/linux/sched/coredump.h or mm_types.h, MMF_OOM_SKIP and MMF_UNSTABLE: set, in an mm that
# no task has, by a fork that failed half-way. The numbers are the same from v5.10 to v7.3.
_MMF_ABANDONED = np.uint64(1 << 21 | 1 << 22)


class Facts:
    """What follows from the tables.

    :param tables: What was read.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.era = tables.era

    # ---- mms

    @cached_property
    def mm_judged(self) -> BoolColumn:
        """mms whose tree of VMAs must be as it should, as far as they are known: those of tasks,
        and others that have users, unless a failed fork has left them.

        (What exit leaves of an mm without users still names VMAs that are freed. What operations
        under way leave is not for here: see :mod:`anonvma_inspect.in_flight`.)
        """
        mms = self.tables.mms
        used = (mms.mm_users > 0) & ((mms.flags & _MMF_ABANDONED) == 0)
        judged: BoolColumn = mms.known & (mms.listed | used)
        return judged

    @cached_property
    def mm_writer(self) -> BoolColumn:
        """mms whose ``mmap_lock`` a task holds for write; see :meth:`root_writer`."""
        mms = self.tables.mms
        return self._held(mms.write_locked, mms.lock_owner, "mmap_lock_owner" in self.era.mm)

    @cached_property
    def root_writer(self) -> BoolColumn:
        """anon_vmas whose own ``rwsem`` a task holds for write.

        That the lock's word has its bit set is not enough: its owner must be a task. For a few
        instructions around taking and giving back a lock it has no owner; but nothing is half done
        then.
        """
        anon_vmas, record = self.tables.anon_vmas, self.era.anon_vma
        tells = "rwsem_owner" in record or "rwsem_rt_owner" in record
        return self._held(anon_vmas.write_locked, anon_vmas.lock_owner, tells)

    # tells: locks of this kernel name their owner in a way that is understood.
    def _held(self, locked: BoolColumn, owner: U64Column, tells: bool) -> BoolColumn:
        held = locked.copy()
        if tells:
            rows = np.flatnonzero(locked)
            held[rows] = find_rows(self.tables.holders.address, owner[rows]) != NO_ROW
        return held

    @cached_property
    def slot_copied(self) -> BoolColumn:
        """Entries of the tree of a child of fork that are its parent's still.

        Since v6.8 ``dup_mmap()`` copies the parent's tree and then replaces entry by entry, with
        both mms locked for write by the task that forks.
        """
        slots, vmas, mms = self.tables.slots, self.tables.vmas, self.tables.mms
        copied = np.zeros(len(slots.mm), dtype=bool)
        born = self.mm_writer & ~mms.listed & (mms.lock_owner != 0)
        rows = np.flatnonzero(born[slots.mm] & (slots.vma != NO_ROW))
        origin = vmas.slot[slots.vma[rows]]
        rows, origin = rows[origin != NO_ROW], origin[origin != NO_ROW]
        child, parent = slots.mm[rows], slots.mm[origin]
        same = self.mm_writer[parent] & mms.listed[parent]
        same &= mms.lock_owner[parent] == mms.lock_owner[child]
        for column in (slots.first, slots.last):
            same &= column[rows] == column[origin]
        copied[rows[same]] = True
        return copied

    # ---- pointers without low bits, and what they lead to

    def _stripped(self, words: U64Column) -> U64Column:
        return words & ~TAG_BITS

    def _rows(self, words: U64Column, rows: RowColumn, addresses: U64Column) -> RowColumn:
        tagged = np.flatnonzero((words & TAG_BITS) != 0)
        if not len(tagged):
            return rows
        rows = rows.copy()
        rows[tagged] = find_rows(addresses, self._stripped(words[tagged]))
        return rows

    @cached_property
    def avc_vma(self) -> U64Column:
        """``avc->vma``."""
        return self._stripped(self.tables.avcs.vma)

    @cached_property
    def avc_vma_row(self) -> RowColumn:
        """Row of the VMA that ``avc->vma`` leads to."""
        avcs, vmas = self.tables.avcs, self.tables.vmas
        return self._rows(avcs.vma, avcs.vma_row, vmas.address)

    @cached_property
    def avc_anon_vma(self) -> U64Column:
        """``avc->anon_vma``."""
        return self._stripped(self.tables.avcs.anon_vma)

    @cached_property
    def avc_anon_vma_row(self) -> RowColumn:
        """Row of the anon_vma that ``avc->anon_vma`` leads to."""
        avcs, anon_vmas = self.tables.avcs, self.tables.anon_vmas
        return self._rows(avcs.anon_vma, avcs.anon_vma_row, anon_vmas.address)

    @cached_property
    def root(self) -> U64Column:
        """``anon_vma->root``."""
        return self._stripped(self.tables.anon_vmas.root)

    @cached_property
    def root_row(self) -> RowColumn:
        """Row of the anon_vma that ``anon_vma->root`` leads to."""
        anon_vmas = self.tables.anon_vmas
        return self._rows(anon_vmas.root, anon_vmas.root_row, anon_vmas.address)

    @cached_property
    def parent(self) -> U64Column:
        """``anon_vma->parent``."""
        return self._stripped(self.tables.anon_vmas.parent)

    @cached_property
    def parent_row(self) -> RowColumn:
        """Row of the anon_vma that ``anon_vma->parent`` leads to.

        NO_ROW for an empty tree: what was the parent may be freed by then, so the word is not
        followed.
        """
        anon_vmas = self.tables.anon_vmas
        rows = self._rows(anon_vmas.parent, anon_vmas.parent_row, anon_vmas.address)
        return np.where(self.tree_pointer == 0, NO_ROW, rows)

    @cached_property
    def tree_pointer(self) -> U64Column:
        """``anon_vma->rb_root``'s node without the mark; 0: the tree is empty."""
        return strip_lock_mark(self.tables.anon_vmas.rb_root)

    # ---- tags in vma->anon_vma

    @cached_property
    def vma_kind(self) -> U8Column:
        """What ``vma->anon_vma`` of each VMA is: an
        :class:`~anonvma_inspect.kernel.tags.AnonVmaKind`.
        """
        vmas = self.tables.vmas
        return self.era.tags.kinds(vmas.anon_vma_pointer, vmas.anon_vma_tag)

    def vmas_of_kind(self, *kinds: AnonVmaKind) -> RowColumn:
        """Rows of the VMAs whose ``vma->anon_vma`` is of one of some kinds."""
        if self.era.tags.name == "none":
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(np.isin(self.vma_kind, kinds))

    @cached_property
    def explained(self) -> BoolColumn:
        """VMAs that have something else than an anon_vma of their own, as the scheme has it."""
        lent = self.vmas_of_kind(
            AnonVmaKind.UNFAULTED, AnonVmaKind.LAZY_VMA, AnonVmaKind.LAZY_PARENT
        )
        return marked(len(self.tables.vmas.address), lent)

    @cached_property
    def chain_denied(self) -> BoolColumn:
        """VMAs that have a chain, and a word that says that they have none."""
        denied = self.vmas_of_kind(AnonVmaKind.UNFAULTED, AnonVmaKind.LAZY_VMA)
        vmas = self.tables.vmas
        return marked(len(vmas.address), denied[vmas.chain_length[denied] > 0])

    @cached_property
    def lent_references(self) -> tuple[I64Column, I64Column]:
        """How many VMAs have each anon_vma from their parent (ANON_VMA_LAZY), and so a reference.

        :return: At least, and at most. A copy of a VMA that is being made has the word, but no
            reference yet; one with low bits that mean nothing may have had it.
        """
        count = len(self.tables.anon_vmas.address)
        vmas = self.vmas_of_kind(AnonVmaKind.LAZY_PARENT)
        target = self.lent_by(vmas)
        lasting = target[self.at_rest[vmas] & (target != NO_ROW)] if len(vmas) else target
        strayed = self.lent_by(self.vmas_of_kind(AnonVmaKind.TAGGED))
        known = np.concatenate([target, strayed])
        return (
            np.bincount(lasting, minlength=count),
            np.bincount(known[known != NO_ROW], minlength=count),
        )

    def lent_by(self, vmas: RowColumn) -> RowColumn:
        """Rows of the parent's anon_vmas that the words of VMAs of that kind lead to."""
        words = self.tables.vmas.anon_vma_pointer[vmas]
        return find_rows(self.tables.anon_vmas.address, words)

    def root_vma_of(self, vmas: RowColumn) -> RowColumn:
        """Rows of the root VMAs that the words of VMAs of that kind lead to."""
        words = self.tables.vmas.anon_vma_pointer[vmas]
        return find_rows(self.tables.vmas.address, words)

    def of_one_mm(self, vmas: RowColumn, others: RowColumn) -> BoolColumn:
        """Which VMAs say that they are of the same mm as others; NO_ROW among these: not."""
        says = self.tables.vmas.vm_mm
        same: BoolColumn = (others != NO_ROW) & (take(says, others, 0) == says[vmas])
        return same

    @cached_property
    def root_references(self) -> tuple[I64Column, I64Column]:
        """How many references each VMA has as root VMA, and for being mapped (ANON_VMA_LAZY).

        :return: At least, and at most, as for :attr:`lent_references`. A word that leads to a VMA
            of another mm (AV605) needs none: it may hold what should have been another's.
        """
        vmas, slots = self.tables.vmas, self.tables.slots
        count = len(vmas.address)
        lazy = self.vmas_of_kind(AnonVmaKind.LAZY_VMA)
        root = self.root_vma_of(lazy)
        lasting = root[self.at_rest[lazy] & self.of_one_mm(lazy, root)]
        return (
            np.bincount(lasting, minlength=count) + self.at_rest,
            np.bincount(root[root != NO_ROW], minlength=count) + marked(count, slots.vma),
        )

    @cached_property
    def mm_complete(self) -> BoolColumn:
        """mms that are judged, and of whose VMAs none is missing."""
        mms = self.tables.mms
        complete: BoolColumn = self.mm_judged & mms.walked & mms.whole
        return complete

    @cached_property
    def at_rest(self) -> BoolColumn:
        """VMAs in the tree of their mm.

        (That of one that is torn down, or that a failed fork left behind, can name VMAs that are
        freed.)
        """
        vmas = self.tables.vmas
        resting: BoolColumn = (vmas.slot != NO_ROW) & take(self.mm_judged, vmas.mm, False)
        return resting

    # ---- places in trees

    @cached_property
    def node_parent(self) -> U64Column:
        """Address of the ``rb`` of each node's parent in the tree, 0 for the tree's root."""
        nodes = self.tables.nodes
        return take(self.tables.avcs.rb_node[nodes.avc], nodes.parent, 0)

    @cached_property
    def node_word(self) -> U64Column:
        """``__rb_parent_color`` of each node."""
        words: U64Column = self.tables.avcs.rb_parent_color[self.tables.nodes.avc]
        return words

    @cached_property
    def node_linked(self) -> BoolColumn:
        """Nodes whose own parent pointer agrees with where the walk came from."""
        linked: BoolColumn = rb_parent(self.node_word) == self.node_parent
        return linked

    @cached_property
    def borrowed_from(self) -> RowColumn:
        """For each anon_vma whose ``rb_root`` leads to the tree of another one: that one's row.

        NO_ROW for all others. Two roots that lead to one node are told apart by what it says.
        """
        tables = self.tables
        top = np.flatnonzero(tables.nodes.parent == NO_ROW)
        here = tables.nodes.anon_vma[top]
        says = self.avc_anon_vma_row[tables.nodes.avc[top]]
        odd = np.flatnonzero((says != here) & (says != NO_ROW))
        here, says = here[odd], says[odd]
        borrowed = self.tree_pointer[here] == self.tree_pointer[says]
        origin = np.full(len(tables.anon_vmas.address), NO_ROW, dtype=np.int64)
        origin[here[borrowed]] = says[borrowed]
        return origin

    @cached_property
    def node_tree(self) -> RowColumn:
        """Row of the anon_vma that each node's tree belongs to: not to one that borrows it."""
        nodes = self.tables.nodes
        origin = self.borrowed_from
        if not (origin != NO_ROW).any():
            return nodes.anon_vma
        origin = origin[nodes.anon_vma]
        return np.where(origin == NO_ROW, nodes.anon_vma, origin)

    @cached_property
    def tree_whole(self) -> BoolColumn:
        """anon_vmas of whose own tree every node is known."""
        whole: BoolColumn = self.tables.anon_vmas.tree_whole & (self.borrowed_from == NO_ROW)
        return whole

    @cached_property
    def node_owned(self) -> BoolColumn:
        """Nodes whose ``avc->anon_vma`` is the one whose tree it is."""
        owned: BoolColumn = self.avc_anon_vma_row[self.tables.nodes.avc] == self.node_tree
        return owned

    @cached_property
    def node_real(self) -> BoolColumn:
        """Nodes that agree with their tree in one of both ways, the best such place of each AVC.

        A node that agrees in neither is where a wrong child pointer leads; a second place is where
        a tree runs into itself or another.
        """
        nodes = self.tables.nodes
        owned, linked = self.node_owned, self.node_linked
        agrees = owned | linked
        weak = np.flatnonzero(~owned & linked & (nodes.parent == NO_ROW))
        agrees[weak[~self._supported(weak)]] = False
        if nodes.again.any():
            score = owned.astype(np.int64) + linked
            order = np.lexsort((nodes.again, -score, ~agrees, nodes.avc))
            best = np.ones(len(order), dtype=bool)
            best[1:] = nodes.avc[order[1:]] != nodes.avc[order[:-1]]
            agrees[order[~best]] = False
        # What only hangs together with what is not real, is not real either.
        below = np.flatnonzero(~owned & (nodes.parent != NO_ROW))
        while len(below):
            lost = agrees[below] & ~agrees[nodes.parent[below]]
            agrees[below[lost]] = False
            below = below[~lost] if lost.any() else below[:0]
        return agrees

    # That its parent is NULL says little of what an rb_root leads to: it must have a child that is
    # the tree's own; or be on a list, and rb_leftmost lead to the first node of the same tree.
    def _supported(self, top: RowColumn) -> BoolColumn:
        tables = self.tables
        nodes = tables.nodes
        good = self.node_owned & self.node_linked
        supported: BoolColumn = self.link_of_avc[nodes.avc[top]] != NO_ROW
        if self.era.has_leftmost and len(top):
            tree = nodes.anon_vma[top]
            first = nodes.avc[np.searchsorted(nodes.anon_vma, tree)]
            supported &= tables.anon_vmas.rb_leftmost[tree] == tables.avcs.rb_node[first]
        for child in (nodes.left[top], nodes.right[top]):
            supported |= take(good, child, False)
        return supported

    @cached_property
    def node_of_avc(self) -> RowColumn:
        """Row in nodes of the place where each AVC really is; NO_ROW if in no tree."""
        place = np.full(len(self.tables.avcs.address), NO_ROW, dtype=np.int64)
        real = np.flatnonzero(self.node_real)
        place[self.tables.nodes.avc[real]] = real
        return place

    @cached_property
    def nodes_in_tree(self) -> I64Column:
        """How many AVCs of its own each anon_vma's tree is known to have."""
        own = self.node_tree[self.node_real & self.node_owned]
        return np.bincount(own, minlength=len(self.tables.anon_vmas.address))

    @cached_property
    def tree_pointers(self) -> TreePointers:
        """Pointers of trees that are wrong."""
        return find_wrong_pointers(self)

    @cached_property
    def keys(self) -> Keys:
        """What trees are ordered by."""
        return Keys(self)

    @cached_property
    def pages(self) -> PageFacts | None:
        """What follows from mapped pages; ``None`` if they were not asked for."""
        return None if self.tables.pages is None else PageFacts(self, self.tables.pages)

    def find_node(self, addresses: U64Column) -> RowColumn:
        """Rows of the AVCs whose ``rb`` is at these addresses, if anything vouches for them."""
        avc = find_rows(self.tables.avcs.rb_node, addresses)
        return np.where((avc != NO_ROW) & take(self.avc_known, avc, False), avc, NO_ROW)

    # ---- places on lists

    @cached_property
    def link_of_avc(self) -> RowColumn:
        """Row in links of the place of each AVC on a list; NO_ROW if on none.

        Of several, one on the list of the VMA that it names.
        """
        links = self.tables.links
        place = np.full(len(self.tables.avcs.address), NO_ROW, dtype=np.int64)
        place[links.avc] = np.arange(len(links.avc))
        own = np.flatnonzero(self.link_owned)
        place[links.avc[own]] = own
        return place

    @cached_property
    def link_owned(self) -> BoolColumn:
        """Entries of lists whose ``avc->vma`` is the one whose list it is."""
        links = self.tables.links
        owned: BoolColumn = self.avc_vma_row[links.avc] == links.vma
        return owned

    @cached_property
    def link_anon_vma(self) -> RowColumn:
        """Row of the anon_vma of each entry of a list."""
        rows: RowColumn = self.avc_anon_vma_row[self.tables.links.avc]
        return rows

    @cached_property
    def home(self) -> RowColumn:
        """Row of the VMA that each AVC belongs to: whose list it is on, else what it says."""
        link = self.link_of_avc
        return np.where(link == NO_ROW, self.avc_vma_row, take(self.tables.links.vma, link, NO_ROW))

    @cached_property
    def avc_known(self) -> BoolColumn:
        """AVCs that a list or a tree vouches for."""
        known: BoolColumn = (self.link_of_avc != NO_ROW) | (self.node_of_avc != NO_ROW)
        return known

    @cached_property
    def list_words(self) -> ListWords:
        """Words of lists that are wrong."""
        return find_wrong_words(
            self.tables, self.era.avc, self.avc_known, self.link_of_avc != NO_ROW, self.home
        )

    @cached_property
    def chain_sound(self) -> BoolColumn:
        """VMAs whose whole list was walked, and whose list does not contradict itself.

        Only of these can it be said that something is not on the list. (A ``next`` that skips an
        entry leaves a list that closes; that is AV101's finding, and what is missing then, is not
        another one.)
        """
        sound: BoolColumn = self.tables.vmas.chain_end == ChainEnd.CLOSED
        sound[self.list_words.vmas] = False
        return sound

    @cached_property
    def chain_whole(self) -> BoolColumn:
        """VMAs whose list is sound, and has all AVCs that are in trees and name the VMA.

        (That one is missing is AV202's finding.)
        """
        whole = self.chain_sound.copy()
        avc = np.flatnonzero((self.node_of_avc != NO_ROW) & (self.link_of_avc == NO_ROW))
        vma = self.avc_vma_row[avc]
        whole[vma[vma != NO_ROW]] = False
        return whole

    @cached_property
    def _link_node(self) -> RowColumn:
        rows: RowColumn = self.node_of_avc[self.tables.links.avc]
        return rows

    @cached_property
    def link_certain(self) -> BoolColumn:
        """Entries of lists whose ``avc->anon_vma`` no tree contradicts: another's by having the
        AVC, its own by being known as a whole and not having it.
        """
        node = self._link_node
        certain = take(self.node_owned, node, False)
        absent = np.flatnonzero(node == NO_ROW)
        whole = self.tree_whole & (self.tree_pointer != 0)
        certain[absent] = ~take(whole, self.link_anon_vma[absent], False)
        return certain

    @cached_property
    def link_tree(self) -> RowColumn:
        """Row of the anon_vma in whose tree each entry of a list is; NO_ROW if in none."""
        return take(self.node_tree, self._link_node, NO_ROW)

    @cached_property
    def pair_keys(self) -> U64Column:
        """Which anon_vmas are in which VMA's chain: :meth:`pair_key` of all entries, sorted.

        An AVC that names one anon_vma and is in the tree of another puts both of them there.
        """
        links = self.tables.links
        known = np.flatnonzero(self.link_anon_vma != NO_ROW)
        keys = self.pair_key(links.vma[known], self.link_anon_vma[known])
        doubtful = np.flatnonzero(~self.link_certain & (self.link_tree != NO_ROW))
        if len(doubtful):
            more = self.pair_key(links.vma[doubtful], self.link_tree[doubtful])
            keys = np.concatenate([keys, more])
        return np.sort(keys)

    def pair_key(self, vma: RowColumn, anon_vma: RowColumn) -> U64Column:
        """One number for a VMA and an anon_vma, by their rows."""
        key = vma * len(self.tables.anon_vmas.address) + anon_vma
        return key.astype(np.uint64)

    def in_chain(self, vma: RowColumn, anon_vma: RowColumn) -> BoolColumn:
        """Whether anon_vmas are in VMAs' chains; where a row is NO_ROW, they are not."""
        found = np.zeros(len(vma), dtype=bool)
        known = np.flatnonzero((vma != NO_ROW) & (anon_vma != NO_ROW))
        if not len(known):
            return found
        found[known] = find_rows(self.pair_keys, self.pair_key(vma[known], anon_vma[known])) >= 0
        return found

    @cached_property
    def chain_settled(self) -> BoolColumn:
        """VMAs whose chain can be compared with others.

        They are in the tree of an mm that nobody changes; of no entry of the chain is it in doubt
        which anon_vma it leads to; and what every chain must have is there: the active anon_vma,
        its root, and all parents (if not, AV104 and AV105 say so).
        """
        tables = self.tables
        vmas, chain, member = tables.vmas, tables.links.vma, self.link_anon_vma
        count = len(vmas.address)
        settled: BoolColumn = self.chain_whole & (vmas.slot != NO_ROW) & (vmas.active != NO_ROW)
        settled &= take(self.mm_judged, vmas.mm, False)
        doubtful = ~self.link_certain | (member == NO_ROW) | (self.link_tree == NO_ROW)
        settled[chain[doubtful]] = False
        root = take(self.root_row, vmas.active, NO_ROW)
        for needed in (vmas.active, root):
            settled &= marked(count, chain[member == needed[chain]])
        if self.era.has_parent:
            _, orphaned, _ = self.stray_parents
            settled[orphaned] = False
        return settled

    # ---- anon_vmas

    @cached_property
    def orphans(self) -> RowColumn:
        """AVCs that are on a list and in no tree."""
        found: RowColumn = np.flatnonzero(
            (self.link_of_avc != NO_ROW) & (self.node_of_avc == NO_ROW)
        )
        return found

    @cached_property
    def believed(self) -> BoolColumn:
        """anon_vmas that are reached, and that look like one from a second side.

        A pointer with one wrong bit leads to bytes that are taken for an anon_vma. That is the
        pointer's fault; what the bytes say must not be held against them. So one of these is asked
        for: AVCs of its own in its tree; an AVC on a list that is in no tree at all; that KSM holds
        it, too; or that it is the root of such an anon_vma and its own, or has such a root. (That
        it is its own root says nothing by itself: so does the head of an empty list.)
        """
        anon_vmas = self.tables.anon_vmas
        count = len(anon_vmas.address)
        sure = (self.nodes_in_tree > 0) | marked(count, self.avc_anon_vma_row[self.orphans])
        sure |= anon_vmas.reached & (self.ksm_references > 0)
        root = self.root_row
        self_rooted = root == np.arange(count)
        of_sure = marked(count, root[sure]) & self_rooted
        below = take((sure | of_sure) & self_rooted, root, False)
        believed: BoolColumn = anon_vmas.reached & (sure | of_sure | below)
        return believed

    @cached_property
    def ksm_references(self) -> I64Column:
        """How many references of each anon_vma KSM holds, at least."""
        items = self.tables.rmap_items
        rows = items.anon_vma_row[items.settled]
        return np.bincount(rows[rows != NO_ROW], minlength=len(self.tables.anon_vmas.address))

    @cached_property
    def ksm_astray(self) -> int:
        """How many references KSM may hold that are of anon_vmas which are not known."""
        rows = self.tables.rmap_items.anon_vma_row
        return int(np.count_nonzero(~take(self.believed, rows, False)))

    @cached_property
    def stray_parents(self) -> tuple[RowColumn, RowColumn, U64Column]:
        """Parents that are missing from chains.

        An anon_vma's parent is in each chain that the anon_vma is in. If it is missing in all of
        them or in several, then the anon_vma's word is wrong; if in one of many, that chain has
        lost an entry.

        :return: Rows of anon_vmas with a wrong ``parent``, each once; rows of VMAs whose chain
            lacks one, and that parent's address.
        """
        tables = self.tables
        links = tables.links
        member, chain = self.link_anon_vma, links.vma
        # An entry whose anon_vma is not known may be the parent's.
        unknown = marked(len(tables.vmas.address), chain[member == NO_ROW])
        judged = self.link_certain & (member != NO_ROW) & (self.chain_whole & ~unknown)[chain]
        full = self.tree_pointer != 0
        judged &= take(full, member, False)
        parent = take(self.parent, member, 0)
        here = take(tables.anon_vmas.address, member, 0)
        # Nearly always the parent is the anon_vma itself or that of a neighbour on the list.
        open_ = judged & (parent != here)
        open_[:-1] &= (parent[:-1] != here[1:]) | (chain[:-1] != chain[1:])
        open_[1:] &= (parent[1:] != here[:-1]) | (chain[1:] != chain[:-1])
        rows = np.flatnonzero(open_)
        if not len(rows):
            return rows, rows, parent[rows]
        parent_row = find_rows(tables.anon_vmas.address, parent[rows])
        rows = rows[~self.in_chain(chain[rows], parent_row)]
        count = np.bincount(member[rows], minlength=len(full))
        chains = np.bincount(member[judged], minlength=len(full))
        of_child = ((count > 1) | (count == chains))[member[rows]]
        of_vma = rows[~of_child]
        return np.unique(member[rows[of_child]]), chain[of_vma], parent[of_vma]

    def vma_in_tree(self, anon_vma: RowColumn) -> RowColumn:
        """Row of the first VMA in the trees of some anon_vmas; NO_ROW if none is known."""
        return self._vma_in_tree[anon_vma] if len(anon_vma) else anon_vma

    @cached_property
    def _vma_in_tree(self) -> RowColumn:
        nodes = self.tables.nodes
        some = np.full(len(self.tables.anon_vmas.address), NO_ROW, dtype=np.int64)
        own = np.flatnonzero(self.node_real & self.node_owned)[::-1]
        home = self.home[nodes.avc[own]]
        own, home = own[home != NO_ROW], home[home != NO_ROW]
        some[self.node_tree[own]] = home
        return some

    # ---- pointers

    def state(self, pointers: U64Column, rows: RowColumn, record: Record) -> NDArray[np.uint8]:
        """What became of pointers to objects; see :meth:`Tables.pointer_state`."""
        return self.tables.pointer_state(pointers, rows, record.size)

    def wild(self, pointers: U64Column, rows: RowColumn, record: Record) -> BoolColumn:
        """Which pointers cannot be right, NULL included."""
        state = self.state(pointers, rows, record)
        wild: BoolColumn = (state == PointerState.WILD) | (state == PointerState.NULL)
        return wild

    # ---- making violations

    def of_avcs(
        self,
        message: str,
        rows: RowColumn,
        name: str | None,
        expected: Text,
        actual: Text,
        anon_vma: RowColumn | None = None,
        word: U64Column | None = None,
    ) -> Violations:
        """Violations whose objects are AVCs.

        :param rows: Their rows.
        :param name: The field that is wrong, as the era's record calls it; ``None`` if it cannot
            be told.
        :param anon_vma: Rows of the anon_vmas that they belong to, if not as they say themselves.
        :param word: Addresses of the wrong words, where they are another object's; 0: not known.
        """
        avcs, record = self.tables.avcs, self.era.avc
        return Violations(
            message,
            record.struct,
            avcs.address[rows],
            expected,
            actual,
            word=_word(record, name, avcs.address[rows]) if word is None else word,
            vma=self.home[rows],
            anon_vma=self.avc_anon_vma_row[rows] if anon_vma is None else anon_vma,
        )

    def of_vmas(
        self, message: str, rows: RowColumn, name: str | None, expected: Text, actual: Text
    ) -> Violations:
        """Violations whose objects are VMAs; see :meth:`of_avcs`."""
        vmas, record = self.tables.vmas, self.era.vma
        return Violations(
            message,
            record.struct,
            vmas.address[rows],
            expected,
            actual,
            word=_word(record, name, vmas.address[rows]),
            vma=rows,
            anon_vma=vmas.active[rows],
        )

    def of_anon_vmas(
        self, message: str, rows: RowColumn, name: str | None, expected: Text, actual: Text
    ) -> Violations:
        """Violations whose objects are anon_vmas; see :meth:`of_avcs`."""
        anon_vmas, record = self.tables.anon_vmas, self.era.anon_vma
        return Violations(
            message,
            record.struct,
            anon_vmas.address[rows],
            expected,
            actual,
            word=_word(record, name, anon_vmas.address[rows]),
            anon_vma=rows,
        )

    def of_mms(
        self, message: str, rows: RowColumn, name: str | None, expected: Text, actual: Text
    ) -> Violations:
        """Violations whose objects are mms; see :meth:`of_avcs`."""
        mms, record = self.tables.mms, self.era.mm
        return Violations(
            message,
            record.struct,
            mms.address[rows],
            expected,
            actual,
            word=_word(record, name, mms.address[rows]),
            mm=rows,
        )


# Where the wrong word lies. Fields of other sizes are named by their own address all the same.
def _word(record: Record, name: str | None, addresses: U64Column) -> U64Column | None:
    if name is None or name not in record:
        return None
    return addresses + np.uint64(record.offset(name))
