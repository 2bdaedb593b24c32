"""Dumps at random moments of one guest that forks, execs, maps, moves and exits all the time."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from . import manifest
from .capture import Lab
from .guest import Guest
from .specs import Plan

__all__ = ("storm",)


def storm(lab: Lab, plan: Plan, count: int, directory: Path, command: str) -> list[Path]:
    """Dump a storm `count` times; the moments depend on the seed as far as a clock can.

    There is no word of the guest to compare with: it would be old before it is told.
    """
    prepared = lab.prepare(plan, ["word=0"])
    moments = random.Random(plan.seed)
    delays = [moments.uniform(0.3, 3.0) for _ in range(count)]
    cores = [directory / f"{plan.name}-{number:02}.core" for number in range(count)]
    words: list[bytes] = []

    def work(guest: Guest) -> None:
        words.append(guest.word())
        for core, delay in zip(cores, delays, strict=True):
            time.sleep(delay)
            guest.stop()
            guest.dump(core)
            guest.resume()
            lab.say(f"{plan.name}: dumped {core.name} after {delay:.2f} s")

    lab.run(prepared, work)
    made: dict[str, Any] = lab.describe(prepared, command, words[-1])
    made["dumps"] = [
        {"file": core.name, "delay": round(delay, 3)}
        for core, delay in zip(cores, delays, strict=True)
    ]
    manifest.write(made, directory / f"{plan.name}.json")
    return cores
