"""The answer of ``rmap``: a page, its folio, and who maps it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from anonvma_inspect.analysis.families import Families
from anonvma_inspect.collect.rmap import Rmap
from anonvma_inspect.kernel.folio import MappingKind
from anonvma_inspect.report.escape import escape
from anonvma_inspect.report.facts import Document, TargetFacts
from anonvma_inspect.report.objects import process_of_mm
from anonvma_inspect.report.style import Style
from anonvma_inspect.report.words import counted, hexadecimal, span, table
from anonvma_inspect.tables import NO_ROW

__all__ = ("RmapReport",)

SCHEMA = "anonvma-inspect/rmap/1"

_NO_WALK = {
    MappingKind.NONE: "the page belongs to nothing that has a reverse map",
    MappingKind.FILE: "a page of a file, or of shared memory: its mappings are the file's affair",
    MappingKind.OTHER: "its struct page has another use (slab, page table, free, a driver's): "
    "see anonvma-inspect what",
}


@dataclass(frozen=True)
class RmapReport:
    """Who maps a page.

    :ivar families: Of the same tables.
    """

    facts: TargetFacts
    rmap: Rmap
    families: Families

    items = "vmas"

    def document(self) -> Document:
        """See :meth:`anonvma_inspect.report.render.Report.document`."""
        rmap = self.rmap
        folio, walk = rmap.folio, rmap.walk
        pages = int(folio.pages[0])
        return {
            "schema": SCHEMA,
            "target": self.facts.document(),
            "page": {
                "pfn": rmap.frame,
                "address": hexadecimal(rmap.page),
                "number": rmap.frame - int(folio.pfn[0]),
            },
            "folio": {
                "address": hexadecimal(int(folio.address[0])),
                "pfn": int(folio.pfn[0]),
                "pages": pages or None,
                "order": pages.bit_length() - 1 if pages else None,
                "refcount": int(folio.refcount[0]),
                "mapcount": int(folio.mapcount[0]),
                "entire_mapcount": int(folio.entire_mapcount[0]),
                "hugetlb": bool(folio.hugetlb[0]),
                "flags": list(rmap.flags),
                "index": hexadecimal(int(folio.index[0])),
                "private": hexadecimal(int(folio.private[0])),
                "mapping": {
                    "raw": hexadecimal(int(folio.mapping[0])),
                    "kind": rmap.kind.word,
                    "target": hexadecimal(int(folio.pointer[0])),
                },
            },
            "swap": None
            if rmap.swap is None
            else dict(zip(("area", "slot"), rmap.swap, strict=True)),
            "anon_vma": self._anon_vma(),
            "rmap_items": len(rmap.items) if rmap.kind is MappingKind.KSM else None,
            "visited": walk.visited,
            "mapping": int((walk.mapped > 0).sum()),
            "vmas": [self._entry(index) for index in range(len(walk.vma))],
        }

    def text(self, style: Style) -> Iterator[str]:
        """See :meth:`anonvma_inspect.report.render.Report.text`."""
        rmap = self.rmap
        folio, walk = rmap.folio, rmap.walk
        pages = int(folio.pages[0])
        number = rmap.frame - int(folio.pfn[0])
        yield style.strong(f"page frame {rmap.frame:#x}, struct page {rmap.page:#x}")
        size = (
            f"order {pages.bit_length() - 1}, {counted(pages, 'page')}" if pages else "of any size"
        )
        size += ", hugetlb" if folio.hugetlb[0] else ""
        whole = f" (as a whole {int(folio.entire_mapcount[0])})" if pages > 1 else ""
        rows = [
            (
                rmap.struct,
                f"{int(folio.address[0]):#x}: {size}"
                + (f", this is page {number}" if pages > 1 else ""),
            ),
            (
                "counts",
                f"mapped {int(folio.mapcount[0])}{whole}, references {int(folio.refcount[0])}",
            ),
            ("flags", " ".join(rmap.flags) or "none of those that are told here"),
            ("index", f"{int(folio.index[0]):#x}"),
            ("mapping", self._mapping()),
            *self._family(),
        ]
        if rmap.swap is not None:
            rows.append(("swap cache", f"slot {rmap.swap[1]} of swap area {rmap.swap[0]}"))
        yield from table(rows)
        yield ""
        if rmap.kind is MappingKind.NONE and rmap.swap is not None:
            yield "read from swap, and mapped by nobody yet: whose it is only page tables tell"
            return
        if rmap.kind in _NO_WALK:
            page = f" {int(folio.address[0]):#x}" if rmap.kind is MappingKind.OTHER else ""
            yield _NO_WALK[rmap.kind] + page
            return
        yield self._visits()
        lines = []
        for index in range(len(walk.vma)):
            entry = self._entry(index)
            lines.append(
                (
                    str(entry["pid"] if entry["pid"] is not None else "?"),
                    str(entry["comm"] or ""),
                    str(entry["vma"]),
                    span(int(str(entry["start"]), 16), int(str(entry["end"]), 16)),
                    str(entry["address"]),
                    *([str(entry["rmap_item"])] if rmap.kind is MappingKind.KSM else []),
                    self._how(index, style),
                )
            )
        if lines:
            item = ["RMAP_ITEM"] if rmap.kind is MappingKind.KSM else []
            yield ""
            yield from table(lines, ("PID", "COMM", "VMA", "RANGE", "ADDRESS", *item, ""))
        yield from (style.warn(line) for line in self._doubts())

    # How far the walk goes, and what comes of it.
    def _visits(self) -> str:
        walk = self.rmap.walk
        visited = counted(walk.visited, "VMA")
        mapping = int((walk.mapped > 0).sum())
        if self.rmap.kind is MappingKind.KSM:
            vmas = len(np.unique(walk.vma[walk.mapped > 0]))
            return (
                f"the walk visits {visited} for {counted(len(self.rmap.items), 'rmap_item')}; the "
                f"folio is mapped at {counted(mapping, 'place')} in {counted(vmas, 'VMA')}"
            )
        verb = "maps" if mapping == 1 else "map"
        which = f"{mapping:,} of them {verb} the folio"
        if walk.visited == 1:
            which = "it maps the folio" if mapping else "it does not map the folio"
        if self.rmap.kind is MappingKind.LAZY_VMA:
            has = "has" if walk.visited == 1 else "have"
            return f"{visited} of that root VMA {has} these pages; {which}"
        return f"the walk visits {visited}; {which}"

    # Why the answer may not be all, and what does not agree.
    def _doubts(self) -> Iterator[str]:
        rmap, folio, walk = self.rmap, self.rmap.folio, self.rmap.walk
        missing = rmap.tables.ksm.missing
        if rmap.kind is MappingKind.KSM and missing is not None:
            yield ""
            yield f"there may be more rmap_items: {missing}"
            return
        if not rmap.tree_whole:
            yield ""
            yield "the tree of its anon_vma is not known as a whole: see audit"
            return
        # While somebody is at work on the folio, or splits an entry, counts need not agree.
        found = int(np.where(walk.whole, 1, walk.mapped).sum())
        settled = bool(walk.known.all()) and not walk.unknown.any() and not rmap.busy
        if found < int(folio.mapcount[0]) and settled:
            yield ""
            yield (
                f"the folio counts {counted(int(folio.mapcount[0]), 'mapping')}, and the walk "
                f"finds {found:,}: see audit --deep"
            )

    def _how(self, index: int, style: Style) -> str:
        walk = self.rmap.walk
        covered, mapped = int(walk.covered[index]), int(walk.mapped[index])
        if not walk.known[index]:
            return style.warn("its page tables are not in the target")
        if walk.waiting[index]:
            return f"{counted(int(walk.waiting[index]), 'page')} in migration"
        if walk.swapped[index] and not mapped:
            return f"{counted(int(walk.swapped[index]), 'page')} swapped out"
        if walk.absent[index] and not mapped:
            return "swapped, in migration or a marker: not told on arm64"
        if walk.unknown[index] and not mapped:
            return style.warn("what its page table has there is not understood")
        if not mapped:
            return "does not map it"
        if walk.whole[index] and mapped == covered:
            return style.good("maps it as a whole" if covered > 1 else "maps it by a huge page")
        if covered == 1:
            return style.good("maps it")
        return style.good(f"maps {mapped:,} of {counted(covered, 'page')}")

    def _mapping(self) -> str:
        rmap = self.rmap
        raw, pointer = int(rmap.folio.mapping[0]), int(rmap.folio.pointer[0])
        if rmap.kind is MappingKind.ANON:
            row = int(rmap.folio.anon_vma[0])
            if row == NO_ROW:
                return f"{raw:#x}: leads to no anon_vma"
            anon_vmas = rmap.tables.anon_vmas
            root = int(anon_vmas.root_row[row])
            family = "its own root" if root == row else f"root {int(anon_vmas.root[row]):#x}"
            return f"{raw:#x}: anon_vma {pointer:#x}, {family}"
        if rmap.kind is MappingKind.KSM:
            return f"{raw:#x}: KSM's, {counted(len(rmap.items), 'rmap_item')}"
        if rmap.kind is MappingKind.LAZY_VMA:
            return f"{raw:#x}: root VMA {pointer:#x}, {self._root_vma()}"
        return f"{raw:#x}: {rmap.kind.word}"

    def _root_vma(self) -> str:
        tables, row = self.rmap.tables, self.rmap.root_vma
        if row == NO_ROW:
            return "which is no VMA"
        vmas = tables.vmas
        if vmas.slot[row] == NO_ROW:
            return "which was unmapped"
        process = process_of_mm(tables, int(vmas.mm[row]))
        where = span(int(vmas.vm_start[row]), int(vmas.vm_end[row]))
        return where if process is None else f"PID {process.pid} ({escape(process.comm)}) {where}"

    # The family of its anon_vma, with what shows it.
    def _family(self) -> list[tuple[str, str]]:
        family = self._family_of()
        if family is None:
            return []
        root = int(self.rmap.tables.anon_vmas.address[self.families.root[family]])
        return [
            (
                "family",
                f"{counted(int(self.families.anon_vmas[family]), 'anon_vma')}, "
                f"{counted(int(self.families.vmas[family]), 'VMA')}: "
                f"see anonvma-inspect family {root:#x}",
            )
        ]

    def _family_of(self) -> int | None:
        row = int(self.rmap.folio.anon_vma[0])
        family = NO_ROW if row == NO_ROW else int(self.families.anon_vma_family[row])
        return None if family == NO_ROW else family

    def _anon_vma(self) -> Document | None:
        tables, row = self.rmap.tables, int(self.rmap.folio.anon_vma[0])
        if row == NO_ROW:
            return None
        anon_vmas, family = tables.anon_vmas, self._family_of()
        return {
            "address": hexadecimal(int(anon_vmas.address[row])),
            "family": None
            if family is None
            else {
                "anon_vmas": int(self.families.anon_vmas[family]),
                "vmas": int(self.families.vmas[family]),
            },
            "root": hexadecimal(int(anon_vmas.root[row])),
            "refcount": int(anon_vmas.refcount[row]),
        }

    def _entry(self, index: int) -> Document:
        tables, walk = self.rmap.tables, self.rmap.walk
        row = int(walk.vma[index])
        process = process_of_mm(tables, int(tables.vmas.mm[row]))
        return {
            "vma": hexadecimal(int(tables.vmas.address[row])),
            "pid": None if process is None else process.pid,
            "comm": None if process is None else escape(process.comm),
            "start": hexadecimal(int(tables.vmas.vm_start[row])),
            "end": hexadecimal(int(tables.vmas.vm_end[row])),
            "address": hexadecimal(int(walk.address[index])),
            "covered": int(walk.covered[index]),
            "mapped": int(walk.mapped[index]),
            "whole": bool(walk.whole[index]),
            "waiting": int(walk.waiting[index]),
            "swapped": int(walk.swapped[index]),
            "absent": int(walk.absent[index]),
            "unknown": int(walk.unknown[index]),
            "rmap_item": None
            if walk.item[index] == NO_ROW
            else hexadecimal(int(tables.rmap_items.address[walk.item[index]])),
            "known": bool(walk.known[index]),
        }
