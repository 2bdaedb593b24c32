"""The command line."""

from __future__ import annotations

from anonvma_inspect.cli.main import main

__all__ = ("main",)
