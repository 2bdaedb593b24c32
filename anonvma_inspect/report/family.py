"""The answers of ``family``: one family as a tree, or all of them as a list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from anonvma_inspect.analysis.families import Families
from anonvma_inspect.report.dot import draw_family
from anonvma_inspect.report.escape import escape
from anonvma_inspect.report.facts import Document, TargetFacts
from anonvma_inspect.report.objects import anon_vma_counters, process_of_mm
from anonvma_inspect.report.style import Style
from anonvma_inspect.report.words import counted, hex_or_null, hexadecimal, span, table
from anonvma_inspect.tables import NO_ROW, RowColumn, Tables

__all__ = ("SORTS", "FamiliesReport", "FamilyReport", "sorted_families")

FAMILY_SCHEMA = "anonvma-inspect/family/1"
FAMILIES_SCHEMA = "anonvma-inspect/families/1"

#: What the list can be sorted by, the largest first.
SORTS = {"size": "anon_vmas", "depth": "generations", "memory": "bytes", "vmas": "vmas"}

# Lines that a person can still look through, levels that still fit a line, and VMAs named in one.
_MAX_DRAWN = 1000
_MAX_INDENT = 48
_MAX_NAMED = 2
_BOXES = {True: ("├─ ", "└─ ", "│  ", "   "), False: ("|- ", "`- ", "|  ", "   ")}
_FIGURES = (
    "anon_vmas",
    "vmas",
    "avcs",
    "mms",
    "generations",
    "zombies",
    "waiting",
    "reused",
    "bytes",
)


@dataclass(frozen=True)
class FamilyReport:
    """The anon_vmas of one family, each below its parent.

    :ivar family: Which of the families.
    """

    facts: TargetFacts
    tables: Tables
    families: Families
    family: int

    items = "anon_vmas"

    def document(self) -> Document:
        """See :meth:`anonvma_inspect.report.render.Report.document`."""
        return {
            "schema": FAMILY_SCHEMA,
            "target": self.facts.document(),
            "family": _family_document(self.tables, self.families, self.family),
            "anon_vmas": [self._entry(row) for row in self._order],
        }

    def text(self, style: Style) -> Iterator[str]:
        """See :meth:`anonvma_inspect.report.render.Report.text`."""
        families, family = self.families, self.family
        root = int(self.tables.anon_vmas.address[families.root[family]])
        yield style.strong(f"family of root {hexadecimal(root)}: {self._figures()}")
        for row in self._order[:_MAX_DRAWN]:
            yield self._line(row, style)
        if len(self._order) > _MAX_DRAWN:
            yield (
                f"... {len(self._order) - _MAX_DRAWN:,} more of {len(self._order):,} anon_vmas; "
                "--format json lists all"
            )

    def dot(self) -> Iterator[str]:
        """See :meth:`anonvma_inspect.report.render.Picture.dot`."""
        return draw_family(self.tables, self.families, self.family)

    def _figures(self) -> str:
        families, family = self.families, self.family
        parts = [
            counted(int(families.anon_vmas[family]), "anon_vma"),
            counted(int(families.generations[family]), "generation"),
            counted(int(families.vmas[family]), "VMA"),
            counted(int(families.mms[family]), "mm"),
            counted(int(families.avcs[family]), "AVC"),
            counted(int(families.bytes[family]), "byte"),
        ]
        for name in ("reused", "waiting", "zombies"):
            count = int(getattr(families, name)[family])
            if count:
                parts.append(f"{count:,} {name}")
        return ", ".join(parts)

    # The family's anon_vmas: each parent before what is below it, the lowest PID first.
    @cached_property
    def _order(self) -> Sequence[int]:
        families = self.families
        members = families.members(self.family)
        mm = families.anon_vma_mm[members]
        members = members[np.lexsort((members, mm, mm == NO_ROW))]
        below: dict[int, list[int]] = {}
        for row in members.tolist():
            below.setdefault(int(families.anon_vma_parent[row]), []).append(row)
        order = []
        ahead = below.get(NO_ROW, [])[::-1]
        while ahead:
            row = ahead.pop()
            order.append(row)
            ahead += below.get(row, [])[::-1]
        return order

    # Which of the family are the last below their parent.
    @cached_property
    def _last(self) -> frozenset[int]:
        last = {int(self.families.anon_vma_parent[row]): row for row in self._order}
        return frozenset(last.values())

    # Rows of VMAs by the anon_vma that they have active, sorted.
    @cached_property
    def _active(self) -> tuple[RowColumn, RowColumn]:
        vmas = self.families.vmas_of(self.family)
        active = self.tables.vmas.active[vmas]
        order = np.lexsort((self.tables.vmas.vm_start[vmas], self.tables.vmas.mm[vmas], active))
        return active[order], vmas[order]

    def _active_vmas(self, row: int) -> RowColumn:
        active, vmas = self._active
        first, last = np.searchsorted(active, [row, row + 1])
        return vmas[first:last]

    def _entry(self, row: int) -> Document:
        tables, families = self.tables, self.families
        anon_vmas = tables.anon_vmas
        above = int(families.anon_vma_parent[row])
        return {
            "address": hexadecimal(int(anon_vmas.address[row])),
            "below": None if above == NO_ROW else hexadecimal(int(anon_vmas.address[above])),
            "parent": hex_or_null(int(anon_vmas.parent[row]) if tables.era.has_parent else None),
            "depth": int(families.anon_vma_depth[row]),
            **anon_vma_counters(tables, row),
            "tree": int(families.anon_vma_tree[row]),
            "zombie": bool(families.anon_vma_zombie[row]),
            "waiting": bool(families.anon_vma_waiting[row]),
            "reused": bool(families.anon_vma_reused[row]),
            "vmas": [self._vma(vma) for vma in self._active_vmas(row).tolist()],
        }

    def _vma(self, row: int) -> Document:
        vmas = self.tables.vmas
        process = process_of_mm(self.tables, int(vmas.mm[row]))
        return {
            "address": hexadecimal(int(vmas.address[row])),
            "start": hexadecimal(int(vmas.vm_start[row])),
            "end": hexadecimal(int(vmas.vm_end[row])),
            "pid": None if process is None else process.pid,
            "comm": None if process is None else escape(process.comm),
        }

    def _line(self, row: int, style: Style) -> str:
        families = self.families
        marks = [
            style.warn(name)
            for name, column in (
                ("zombie", families.anon_vma_zombie),
                ("waiting", families.anon_vma_waiting),
                ("reused", families.anon_vma_reused),
            )
            if column[row]
        ]
        counters = ", ".join(
            f"{name} {value}"
            for name, value in anon_vma_counters(self.tables, row).items()
            if value is not None
        )
        parts = [
            f"{self._indent(row, style)}{hexadecimal(int(self.tables.anon_vmas.address[row]))}",
            *marks,
            f"tree {int(families.anon_vma_tree[row]):,}, {counters}",
            *self._named(row),
        ]
        return "  ".join(parts)

    # Whose VMAs have it active.
    def _named(self, row: int) -> Iterator[str]:
        vmas = self.tables.vmas
        active = self._active_vmas(row).tolist()
        for vma in active[:_MAX_NAMED]:
            process = process_of_mm(self.tables, int(vmas.mm[vma]))
            where = span(int(vmas.vm_start[vma]), int(vmas.vm_end[vma]))
            yield f"{process or 'no task'} {where}"
        if len(active) > _MAX_NAMED:
            yield f"and {counted(len(active) - _MAX_NAMED, 'more VMA')}"

    def _indent(self, row: int, style: Style) -> str:
        families = self.families
        if int(families.anon_vma_depth[row]) > _MAX_INDENT:
            return f"... generation {int(families.anon_vma_depth[row])}: "
        fork, corner, bar, nothing = _BOXES[style.unicode]
        pieces: list[str] = []
        at = row
        while (above := int(families.anon_vma_parent[at])) != NO_ROW:
            ends = at in self._last
            if at == row:
                pieces.append(corner if ends else fork)
            else:
                pieces.append(nothing if ends else bar)
            at = above
        return "".join(reversed(pieces))


@dataclass(frozen=True)
class FamiliesReport:
    """Families, a line each.

    :ivar order: Which, and in which order.
    :ivar limit: How many lines; ``None``: all.
    """

    facts: TargetFacts
    tables: Tables
    families: Families
    order: RowColumn
    limit: int | None = None

    items = "families"

    def document(self) -> Document:
        """See :meth:`anonvma_inspect.report.render.Report.document`."""
        return {
            "schema": FAMILIES_SCHEMA,
            "target": self.facts.document(),
            "families_total": len(self.order),
            "families": [
                _family_document(self.tables, self.families, family)
                for family in self.order[: self.limit].tolist()
            ],
            "complete": self.tables.complete,
        }

    def text(self, style: Style) -> Iterator[str]:
        """See :meth:`anonvma_inspect.report.render.Report.text`."""
        families = self.families
        total = counted(len(self.order), "family", "families")
        yield style.strong(
            f"{total}: {counted(int(families.anon_vmas.sum()), 'anon_vma')}, "
            f"{counted(int(families.avcs.sum()), 'AVC')}, "
            f"{counted(int(families.bytes.sum()), 'byte')}"
        )
        rows = []
        for family in self.order[: self.limit].tolist():
            root = int(families.root[family])
            process = process_of_mm(self.tables, int(families.mm[family]))
            others = max(int(families.mms[family]) - 1, 0)
            whose = str(process) if process is not None else "no task" if others else ""
            rows.append(
                (
                    hexadecimal(int(self.tables.anon_vmas.address[root])),
                    *(f"{int(getattr(families, name)[family]):,}" for name in _FIGURES),
                    whose + (f" and {others:,} more" if others else ""),
                )
            )
        headers = (
            "ROOT",
            "ANON_VMAS",
            "VMAS",
            "AVCS",
            "MMS",
            "GENERATIONS",
            "ZOMBIES",
            "WAITING",
            "REUSED",
            "BYTES",
            "PROCESS",
        )
        yield from table(rows, headers, ("left", *["right"] * len(_FIGURES), "left"))
        if len(rows) < len(self.order):
            yield (
                f"... {len(self.order) - len(rows):,} more; --limit {len(self.order)} lists all, "
                "and so does --format json"
            )


def sorted_families(families: Families, key: str) -> RowColumn:
    """Families, the largest first; of equals, that with the lowest address of its root.

    :param key: One of :data:`SORTS`.
    """
    order: RowColumn = np.argsort(-getattr(families, SORTS[key]), kind="stable")
    return order


def _family_document(tables: Tables, families: Families, family: int) -> Document:
    root = int(families.root[family])
    process = process_of_mm(tables, int(families.mm[family]))
    return {
        "root": hexadecimal(int(tables.anon_vmas.address[root])),
        **{name: int(getattr(families, name)[family]) for name in _FIGURES},
        "pid": None if process is None else process.pid,
        "comm": None if process is None else escape(process.comm),
    }
