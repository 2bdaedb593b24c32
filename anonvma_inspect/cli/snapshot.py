"""``snapshot``: save what an audit reads."""

from __future__ import annotations

import click

from anonvma_inspect.cli.command import Command
from anonvma_inspect.cli.options import shared_options
from anonvma_inspect.cli.session import Session, target_facts
from anonvma_inspect.cli.settings import Settings
from anonvma_inspect.collect import check_output, save_snapshot
from anonvma_inspect.report.snapshot import SnapshotReport

__all__ = ("command",)


@click.command("snapshot", cls=Command)
@click.option("-o", "--output", required=True, metavar="FILE", help="A name in .xz compresses.")
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@click.option("--anonymize", is_flag=True, help="Leave out the names of commands and files.")
@click.option(
    "--pages", is_flag=True, help="Also page tables and folios, for audit --deep and rmap."
)
@shared_options
@click.pass_obj
def command(settings: Settings, output: str, force: bool, anonymize: bool, pages: bool) -> int:
    """Save what was read.

    Writes a core that holds what audit and locks read and nothing else: no user pages, no
    credentials.
    """
    session = Session(settings)
    check_output(output, force=force)
    target = session.open()
    with session.progress() as progress:
        saved = session.timed(
            "saved",
            lambda: save_snapshot(
                target, output, force=force, anonymize=anonymize, pages=pages, progress=progress
            ),
        )
    session.tell_limit(target)
    facts = target_facts(target, saved.tables)
    session.answer(SnapshotReport(facts, saved.tables, saved.path, saved.bytes, saved.anonymized))
    return session.completeness(saved.tables)
