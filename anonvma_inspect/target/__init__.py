"""Targets: where bytes, layouts and symbols come from, and what they come from."""

from __future__ import annotations

from anonvma_inspect.target.files import TargetOptions
from anonvma_inspect.target.open import open_target
from anonvma_inspect.target.target import Target

__all__ = ("Target", "TargetOptions", "open_target")
