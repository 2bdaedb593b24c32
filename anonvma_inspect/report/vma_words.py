"""What VMAs have in ``vma->anon_vma``, in figures."""

from __future__ import annotations

import numpy as np

from anonvma_inspect.kernel.tags import AnonVmaKind
from anonvma_inspect.report.facts import Document
from anonvma_inspect.report.words import counted, hex_or_null, hexadecimal
from anonvma_inspect.tables import NO_ROW, RowColumn, Tables, find_rows

__all__ = (
    "count_vma_words",
    "describe_vma_word",
    "describe_vma_words",
    "vma_word",
    "vma_word_kind",
)


def vma_word_kind(tables: Tables, vma: int) -> AnonVmaKind:
    """What ``vma->anon_vma`` of a VMA is, by its row."""
    vmas = tables.vmas
    return tables.era.tags.kind(int(vmas.anon_vma_pointer[vma]), int(vmas.anon_vma_tag[vma]))


def vma_word(tables: Tables, vma: int) -> Document:
    """``vma->anon_vma`` of a VMA, by its row, as a part of a JSON answer."""
    vmas = tables.vmas
    return {
        "raw": hexadecimal(int(vmas.anon_vma[vma])),
        "tag": hexadecimal(int(vmas.anon_vma_tag[vma])),
        "kind": vma_word_kind(tables, vma).word,
        "target": hex_or_null(int(vmas.anon_vma_pointer[vma]) or None),
    }


def describe_vma_word(tables: Tables, vma: int) -> str | None:
    """``vma->anon_vma`` of a VMA, by its row, and where it leads to, for people.

    :return: ``None`` for a plain pointer, and for NULL.
    """
    vmas, kind = tables.vmas, vma_word_kind(tables, vma)
    pointer = int(vmas.anon_vma_pointer[vma])
    if kind is AnonVmaKind.LAZY_VMA:
        where = f"root VMA {hexadecimal(pointer)}"
        root = int(find_rows(vmas.address, vmas.anon_vma_pointer[[vma]])[0])
        if root == vma:
            where += ", itself"
        elif root != NO_ROW and vmas.slot[root] == NO_ROW:
            where += ", unmapped"
    elif kind is AnonVmaKind.LAZY_PARENT:
        where = f"its parent's anon_vma {hexadecimal(pointer)}"
    elif kind is AnonVmaKind.UNFAULTED:
        where = "no anon_vma yet"
    elif kind is AnonVmaKind.TAGGED:
        where = "low bits that mean nothing known"
    else:
        return None
    return f"vma->anon_vma: {hexadecimal(int(vmas.anon_vma[vma]))} ({kind.word}), {where}"


def count_vma_words(tables: Tables) -> Document:
    """How many VMAs have a word of each kind, and how many root VMAs there are.

    :return: ``kinds`` by the words of :class:`~anonvma_inspect.kernel.tags.AnonVmaKind`, of VMAs in
        trees of mms; ``root_vmas``, and ``unmapped_root_vmas``, which are in no such tree.
    """
    vmas = tables.vmas
    kind = tables.era.tags.kinds(vmas.anon_vma_pointer, vmas.anon_vma_tag)
    mapped = vmas.slot != NO_ROW
    count = np.bincount(kind[mapped], minlength=len(AnonVmaKind))
    root = _root_vmas(tables, kind == AnonVmaKind.LAZY_VMA)
    return {
        "kinds": {each.word: int(count[each]) for each in AnonVmaKind},
        "root_vmas": len(root),
        "unmapped_root_vmas": int(np.count_nonzero(~mapped[root])),
    }


def _root_vmas(tables: Tables, lazy: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> RowColumn:
    root = find_rows(tables.vmas.address, tables.vmas.anon_vma_pointer[lazy])
    return np.unique(root[root != NO_ROW])


def describe_vma_words(tables: Tables) -> str:
    """For people, in one line."""
    found = count_vma_words(tables)
    kinds = found["kinds"]
    assert isinstance(kinds, dict)
    said = ", ".join(f"{count:,} {word}" for word, count in kinds.items() if count)
    line = f"vma->anon_vma: {said or 'no VMA'}"
    roots, unmapped = found["root_vmas"], found["unmapped_root_vmas"]
    if isinstance(roots, int) and roots:
        line += f"; {counted(roots, 'root VMA')}, {unmapped:,} of them unmapped"
    return line
