"""Dumps at random moments of one guest that forks, execs, maps, moves and exits all the time."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import manifest
from .capture import Lab, Say
from .guest import Guest
from .specs import Plan
from .verdict import Verdict

__all__ = ("Judge", "Poke", "Series", "storm", "storms")

# Seconds between two dumps.
_SHORTEST, _LONGEST = 0.3, 3.0


def _moments(seed: int, count: int) -> list[float]:
    """The seconds before each dump; the moments depend on the seed as far as a clock can."""
    source = random.Random(seed)
    return [source.uniform(_SHORTEST, _LONGEST) for _ in range(count)]


def storm(lab: Lab, plan: Plan, count: int, directory: Path, command: str) -> list[Path]:
    """Dump a storm `count` times and keep the dumps.

    There is no word of the guest to compare with: it would be old before it is told.
    """
    prepared = lab.prepare(plan, ["word=0"])
    delays = _moments(plan.seed, count)
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


@dataclass
class Series:
    """What became of many dumps, in a file, so that the series can be gone on with."""

    path: Path
    #: One dump each: seed, number, delay, seconds, the verdict's parts.
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Series:
        """The series in a file; an empty one if there is no file."""
        return cls(path, json.loads(path.read_text())["dumps"] if path.is_file() else [])

    def add(self, verdict: Verdict, **more: object) -> None:
        """Add a dump and write the file."""
        self.rows.append(
            {
                **more,
                "code": verdict.code,
                "counts": dict(verdict.counts),
                "errors": dict(verdict.errors),
                "warnings": dict(verdict.warnings),
                "in_flight": dict(verdict.in_flight),
                "said": list(verdict.said),
            }
        )
        manifest.write({"dumps": self.rows}, self.path)

    @property
    def wrong(self) -> int:
        """In how many dumps an error was found, or the tool failed, or missed a change."""
        return sum(bool(row["errors"] or row.get("missed")) for row in self.rows)

    def summary(self, name: str) -> list[str]:
        """The series in a few lines."""
        kinds = ("errors", "warnings", "in_flight")
        sums = {kind: sum((Counter(row[kind]) for row in self.rows), Counter()) for kind in kinds}
        with_some = sum(bool(row["in_flight"]) for row in self.rows)
        vmas = [row["counts"].get("vmas", 0) for row in self.rows] or [0]
        return [
            f"{name}: {len(self.rows)} dumps of {min(vmas)} to {max(vmas)} VMAs, "
            f"{self.wrong} with errors, {with_some} with operations in flight",
            *(f"  {kind}: {_words(sums[kind])}" for kind in kinds),
            *self._changes(),
        ]

    def _changes(self) -> list[str]:
        changed = sum((Counter(row.get("changed", {})) for row in self.rows), Counter())
        missed = [what for row in self.rows for what in row.get("missed", ())]
        if not changed:
            return []
        return [
            f"  words changed, by family: {_words(changed)}; {len(missed)} not found",
            *(f"    {what}" for what in missed),
        ]


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(counts.items())) or "none"


#: Judges a dump.
Judge = Callable[[Path], Verdict]

#: Changes words of a dump, one at a time: family, what was changed, and whether that was found.
Poke = Callable[[Path, int], Iterable[tuple[str, str, bool]]]


def storms(
    lab: Lab,
    plan: Plan,
    series: Series,
    total: int,
    judge: Judge,
    show: Say,
    *,
    a_boot: int = 20,
    keep: Path | None = None,
    most: int = 10,
    poke: Poke | None = None,
) -> None:
    """Go on with a series until it has `total` dumps, each judged while the storm goes on.

    :param a_boot: Dumps of one guest; the next has another seed.
    :param keep: Where dumps with errors are kept.
    :param most: How many of them.
    :param poke: Of dumps without errors, what becomes of words that are changed in them.
    """
    while len(series.rows) < total:
        first = len(series.rows)
        seed = plan.seed + first
        count = min(a_boot, total - first)
        prepared = lab.prepare(plan.with_seed(seed), ["word=0"])

        def work(guest: Guest, seed: int = seed, count: int = count) -> None:
            with tempfile.TemporaryDirectory(prefix="lab-storms-", dir=lab.cache) as scratch:
                _dump_and_judge(guest, seed, count, Path(scratch) / "storm.core")

        def _dump_and_judge(guest: Guest, seed: int, count: int, core: Path) -> None:
            for delay in _moments(seed, count):
                time.sleep(delay)
                begun = time.monotonic()
                guest.stop()
                guest.dump(core)
                guest.resume()
                verdict = judge(core)
                seconds = round(time.monotonic() - begun, 2)
                pokes = [] if poke is None or verdict.wrong else list(poke(core, seed))
                series.add(
                    verdict,
                    seed=seed,
                    delay=round(delay, 3),
                    seconds=seconds,
                    changed=Counter(family for family, _, _ in pokes),
                    missed=[what for _, what, found in pokes if not found],
                )
                show(_row(len(series.rows), verdict, seconds))
                for what in series.rows[-1]["missed"]:
                    show(f"     missed: {what}")
                if verdict.wrong and keep is not None and series.wrong <= most:
                    keep.mkdir(parents=True, exist_ok=True)
                    core.replace(keep / f"{plan.name}-{len(series.rows):03}.core")

        lab.run(prepared, work)


def _row(number: int, verdict: Verdict, seconds: float) -> str:
    vmas = verdict.counts.get("vmas", 0)
    parts = [f"{number:4} exit {verdict.code} {vmas:6} VMAs {seconds:5.1f} s"]
    parts += [
        f"{kind} {_words(counts)}"
        for kind, counts in (
            ("errors", verdict.errors),
            ("warnings", verdict.warnings),
            ("in flight", verdict.in_flight),
        )
        if counts
    ]
    return "; ".join([*parts, *verdict.said[: 3 if verdict.wrong else 0]])
