"""``explain``: invariants, their reasons and their sources."""

from __future__ import annotations

import click

from anonvma_inspect.cli.command import Command
from anonvma_inspect.cli.options import shared_options
from anonvma_inspect.cli.session import Session
from anonvma_inspect.cli.settings import Settings
from anonvma_inspect.invariants.catalogue import select
from anonvma_inspect.report.explain import ExplainReport

__all__ = ("command",)


@click.command("explain", cls=Command)
@click.argument("code", required=False)
@shared_options
@click.pass_obj
def command(settings: Settings, code: str | None) -> int:
    """An invariant, its reason, its source.

    CODE is a code, a slug or a group, e.g. AV402, num-active-vmas or AV2; without it, all are
    listed. Needs no target.
    """
    whole = code is not None
    invariants = select([code] if code is not None else ())
    Session(settings).answer(ExplainReport(invariants, whole))
    return 0
