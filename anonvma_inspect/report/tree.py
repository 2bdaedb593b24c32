"""The answer of ``tree``: the interval tree of one anon_vma."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from anonvma_inspect.kernel.tags import rb_is_black
from anonvma_inspect.report.facts import Document, TargetFacts
from anonvma_inspect.report.objects import anon_vma_counters, process_of_mm, word_at
from anonvma_inspect.report.style import Style
from anonvma_inspect.report.words import counted, hex_or_null, hexadecimal
from anonvma_inspect.tables import NO_ROW, Tables

__all__ = ("TreeReport",)

SCHEMA = "anonvma-inspect/tree/1"

# Lines that a person can still look through, and levels that still fit a line: a sound tree of a
# million nodes has 40 at most, a broken one any number.
_MAX_DRAWN = 1000
_MAX_INDENT = 48

_BOXES = {True: ("┌─", "└─", "│ "), False: (",-", "`-", "| ")}


@dataclass(frozen=True)
class TreeReport:
    """The nodes of one tree, in tree order.

    :ivar anon_vma: Row in :class:`~anonvma_inspect.tables.AnonVmas`.
    """

    facts: TargetFacts
    tables: Tables
    anon_vma: int

    items = "nodes"

    def document(self) -> Document:
        """See :meth:`anonvma_inspect.report.render.Report.document`."""
        anon_vmas = self.tables.anon_vmas
        row = self.anon_vma
        parent = int(anon_vmas.parent[row]) if self.tables.era.has_parent else None
        return {
            "schema": SCHEMA,
            "target": self.facts.document(),
            "anon_vma": {
                "address": hexadecimal(int(anon_vmas.address[row])),
                "root": hexadecimal(int(anon_vmas.root[row])),
                "parent": hex_or_null(parent),
                **anon_vma_counters(self.tables, row),
                "rmap_items": self._rmap_items(),
            },
            "nodes": [self._entry(node) for node in self._nodes()],
        }

    def text(self, style: Style) -> Iterator[str]:
        """See :meth:`anonvma_inspect.report.render.Report.text`."""
        nodes = self._nodes()
        yield self._title(nodes, style)
        for node in nodes[:_MAX_DRAWN]:
            yield self._line(node, style)
        if len(nodes) > _MAX_DRAWN:
            yield (
                f"... {len(nodes) - _MAX_DRAWN:,} more of {len(nodes):,} nodes; --format json "
                "lists all"
            )

    def _nodes(self) -> range:
        first, last = np.searchsorted(
            self.tables.nodes.anon_vma, [self.anon_vma, self.anon_vma + 1]
        )
        return range(int(first), int(last))

    def _entry(self, node: int) -> Document:
        tables = self.tables
        nodes, avcs, vmas = tables.nodes, tables.avcs, tables.vmas
        avc = int(nodes.avc[node])
        vma = int(avcs.vma_row[avc])
        process = None if vma == NO_ROW else process_of_mm(tables, int(vmas.mm[vma]))
        return {
            "avc": hexadecimal(int(avcs.address[avc])),
            "vma": hexadecimal(int(avcs.vma[avc])),
            "pid": None if process is None else process.pid,
            "first": hex_or_null(word_at(vmas.key_first, vma)),
            "last": hex_or_null(word_at(vmas.key_last, vma)),
            "subtree_last": hexadecimal(int(avcs.rb_subtree_last[avc])),
            "color": self._color(avc),
            "left": hex_or_null(self._child(avc, int(avcs.rb_left[avc]))),
            "right": hex_or_null(self._child(avc, int(avcs.rb_right[avc]))),
            "depth": int(nodes.depth[node]),
        }

    def _color(self, avc: int) -> str:
        return "black" if rb_is_black(int(self.tables.avcs.rb_parent_color[avc])) else "red"

    # container_of(rb_left, struct anon_vma_chain, rb), whether or not it leads to one.
    def _child(self, avc: int, pointer: int) -> int | None:
        if not pointer:
            return None
        avcs = self.tables.avcs
        offset = int(avcs.rb_node[avc]) - int(avcs.address[avc])
        return (pointer - offset) & (2**64 - 1)

    def _title(self, nodes: range, style: Style) -> str:
        anon_vmas = self.tables.anon_vmas
        row = self.anon_vma
        address, root = int(anon_vmas.address[row]), int(anon_vmas.root[row])
        family = "a root" if root == address else f"root {hexadecimal(root)}"
        if self.tables.era.has_parent and root != address:
            family += f", parent {hexadecimal(int(anon_vmas.parent[row]))}"
        counters = ", ".join(
            f"{name} {value}"
            for name, value in anon_vma_counters(self.tables, row).items()
            if value is not None
        )
        depth = self.tables.nodes.depth[nodes.start : nodes.stop]
        size = counted(len(nodes), "node")
        if len(nodes):
            size += f" in {counted(int(depth.max()) + 1, 'level')}"
        held = self._rmap_items()
        if held:
            size += f", held by {counted(held, 'rmap_item')} of KSM's"
        return f"{style.strong(f'anon_vma {hexadecimal(address)}')} ({family}, {counters}): {size}"

    # How many of KSM's hold it; None if that cannot be told.
    def _rmap_items(self) -> int | None:
        tables = self.tables
        held = int(np.count_nonzero(tables.rmap_items.anon_vma_row == self.anon_vma))
        return None if not held and tables.ksm.missing is not None else held

    def _line(self, node: int, style: Style) -> str:
        tables = self.tables
        entry = self._entry(node)
        red = entry["color"] == "red"
        keys = (
            "keys unknown (its VMA could not be read)"
            if entry["first"] is None
            else f"[{entry['first']}, {entry['last']}]"
        )
        vma = int(tables.avcs.vma_row[int(tables.nodes.avc[node])])
        process = None if vma == NO_ROW else process_of_mm(tables, int(tables.vmas.mm[vma]))
        color = f"{'red' if red else 'black':5}"
        parts = [
            f"{self._indent(node, style)}{style.red(color) if red else color} {keys}",
            f"subtree_last {entry['subtree_last']}",
            f"avc {entry['avc']}",
            f"vma {entry['vma']}",
            str(process) if process is not None else "no task",
        ]
        if bool(tables.nodes.again[node]):
            parts.append(style.bad("met before: not followed"))
        return "  ".join(parts)

    # The tree lies on its side: smaller keys above, larger ones below, the root at the left. A line
    # goes down past a node wherever the path from the root turns.
    def _indent(self, node: int, style: Style) -> str:
        nodes = self.tables.nodes
        left_corner, right_corner, bar = _BOXES[style.unicode]
        sides: list[bool] = []
        at = node
        while int(nodes.parent[at]) != NO_ROW and len(sides) <= _MAX_INDENT:
            above = int(nodes.parent[at])
            sides.append(int(nodes.left[above]) == at)
            at = above
        if len(sides) > _MAX_INDENT:
            return f"... depth {int(nodes.depth[node])}: "
        sides.reverse()
        if not sides:
            return ""
        turns = (bar if side != after else "  " for side, after in itertools.pairwise(sides))
        return "".join(turns) + (left_corner if sides[-1] else right_corner) + " "
