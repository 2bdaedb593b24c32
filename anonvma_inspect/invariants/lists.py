"""Words of ``anon_vma_chain`` lists that contradict each other, and which of them is wrong.

A list is right where each ``next`` is answered by a ``prev`` and the other way round. Where a pair
is not, a third word mostly tells which of both is wrong:

* ``y->next`` leads to ``x``, but ``x->prev`` is not ``y``. If some third entry and ``x`` point to
  each other, or a third one says that it comes behind ``y``, then ``y->next`` is wrong; else
  ``x->prev`` is.
* ``x->prev`` leads to ``z``, but ``z->next`` is not ``x``. If ``z`` and a third entry point to each
  other, or a third one leads to ``x``, then ``x->prev`` is wrong; else ``z->next`` is.

So one wrong word is one finding, and it names that word.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anonvma_inspect.kernel.era import Record
from anonvma_inspect.tables import NO_ROW, ChainEnd, PointerState, RowColumn, Tables, find_rows
from anonvma_inspect.target.memory import BoolColumn, U64Column

__all__ = ("LIST_POISON", "ListWords", "find_wrong_words")

#: ``list_del()`` leaves these (``include/linux/poison.h``; the offset that makes them
#: non-canonical is the same on x86-64 and arm64).
LIST_POISON = np.array([0xDEAD000000000100, 0xDEAD000000000122], dtype=np.uint64)


@dataclass(frozen=True)
class ListWords:
    """Wrong words, each once.

    :ivar owner: Row of the VMA whose head has the word, or of the AVC.
    :ivar in_vma: It is the head of a VMA's list.
    :ivar is_next: It is ``next``; else ``prev``.
    :ivar value: The word.
    :ivar expected: What it should be, 0 where that cannot be told.
    :ivar pointer_state: A :class:`PointerState`: OBJECT if it leads to another entry.
    :ivar vmas: Rows of the VMAs whose lists have a wrong word, or a word that one leads to.
    """

    owner: RowColumn
    in_vma: BoolColumn
    is_next: BoolColumn
    value: U64Column
    expected: U64Column
    pointer_state: np.ndarray[tuple[int], np.dtype[np.uint8]]
    vmas: RowColumn


_NO_ROWS: RowColumn = np.empty(0, dtype=np.int64)


class _Lists:
    """All list nodes under one numbering: the heads by the rows of their VMAs, then the AVCs.

    :param known: AVCs that a list or a tree vouches for.
    """

    def __init__(self, tables: Tables, known: BoolColumn) -> None:
        vmas, avcs = tables.vmas, tables.avcs
        self.heads = len(vmas.address)
        self._head_address, self._avc_address = vmas.chain_head, avcs.list_node
        self._walked = vmas.chain_end != ChainEnd.NOT_WALKED
        self.next = np.concatenate([vmas.chain_next, avcs.next])
        self.prev = np.concatenate([vmas.chain_prev, avcs.prev])
        self.address = np.concatenate([vmas.chain_head, avcs.list_node])
        self.valid = np.concatenate([self._walked, known])

    def find(self, addresses: U64Column) -> RowColumn:
        """Numbers of the nodes at these addresses, NO_ROW where there is none."""
        head = find_rows(self._head_address, addresses)
        avc = find_rows(self._avc_address, addresses)
        node = np.where(head != NO_ROW, head, np.where(avc != NO_ROW, avc + self.heads, NO_ROW))
        return np.where((node != NO_ROW) & self.valid[node], node, NO_ROW)

    def claim(self, words: U64Column, targets: RowColumn, but: RowColumn) -> RowColumn:
        """For each node, some other node whose word leads to it.

        :param words: ``next`` or ``prev`` of all nodes.
        :param but: For each node, one that does not count.
        """
        wanted, place = np.unique(self.address[targets], return_inverse=True)
        found = np.flatnonzero(self.valid & np.isin(words, wanted))
        at = np.searchsorted(wanted, words[found])
        # The first and the last that lead to a place: one of them is not the one left out.
        first = np.full(len(wanted), NO_ROW, dtype=np.int64)
        last = first.copy()
        first[at[::-1]] = found[::-1]
        last[at] = found
        return np.where(
            first[place] != but, first[place], np.where(last[place] != but, last[place], NO_ROW)
        )


def find_wrong_words(
    tables: Tables, avc_record: Record, known: BoolColumn, listed: BoolColumn, home: RowColumn
) -> ListWords:
    """Compare all lists with themselves.

    :param known: AVCs that a list or a tree vouches for.
    :param listed: AVCs that a walk of a list came to.
    :param home: Row of the VMA that each AVC belongs to.
    """
    vmas, avcs, links = tables.vmas, tables.avcs, tables.links
    heads = len(vmas.address)
    # What the walks met: each entry's prev must be where the walk came from.
    node = avcs.list_node[links.avc]
    behind = np.empty(len(node), dtype=np.uint64)
    behind[1:] = node[:-1]
    first = links.position == 0
    behind[first] = vmas.chain_head[links.vma[first]]
    wrong = np.flatnonzero(avcs.prev[links.avc] != behind)
    at_head = links.position[wrong] == 0
    pair_y = [np.where(at_head, links.vma[wrong], heads + links.avc[wrong - 1])]
    pair_x = [heads + links.avc[wrong]]
    # And the head's prev must be the last of them, or the head itself.
    closed = vmas.chain_end == ChainEnd.CLOSED
    last_link = np.cumsum(vmas.chain_length) - 1
    empty = vmas.chain_length == 0
    last_address = vmas.chain_head.copy()
    last_address[~empty] = node[last_link[~empty]]
    wrong = np.flatnonzero(closed & (vmas.chain_prev != last_address))
    pair_y.append(np.where(empty[wrong], wrong, _last_avc(links.avc, last_link, wrong) + heads))
    pair_y[-1][empty[wrong]] = wrong[empty[wrong]]
    pair_x.append(wrong)
    # Where walks broke off, and AVCs that are in a tree only.
    open_ended = np.flatnonzero(~closed & (vmas.chain_end != ChainEnd.NOT_WALKED))
    off_list = np.flatnonzero(known & ~listed)
    if not (len(pair_x[0]) or len(wrong) or len(open_ended) or len(off_list)):
        nothing = np.empty(0, dtype=np.uint64)
        no_flags = np.empty(0, dtype=bool)
        return ListWords(
            _NO_ROWS, no_flags, no_flags, nothing, nothing, np.empty(0, np.uint8), _NO_ROWS
        )
    lists = _Lists(tables, known)
    ends = np.where(
        empty[open_ended], open_ended, _last_avc(links.avc, last_link, open_ended) + heads
    )
    off = off_list + heads
    # Whose next does not lead to a known node, and breaks off a walk.
    unanswered = np.concatenate([ends, off])
    target = lists.find(lists.next[unanswered])
    answered = target != NO_ROW
    pair_y.append(unanswered[answered])
    pair_x.append(target[answered])
    y, x = np.concatenate(pair_y), np.concatenate(pair_x)
    differ = lists.prev[x] != lists.address[y]
    y, x = y[differ], x[differ]

    def wild(words: U64Column) -> BoolColumn:
        is_wild: BoolColumn = tables.space.wild(words, 16)
        return is_wild

    # First kind: y->next is x, x->prev is not y.
    third = lists.find(lists.prev[x])
    happy = (third != NO_ROW) & (lists.next[third] == lists.address[x])
    heir = lists.claim(lists.prev, y, x)
    blame_next = (happy | (heir != NO_ROW)) & ~wild(lists.prev[x])
    words = [
        _Words(y[blame_next], True, _address_of(lists, heir[blame_next])),
        _Words(x[~blame_next], False, lists.address[y[~blame_next]]),
    ]
    # Second kind: x->prev is z, z->next is not x. For entries of a walk it is the first kind again,
    # but not for a head that the walk did not come back to.
    x = np.concatenate([off, open_ended])
    z = lists.find(lists.prev[x])
    asked = np.flatnonzero(z != NO_ROW)
    x, z = x[asked], z[asked]
    differ = lists.next[z] != lists.address[x]
    x, z = x[differ], z[differ]
    other = lists.find(lists.next[z])
    happy = (other != NO_ROW) & (lists.prev[other] == lists.address[z])
    leader = lists.claim(lists.next, x, z)
    blame_prev = (happy | (leader != NO_ROW)) & ~wild(lists.next[z])
    words.append(_Words(x[blame_prev], False, _address_of(lists, leader[blame_prev])))
    words.append(_Words(z[~blame_prev], True, lists.address[x[~blame_prev]]))
    # What is wrong in itself. Where a walk ended at a stranger, the word that led there is.
    stranger = ends[vmas.chain_end[open_ended] == ChainEnd.STRANGER]
    bad_next = np.concatenate(
        [stranger[lists.find(lists.next[stranger]) == NO_ROW], off[wild(lists.next[off])]]
    )
    bad_next = np.concatenate([bad_next, ends[wild(lists.next[ends])]])
    words.append(_Words(bad_next, True, np.zeros(len(bad_next), dtype=np.uint64)))
    bad_prev = off[wild(lists.prev[off])]
    words.append(_Words(bad_prev, False, np.zeros(len(bad_prev), dtype=np.uint64)))
    # Behind a break nobody has compared the head's prev with anything.
    loose = open_ended[wild(vmas.chain_prev[open_ended])]
    words.append(_Words(loose, False, np.zeros(len(loose), dtype=np.uint64)))
    return _each_once(tables, avc_record, lists, words, home)


@dataclass(frozen=True)
class _Words:
    node: RowColumn
    is_next: bool
    expected: U64Column


def _last_avc(avc: RowColumn, last_link: RowColumn, vmas: RowColumn) -> RowColumn:
    return avc[last_link[vmas]] if len(avc) else np.zeros(len(vmas), dtype=np.int64)


def _address_of(lists: _Lists, nodes: RowColumn) -> U64Column:
    return np.where(nodes == NO_ROW, np.uint64(0), lists.address[nodes])


def _each_once(
    tables: Tables, avc_record: Record, lists: _Lists, words: list[_Words], home: RowColumn
) -> ListWords:
    node = np.concatenate([part.node for part in words])
    is_next = np.repeat([part.is_next for part in words], [len(part.node) for part in words])
    expected = np.concatenate([part.expected for part in words])
    # Of several opinions on one word, one that knows what it should be.
    order = np.lexsort((expected == 0, is_next, node))
    node, is_next, expected = node[order], is_next[order], expected[order]
    new = np.ones(len(node), dtype=bool)
    new[1:] = (node[1:] != node[:-1]) | (is_next[1:] != is_next[:-1])
    node, is_next, expected = node[new], is_next[new], expected[new]
    value = np.where(is_next, lists.next[node], lists.prev[node])
    target = lists.find(value)
    state = tables.pointer_state(
        value - np.uint64(avc_record.offset("same_vma")), target, avc_record.size
    )
    # NULL less an offset is not NULL.
    state[value == 0] = PointerState.NULL
    in_vma = node < lists.heads

    def vma_of(nodes: RowColumn) -> RowColumn:
        rows = np.full(len(nodes), NO_ROW, dtype=np.int64)
        head = nodes < lists.heads
        rows[head] = nodes[head]
        rows[~head] = home[nodes[~head] - lists.heads]
        return rows

    around = np.concatenate([node, target[target != NO_ROW], lists.find(expected[expected != 0])])
    touched = vma_of(around[around != NO_ROW])
    return ListWords(
        owner=np.where(in_vma, node, node - lists.heads),
        in_vma=in_vma,
        is_next=is_next.astype(bool),
        value=value,
        expected=expected,
        pointer_state=state,
        vmas=np.unique(touched[touched != NO_ROW]),
    )
