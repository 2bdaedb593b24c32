"""The answer of ``diff``: what has changed from one reading to another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from anonvma_inspect.analysis.difference import (
    COMMAND_FIGURES,
    FIGURES,
    Change,
    Summary,
    changes,
)
from anonvma_inspect.report.escape import escape
from anonvma_inspect.report.facts import Document, TargetFacts
from anonvma_inspect.report.style import Style
from anonvma_inspect.report.words import hexadecimal, table

__all__ = ("DiffReport",)

SCHEMA = "anonvma-inspect/diff/1"

# Lines that a person reads; who wants all takes JSON. Addresses of leaks that are worth telling.
_MAX_LISTED = 10
_MAX_LEAKS = 100
_RUNNING = ("kcore", "qemu")


@dataclass(frozen=True)
class DiffReport:
    """Two readings, side by side.

    :ivar same_boot: Both are of one kernel since it was booted, so that an address means the same.
        If not, families are not compared.
    :ivar complete: Nothing was missing in either.
    """

    before_facts: TargetFacts
    after_facts: TargetFacts
    before: Summary
    after: Summary
    same_boot: bool
    complete: bool

    items = None

    @cached_property
    def _families(self) -> list[Change[int]]:
        return changes(self.before.families, self.after.families) if self.same_boot else []

    @cached_property
    def _processes(self) -> list[Change[tuple[int, bytes]]]:
        return changes(self.before.processes, self.after.processes)

    @cached_property
    def _commands(self) -> list[Change[bytes]]:
        return changes(self.before.commands, self.after.commands)

    def document(self) -> Document:
        """See :meth:`anonvma_inspect.report.render.Report.document`."""
        return {
            "schema": SCHEMA,
            "target": self.after_facts.document(),
            "before": self.before_facts.document(),
            "same_boot": self.same_boot,
            "leaks": {
                "looked_for": self._looked_for,
                "objects": [self._leak(struct) for struct in self._structs()],
            },
            "totals": {
                name: {
                    "before": self.before.totals[name],
                    "after": after,
                    "grown": after - self.before.totals[name],
                }
                for name, after in self.after.totals.items()
            },
            "families": [
                {
                    "root": hexadecimal(change.key),
                    **self._first(change.key),
                    **_figures(change, FIGURES),
                }
                for change in self._families
            ],
            "processes": [
                {
                    "pid": change.key[0],
                    "comm": escape(change.key[1]),
                    **_figures(change, FIGURES),
                }
                for change in self._processes
            ],
            "commands": [
                {"comm": escape(change.key), **_figures(change, COMMAND_FIGURES)}
                for change in self._commands
            ],
            "complete": self.complete,
        }

    def text(self, style: Style) -> Iterator[str]:
        """See :meth:`anonvma_inspect.report.render.Report.text`."""
        yield from self._leaks_text(style)
        yield ""
        yield from table(
            [
                (
                    name,
                    f"{self.before.totals[name]:,}",
                    f"{after:,}",
                    f"{after - self.before.totals[name]:+,}",
                )
                for name, after in self.after.totals.items()
            ],
            ("", "BEFORE", "AFTER", "GROWN"),
            ("left", "right", "right", "right"),
        )
        if self.same_boot:
            yield ""
            yield from _table("family", self._families, FIGURES, self._name_family, style)
        else:
            yield ""
            yield "not of one boot of one kernel: families are not compared"
        yield ""
        yield from _table("command", self._commands, COMMAND_FIGURES, _name_command, style)
        yield ""
        yield from _table("process", self._processes, FIGURES, _name_process, style)

    @property
    def _looked_for(self) -> bool:
        return self.before.leaks is not None and self.after.leaks is not None

    def _structs(self) -> Sequence[str]:
        if self.before.leaks is None or self.after.leaks is None:
            return ()
        return tuple(self.after.leaks)

    # Objects that nothing leads to; those that are new only if addresses mean the same.
    def _leak(self, struct: str) -> dict[str, Any]:
        assert self.before.leaks is not None
        assert self.after.leaks is not None
        before, after = self.before.leaks[struct], self.after.leaks[struct]
        new = after[~np.isin(after, before)] if self.same_boot else after[:0]
        return {
            "struct": struct,
            "before": len(before),
            "after": len(after),
            "grown": len(after) - len(before),
            "new": [hexadecimal(int(address)) for address in new[:_MAX_LEAKS]],
        }

    def _leaks_text(self, style: Style) -> Iterator[str]:
        if not self._looked_for:
            yield f"{style.strong('leaks')}: not looked for (--slabs)"
            return
        leaks = [self._leak(struct) for struct in self._structs()]
        grown = [leak for leak in leaks if leak["grown"] > 0 or leak["new"]]
        if not grown:
            total = sum(leak["after"] for leak in leaks)
            yield f"{style.strong('leaks')}: no more than before ({total:,})"
            return
        for leak in grown:
            more = style.bad(f"{leak['grown']:+,}")
            yield (
                f"{style.strong('leaks')}: {leak['struct']}: {more} allocated objects that nothing "
                f"leads to ({leak['before']:,} before, {leak['after']:,} after)"
            )
            for address in leak["new"][:_MAX_LISTED]:
                yield f"  {address}"
            if len(leak["new"]) > _MAX_LISTED:
                yield f"  ... and {len(leak['new']) - _MAX_LISTED:,} more"
        if self.after_facts.kind in _RUNNING:
            yield "of a kernel that runs, some may be on their way: audit --leaks confirms"

    def _first(self, root: int) -> Document:
        pid, comm = self.after.first.get(root, self.before.first.get(root, (None, b"")))
        return {"pid": pid, "comm": None if pid is None else escape(comm)}

    def _name_family(self, root: int) -> str:
        pid, comm = self.after.first.get(root, self.before.first.get(root, (None, b"")))
        whose = "" if pid is None else f" of {_name_process((pid, comm))}"
        return f"{hexadecimal(root)}{whose}"


def _name_command(comm: bytes) -> str:
    return escape(comm) or "(no name)"


def _name_process(key: tuple[int, bytes]) -> str:
    return f"PID {key[0]} ({escape(key[1])})" if key[1] else f"PID {key[0]}"


def _figures(change: Change[Any], names: Sequence[str]) -> Document:
    def named(figures: Sequence[int] | None) -> dict[str, int] | None:
        return None if figures is None else dict(zip(names, figures, strict=True))

    return {
        "before": named(change.before),
        "after": named(change.after),
        "grown": named(change.grown),
    }


# What grew, the most first; and in a sentence what else changed.
def _table(
    title: str,
    changed: Sequence[Change[Any]],
    names: Sequence[str],
    name: Callable[[Any], str],
    style: Style,
) -> Iterator[str]:
    # What was not there has grown, whatever it has now. Of the others something differs.
    grown = [
        change
        for change in changed
        if change.before is None or any(figure > 0 for figure in change.grown)
    ]
    new = sum(change.before is None for change in changed)
    gone = sum(change.after is None for change in changed)
    yield (
        f"{style.strong(f'by {title}')}: {len(grown):,} grew (of them {new:,} new), "
        f"{len(changed) - len(grown):,} shrank (of them {gone:,} gone)"
    )
    rows = [
        (
            name(change.key),
            *(f"{figure:+,}" for figure in change.grown),
            "new" if change.before is None else "",
        )
        for change in grown[:_MAX_LISTED]
    ]
    headers = (title.upper(), *(each.upper() for each in names), "")
    align = ("left", *["right"] * len(names), "left")
    yield from table(rows, headers, align) if rows else ()
    if len(grown) > _MAX_LISTED:
        yield f"... {len(grown) - _MAX_LISTED:,} more; --format json lists all"
