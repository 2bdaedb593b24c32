"""The answer of ``chain``: the ``anon_vma_chain`` list of one VMA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from anonvma_inspect.kernel.tags import AnonVmaKind
from anonvma_inspect.report.facts import Document, TargetFacts
from anonvma_inspect.report.objects import describe_vma, word_at
from anonvma_inspect.report.style import Style
from anonvma_inspect.report.vma_words import describe_vma_word, vma_word, vma_word_kind
from anonvma_inspect.report.words import counted, hex_or_null, hexadecimal, table
from anonvma_inspect.tables import Tables

__all__ = ("ChainReport",)

SCHEMA = "anonvma-inspect/chain/1"


@dataclass(frozen=True)
class ChainReport:
    """The AVCs on one VMA's list, in list order.

    :ivar vma: Row in :class:`~anonvma_inspect.tables.Vmas`.
    """

    facts: TargetFacts
    tables: Tables
    vma: int

    items = "avcs"

    def document(self) -> Document:
        """See :meth:`anonvma_inspect.report.render.Report.document`."""
        return {
            "schema": SCHEMA,
            "target": self.facts.document(),
            "vma": hexadecimal(int(self.tables.vmas.address[self.vma])),
            "anon_vma": vma_word(self.tables, self.vma),
            "avcs": [self._entry(avc) for avc in self._avcs()],
        }

    def text(self, style: Style) -> Iterator[str]:
        """See :meth:`anonvma_inspect.report.render.Report.text`."""
        avcs = self._avcs()
        yield style.strong(
            f"{describe_vma(self.tables, self.vma)}: {counted(len(avcs), 'AVC')} in its chain"
        )
        if (word := describe_vma_word(self.tables, self.vma)) is not None:
            yield word
        if not avcs:
            return
        marks = {"active": style.good("active"), "lent": style.good("its parent's")}
        rows = []
        for avc in avcs:
            entry = self._entry(avc)
            own_root = entry["root"] == entry["anon_vma"]
            rows.append(
                (
                    str(entry["address"]),
                    str(entry["anon_vma"]),
                    "itself" if own_root else str(entry["root"] or "?"),
                    "itself"
                    if entry["parent"] == entry["anon_vma"]
                    else str(entry["parent"] or "-"),
                    next((said for key, said in marks.items() if entry[key]), ""),
                )
            )
        yield from table(rows, ("AVC", "ANON_VMA", "ROOT", "PARENT", ""))

    def _avcs(self) -> Sequence[int]:
        links = self.tables.links
        first, last = np.searchsorted(links.vma, [self.vma, self.vma + 1])
        avcs: list[int] = links.avc[first:last].tolist()
        return avcs

    def _entry(self, avc: int) -> Document:
        tables = self.tables
        pointer = int(tables.avcs.anon_vma[avc])
        anon_vma = int(tables.avcs.anon_vma_row[avc])
        named = pointer == int(tables.vmas.anon_vma_pointer[self.vma])
        kind = vma_word_kind(tables, self.vma)
        return {
            "address": hexadecimal(int(tables.avcs.address[avc])),
            "anon_vma": hexadecimal(pointer),
            "root": hex_or_null(word_at(tables.anon_vmas.root, anon_vma)),
            "parent": (
                hex_or_null(word_at(tables.anon_vmas.parent, anon_vma))
                if tables.era.has_parent
                else None
            ),
            "active": named and kind is AnonVmaKind.ANON_VMA,
            "lent": named and kind is AnonVmaKind.LAZY_PARENT,
        }
