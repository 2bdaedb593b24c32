"""The answer of ``rmap``: a page, its folio, and who maps it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

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

_KINDS = {
    MappingKind.NONE: "none",
    MappingKind.FILE: "file",
    MappingKind.ANON: "anon_vma",
    MappingKind.KSM: "ksm",
    MappingKind.OTHER: "other",
}
_NO_WALK = {
    MappingKind.NONE: "the page belongs to nothing that has a reverse map",
    MappingKind.FILE: "a page of a file, or of shared memory: its mappings are the file's affair",
    MappingKind.OTHER: "no page of a process: a slab, a page table, free, or a driver's",
}


@dataclass(frozen=True)
class RmapReport:
    """Who maps a page."""

    facts: TargetFacts
    rmap: Rmap

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
                "flags": list(rmap.flags),
                "index": hexadecimal(int(folio.index[0])),
                "private": hexadecimal(int(folio.private[0])),
                "mapping": {
                    "raw": hexadecimal(int(folio.mapping[0])),
                    "kind": _KINDS[rmap.kind],
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
        ]
        if rmap.swap is not None:
            rows.append(("swap cache", f"slot {rmap.swap[1]} of swap area {rmap.swap[0]}"))
        yield from table(rows)
        yield ""
        if rmap.kind is MappingKind.NONE and rmap.swap is not None:
            yield "read from swap, and mapped by nobody yet: whose it is only page tables tell"
            return
        if rmap.kind in _NO_WALK:
            yield _NO_WALK[rmap.kind]
            return
        mapping = int((walk.mapped > 0).sum())
        yield f"the walk visits {counted(walk.visited, 'VMA')}; {mapping:,} of them map the folio"
        found = int(np.where(walk.whole, 1, walk.mapped).sum())
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
                    self._how(index, style),
                )
            )
        if lines:
            yield ""
            yield from table(lines, ("PID", "COMM", "VMA", "RANGE", "ADDRESS", ""))
        if found < int(folio.mapcount[0]) and bool(walk.known.all()):
            yield ""
            yield style.warn(
                f"the folio counts {int(folio.mapcount[0])} mappings, and the walk finds {found}: "
                "see audit --deep"
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
        return f"{raw:#x}: {_KINDS[rmap.kind]}"

    def _anon_vma(self) -> Document | None:
        tables, row = self.rmap.tables, int(self.rmap.folio.anon_vma[0])
        if row == NO_ROW:
            return None
        anon_vmas = tables.anon_vmas
        return {
            "address": hexadecimal(int(anon_vmas.address[row])),
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
            "known": bool(walk.known[index]),
        }
