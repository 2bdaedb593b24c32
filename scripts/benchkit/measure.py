"""Running a command and looking at what it costs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anonvma_inspect.collect import collect
from anonvma_inspect.target import TargetOptions, open_target

__all__ = ("Cost", "gathers", "run", "tool")

_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Cost:
    """What a whole process took.

    :ivar seconds: Of wall time.
    :ivar private: Most bytes of anonymous memory at any moment that was looked at.
    :ivar output: Its standard output.
    """

    seconds: float
    private: int
    output: str


def run(command: Sequence[str], times: int = 1) -> Cost:
    """Run a command; of several runs, the one with the median time.

    Several are made once before, and not looked at: memory that a machine has not used for a while
    its hypervisor may have taken back, and a gigabyte of it then takes seconds to be had again.

    :raises RuntimeError: if it fails.
    """
    if times > 1:
        _run_once(command)
    return sorted((_run_once(command) for _ in range(times)), key=lambda cost: cost.seconds)[
        times // 2
    ]


def _run_once(command: Sequence[str]) -> Cost:
    started = time.perf_counter()
    # An installed package is compiled; so is this one from its second run on, unless that is off.
    environment = dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    most = 0
    while process.poll() is None:
        most = max(most, _anonymous(process.pid))
        time.sleep(_SAMPLE_SECONDS)
    seconds = time.perf_counter() - started
    assert process.stdout is not None
    output = process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}")
    return Cost(seconds, most, output)


def _anonymous(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(fields.get("RssAnon", "0 kB").split()[0]) * 1024


def gathers(core: str) -> tuple[float, int, int]:
    """How long the bare gathers of all VMAs, AVCs and anon_vmas take, with nothing else.

    :return: Seconds, the number of VMAs, and that of AVCs.
    """
    target = open_target(TargetOptions(core=core))
    tables = collect(target)
    objects = (
        (tables.vmas.address, tables.era.vma.size),
        (tables.avcs.address, tables.era.avc.size),
        (tables.anon_vmas.address, tables.era.anon_vma.size),
    )
    best = np.inf
    for _ in range(3):
        started = time.perf_counter()
        for addresses, size in objects:
            target.memory.gather(addresses, size)
        best = min(best, time.perf_counter() - started)
    return float(best), len(tables.vmas.address), len(tables.avcs.address)


def tool(*arguments: str) -> list[str]:
    """The command line of this package."""
    return [sys.executable, "-m", "anonvma_inspect", *arguments]
