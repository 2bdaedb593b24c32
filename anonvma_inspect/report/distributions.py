"""How values are distributed, as reports tell it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from anonvma_inspect.report.facts import Document
from anonvma_inspect.report.style import Style
from anonvma_inspect.report.words import table
from anonvma_inspect.tables import I64Column

__all__ = ("distribution", "distribution_text")

_BAR = 40


# The value that at least this share (in percent) of the objects do not exceed.
def _percentile(ordered: I64Column, percent: int) -> int | None:
    if not len(ordered):
        return None
    return int(ordered[max(-(-len(ordered) * percent // 100) - 1, 0)])


def distribution(values: I64Column) -> Document:
    """As a part of a JSON answer."""
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


def distribution_text(title: str, values: I64Column, style: Style) -> Iterator[str]:
    """For people: percentiles, and a histogram."""
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
