"""Captured kernels, each with the guest's own word for what is in it.

They are the fixtures of the repository, and whatever a run of the lab left in the directory that
the environment variable ``ANONVMA_CAPTURES`` names: there full dumps (``NAME.core``), their
manifests (``NAME.json``) and, for kernels that do not tell their symbols, ``NAME.map``.

What a test passes on each of them takes time: where that is much, it passes by default on a choice
that is made here and always the same, in which each kernel and each workload is. With
``ANONVMA_ALL=1`` nothing is left out, as in ``.ci/run``.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from anonvma_inspect.collect import collect_audit
from anonvma_inspect.tables import Tables
from anonvma_inspect.target import Target, TargetOptions, open_target

__all__ = ("CAPTURES", "KERNELS", "SOME", "Capture", "few_or_all", "pairs_with")

Other = TypeVar("Other")

ALL = bool(os.environ.get("ANONVMA_ALL"))
FIXTURES = Path(__file__).parent.parent / "fixtures"


@dataclass(frozen=True)
class Capture:
    """A core and its manifest."""

    core: Path
    manifest_path: Path

    @property
    def name(self) -> str:
        return self.manifest_path.stem

    @functools.cached_property
    def manifest(self) -> Any:
        return json.loads(self.manifest_path.read_text())

    @functools.cached_property
    def target(self) -> Target:
        # The symbols of a kernel whose dump does not tell them.
        system_map = self.manifest_path.with_suffix(".map")
        beside = str(system_map) if system_map.exists() else None
        return open_target(TargetOptions(core=str(self.core), system_map=beside))

    @functools.cached_property
    def tables(self) -> Tables:
        return collect_audit(self.target, leaks=True)

    def processes(self) -> list[Any]:
        """The guest's word for every process that has an address space."""
        return [process for process in self.manifest["word"]["processes"] if process["maps"]]


def _find() -> list[Capture]:
    captures = [
        Capture(manifest.with_suffix(".core.xz"), manifest)
        for manifest in sorted(FIXTURES.glob("*.json"))
    ]
    directory = os.environ.get("ANONVMA_CAPTURES")
    if directory is not None:
        captures += [
            Capture(manifest.with_suffix(".core"), manifest)
            for manifest in sorted(Path(directory).glob("*.json"))
        ]
    return captures


# The smallest of each kernel.
def _one_of_each_kernel(captures: list[Capture]) -> list[Capture]:
    smallest: dict[str, Capture] = {}
    for capture in sorted(captures, key=lambda capture: capture.core.stat().st_size):
        smallest.setdefault(capture.manifest["kernel"]["release"], capture)
    return sorted(smallest.values(), key=lambda capture: capture.name)


# The smallest of each kernel and of each workload, and whatever somebody gave.
def _representative(captures: list[Capture]) -> list[Capture]:
    kept: list[Capture] = []
    met: set[str] = set()
    for capture in sorted(captures, key=lambda capture: capture.core.stat().st_size):
        is_ = {capture.manifest["kernel"]["release"], capture.manifest["workload"]}
        if ALL or capture.core.parent != FIXTURES or not is_ <= met:
            kept.append(capture)
            met |= is_
    return sorted(kept, key=lambda capture: capture.name)


def few_or_all(few: int, many: int) -> int:
    """How many examples of something random are enough."""
    return many if ALL else few


def pairs_with(others: Sequence[Other], captures: list[Capture]) -> list[tuple[Capture, Other]]:
    """Captures, each with everything that there is to do with one.

    By default with a third of that, and with the next third of it the next capture.
    """
    return [
        (capture, other)
        for number, capture in enumerate(captures)
        for turn, other in enumerate(others)
        if ALL or (number + turn) % 3 == 0
    ]


CAPTURES = _find()
#: For tests of what depends on the kernel's structures, and not on what ran.
KERNELS = _one_of_each_kernel(CAPTURES)
#: For tests that would take long on all.
SOME = _representative(CAPTURES)
