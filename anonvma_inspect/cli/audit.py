"""``audit``: verify the invariants."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

import click

from anonvma_inspect.cli.command import Command
from anonvma_inspect.cli.options import shared_options
from anonvma_inspect.cli.parameters import parse_pid
from anonvma_inspect.cli.session import Session, target_facts
from anonvma_inspect.cli.settings import Settings
from anonvma_inspect.errors import UsageError
from anonvma_inspect.invariants.base import Result
from anonvma_inspect.invariants.catalogue import audit as run_audit
from anonvma_inspect.invariants.catalogue import select
from anonvma_inspect.report.audit import AuditReport, Outcome
from anonvma_inspect.report.escape import printable
from anonvma_inspect.report.filtered import find_filtered

__all__ = ("command",)

EXIT_CODES = {Outcome.CLEAN: 0, Outcome.VIOLATED: 1, Outcome.INCOMPLETE: 4}

# More findings than a person reads; who wants all takes JSON.
_MAX_TEXT_FINDINGS = 100


@click.command("audit", cls=Command)
@click.option(
    "--pid",
    "pids",
    multiple=True,
    metavar="PID",
    help="Only the families of this process (repeatable).",
)
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
@click.option("--strict", is_flag=True, help="Warnings count like errors.")
@click.option(
    "--max-findings",
    type=click.IntRange(min=0),
    metavar="N",
    help=f"List no more than N findings (default: {_MAX_TEXT_FINDINGS}, in JSON all).",
)
@shared_options
@click.pass_obj
def command(
    settings: Settings,
    pids: tuple[str, ...],
    only: tuple[str, ...],
    skip: tuple[str, ...],
    leaks: bool,
    strict: bool,
    max_findings: int | None,
) -> int:
    """Verify the invariants.

    Exits 0 if the target is clean, 1 if an invariant is violated, 4 if something could not be
    checked.
    """
    session = Session(settings)
    invariants = select(only, skip)
    numbers = [parse_pid(pid) for pid in pids]
    if leaks and numbers:
        raise UsageError("--leaks is about all processes: it does not go with --pid")
    target = session.open()
    tables = session.collect_audit(target, numbers, leaks=leaks)
    audit = session.timed("checked", lambda: run_audit(tables, invariants))
    _report_failures(session, audit.failures)
    if max_findings is None and settings.format == "table":
        max_findings = _MAX_TEXT_FINDINGS
    elif max_findings is not None:
        max_findings = min(max_findings, sys.maxsize)
    report = AuditReport(
        facts=target_facts(target, tables),
        audit=audit,
        must_run=frozenset(invariant.code for invariant in invariants) if only else frozenset(),
        filtered=find_filtered(target, tables.holes),
        strict=strict,
        max_findings=max_findings,
    )
    session.answer(report)
    return EXIT_CODES[report.outcome]


# The failure of one check ends neither the others nor the run, but it is not passed over.
def _report_failures(session: Session, failures: Sequence[Result]) -> None:
    for result in failures:
        session.note(
            f"{result.invariant.code} failed: a bug in this tool, please report it: "
            f"{type(result.error).__name__}: {printable(str(result.error))}"
        )
        if session.settings.verbosity >= 2:
            session.note(printable("".join(traceback.format_exception(result.error))).rstrip())
