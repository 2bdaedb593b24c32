"""From a target to tables."""

from __future__ import annotations

from anonvma_inspect.collect.collector import collect

__all__ = ("collect",)
