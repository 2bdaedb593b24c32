"""``family``: the anon_vmas of one root, or all roots."""

from __future__ import annotations

import click

from anonvma_inspect.analysis.families import find_families
from anonvma_inspect.cli.command import Command
from anonvma_inspect.cli.find import find_anon_vma, find_named
from anonvma_inspect.cli.options import pids_option, shared_options
from anonvma_inspect.cli.parameters import parse_pid
from anonvma_inspect.cli.session import Session, target_facts
from anonvma_inspect.cli.settings import Settings
from anonvma_inspect.cli.tree import active_anon_vma
from anonvma_inspect.errors import NotFoundError, UsageError
from anonvma_inspect.report.family import SORTS, FamiliesReport, FamilyReport, sorted_families
from anonvma_inspect.report.words import hexadecimal
from anonvma_inspect.tables import NO_ROW

__all__ = ("command",)

# More families than a person reads; who wants all takes JSON.
_MAX_LISTED = 50


@click.command("family", cls=Command, draws=True, options_metavar="[OPTIONS]")
@click.argument("pid", required=False, metavar="[ROOT | PID ADDRESS]")
@click.argument("address", required=False, metavar="")
@click.option("--all", "everything", is_flag=True, help="List all families (the default).")
@pids_option("List those of this process")
@click.option(
    "--sort",
    type=click.Choice(tuple(SORTS)),
    help="List those first that have the most anon_vmas (size, the default), generations (depth), "
    "bytes (memory) or VMAs.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    metavar="N",
    help=f"List no more than N (default: {_MAX_LISTED}, in JSON all).",
)
@shared_options
@click.pass_obj
def command(
    settings: Settings,
    pid: str | None,
    address: str | None,
    everything: bool,
    pids: tuple[str, ...],
    sort: str | None,
    limit: int | None,
) -> int:
    """Anon_vmas of a family, each below its parent; or all families.

    The family is that of the anon_vma that ROOT points to (any of its anon_vmas will do), or of the
    VMA of process PID that ADDRESS lies in. With --format dot it is drawn with its VMAs, AVCs and
    interval trees, for Graphviz.
    """
    session = Session(settings)
    if pid is None:
        if settings.format == "dot":
            raise UsageError("--format dot draws one family: name its ROOT, or PID ADDRESS")
        return _list(session, [parse_pid(pid) for pid in pids], sort or "size", limit)
    if everything or pids or sort is not None or limit is not None:
        raise UsageError("--all, --pid, --sort and --limit are for the list, not for one family")
    target, tables, row = find_named(
        session, "family", (pid, address), find_anon_vma, active_anon_vma
    )
    families = find_families(tables)
    family = int(families.anon_vma_family[row])
    if family == NO_ROW:
        pointer = hexadecimal(int(tables.anon_vmas.address[row]))
        raise NotFoundError(
            f"anon_vma {pointer} is in no family: nothing but a pointer leads to it"
        )
    session.answer(FamilyReport(target_facts(target, tables), tables, families, family))
    return session.completeness(tables)


def _list(session: Session, pids: list[int], sort: str, limit: int | None) -> int:
    target = session.open()
    tables = session.collect(target, pids)
    families = find_families(tables)
    if limit is None and session.settings.format == "table":
        limit = _MAX_LISTED
    order = sorted_families(families, sort)
    session.answer(FamiliesReport(target_facts(target, tables), tables, families, order, limit))
    return session.completeness(tables)
