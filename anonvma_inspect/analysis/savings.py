"""What each proposal for the anonymous reverse map would save."""

from __future__ import annotations

from anonvma_inspect.analysis.families import Families
from anonvma_inspect.analysis.save_lazy import save_lazy
from anonvma_inspect.analysis.save_merging import save_merging
from anonvma_inspect.analysis.save_sharing import save_sharing
from anonvma_inspect.analysis.save_unfaulted import save_unfaulted
from anonvma_inspect.analysis.saving import Saving
from anonvma_inspect.tables import Tables

__all__ = ("find_savings",)


def find_savings(tables: Tables, families: Families) -> tuple[Saving, ...]:
    """Predict them all, each for itself."""
    return (
        save_lazy(tables, families),
        save_unfaulted(tables, families),
        save_merging(tables, families),
        save_sharing(tables, families),
    )
