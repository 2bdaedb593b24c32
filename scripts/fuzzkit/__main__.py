"""The fuzzer's command line."""

from __future__ import annotations

import sys
from collections import Counter

import click
from tabulate import tabulate

from .cells import Cell, Outcome, judge
from .kernels import Kernel, kernels
from .verbs import VERBS

__all__ = ("cli",)

_LEGEND = (
    f"{Outcome.ERROR.value} error, {Outcome.WARNING.value} warning, "
    f"{Outcome.HARMLESS.value} harmless (proven: see the reasons below), "
    f"{Outcome.NEEDS_PAGES.value} only page tables could tell, {Outcome.MISSED.value} missed"
)


def _matrix(kernel: Kernel, field: str, seed: int) -> list[Cell]:
    print(f"\n== {kernel.name}: {', '.join(capture.name for capture in kernel.captures)}\n")
    width = 34
    print(" " * width, *(f"{verb:>7}" for verb in VERBS))
    cells = []
    for subject, role in kernel.rows():
        if field not in str(subject):
            continue
        row = [judge(change) for change in kernel.changes(subject, role, seed)]
        letters = [f"{cell.outcome.value:>7}" for cell in row]
        print(f"{subject!s:<26}{role:<8}", *letters, flush=True)
        cells += row
    for role in kernel.missing():
        print(f"(no capture of this kernel has an object that is {role})")
    return cells


def _totals(cells: dict[str, list[Cell]]) -> str:
    rows: list[list[object]] = []
    everything = [cell for of_kernel in cells.values() for cell in of_kernel]
    for name, of_kernel in [*cells.items(), ("all", everything)]:
        count = Counter(cell.outcome for cell in of_kernel)
        rows.append([name, len(of_kernel), *(count[outcome] for outcome in Outcome)])
    return tabulate(rows, headers=["kernel", "cells", *(o.name.lower() for o in Outcome)])


@click.command(help="Break every word that an audit reads, and print what it found, as a matrix.")
@click.option("--kernel", "names", multiple=True, help="Only this kernel, e.g. 6.12-rt.")
@click.option("--field", default="", help="Only fields whose name has this in it.")
@click.option("--seed", default=1, show_default=True, help="Which objects are taken.")
def cli(names: tuple[str, ...], field: str, seed: int) -> None:
    """See ``--help``. Exits 1 if a cell is missed."""
    known = kernels()
    for name in names:
        if name not in known:
            raise click.UsageError(f"no kernel is called {name}: {', '.join(known)}")
    print(_LEGEND)
    cells = {name: _matrix(known[name], field, seed) for name in names or known}
    everything = [cell for of_kernel in cells.values() for cell in of_kernel]
    print(f"\n{_totals(cells)}\n")
    reasons = Counter(
        (cell.outcome.name.lower().replace("_", " "), cell.reason)
        for cell in everything
        if cell.outcome in (Outcome.HARMLESS, Outcome.NEEDS_PAGES)
    )
    for (outcome, reason), count in reasons.most_common():
        print(f"{count:6} {outcome}: {reason}")
    aside = sum(not cell.first_is_right for cell in everything)
    print(f"{aside:6} whose first finding names an object that the word has nothing to do with")
    most = max((cell.findings for cell in everything), default=0)
    print(f"{most:6} findings of one change at most")
    missed = [cell for cell in everything if cell.outcome is Outcome.MISSED]
    for cell in missed:
        print(f"MISSED {cell}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    cli(prog_name="scripts/fuzz")
