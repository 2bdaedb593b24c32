"""The benchmark's command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from tabulate import tabulate

from .measure import Cost, gathers, run, tool

__all__ = ("cli",)


@dataclass(frozen=True)
class Row:
    """One dump."""

    core: str
    vmas: int
    avcs: int
    audit: Cost
    start: Cost
    plain: Cost | None
    gathers: float
    deep: Cost | None

    def cells(self) -> list[object]:
        ratio = "" if self.plain is None else f"{self.plain.seconds / self.audit.seconds:.1f}"
        plain = "" if self.plain is None else f"{self.plain.seconds:.2f}"
        cells: list[object] = [
            Path(self.core).name,
            f"{self.vmas:,}",
            f"{self.avcs:,}",
            f"{self.audit.seconds:.2f}",
            f"{self.start.seconds:.2f}",
            plain,
            ratio,
            f"{self.gathers:.3f}",
            f"{(self.audit.seconds - self.start.seconds) / self.gathers:.1f}",
            f"{self.audit.private / max(self.avcs, 1):,.0f}",
        ]
        if self.deep is not None:
            pages = json.loads(self.deep.output)["pages"]["pages"]
            more = self.deep.seconds - self.audit.seconds
            cells += [
                f"{self.deep.seconds:.2f}",
                f"{self.deep.seconds / self.audit.seconds:.1f}",
                f"{pages:,}",
                f"{pages / more:,.0f}" if more > 0 else "",
            ]
        return cells


def is_elf(core: str) -> bool:
    """Whether a dump is an ELF file, not a kdump."""
    with Path(core).open("rb") as file:
        return file.read(4) == b"\x7fELF"


HEADERS = (
    "dump",
    "VMAs",
    "AVCs",
    "audit, s",
    "start-up, s",
    "plain script, s",
    "script / audit",
    "gathers, s",
    "(audit - start-up) / gathers",
    "private bytes an AVC",
)
DEEP_HEADERS = ("audit --deep, s", "deep / audit", "mapped pages", "pages / (deep - audit), 1/s")


def measure(core: str, vmlinux: str | None, plain: bool, times: int, deep: bool = False) -> Row:
    """Measure everything about one dump; the commands run one after the other."""
    bare, vmas, avcs = gathers(core)
    script = [sys.executable, "-m", "benchkit.plain", core, *([vmlinux] if vmlinux else [])]
    return Row(
        core=core,
        vmas=vmas,
        avcs=avcs,
        audit=run(tool("-q", "-c", core, "audit"), times),
        # What it takes to open the target and to look at one process that hardly has anything.
        start=run(tool("-q", "-c", core, "vma", "1"), times),
        plain=run(script) if plain else None,
        gathers=bare,
        deep=run(tool("-q", "-c", core, "--format", "json", "audit", "--deep"), times)
        if deep
        else None,
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("cores", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--vmlinux", help="Let the plain script take its types from here.")
@click.option("--no-plain", is_flag=True, help="Leave the plain script out: it takes minutes.")
@click.option(
    "--deep", is_flag=True, help="Also audit --deep, and how many pages a second it looks at."
)
@click.option("--times", default=5, show_default=True, help="Runs of each command but the script.")
def cli(cores: Sequence[str], vmlinux: str | None, no_plain: bool, deep: bool, times: int) -> None:
    """Compare, for each dump: the whole audit; a plain drgn script that walks the same structures
    and checks only num_active_vmas and the sizes of the trees; the bare gathers of all objects
    that the audit reads, each once, in the order in which it first reads them. Start-up is included
    in the first two.

    The large guests: scripts/lab dump 6.12 large -o large.core --memory 3072 (or lab kdump), and
    with children=10 --memory 1024 or children=1 --memory 512 smaller ones. For --deep, one with a
    million mapped pages: scripts/lab dump 6.12 many -o many.core --memory 6144.
    """
    rows = [measure(core, vmlinux, not no_plain, times, deep) for core in cores]
    headers = HEADERS + (DEEP_HEADERS if deep else ())
    click.echo(
        tabulate(
            [row.cells() for row in rows],
            headers,
            tablefmt="github",
            disable_numparse=True,
            colalign=("left", *["right"] * (len(headers) - 1)),
        )
    )
    # A kdump's pages must be decompressed: it is no measure of how the audit itself grows.
    plain_dumps = [row for row in rows if is_elf(row.core)]
    if len(plain_dumps) > 1:
        small, large = plain_dumps[0], plain_dumps[-1]
        objects = large.avcs / small.avcs
        seconds = (large.audit.seconds - large.start.seconds) / (
            small.audit.seconds - small.start.seconds
        )
        click.echo(
            f"\nFrom the first to the last ELF dump: {objects:.1f} times the AVCs, "
            f"{seconds:.1f} times the time"
        )


if __name__ == "__main__":
    cli(prog_name="scripts/bench")
