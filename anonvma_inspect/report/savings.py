"""The answer of ``savings``: what each proposal would save."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from anonvma_inspect.analysis.saving import Saving
from anonvma_inspect.report.escape import escape
from anonvma_inspect.report.facts import Document, TargetFacts
from anonvma_inspect.report.objects import process_of_mm
from anonvma_inspect.report.style import Style
from anonvma_inspect.report.words import table
from anonvma_inspect.tables import Tables

__all__ = ("SavingsReport",)

SCHEMA = "anonvma-inspect/savings/1"

_OBJECTS = ("vmas", "avcs", "anon_vmas", "bytes")
# Processes that are worth telling; who wants all takes JSON.
_MAX_LISTED = 3
_FIGURES = {
    "never_shared": "anon_vmas of VMAs that were never shared",
    "children_not_shared": "anon_vmas of children's VMAs that were never forked or copied",
    "held_by_ksm": "anon_vmas that KSM holds",
    "vmas_lazy_already": "VMAs that are lazy already",
    "already_saved": "VMAs with guards and without an anon_vma: already saved",
    "guarded_with_anon_vma": "VMAs with guards and with an anon_vma",
    "families": "families without an anonymous page, mapped or swapped out",
    "families_not_told": "families of which that is not told: nothing of theirs is saved here",
    "anon_vmas_of_files": "anon_vmas of those for mappings of files",
    "collapse_refused": "VMAs of files that fit a huge page, and keep small ones for that anon_vma",
    "neighbours_alike": "pairs of neighbours that only their anon_vmas keep apart",
    "tested": "of those: the lower one's anon_vma is a root without children (what is tested)",
    "asserted": "of those: the upper one's is (what is asserted)",
    "merges": "of those: both are, so that they could be merged",
    "merges_of_single_vmas": "of those: neither anon_vma has another VMA",
    "folios_to_rewrite": "folios of the upper VMAs, each to rewrite",
    "most_folios_to_rewrite": "pages of the upper VMAs: at most so many folios to rewrite",
    "shared_as_merged": "children's anon_vmas that would not be there, as it was merged",
    "shared_as_meant": "as it was meant",
}


@dataclass(frozen=True)
class SavingsReport:
    """What proposals come to, each for itself."""

    facts: TargetFacts
    tables: Tables
    savings: Sequence[Saving]

    items = "proposals"

    def document(self) -> Document:
        """See :meth:`anonvma_inspect.report.render.Report.document`."""
        return {
            "schema": SCHEMA,
            "target": self.facts.document(),
            "now": self._now(),
            "proposals": [self._entry(saving) for saving in self.savings],
            "complete": self.tables.complete,
        }

    def text(self, style: Style) -> Iterator[str]:
        """See :meth:`anonvma_inspect.report.render.Report.text`."""
        now = self._now()
        rows = [("there are", *(f"{now[name]:,}" for name in _OBJECTS), "")]
        for saving in self.savings:
            if saving.not_known is not None:
                rows.append((saving.slug, "", "", "", "", saving.not_known))
                continue
            counts = [f"{getattr(saving, name):,}" for name in _OBJECTS]
            share = self._share(saving)
            rows.append((saving.slug, *counts, "" if share is None else f"{share:.1f} %"))
        headers = ("SAVED BY", "VMAS", "AVCS", "ANON_VMAS", "BYTES", "OF ALL BYTES")
        yield from table(rows, headers, ("left", *["right"] * 4, "left"))
        for saving in self.savings:
            yield ""
            yield from self._text(saving, style)

    def _text(self, saving: Saving, style: Style) -> Iterator[str]:
        yield f"{style.strong(saving.slug)}: {saving.title} ({saving.status})"
        if saving.not_known is not None:
            yield f"  {style.warn(saving.not_known)}"
        for name, figure in saving.figures.items():
            yield f"  {figure:>12,}  {_FIGURES[name]}"
        for row in self._most(saving)[:_MAX_LISTED]:
            process = process_of_mm(self.tables, row)
            yield f"  {int(saving.by_mm[row]):>12,}  bytes of {process or 'no task'}"
        for title, sentences in (
            ("assumed", saving.assumed),
            ("not told by a snapshot", saving.cannot_tell),
            ("why it is gone", () if saving.why_gone is None else (saving.why_gone,)),
        ):
            for sentence in sentences:
                yield f"  {style.faint(title)}: {sentence}"

    def _now(self) -> dict[str, int]:
        tables, era = self.tables, self.tables.era
        vmas, avcs = len(tables.vmas.address), len(tables.avcs.address)
        anon_vmas = int(np.count_nonzero(tables.anon_vmas.reached))
        sizes = (era.vma.size, era.avc.size, era.anon_vma.size)
        objects = (vmas, avcs, anon_vmas)
        total = sum(size * count for size, count in zip(sizes, objects, strict=True))
        return dict(zip(_OBJECTS, (*objects, total), strict=True))

    def _share(self, saving: Saving) -> float | None:
        total = self._now()["bytes"]
        return 100 * saving.bytes / total if total else None

    # Rows of mms, that which would save most first; the row behind the last is nobody's.
    def _most(self, saving: Saving) -> list[int]:
        order = np.argsort(-saving.by_mm, kind="stable")
        rows: list[int] = order[saving.by_mm[order] > 0].tolist()
        return [row for row in rows if row < len(self.tables.mms.address)]

    def _entry(self, saving: Saving) -> Document:
        known = saving.not_known is None
        return {
            "slug": saving.slug,
            "title": saving.title,
            "status": saving.status,
            "not_known": saving.not_known,
            **{name: getattr(saving, name) if known else None for name in _OBJECTS},
            "figures": dict(saving.figures),
            "assumed": list(saving.assumed),
            "cannot_tell": list(saving.cannot_tell),
            "why_gone": saving.why_gone,
            "processes": [self._process(saving, row) for row in self._most(saving)],
            "nobody": int(saving.by_mm[-1]),
        }

    def _process(self, saving: Saving, row: int) -> Document:
        process = process_of_mm(self.tables, row)
        return {
            "pid": None if process is None else process.pid,
            "comm": None if process is None else escape(process.comm),
            "bytes": int(saving.by_mm[row]),
        }
