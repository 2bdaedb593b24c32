"""``locks``: who holds and who awaits the locks of the reverse map."""

from __future__ import annotations

import click
import numpy as np

from anonvma_inspect.cli.command import Command
from anonvma_inspect.cli.find import find_process
from anonvma_inspect.cli.options import pids_option, shared_options
from anonvma_inspect.cli.parameters import parse_pid
from anonvma_inspect.cli.session import Session, target_facts
from anonvma_inspect.cli.settings import Settings
from anonvma_inspect.collect import collect_locks, functions_on_stacks
from anonvma_inspect.report.locks import LocksReport, chosen_locks

__all__ = ("command",)

# How often the locks of a kernel that runs are read, at most.
_LOOKS = 3


@click.command("locks", cls=Command)
@pids_option("Only those that this process holds, waits for, or shares")
@click.option("--all", "idle", is_flag=True, help="Also those that are free.")
@shared_options
@click.pass_obj
def command(settings: Settings, pids: tuple[str, ...], idle: bool) -> int:
    """Who holds and who awaits the locks of the reverse map.

    These are the locks of root anon_vmas and the mmap_locks that are held or waited for, the one
    with most waiters first: its owner, what that is doing, who waits for how long, what the lock
    protects. Deadlocks among them are told first.
    """
    session = Session(settings)
    numbers = [parse_pid(pid) for pid in pids]
    target = session.open()
    read = session.collect(target)

    def look() -> LocksReport:
        view = target.again()
        tables = collect_locks(view, read)
        locks = tables.locks
        assert locks is not None
        for number in numbers:
            # A kernel thread, or one that has given up its mm, can hold a lock and wait for one.
            if number not in locks.tasks.pid and number not in locks.tasks.tgid:
                find_process(tables, number)
        functions = functions_on_stacks(view, locks.tasks, np.arange(len(locks.tasks.address)))
        rows = chosen_locks(tables, numbers, idle=idle)
        return LocksReport(target_facts(target, tables), tables, rows, functions)

    report = session.timed("read locks", look)
    # A queue that moves while it is read can seem to break off, or to close a circle of owners.
    for _ in range(_LOOKS - 1):
        if not target.live or (report.complete and not report.deadlocks):
            break
        report = look()
    session.answer(report)
    if report.complete:
        return session.completeness(report.tables)
    session.note("incomplete: not all who hold or await a lock are known")
    return session.INCOMPLETE
