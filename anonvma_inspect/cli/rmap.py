"""``rmap``: who maps a page."""

from __future__ import annotations

import re

import click

from anonvma_inspect.analysis.families import find_families
from anonvma_inspect.cli.command import Command
from anonvma_inspect.cli.find import find_vma_at
from anonvma_inspect.cli.options import shared_options
from anonvma_inspect.cli.parameters import parse_address, parse_pid
from anonvma_inspect.cli.session import Session, target_facts
from anonvma_inspect.cli.settings import Settings
from anonvma_inspect.collect import find_frame, frame_at, read_rmap
from anonvma_inspect.errors import UsageError
from anonvma_inspect.report.rmap import RmapReport

__all__ = ("command",)


@click.command("rmap", cls=Command, options_metavar="[OPTIONS]")
@click.argument("pid", metavar="PID ADDRESS | PFN | POINTER")
@click.argument("address", required=False, metavar="")
@shared_options
@click.pass_obj
def command(settings: Settings, pid: str, address: str | None) -> int:
    """Who maps a page, as the kernel finds out: by its folio's reverse map.

    The page is the one that process PID has mapped at ADDRESS, or that the swap cache has for it if
    it is swapped out there; that of the page frame PFN (in decimal, or in hex with 0x); or the one
    that POINTER names: a struct page, or memory in the kernel's direct map.
    """
    session = Session(settings)
    if address is None:
        number = _parse_number(pid)
        target = session.open()
        frame = find_frame(target, number)
    else:
        process, place = parse_pid(pid), parse_address(address)
        target = session.open()
        tables = session.collect(target, (process,))
        frame = frame_at(target, tables, find_vma_at(tables, process, place), place)
    with session.progress() as progress:
        rmap = session.timed("walked", lambda: read_rmap(target, frame, progress))
    families = find_families(rmap.tables)
    session.answer(RmapReport(target_facts(target, rmap.tables), rmap, families))
    if not rmap.walk.known.all():
        session.note("incomplete: some page tables are not in the target")
        return session.INCOMPLETE
    return 0 if rmap.tree_whole else session.completeness(rmap.tables)


def _parse_number(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
        return int(text)
    number = parse_address(text)
    if not text.lower().startswith("0x") and number < 1 << 63:
        raise UsageError(f"{text} is no page frame: those are decimal, or hex with 0x")
    return number
