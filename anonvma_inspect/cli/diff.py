"""``diff``: what has changed from one reading to another."""

from __future__ import annotations

import time
from dataclasses import replace

import click

from anonvma_inspect.analysis.difference import summarize
from anonvma_inspect.cli.command import Command
from anonvma_inspect.cli.options import shared_options
from anonvma_inspect.cli.session import Session, target_facts
from anonvma_inspect.cli.settings import Settings
from anonvma_inspect.errors import UsageError
from anonvma_inspect.report.diff import DiffReport
from anonvma_inspect.tables import Tables
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
@click.option(
    "--slabs/--no-slabs",
    default=None,
    help="Also look at all slabs for objects that nothing leads to (the default, but for a machine "
    "that runs).",
)
@shared_options
@click.pass_obj
def command(
    settings: Settings, files: tuple[str, ...], every: float | None, slabs: bool | None
) -> int:
    """What has changed from one reading to another.

    A and B are dumps or snapshots, of one machine or of two; without them, a target that runs is
    read twice. What grew is told by family, command and process, and first of all which objects
    nothing leads to any more.
    """
    session = Session(settings)
    if len(files) > 2:
        raise UsageError("diff compares two: A and B")
    if files and every is not None:
        raise UsageError("--every is for a target that runs: leave out the files")
    if files:
        first = _named(settings, files[0]) if len(files) == 2 else session
        if len(files) == 1 and settings.kind is None:
            raise UsageError("diff compares two: name another file, or one with -c")
        before, after = first.open(), _named(settings, files[-1]).open()
        sessions = (first, _named(settings, files[-1]))
        tables = _read(sessions[0], before, slabs)
        one = summarize(tables)
        one_facts, one_complete = target_facts(before, tables), tables.complete
        tables = _read(sessions[1], after, slabs)
    else:
        before = session.open()
        if not before.live or every is None:
            raise UsageError("diff compares two: name A and B, or say --every of one that runs")
        tables = _read(session, before, slabs)
        one = summarize(tables)
        one_facts, one_complete = target_facts(before, tables), tables.complete
        time.sleep(every)
        after = before.again()
        tables = _read(session, after, slabs)
    report = DiffReport(
        one_facts,
        target_facts(after, tables),
        one,
        summarize(tables),
        _same_boot(before, after),
        one_complete and tables.complete,
    )
    session.answer(report)
    if report.complete:
        return 0
    session.note("incomplete: there are holes in what is compared; see: anonvma-inspect audit")
    return session.INCOMPLETE


# The same options, of another file.
def _named(settings: Settings, path: str) -> Session:
    paths = {name: value for name, value in settings.paths.items() if name not in ("qemu", "gdb")}
    return Session(replace(settings, kind="core", paths={**paths, "core": path}))


def _read(session: Session, target: Target, slabs: bool | None) -> Tables:
    if slabs or (slabs is None and not target.live):
        return session.collect_audit(target, leaks=True)
    return session.collect(target)


# Each boot puts the kernel and its direct map elsewhere, if nothing else is told apart.
def _same_boot(one: Target, other: Target) -> bool:
    places = ("init_task", "page_offset_base", "vmemmap_base")
    return (
        one.release == other.release
        and one.space.direct_map == other.space.direct_map
        and all(one.symbols.get(name) == other.symbols.get(name) for name in places)
    )
