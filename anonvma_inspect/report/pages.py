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
        f"{counted(coverage.pages, 'mapped page')}, in {counted(coverage.page_tables, 'page table')}"
        f" of {counted(coverage.mms, 'mm')}, {counted(coverage.vmas, 'private VMA')}"
    )
    left = [
        counted(count, what)
        for count, what in (
            (coverage.vmas_left_out, "VMA"),
            (coverage.mms_left_out, "mm"),
            (coverage.special, "page without a count"),
            (coverage.swapped, "swapped page"),
            (coverage.waiting, "page in migration or poisoned"),
            (coverage.unknown, "entry that is not understood"),
            (coverage.page_tables_lost, "page table that could not be followed"),
        )
        if count
    ]
    if coverage.sample > 1:
        left.append(f"all but one in {coverage.sample:,} blocks of memory (--sample)")
    if left:
        yield f"not looked at: {', '.join(left)}"
