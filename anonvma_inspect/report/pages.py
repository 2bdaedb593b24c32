"""How many pages an audit looked at."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from anonvma_inspect.report.facts import Document
from anonvma_inspect.report.words import counted
from anonvma_inspect.tables import Pages

__all__ = ("coverage_document", "describe_coverage")


def coverage_document(pages: Pages | None) -> Document | None:
    """As JSON; ``None`` if pages were not asked for."""
    if pages is None:
        return None
    coverage = {name: int(value) for name, value in dataclasses.asdict(pages.coverage).items()}
    return {"not_read": pages.not_read, "folios": len(pages.folios.address), **coverage}


def describe_coverage(pages: Pages) -> Iterator[str]:
    """As text, a line each for what was looked at and for what was not."""
    if pages.not_read is not None:
        yield f"pages: {pages.not_read}"
        return
    coverage = pages.coverage
    yield (
        f"pages: {counted(coverage.anonymous, 'mapping')} of "
        f"{counted(len(pages.folios.address), 'anonymous folio')} among "
        f"{counted(coverage.pages, 'mapped page')}, in "
        f"{counted(coverage.page_tables, 'page table')} of {counted(coverage.mms, 'mm')}, "
        f"{counted(coverage.vmas, 'private VMA')}"
    )
    left = [
        counted(count, one, more)
        for count, one, more in (
            (coverage.vmas_left_out, "other VMA", "other VMAs"),
            (coverage.mms_left_out, "mm", "mms"),
            (coverage.special, "page that is not counted", "pages that are not counted"),
            (
                coverage.swapped - coverage.swap_cached,
                "swapped page that the swap cache does not have",
                "swapped pages that the swap cache does not have",
            )
            if pages.swapped.not_read is None and not coverage.swap_not_known
            else (coverage.swapped, "swapped page", "swapped pages"),
            (coverage.waiting, "page in migration or poisoned", "pages in migration or poisoned"),
            # Which of the three, arm64 does not tell.
            (
                coverage.absent,
                "page swapped, in migration, or a marker",
                "pages swapped, in migration, or markers",
            ),
            (coverage.unknown, "entry not understood", "entries not understood"),
            (coverage.page_tables_lost, "page table out of reach", "page tables out of reach"),
        )
        if count
    ]
    if coverage.swap_cached:
        yield (
            f"swap cache: {counted(len(pages.swapped.folios.address), 'folio')} for "
            f"{counted(coverage.swap_cached, 'swapped page')}"
        )
    if coverage.sample > 1:
        left.append(f"all but one in {coverage.sample:,} blocks of memory (--sample)")
    if left:
        yield f"not looked at: {', '.join(left)}"
    if coverage.sample > 1 and not len(pages.mappings.vma):
        yield "no page fell into the sample: with a smaller N it is larger"
