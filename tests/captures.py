"""Captured kernels, each with the guest's own word for what is in it.

They are the fixtures of the repository, and whatever a run of the lab left in the directory that
the environment variable ``ANONVMA_CAPTURES`` names: there full dumps (``NAME.core``), their
manifests (``NAME.json``) and, for kernels that do not tell their symbols, ``NAME.map``.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anonvma_inspect.collect import collect_audit
from anonvma_inspect.tables import Tables
from anonvma_inspect.target import Target, TargetOptions, open_target

__all__ = ("CAPTURES", "KERNELS", "Capture")

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


CAPTURES = _find()
#: For tests of what depends on the kernel's structures, and not on what ran.
KERNELS = _one_of_each_kernel(CAPTURES)
