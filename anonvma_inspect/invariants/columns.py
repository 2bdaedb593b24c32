"""Columns that are looked up by columns of row numbers."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.tables import NO_ROW, RowColumn

__all__ = ("take",)

Scalar = TypeVar("Scalar", bound="np.generic[Any]")


def take(column: NDArray[Scalar], rows: RowColumn, otherwise: int | bool) -> NDArray[Scalar]:
    """A column at some rows, which may be empty, with something else where there is NO_ROW."""
    if not len(column):
        return np.full(len(rows), otherwise, dtype=column.dtype)
    # NO_ROW picks the last element.
    found = column[rows]
    found[rows == NO_ROW] = otherwise
    return found
