"""The answer of ``stats``: counts, bytes and distributions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from anonvma_inspect.analysis.families import Families, find_families
from anonvma_inspect.kernel.tags import strip_lock_mark
from anonvma_inspect.report.counts import count_objects, describe_counts
from anonvma_inspect.report.distributions import distribution, distribution_text
from anonvma_inspect.report.facts import Document, TargetFacts
from anonvma_inspect.report.growth import Growth
from anonvma_inspect.report.owners import Owners
from anonvma_inspect.report.slab_usage import SlabUsage
from anonvma_inspect.report.style import Style
from anonvma_inspect.report.vma_words import count_vma_words, describe_vma_words
from anonvma_inspect.report.walks import Walks
from anonvma_inspect.report.words import counted, table
from anonvma_inspect.tables import NO_ROW, I64Column, Tables

__all__ = ("StatsReport",)

SCHEMA = "anonvma-inspect/stats/1"

_TITLES = {
    "chain_length": "AVCs in a VMA's chain",
    "tree_size": "VMAs in an anon_vma's tree",
    "tree_depth": "levels of an anon_vma's tree",
    "vmas_per_root": "VMAs in a family",
}


class Section(Protocol):
    """A part of the answer."""

    @property
    def key(self) -> str:
        """Its key in the JSON answer."""

    def document(self) -> Document:
        """Its value there."""

    def text(self, style: Style) -> Iterator[str]:
        """Its lines."""


@dataclass(frozen=True)
class StatsReport:
    """Figures of a whole collection."""

    facts: TargetFacts
    tables: Tables

    items = None

    @cached_property
    def families(self) -> Families:
        """The families that the figures are of."""
        return find_families(self.tables)

    @cached_property
    def _sections(self) -> tuple[Section, ...]:
        tables, families = self.tables, self.families
        return (
            SlabUsage(tables),
            Owners(tables, families),
            Walks(tables, families),
            Growth(tables, families),
        )

    def document(self) -> Document:
        """See :meth:`anonvma_inspect.report.render.Report.document`."""
        return {
            "schema": SCHEMA,
            "target": self.facts.document(),
            "counts": dict(count_objects(self.tables)),
            "bytes": self._bytes(),
            "vma_words": count_vma_words(self.tables),
            "ksm": {**self._ksm(), "missing": self.tables.ksm.missing},
            "distributions": {
                name: distribution(values) for name, values in self._values().items()
            },
            **{section.key: section.document() for section in self._sections},
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
        if self.tables.era.tags.name != "none":
            yield ""
            yield describe_vma_words(self.tables)
        for name, values in self._values().items():
            yield ""
            yield from distribution_text(_TITLES[name], values, style)
        for section in self._sections:
            yield ""
            yield from section.text(style)

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
        anon_vmas, nodes = tables.anon_vmas, tables.nodes
        size = np.bincount(nodes.anon_vma, minlength=len(anon_vmas.address))
        depth = np.zeros(len(anon_vmas.address), dtype=np.int64)
        np.maximum.at(depth, nodes.anon_vma, nodes.depth + 1)
        return {
            "chain_length": tables.vmas.chain_length,
            "tree_size": size[anon_vmas.reached],
            "tree_depth": depth[anon_vmas.reached],
            "vmas_per_root": self.families.vmas[self.families.vmas > 0],
        }
