"""Running a command and looking at what it costs."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anonvma_inspect.collect import collect_audit
from anonvma_inspect.target import TargetOptions, open_target
from anonvma_inspect.target.memory import BoolColumn, ByteRows, Memory, U64Column

__all__ = ("Cost", "gathers", "run", "tool")

_SAMPLE_SECONDS = 0.02
_GATHER_RUNS = 5


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
    """How long the bare gathers of all that an audit reads take, with nothing else.

    Each row once, those of one size at a time, in the order in which the audit came to them: it
    meets objects by following pointers, and knows no better order before.

    :return: Seconds, the best of several runs after one that is not counted; the number of VMAs,
        and that of AVCs.
    """
    target = open_target(TargetOptions(core=core))
    asked = _AskedMemory(target.memory)
    tables = collect_audit(dataclasses.replace(target, memory=asked))
    rows = asked.rows()
    best = np.inf
    for number in range(_GATHER_RUNS + 1):
        started = time.perf_counter()
        for size, addresses in rows.items():
            target.memory.gather(addresses, size)
        if number:
            best = min(best, time.perf_counter() - started)
    return float(best), len(tables.vmas.address), len(tables.avcs.address)


class _AskedMemory:
    """Another memory, remembering which rows were asked for, and in which order."""

    def __init__(self, memory: Memory, calls: list[tuple[int, U64Column]] | None = None) -> None:
        self._memory = memory
        self._calls = [] if calls is None else calls

    def gather(self, addresses: U64Column, size: int) -> tuple[ByteRows, BoolColumn]:
        """See :meth:`Memory.gather`."""
        self._calls.append((size, addresses.copy()))
        return self._memory.gather(addresses, size)

    def uncached(self) -> Memory:
        """See :meth:`Memory.uncached`."""
        return _AskedMemory(self._memory.uncached(), self._calls)

    def rows(self) -> dict[int, U64Column]:
        """Addresses by the size that was read there, each once, in the order of the first time."""
        by_size: dict[int, list[U64Column]] = {}
        for size, addresses in self._calls:
            by_size.setdefault(size, []).append(addresses)
        return {size: _each_once(np.concatenate(parts)) for size, parts in by_size.items()}


def _each_once(addresses: U64Column) -> U64Column:
    _, first = np.unique(addresses, return_index=True)
    return addresses[np.sort(first)]


def tool(*arguments: str) -> list[str]:
    """The command line of this package."""
    return [sys.executable, "-m", "anonvma_inspect", *arguments]
