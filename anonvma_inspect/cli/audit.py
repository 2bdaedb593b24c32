"""``audit``: verify the invariants."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Sequence

import click
import numpy as np

from anonvma_inspect.cli.command import Command
from anonvma_inspect.cli.options import pids_option, shared_options
from anonvma_inspect.cli.parameters import parse_pid
from anonvma_inspect.cli.rounds import audit_in_rounds, parse_on_finding
from anonvma_inspect.cli.session import Session, target_facts
from anonvma_inspect.cli.settings import Settings
from anonvma_inspect.collect import collect_locks, functions_on_stacks
from anonvma_inspect.errors import UsageError
from anonvma_inspect.in_flight import Audit
from anonvma_inspect.invariants import pages
from anonvma_inspect.invariants.base import Result
from anonvma_inspect.invariants.catalogue import select
from anonvma_inspect.report.audit import AuditReport, Outcome
from anonvma_inspect.report.escape import printable
from anonvma_inspect.report.filtered import find_filtered
from anonvma_inspect.report.looked import Looked
from anonvma_inspect.target import Target

__all__ = ("command",)

EXIT_CODES = {Outcome.CLEAN: 0, Outcome.VIOLATED: 1, Outcome.INCOMPLETE: 4}

# More findings than a person reads; who wants all takes JSON.
_MAX_TEXT_FINDINGS = 100


@click.command("audit", cls=Command)
@pids_option("Only the families of this process")
@click.option(
    "--only",
    multiple=True,
    metavar="CODE",
    help="Only this code, slug or group, e.g. AV402, num-active-vmas, AV2 (repeatable, or with "
    "commas).",
)
@click.option("--skip", multiple=True, metavar="CODE", help="Not this one (likewise).")
@click.option(
    "--leaks",
    is_flag=True,
    help="Also look at all slabs for objects that nothing leads to, which takes longer the more "
    "memory the machine has.",
)
@click.option(
    "--deep",
    is_flag=True,
    help="Also walk the page tables, and check each anonymous page that they map (AV7).",
)
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --deep: only one in N blocks of memory, of the size of a huge page.",
)
@click.option("--strict", is_flag=True, help="Warnings count like errors.")
@click.option(
    "--max-findings",
    type=click.IntRange(min=0),
    metavar="N",
    help=f"List no more than N findings (default: {_MAX_TEXT_FINDINGS}, in JSON all).",
)
@click.option(
    "--every",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Of a target that runs: audit again and again, a line a round.",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="That many rounds.")
@click.option(
    "--on-finding",
    metavar="snapshot:DIR",
    help="Save a snapshot in DIR the moment that a finding is confirmed.",
)
@shared_options
@click.pass_obj
def command(
    settings: Settings,
    pids: tuple[str, ...],
    only: tuple[str, ...],
    skip: tuple[str, ...],
    leaks: bool,
    deep: bool,
    sample: int | None,
    strict: bool,
    max_findings: int | None,
    every: float | None,
    count: int | None,
    on_finding: str | None,
) -> int:
    """Verify the invariants.

    Exits 0 if the target is clean, 1 if an invariant is violated, 4 if something could not be
    checked.
    """
    session = Session(settings)
    invariants = select(only, skip)
    if not deep and not only:
        invariants = tuple(each for each in invariants if each not in pages.INVARIANTS)
    numbers = [parse_pid(pid) for pid in pids]
    if leaks and numbers:
        raise UsageError("--leaks is about all processes: it does not go with --pid")
    if sample is not None and not deep:
        raise UsageError("--sample is about the pages that --deep looks at: give --deep as well")
    if count is not None and every is None:
        raise UsageError("--count says how many rounds: give --every SECONDS as well")
    if every is not None and settings.format == "json":
        raise UsageError("--every answers a line a round: --format jsonl, or table")
    evidence = None if on_finding is None else parse_on_finding(on_finding)
    target = session.open()
    if every is not None and not target.live:
        raise UsageError(f"--every is for a target that runs: {target.path} stays as it is")
    if max_findings is None and settings.format == "table":
        max_findings = _MAX_TEXT_FINDINGS
    elif max_findings is not None:
        max_findings = min(max_findings, sys.maxsize)

    def save(view: Target) -> None:
        if evidence is not None:
            evidence.save(session, view)

    def make_report() -> AuditReport:
        start, read = time.monotonic(), _bytes_read(target)
        audit = session.audit(
            target,
            numbers,
            invariants,
            leaks=leaks,
            deep=(sample or 1) if deep else 0,
            on_finding=save,
        )
        _report_failures(session, audit.failures)
        seconds, more = time.monotonic() - start, _bytes_read(target) - read
        return AuditReport(
            facts=target_facts(target, audit.tables),
            audit=audit,
            must_run=frozenset(each.code for each in invariants) if only else frozenset(),
            filtered=find_filtered(target, audit.tables.holes),
            strict=strict,
            max_findings=max_findings,
            looked=Looked(seconds, more) if target.meter is not None else None,
            functions={} if target.live else _owners_calls(target, audit),
        )

    if every is not None:
        return audit_in_rounds(session, make_report, every, count)
    report = make_report()
    session.answer(report)
    return EXIT_CODES[report.outcome]


# What the owners of operations under way were doing, by PID.
def _owners_calls(target: Target, audit: Audit) -> dict[int, tuple[str, ...]]:
    pids = [state.operation.lock.pid for state in audit.in_flight()]
    owners = [pid for pid in pids if pid is not None]
    if not owners:
        return {}
    locks = collect_locks(target, audit.tables).locks
    assert locks is not None
    rows = np.flatnonzero(np.isin(locks.tasks.pid, owners))
    called = functions_on_stacks(target, locks.tasks, rows)
    return {
        int(pid): functions
        for pid, functions in zip(locks.tasks.pid[rows], called, strict=True)
        if functions is not None
    }


def _bytes_read(target: Target) -> int:
    return 0 if target.meter is None else target.meter.bytes_read


# The failure of one check ends neither the others nor the run, but it is not passed over.
def _report_failures(session: Session, failures: Sequence[Result]) -> None:
    for result in failures:
        session.note(
            f"{result.invariant.code} failed: a bug in this tool, please report it: "
            f"{type(result.error).__name__}: {printable(str(result.error))}"
        )
        if session.settings.verbosity >= 2:
            session.note(printable("".join(traceback.format_exception(result.error))).rstrip())
