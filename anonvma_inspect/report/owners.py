"""A part of ``stats``: whose the objects are, by process and command, and what forks will add."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from anonvma_inspect.analysis.families import Families
from anonvma_inspect.analysis.forks import ForkCost, fork_cost
from anonvma_inspect.analysis.holdings import Holdings, find_holdings
from anonvma_inspect.report.escape import escape
from anonvma_inspect.report.facts import Document
from anonvma_inspect.report.objects import process_of_mm
from anonvma_inspect.report.style import Style
from anonvma_inspect.report.words import counted, table
from anonvma_inspect.tables import Tables

__all__ = ("Owners",)

# Lines that a person reads; who wants all takes JSON.
_MAX_LISTED = 10
_HELD = ("vmas", "with_anon_vma", "avcs", "anon_vmas", "bytes")
_FORKED = ("vmas", "avcs", "anon_vmas", "reused", "locked")
_UNNAMED = b""


@dataclass(frozen=True)
class Owners:
    """Objects by process and by command."""

    tables: Tables
    families: Families

    key = "owners"

    @cached_property
    def _held(self) -> Holdings:
        return find_holdings(self.tables, self.families)

    @cached_property
    def _fork(self) -> ForkCost:
        return fork_cost(self.tables)

    # Rows of mms that tasks have, those with most bytes first; and of those that none has, nobody's
    # last.
    @cached_property
    def _rows(self) -> tuple[list[int], list[int]]:
        listed = np.append(self.tables.mms.listed, False)
        # Without holes in between: nothing that is not read has anything.
        order = np.argsort(-self._held.bytes, kind="stable")
        return order[listed[order]].tolist(), np.flatnonzero(~listed).tolist()

    def document(self) -> Document:
        """See :class:`anonvma_inspect.report.stats.Section`."""
        own, nobody = self._rows
        return {
            "processes": [self._entry(row) for row in own],
            "commands": self._commands(own),
            "nobody": self._sum(nobody),
        }

    def text(self, style: Style) -> Iterator[str]:
        """See :class:`anonvma_inspect.report.stats.Section`."""
        own, nobody = self._rows
        commands = self._commands(own)
        of_families = " (in the families that were read)" if self.tables.pids else ""
        yield f"{style.strong('objects by command')}{of_families}"
        rows = [
            (
                str(entry["comm"]) or "(no name)",
                f"{entry['processes']:,}",
                *(f"{entry[name]:,}" for name in _HELD),
            )
            for entry in commands[:_MAX_LISTED]
        ]
        rest = self._sum(nobody)
        rows.append(("nobody's", "", *(f"{rest[name]:,}" for name in _HELD)))
        headers = ("VMAS", "WITH ANON_VMA", "AVCS", "ANON_VMAS", "BYTES")
        align = ("left", *["right"] * len(_HELD))
        yield from table(rows, ("COMMAND", "PROCESSES", *headers), (*align, "right"))
        yield from _more(len(commands), "command")
        yield ""
        yield f"{style.strong('objects by process')}{of_families}"
        yield from table(
            [
                (
                    str(process_of_mm(self.tables, row)),
                    *(f"{held:,}" for held in self._sum([row]).values()),
                )
                for row in own[:_MAX_LISTED]
            ],
            ("PROCESS", *headers),
            align,
        )
        yield from _more(len(own), "process")
        yield ""
        yield style.strong("what the next fork of a process allocates")
        costly = sorted(self._known(own), key=lambda row: -int(self._fork.avcs[row]))
        yield from table(
            [
                (
                    str(process_of_mm(self.tables, row)),
                    *(f"{int(getattr(self._fork, name)[row]):,}" for name in _FORKED),
                )
                for row in costly[:_MAX_LISTED]
            ],
            ("PROCESS", "VMAS", "AVCS", "ANON_VMAS", "REUSED", "VMAS UNDER LOCKS"),
            ("left", *["right"] * len(_FORKED)),
        )
        yield from _more(len(costly), "process")
        others = len(own) - len(costly)
        if others:
            whose = counted(others, "other process", "other processes")
            yield f"not known of {whose}, of whose VMAs only those in these families were read"

    # Of some rows of mms, those all of whose VMAs were read.
    def _known(self, rows: Sequence[int]) -> list[int]:
        return [row for row in rows if self.tables.mms.walked[row]]

    def _entry(self, row: int) -> Document:
        process = process_of_mm(self.tables, row)
        return {
            "pid": None if process is None else process.pid,
            "comm": None if process is None else escape(process.comm),
            **self._sum([row]),
            "fork": {name: int(getattr(self._fork, name)[row]) for name in _FORKED}
            if self._known([row])
            else None,
        }

    def _sum(self, rows: Sequence[int]) -> dict[str, int]:
        return {name: int(getattr(self._held, name)[rows].sum()) for name in _HELD}

    # Those with most bytes first.
    def _commands(self, rows: Sequence[int]) -> list[Document]:
        of: dict[bytes, list[int]] = {}
        for row in rows:
            process = process_of_mm(self.tables, row)
            of.setdefault(_UNNAMED if process is None else process.comm, []).append(row)
        entries = [(self._sum(members), comm, len(members)) for comm, members in of.items()]
        entries.sort(key=lambda entry: (-entry[0]["bytes"], -entry[0]["vmas"], entry[1]))
        return [
            {"comm": escape(comm), "processes": processes, **held}
            for held, comm, processes in entries
        ]


# How many a person is not shown.
def _more(count: int, noun: str) -> Iterator[str]:
    if count > _MAX_LISTED:
        plural = noun + ("es" if noun.endswith("s") else "s")
        more = counted(count - _MAX_LISTED, f"more {noun}", f"more {plural}")
        yield f"... {more}; --format json lists all"
