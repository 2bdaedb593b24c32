"""A family drawn for Graphviz: VMAs, AVCs, anon_vmas, parents and interval trees in one picture."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from anonvma_inspect.analysis.families import Families
from anonvma_inspect.kernel.tags import rb_is_black
from anonvma_inspect.report.escape import quote_dot
from anonvma_inspect.report.objects import anon_vma_counters, process_of_mm
from anonvma_inspect.report.words import hexadecimal, permissions, span
from anonvma_inspect.tables import NO_ROW, RowColumn, Tables

__all__ = ("draw_family",)

# AVCs of a picture that Graphviz draws in seconds, and that a person can follow.
_MAX_AVCS = 2000


def draw_family(tables: Tables, families: Families, family: int) -> Iterator[str]:
    """Draw a family.

    Each process is a box with its VMAs; each AVC leads from its VMA to its anon_vma; bold edges
    lead to what is active, dashed ones to parents, dotted ones down interval trees. Of a family
    with more AVCs than can be drawn, those of the smallest trees are, and the title says so.

    :return: A graph in the language of Graphviz, line by line.
    """
    members = families.members(family)
    avcs = np.flatnonzero(np.isin(tables.avcs.anon_vma_row, members))
    # The leaves' before the root's, whose tree has all VMAs.
    anon_vma = tables.avcs.anon_vma_row[avcs]
    drawn = avcs[np.lexsort((avcs, anon_vma, families.anon_vma_tree[anon_vma]))][:_MAX_AVCS]
    without = members[~np.isin(members, anon_vma)][:_MAX_AVCS]
    members = np.union1d(tables.avcs.anon_vma_row[drawn], without)
    vmas = np.unique(tables.avcs.vma_row[drawn])
    vmas = vmas[vmas != NO_ROW]
    root = int(tables.anon_vmas.address[families.root[family]])
    yield "digraph family {"
    yield "  rankdir=LR"
    yield '  node [fontname="monospace", fontsize=10]'
    yield '  edge [fontname="monospace", fontsize=9]'
    title = f"family of root {hexadecimal(root)}"
    if len(drawn) < len(avcs):
        title += f" ({len(drawn):,} of {len(avcs):,} AVCs drawn)"
    yield f"  label={quote_dot(title)}"
    yield from _vmas(tables, vmas)
    yield from _anon_vmas(tables, families, members)
    yield from _avcs(tables, drawn)
    yield from _edges(tables, families, members, drawn, vmas)
    yield "}"


def _vmas(tables: Tables, rows: RowColumn) -> Iterator[str]:
    vmas = tables.vmas
    rows = rows[np.lexsort((vmas.vm_start[rows], vmas.mm[rows]))]
    for mm in np.unique(vmas.mm[rows]).tolist():
        process = process_of_mm(tables, mm)
        yield f"  subgraph cluster_mm{mm + 1} {{"
        yield f"    label={quote_dot(str(process) if process else 'no task')}"
        for row in rows[vmas.mm[rows] == mm].tolist():
            label = "\n".join(
                (
                    f"VMA {hexadecimal(int(vmas.address[row]))}",
                    span(int(vmas.vm_start[row]), int(vmas.vm_end[row])),
                    permissions(int(vmas.vm_flags[row])),
                )
            )
            yield f"    v{row} [shape=box, label={quote_dot(label)}]"
        yield "  }"


def _anon_vmas(tables: Tables, families: Families, rows: RowColumn) -> Iterator[str]:
    is_root = families.anon_vma_parent == NO_ROW
    for row in rows.tolist():
        marks = [
            name
            for name, column in (
                ("root", is_root),
                ("zombie", families.anon_vma_zombie),
                ("waiting", families.anon_vma_waiting),
                ("reused", families.anon_vma_reused),
            )
            if column[row]
        ]
        counters = [
            f"{name} {value}"
            for name, value in anon_vma_counters(tables, row).items()
            if value is not None
        ]
        title = f"anon_vma {hexadecimal(int(tables.anon_vmas.address[row]))}"
        label = "\n".join((title, *marks, *counters))
        style = ', style="filled", fillcolor="lightgrey"' if marks else ""
        yield f"  a{row} [shape=ellipse, label={quote_dot(label)}{style}]"


def _avcs(tables: Tables, rows: RowColumn) -> Iterator[str]:
    for row in rows.tolist():
        black = rb_is_black(int(tables.avcs.rb_parent_color[row]))
        label = f"AVC {hexadecimal(int(tables.avcs.address[row]))}"
        color = "black" if black else "red"
        yield f"  c{row} [shape=box, height=0.2, color={color}, label={quote_dot(label)}]"


def _edges(
    tables: Tables, families: Families, members: RowColumn, avcs: RowColumn, vmas: RowColumn
) -> Iterator[str]:
    vma, anon_vma = tables.avcs.vma_row, tables.avcs.anon_vma_row
    for row in avcs.tolist():
        if vma[row] != NO_ROW:
            active = int(tables.vmas.active[vma[row]]) == int(anon_vma[row])
            yield f"  v{vma[row]} -> c{row} [arrowhead=none{', style=bold' if active else ''}]"
        yield f"  c{row} -> a{anon_vma[row]}"
    linked = {(int(vma[row]), int(anon_vma[row])) for row in avcs.tolist()}
    drawn = set(members.tolist())
    for row in vmas.tolist():
        active_row = int(tables.vmas.active[row])
        # Drawn only where the chain does not show it: that is not as it must be.
        if active_row in drawn and (row, active_row) not in linked:
            yield f"  v{row} -> a{active_row} [style=bold, color=red]"
    for row in members.tolist():
        above = int(families.anon_vma_parent[row])
        if above in drawn:
            yield f'  a{row} -> a{above} [style=dashed, label="parent"]'
    nodes = tables.nodes
    in_picture = set(avcs.tolist())
    for node in np.flatnonzero(np.isin(nodes.anon_vma, members)).tolist():
        above = int(nodes.parent[node])
        if above == NO_ROW:
            if int(nodes.avc[node]) in in_picture:
                yield f'  a{nodes.anon_vma[node]} -> c{nodes.avc[node]} [style=dotted, label="rb"]'
            continue
        side = "left" if int(nodes.left[above]) == node else "right"
        ends = (int(nodes.avc[above]), int(nodes.avc[node]))
        if in_picture.issuperset(ends):
            yield f'  c{ends[0]} -> c{ends[1]} [style=dotted, label="{side}"]'
