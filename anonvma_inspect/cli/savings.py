"""``savings``: what each proposal would save."""

from __future__ import annotations

import click

from anonvma_inspect.analysis.families import find_families
from anonvma_inspect.analysis.savings import find_savings
from anonvma_inspect.cli.command import Command
from anonvma_inspect.cli.options import pids_option, shared_options
from anonvma_inspect.cli.parameters import parse_pid
from anonvma_inspect.cli.session import Session, target_facts
from anonvma_inspect.cli.settings import Settings
from anonvma_inspect.report.savings import SavingsReport

__all__ = ("command",)


@click.command("savings", cls=Command)
@pids_option("Only the families of this process")
@click.option(
    "--pages/--no-pages",
    default=None,
    help="Also walk the page tables: which anon_vmas have no page, how many folios a merge must "
    "rewrite (the default, but for a machine that runs).",
)
@shared_options
@click.pass_obj
def command(settings: Settings, pids: tuple[str, ...], pages: bool | None) -> int:
    """What each proposal would save.

    Objects and bytes that would not be there now with ANON_VMA_LAZY, with ANON_VMA_UNFAULTED, if
    VMAs with different anon_vmas were merged, and if fork reused the anon_vmas of neighbours; each
    for itself, with what was assumed and what a snapshot cannot tell.
    """
    session = Session(settings)
    numbers = [parse_pid(pid) for pid in pids]
    target = session.open()
    if pages or (pages is None and not target.live):
        tables = session.collect_audit(target, numbers, deep=1)
    else:
        tables = session.collect(target, numbers)
    families = find_families(tables)
    savings = session.timed("predicted", lambda: find_savings(tables, families))
    session.answer(SavingsReport(target_facts(target, tables), tables, savings))
    return session.completeness(tables)
