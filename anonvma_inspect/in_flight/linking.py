"""``list_add()`` and ``list_del()`` of an AVC on a VMA's list, half done (include/linux/list.h).

Whatever is at work on the list beyond that: without the word that is wrong for a moment its state
is one that others of these modules know. So it is set right first.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from anonvma_inspect.in_flight import kinds
from anonvma_inspect.in_flight.draft import Draft
from anonvma_inspect.in_flight.layout import copied
from anonvma_inspect.in_flight.operation import Operation
from anonvma_inspect.in_flight.scene import Scene
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.tables import NO_ROW, ChainEnd, Tables, find_rows

__all__ = ("finish_linking",)


def finish_linking(scene: Scene) -> tuple[Tables, list[Operation]]:
    """Set right the one word of a list that insertion or removal has not come to yet, or has.

    Both write ``prev`` of the entry behind first (``__list_add()``, ``__list_del()``, v5.10 to
    v7.3): that then leads to the AVC that comes, which nothing else leads to, or past the one that
    goes; all others are in order. The lock is the mm's, or it has no users.

    :return: The tables with these words as they were or will be, and the operations; the tables
        themselves if there are none.
    """
    tables, words = scene.tables, scene.facts.list_words
    if not len(words.owner):
        return tables, []
    avcs = tables.avcs
    of_avc = take(scene.facts.home, np.where(words.in_vma, NO_ROW, words.owner), NO_ROW)
    home = np.where(words.in_vma, words.owner, of_avc)
    alone = np.bincount(home[home != NO_ROW], minlength=len(tables.vmas.address)) == 1
    operations = []
    vmas, new_avcs = copied(tables.vmas, "chain_prev"), copied(avcs, "prev")
    for index, vma in enumerate(home.tolist()):
        if vma == NO_ROW or not alone[vma] or words.is_next[index] or not words.expected[index]:
            continue
        if tables.vmas.chain_end[vma] != ChainEnd.CLOSED:
            continue
        if not _comes_or_goes(scene, vma, int(words.value[index]), int(words.expected[index])):
            continue
        lock = scene.list_lock(vma)
        if lock is None:
            continue
        if words.in_vma[index]:
            vmas.chain_prev[vma] = words.expected[index]
        else:
            new_avcs.prev[words.owner[index]] = words.expected[index]
        operations.append(
            Operation("linking", lock, kinds.LINKS, _done_already, vmas=frozenset((vma,)))
        )
    if not operations:
        return tables, []
    return dataclasses.replace(tables, vmas=vmas, avcs=new_avcs), operations


def _done_already(draft: Draft) -> None:
    del draft


# What a prev leads to: an AVC that is on no list, or what is before the one that it should lead to.
def _comes_or_goes(scene: Scene, vma: int, value: int, expected: int) -> bool:
    tables, facts = scene.tables, scene.facts
    address = np.array([value], dtype=np.uint64)
    entries = [int(tables.vmas.chain_head[vma]), *tables.avcs.list_node[scene.chain(vma)].tolist()]
    if value in entries:
        place = entries.index(expected) if expected in entries else 0
        return place > 0 and entries[place - 1] == value
    row = int(find_rows(tables.avcs.list_node, address)[0])
    if row != NO_ROW:
        return bool(facts.link_of_avc[row] == NO_ROW)
    offset = np.uint64(tables.era.avc.offset("same_vma"))
    return not tables.space.wild(address - offset, tables.era.avc.size).any()
