"""The answer of ``snapshot``: what was written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from anonvma_inspect.report.counts import count_objects, describe_counts
from anonvma_inspect.report.escape import printable
from anonvma_inspect.report.facts import Document, TargetFacts
from anonvma_inspect.report.style import Style
from anonvma_inspect.tables import Tables

__all__ = ("SnapshotReport",)

SCHEMA = "anonvma-inspect/snapshot/1"


@dataclass(frozen=True)
class SnapshotReport:
    """A file that was written.

    :ivar path: As the user named it.
    :ivar size: Bytes.
    """

    facts: TargetFacts
    tables: Tables
    path: str
    size: int
    anonymized: bool

    items = None

    def document(self) -> Document:
        """See :meth:`anonvma_inspect.report.render.Report.document`."""
        return {
            "schema": SCHEMA,
            "target": self.facts.document(),
            "path": printable(self.path),
            "bytes": self.size,
            "anonymized": self.anonymized,
            "counts": dict(count_objects(self.tables)),
            "complete": self.tables.complete,
        }

    def text(self, style: Style) -> Iterator[str]:
        """See :meth:`anonvma_inspect.report.render.Report.text`."""
        yield describe_counts(count_objects(self.tables))
        if not self.anonymized:
            yield "names of commands and files are in it: --anonymize leaves them out"
        path = printable(self.path)
        yield (
            f"{style.good('Wrote')} {path}: {self.size:,} bytes; "
            f"see: anonvma-inspect -c {path} audit"
        )
