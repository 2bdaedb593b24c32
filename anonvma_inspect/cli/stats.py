"""``stats``: counts, bytes and distributions."""

from __future__ import annotations

import click

from anonvma_inspect.cli.command import Command
from anonvma_inspect.cli.options import shared_options
from anonvma_inspect.cli.session import Session, target_facts
from anonvma_inspect.cli.settings import Settings
from anonvma_inspect.report.stats import StatsReport

__all__ = ("command",)


@click.command("stats", cls=Command)
@shared_options
@click.pass_obj
def command(settings: Settings) -> int:
    """Counts, bytes, distributions."""
    session = Session(settings)
    target = session.open()
    tables = session.collect(target)
    session.answer(StatsReport(target_facts(target, tables), tables))
    return session.completeness(tables)
