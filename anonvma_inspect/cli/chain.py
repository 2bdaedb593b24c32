"""``chain``: the ``anon_vma_chain`` of a VMA."""

from __future__ import annotations

import click

from anonvma_inspect.cli.command import Command
from anonvma_inspect.cli.find import find_named, find_vma
from anonvma_inspect.cli.options import shared_options
from anonvma_inspect.cli.session import Session, target_facts
from anonvma_inspect.cli.settings import Settings
from anonvma_inspect.report.chain import ChainReport
from anonvma_inspect.tables import ChainEnd

__all__ = ("command",)

_WHY = {
    ChainEnd.LOOP: "it comes back to an entry that is not its head",
    ChainEnd.WILD: "a next pointer cannot be right",
    ChainEnd.HOLE: "the target does not have the next entry",
    ChainEnd.STRANGER: "the next entry is no anon_vma_chain of this VMA",
    ChainEnd.NOT_WALKED: "it was not walked",
}


@click.command("chain", cls=Command, options_metavar="[OPTIONS]")
@click.argument("pid", metavar="PID ADDRESS | VMA-POINTER")
@click.argument("address", required=False, metavar="")
@shared_options
@click.pass_obj
def command(settings: Settings, pid: str, address: str | None) -> int:
    """A VMA's anon_vma_chain, in list order.

    The VMA is the one of process PID that ADDRESS lies in, or the one that VMA-POINTER points to.
    """
    session = Session(settings)
    target, tables, row = find_named(
        session, "chain", (pid, address), find_vma, lambda tables, vma: vma
    )
    session.answer(ChainReport(target_facts(target, tables), tables, row))
    end = ChainEnd(int(tables.vmas.chain_end[row]))
    if end is not ChainEnd.CLOSED:
        session.note(f"the list breaks off: {_WHY[end]}; see: anonvma-inspect audit")
    return session.INCOMPLETE if end is ChainEnd.HOLE else 0
