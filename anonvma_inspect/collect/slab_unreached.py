"""Allocated objects that are in no table: leaked, or held by something that is not read."""

from __future__ import annotations

import numpy as np

from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.tables import NO_ROW, Tables, Unreached, find_rows
from anonvma_inspect.target.memory import BoolColumn, U64Column

__all__ = ("find_unreached",)


def find_unreached(
    reader: Reader, tables: Tables, objects: tuple[tuple[U64Column, U64Column], ...]
) -> Unreached:
    """Take what the tables have from all objects of the caches, and look at the rest.

    :param objects: Addresses of those in use and of the free ones, of VMAs, AVCs and anon_vmas. The
        cache of AVCs may be shared: of its objects only the two words are read that every AVC has.
    """
    era = tables.era
    all_vmas, all_avcs, all_anon_vmas = (used for used, _ in objects)
    vmas = _others(all_vmas, tables.vmas.address)
    avcs = _others(all_avcs, tables.avcs.address)
    anon_vmas = _others(all_anon_vmas, tables.anon_vmas.address)
    vma, _ = reader.words(era.avc, avcs, "vma")
    anon_vma, _ = reader.words(era.avc, avcs, "anon_vma")
    # What else lies in that cache does not point to both.
    likely = _among(vma, all_vmas) & _among(anon_vma, all_anon_vmas)
    linked = np.zeros(len(avcs), dtype=bool)
    linked[likely] = True
    for name in ("same_vma_next", "same_vma_prev"):
        word, present = reader.words(era.avc, avcs[likely], name)
        linked[likely] &= present & ~reader.space.wild(word)
    mm = np.zeros(len(avcs), dtype=np.uint64)
    mm[linked], _ = reader.words(era.vma, vma[linked], "vm_mm")
    rows, present = reader.rows(era.anon_vma, anon_vmas)
    anon_vmas, rows = anon_vmas[present], rows[present]
    free = objects[2][1]
    refcount, _ = reader.words(era.anon_vma, free, "refcount")
    rb_root, _ = reader.words(era.anon_vma, free, "rb_node")
    return Unreached(
        vmas=vmas,
        avcs=avcs,
        avc_vma=vma,
        avc_anon_vma=anon_vma,
        avc_linked=linked,
        avc_mm=mm,
        anon_vmas=anon_vmas,
        anon_vma_refcount=era.anon_vma.signed(rows, "refcount"),
        anon_vma_rb_root=era.anon_vma.column(rows, "rb_node"),
        anon_vma_root=era.anon_vma.column(rows, "root"),
        free_anon_vmas=free,
        free_refcount=refcount.astype(np.int64),
        free_rb_root=rb_root,
    )


def _among(words: U64Column, addresses: U64Column) -> BoolColumn:
    found: BoolColumn = find_rows(np.sort(addresses), words) != NO_ROW
    return found


# Addresses that are not among those that are known, sorted.
def _others(addresses: U64Column, known: U64Column) -> U64Column:
    return np.sort(addresses[find_rows(known, addresses) == NO_ROW])
