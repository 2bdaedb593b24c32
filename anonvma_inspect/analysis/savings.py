"""What each proposal for the anonymous reverse map would save."""

from __future__ import annotations

from anonvma_inspect.analysis.families import Families
from anonvma_inspect.analysis.save_lazy import save_lazy
from anonvma_inspect.analysis.save_merging import save_merging
from anonvma_inspect.analysis.save_sharing import save_sharing
from anonvma_inspect.analysis.save_unfaulted import save_unfaulted
from anonvma_inspect.analysis.saving import Saving
from anonvma_inspect.tables import Tables
from anonvma_inspect.target.memory import BoolColumn

__all__ = ("find_savings",)


def find_savings(
    tables: Tables, families: Families, populated: BoolColumn | None = None
) -> tuple[Saving, ...]:
    """Predict them all, each for itself.

    :param populated: See :func:`~anonvma_inspect.analysis.save_unfaulted.save_unfaulted`.
    """
    return (
        save_lazy(tables, families),
        save_unfaulted(tables, families, populated),
        save_merging(tables, families),
        save_sharing(tables, families),
    )
