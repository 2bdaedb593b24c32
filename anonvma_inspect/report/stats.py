"""The answer of ``stats``: counts, bytes and distributions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from anonvma_inspect.kernel.tags import strip_lock_mark
from anonvma_inspect.report.counts import count_objects, describe_counts
from anonvma_inspect.report.facts import Document, TargetFacts
from anonvma_inspect.report.style import Style
from anonvma_inspect.report.words import counted, table
from anonvma_inspect.tables import NO_ROW, I64Column, Tables

__all__ = ("StatsReport",)

SCHEMA = "anonvma-inspect/stats/1"

_BAR = 40
_TITLES = {
    "chain_length": "AVCs in a VMA's chain",
    "tree_size": "VMAs in an anon_vma's tree",
    "tree_depth": "levels of an anon_vma's tree",
    "vmas_per_root": "VMAs in a family",
}


@dataclass(frozen=True)
class StatsReport:
    """Figures of a whole collection."""

    facts: TargetFacts
    tables: Tables

    items = None

    def document(self) -> Document:
        """See :meth:`anonvma_inspect.report.render.Report.document`."""
        return {
            "schema": SCHEMA,
            "target": self.facts.document(),
            "counts": dict(count_objects(self.tables)),
            "bytes": self._bytes(),
            "ksm": {**self._ksm(), "missing": self.tables.ksm.missing},
            "distributions": {
                name: _distribution(values) for name, values in self._values().items()
            },
            "complete": self.tables.complete,
        }

    def text(self, style: Style) -> Iterator[str]:
        """See :meth:`anonvma_inspect.report.render.Report.text`."""
        yield describe_counts(count_objects(self.tables))
        yield from self.facts.tag_lines()
        yield ""
        yield from table(
            [
                (
                    kind,
                    f"{entry['objects']:,}",
                    f"{entry['size']:,}",
                    f"{entry['bytes']:,}",
                )
                for kind, entry in self._bytes().items()
            ],
            ("STRUCT", "OBJECTS", "SIZE", "BYTES"),
            ("left", "right", "right", "right"),
        )
        yield ""
        yield self._ksm_text()
        for name, values in self._values().items():
            yield ""
            yield from _distribution_text(_TITLES[name], values, style)

    # Of the structs themselves; slabs need more, for their padding and their free objects.
    def _bytes(self) -> dict[str, dict[str, int]]:
        tables, era = self.tables, self.tables.era
        kinds = (
            (era.vma.struct, len(tables.vmas.address), era.vma.size),
            (era.avc.struct, len(tables.avcs.address), era.avc.size),
            (
                era.anon_vma.struct,
                int(np.count_nonzero(tables.anon_vmas.reached)),
                era.anon_vma.size,
            ),
        )
        return {
            struct: {"objects": objects, "size": size, "bytes": objects * size}
            for struct, objects, size in kinds
        }

    def _ksm(self) -> dict[str, int]:
        tables = self.tables
        rows = np.unique(tables.rmap_items.anon_vma_row)
        rows = rows[rows != NO_ROW]
        alone = strip_lock_mark(tables.anon_vmas.rb_root[rows]) == 0
        return {
            "stable_nodes": len(tables.stable_nodes.address),
            "rmap_items": len(tables.rmap_items.address),
            "anon_vmas": len(rows),
            "without_vmas": int(np.count_nonzero(alone)),
        }

    def _ksm_text(self) -> str:
        ksm, missing = self._ksm(), self.tables.ksm.missing
        if missing is not None and not ksm["stable_nodes"]:
            return f"KSM: not known ({missing})"
        bound = "" if missing is None else f" at least ({missing})"
        return (
            f"KSM:{bound} {counted(ksm['stable_nodes'], 'merged page')}, "
            f"{counted(ksm['rmap_items'], 'stable rmap_item')}, which hold "
            f"{counted(ksm['anon_vmas'], 'anon_vma')}, {ksm['without_vmas']:,} without VMAs"
        )

    def _values(self) -> dict[str, I64Column]:
        tables = self.tables
        anon_vmas, nodes, links = tables.anon_vmas, tables.nodes, tables.links
        size = np.bincount(nodes.anon_vma, minlength=len(anon_vmas.address))
        depth = np.zeros(len(anon_vmas.address), dtype=np.int64)
        np.maximum.at(depth, nodes.anon_vma, nodes.depth + 1)
        # A VMA belongs to the families that its chain leads to: at rest, to one.
        anon_vma = tables.avcs.anon_vma_row[links.avc]
        root = np.where(anon_vma == NO_ROW, NO_ROW, anon_vmas.root_row[anon_vma])
        pairs = np.unique(np.stack([root, links.vma])[:, root != NO_ROW], axis=1)
        family = np.bincount(pairs[0], minlength=len(anon_vmas.address))
        return {
            "chain_length": tables.vmas.chain_length,
            "tree_size": size[anon_vmas.reached],
            "tree_depth": depth[anon_vmas.reached],
            "vmas_per_root": family[family > 0],
        }


# The value that at least this share (in percent) of the objects do not exceed.
def _percentile(ordered: I64Column, percent: int) -> int | None:
    if not len(ordered):
        return None
    return int(ordered[max(-(-len(ordered) * percent // 100) - 1, 0)])


def _distribution(values: I64Column) -> Document:
    ordered = np.sort(values)
    return {
        "objects": len(ordered),
        "sum": int(ordered.sum()),
        "min": int(ordered[0]) if len(ordered) else None,
        "median": _percentile(ordered, 50),
        "p90": _percentile(ordered, 90),
        "p99": _percentile(ordered, 99),
        "max": int(ordered[-1]) if len(ordered) else None,
        "histogram": [
            {"first": first, "last": last, "objects": objects}
            for first, last, objects in _histogram(ordered)
        ],
    }


# 0, 1, 2-3, 4-7, ...: from the first range that is not empty to the last.
def _histogram(values: I64Column) -> list[tuple[int, int, int]]:
    ranges = [(0, 0)] + [(1 << bit, (2 << bit) - 1) for bit in range(63)]
    edges = np.array([first for first, _ in ranges])
    counts = np.bincount(np.searchsorted(edges, values, side="right") - 1, minlength=len(ranges))
    used = np.flatnonzero(counts)
    if not len(used):
        return []
    return [(*ranges[index], int(counts[index])) for index in range(used[0], used[-1] + 1)]


def _distribution_text(title: str, values: I64Column, style: Style) -> Iterator[str]:
    ordered = np.sort(values)
    if not len(ordered):
        yield f"{style.strong(title)}: none"
        return
    yield (
        f"{style.strong(title)}: median {_percentile(ordered, 50):,}, "
        f"p90 {_percentile(ordered, 90):,}, p99 {_percentile(ordered, 99):,}, "
        f"max {int(ordered[-1]):,}"
    )
    histogram = _histogram(ordered)
    most = max(objects for _, _, objects in histogram)
    yield from table(
        [
            (
                f"{first:,}" if first == last else f"{first:,} - {last:,}",
                f"{objects:,}",
                "#" * -(-objects * _BAR // most),
            )
            for first, last, objects in histogram
        ],
        align=("right", "right", "left"),
    )
