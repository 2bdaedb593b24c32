"""One report in any of the formats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from anonvma_inspect.report.facts import Document
from anonvma_inspect.report.style import Style

__all__ = ("Picture", "Report", "render")

# Colouring takes seconds for some megabytes, which nobody reads at a terminal.
_MAX_COLOURED = 1 << 19


class Report(Protocol):
    """An answer of one command."""

    @property
    def items(self) -> str | None:
        """Key of the list in the document of which ``jsonl`` has an entry a line, if any."""

    def document(self) -> Document:
        """The answer for programs: numbers, strings that are safe to show, and nulls."""

    def text(self, style: Style) -> Iterator[str]:
        """The answer for people, line by line."""


@runtime_checkable
class Picture(Protocol):
    """An answer that can be drawn."""

    def dot(self) -> Iterator[str]:
        """A graph in the language of Graphviz, line by line."""


def render(report: Report, format: str, style: Style) -> Iterator[str]:
    """Write a report.

    :param format: ``table``, ``json``, ``jsonl``, or ``dot`` for a :class:`Picture`.
    :return: Pieces of text.
    """
    if format == "table":
        for line in report.text(style):
            yield line + "\n"
        return
    if format == "dot":
        assert isinstance(report, Picture)
        for line in report.dot():
            yield line + "\n"
        return
    document = report.document()
    if format == "json":
        yield _colour(_dump(document, indent=1) + "\n", style)
        return
    if report.items is not None:
        entries = document[report.items]
        assert isinstance(entries, list)
        for entry in entries:
            yield _colour(_dump(entry) + "\n", style)
        document = {**document, report.items: None}
    yield _colour(_dump(document) + "\n", style)


def _dump(value: object, indent: int | None = None) -> str:
    return json.dumps(
        value,
        sort_keys=True,
        indent=indent,
        separators=None if indent else (",", ":"),
        # Plain ASCII is the same bytes under every locale.
        ensure_ascii=True,
    )


def _colour(text: str, style: Style) -> str:
    if not style.color or len(text) > _MAX_COLOURED:
        return text
    from pygments import highlight
    from pygments.formatters import TerminalFormatter
    from pygments.lexers import JsonLexer

    return str(highlight(text, JsonLexer(), TerminalFormatter()))
