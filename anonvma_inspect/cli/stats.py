"""``stats``: counts, bytes, distributions, costs."""

from __future__ import annotations

import click

from anonvma_inspect.cli.command import Command
from anonvma_inspect.cli.options import pids_option, shared_options
from anonvma_inspect.cli.parameters import parse_pid
from anonvma_inspect.cli.session import Session, target_facts
from anonvma_inspect.cli.settings import Settings
from anonvma_inspect.errors import UsageError
from anonvma_inspect.report.stats import StatsReport

__all__ = ("command",)


@click.command("stats", cls=Command)
@pids_option("Only the families of this process")
@click.option(
    "--slabs/--no-slabs",
    default=None,
    help="Also look at all slabs of the caches, which takes longer the more memory the machine "
    "has (the default, but for a machine that runs and with --pid).",
)
@click.option(
    "--pages/--no-pages",
    default=None,
    help="Also walk the page tables, and weigh walks of the reverse map by the folios that are "
    "there (the default, but for a machine that runs).",
)
@shared_options
@click.pass_obj
def command(
    settings: Settings, pids: tuple[str, ...], slabs: bool | None, pages: bool | None
) -> int:
    """Counts, bytes, distributions, costs.

    Objects in slabs, by process and by command; chains, trees and families; how many VMAs a walk of
    the reverse map visits; what the next fork of each process allocates; how far families have
    grown.
    """
    session = Session(settings)
    numbers = [parse_pid(pid) for pid in pids]
    if numbers and slabs:
        raise UsageError("--slabs is of all processes: leave out --pid")
    target = session.open()
    leaks = not numbers and (slabs or (slabs is None and not target.live))
    deep = pages or (pages is None and not target.live)
    if leaks or deep:
        tables = session.collect_audit(target, numbers, leaks=bool(leaks), deep=int(deep))
    else:
        tables = session.collect(target, numbers)
    session.answer(StatsReport(target_facts(target, tables), tables))
    return session.completeness(tables)
