"""``diff``: what has changed from one reading to another."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import click

from anonvma_inspect.analysis.difference import Summary, summarize
from anonvma_inspect.cli.command import Command
from anonvma_inspect.cli.options import pids_option, shared_options
from anonvma_inspect.cli.parameters import parse_pid
from anonvma_inspect.cli.session import Session, target_facts
from anonvma_inspect.cli.settings import Settings
from anonvma_inspect.errors import UsageError
from anonvma_inspect.report.diff import DiffReport
from anonvma_inspect.report.facts import TargetFacts
from anonvma_inspect.target import Target

__all__ = ("command",)


@click.command("diff", cls=Command, options_metavar="[OPTIONS]")
@click.argument("files", nargs=-1, metavar="[A B]")
@click.option(
    "--every",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Of a target that runs: read it now and so many seconds later.",
)
@pids_option("Only the families of this process, which both must have")
@click.option(
    "--slabs/--no-slabs",
    default=None,
    help="Also look at all slabs for objects that nothing leads to (the default, but for a machine "
    "that runs and with --pid).",
)
@shared_options
@click.pass_obj
def command(
    settings: Settings,
    files: tuple[str, ...],
    every: float | None,
    pids: tuple[str, ...],
    slabs: bool | None,
) -> int:
    """What has changed from one reading to another.

    A and B are dumps or snapshots, of one machine or of two; without them, a target that runs is
    read twice. What grew is told by family, command and process, and first of all which objects
    nothing leads to any more.
    """
    session = Session(settings)
    numbers = [parse_pid(pid) for pid in pids]
    if numbers and slabs:
        raise UsageError("--slabs is of all processes: leave out --pid")
    if len(files) > 2:
        raise UsageError("diff compares two: A and B")
    if files and every is not None:
        raise UsageError("--every is for a target that runs: leave out the files")
    if len(files) == 1 and settings.kind is None:
        raise UsageError("diff compares two: name another file, or one with -c")
    both = _of_files(session, files) if files else _of_one(session, every)
    # One after the other: the tables of the first are not kept.
    before, after = (_read(*each, numbers, slabs) for each in both)
    report = DiffReport(
        before.facts,
        after.facts,
        before.summary,
        after.summary,
        _same_boot(before.target, after.target),
        before.complete and after.complete,
    )
    session.answer(report)
    if report.complete:
        return 0
    session.note("incomplete: there are holes in what is compared; see: anonvma-inspect audit")
    return session.INCOMPLETE


@dataclass(frozen=True)
class _Reading:
    target: Target
    facts: TargetFacts
    summary: Summary
    complete: bool


def _of_files(session: Session, files: tuple[str, ...]) -> Iterator[tuple[Session, Target]]:
    sessions = [_named(session.settings, path) for path in files]
    # Both are opened before either is read: one that cannot be is told at once.
    yield from [(each, each.open()) for each in [session, *sessions][-2:]]


def _of_one(session: Session, every: float | None) -> Iterator[tuple[Session, Target]]:
    target = session.open()
    if not target.live or every is None:
        raise UsageError("diff compares two: name A and B, or say --every of one that runs")
    yield session, target
    time.sleep(every)
    yield session, target.again()


# The same options, of another file.
def _named(settings: Settings, path: str) -> Session:
    paths = {name: value for name, value in settings.paths.items() if name not in ("qemu", "gdb")}
    return Session(replace(settings, kind="core", paths={**paths, "core": path}))


def _read(session: Session, target: Target, pids: list[int], slabs: bool | None) -> _Reading:
    if not pids and (slabs or (slabs is None and not target.live)):
        tables = session.collect_audit(target, leaks=True)
    else:
        tables = session.collect(target, pids)
    return _Reading(target, target_facts(target, tables), summarize(tables), tables.complete)


# Each boot puts the kernel and its direct map elsewhere, if nothing else is told apart.
def _same_boot(one: Target, other: Target) -> bool:
    places = ("init_task", "page_offset_base", "vmemmap_base")
    return (
        one.release == other.release
        and one.space.direct_map == other.space.direct_map
        and all(one.symbols.get(name) == other.symbols.get(name) for name in places)
    )
