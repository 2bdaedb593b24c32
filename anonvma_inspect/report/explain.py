"""The answer of ``explain``: invariants, their reasons and their sources."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from anonvma_inspect.invariants.base import Invariant
from anonvma_inspect.report.facts import Document
from anonvma_inspect.report.style import Style
from anonvma_inspect.report.words import table

__all__ = ("ExplainReport",)

SCHEMA = "anonvma-inspect/explain/1"
_WIDTH = 96


@dataclass(frozen=True)
class ExplainReport:
    """Invariants of the catalogue.

    :ivar whole: Say everything of each; else a line.
    """

    invariants: Sequence[Invariant]
    whole: bool

    items = "invariants"

    def document(self) -> Document:
        """See :meth:`anonvma_inspect.report.render.Report.document`."""
        return {
            "schema": SCHEMA,
            "target": None,
            "invariants": [
                {
                    "code": invariant.code,
                    "slug": invariant.slug,
                    "severity": invariant.severity.value,
                    "statement": invariant.statement,
                    "why": invariant.why,
                    "consequence": invariant.consequence,
                    "lock": invariant.lock,
                    "source": invariant.source,
                    "eras": invariant.eras,
                    "schemes": invariant.schemes,
                    "objects": invariant.objects,
                }
                for invariant in self.invariants
            ],
        }

    def text(self, style: Style) -> Iterator[str]:
        """See :meth:`anonvma_inspect.report.render.Report.text`."""
        if self.whole:
            for number, invariant in enumerate(self.invariants):
                if number:
                    yield ""
                yield from _explain(invariant, style)
            return
        yield from table(
            [
                (
                    style.strong(invariant.code),
                    invariant.slug,
                    invariant.severity.value,
                    invariant.statement,
                )
                for invariant in self.invariants
            ],
            ("CODE", "SLUG", "SEVERITY", "STATEMENT"),
        )
        yield ""
        yield "anonvma-inspect explain CODE says why, since when, and what a violation leads to."


def _explain(invariant: Invariant, style: Style) -> Iterator[str]:
    yield style.strong(f"{invariant.code} {invariant.slug} ({invariant.severity.value})")
    yield from _wrap(invariant.statement, "  ")
    for title, text in (
        ("why", invariant.why),
        ("leads to", invariant.consequence),
        ("lock", invariant.lock),
        ("eras", invariant.eras),
        ("schemes", invariant.schemes),
        ("source", invariant.source),
        ("checked on", invariant.objects),
    ):
        yield from _wrap(text, f"  {title:10}  ")


def _wrap(text: str, start: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        _WIDTH,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_on_hyphens=False,
    )
