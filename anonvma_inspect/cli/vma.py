"""``vma``: the VMAs of a process."""

from __future__ import annotations

import click
import numpy as np

from anonvma_inspect.cli.command import Command
from anonvma_inspect.cli.find import find_process, find_slot, slots_of
from anonvma_inspect.cli.options import shared_options
from anonvma_inspect.cli.parameters import parse_address, parse_pid
from anonvma_inspect.cli.session import Session, target_facts
from anonvma_inspect.cli.settings import Settings
from anonvma_inspect.collect import file_paths
from anonvma_inspect.report.vma import VmaReport
from anonvma_inspect.tables import NO_ROW

__all__ = ("command",)


@click.command("vma", cls=Command)
@click.argument("pid")
@click.argument("address", required=False)
@shared_options
@click.pass_obj
def command(settings: Settings, pid: str, address: str | None) -> int:
    """VMAs of a process, vma->anon_vma decoded.

    Reads like /proc/PID/maps, with the anon_vma side added. With ADDRESS: the one VMA that it lies
    in.
    """
    session = Session(settings)
    number = parse_pid(pid)
    place = None if address is None else parse_address(address)
    target = session.open()
    tables = session.collect(target, (number,))
    process = find_process(tables, number)
    slots = slots_of(tables, process) if place is None else [find_slot(tables, process, place)]
    rows = tables.slots.vma[slots]
    rows = rows[rows != NO_ROW]
    paths = file_paths(target, np.unique(tables.vmas.vm_file[rows]))
    if target.walks is not None and "file names" not in target.walks:
        session.note("names of files are not in this snapshot")
    session.answer(VmaReport(target_facts(target, tables), tables, process, slots, paths))
    if place is not None or bool(tables.mms.whole[process.mm]):
        return 0
    session.note(f"not all VMAs of {process} could be read; see: anonvma-inspect audit")
    return 0 if tables.complete else session.INCOMPLETE
