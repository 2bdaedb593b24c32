"""The answer of ``audit``."""

from __future__ import annotations

import enum
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from anonvma_inspect import __version__
from anonvma_inspect.in_flight import Audit, InFlight, Lock
from anonvma_inspect.invariants.base import Finding, Invariant, Result, Severity, State, Where
from anonvma_inspect.report.counts import count_objects, describe_counts
from anonvma_inspect.report.escape import escape, printable
from anonvma_inspect.report.facts import Document, TargetFacts
from anonvma_inspect.report.filtered import Filtered
from anonvma_inspect.report.looked import Looked
from anonvma_inspect.report.pages import coverage_document, describe_coverage
from anonvma_inspect.report.style import Style
from anonvma_inspect.report.words import (
    counted,
    describe_calls,
    hex_or_null,
    hexadecimal,
    span,
    table,
)
from anonvma_inspect.tables import Holes

__all__ = ("AuditReport", "Outcome", "finding_document", "finding_text")

SCHEMA = "anonvma-inspect/audit/1"
_DONE = (State.OK, State.VIOLATED, State.WARNED)


class Outcome(str, enum.Enum):
    """What an audit came to, in one word."""

    CLEAN = "clean"
    VIOLATED = "violated"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True)
class AuditReport:
    """What was verified and what was found.

    :ivar must_run: Codes that the user named: if one of them cannot be checked, that is no clean
        audit.
    :ivar filtered: Which of the holes the dump's filter made.
    :ivar strict: Warnings count like errors.
    :ivar max_findings: How many findings to list; ``None``: all.
    :ivar looked: How a target that runs was read; ``None`` for what stands still.
    :ivar functions: What is on the kernel stacks of the owners of operations under way, by PID,
        where that is known: see :func:`anonvma_inspect.collect.functions_on_stacks`.
    """

    facts: TargetFacts
    audit: Audit
    must_run: frozenset[str] = frozenset()
    filtered: Filtered | None = None
    strict: bool = False
    max_findings: int | None = None
    looked: Looked | None = None
    functions: Mapping[int, Sequence[str]] = field(default_factory=dict)

    items = "findings"

    @property
    def outcome(self) -> Outcome:
        """What it came to: a violation wins over what could not be seen."""
        totals = self.audit.totals
        if totals[Severity.ERROR] or (self.strict and totals[Severity.WARNING]):
            return Outcome.VIOLATED
        if not self.audit.complete or self._not_done():
            return Outcome.INCOMPLETE
        return Outcome.CLEAN

    def document(self) -> Document:
        """See :meth:`anonvma_inspect.report.render.Report.document`."""
        holes = self.audit.tables.holes
        return {
            "schema": SCHEMA,
            "tool": f"anonvma-inspect {__version__}",
            "target": self.facts.document(),
            "counts": dict(count_objects(self.audit.tables)),
            "checked": [
                {
                    "code": result.invariant.code,
                    "slug": result.invariant.slug,
                    "state": result.state.value,
                    "objects": int(result.objects),
                    "reason": None if result.reason is None else printable(result.reason),
                }
                for result in self.audit.results
            ],
            "complete": self.audit.complete,
            "holes": [
                {"address": hexadecimal(address), "size": int(size), "needed_for": str(needed_for)}
                for address, size, needed_for in zip(
                    holes.address.tolist(), holes.size.tolist(), holes.needed_for, strict=True
                )
            ],
            "filtered": None if self.filtered is None else self.filtered.document(),
            "pages": coverage_document(self.audit.tables.pages),
            "looked": None if self.looked is None else self.looked.document(),
            "transient_total": self.audit.transient_total,
            "transient": [
                finding_document(finding)
                for finding in itertools.islice(self.audit.transients(), self.max_findings)
            ],
            "in_flight": [
                self._in_flight_document(state) for state in self.audit.in_flight(self.max_findings)
            ],
            "findings_total": self.audit.findings_total,
            "findings": [
                finding_document(finding) for finding in self.audit.findings(self.max_findings)
            ],
        }

    def text(self, style: Style) -> Iterator[str]:
        """See :meth:`anonvma_inspect.report.render.Report.text`."""
        yield describe_counts(count_objects(self.audit.tables))
        yield from self.facts.tag_lines()
        yield ""
        yield from table([_verdict_row(result, style) for result in self.audit.results])
        yield ""
        if (pages := self.audit.tables.pages) is not None:
            yield from describe_coverage(pages)
            yield ""
        invariants = {result.invariant.code: result.invariant for result in self.audit.results}
        shown = 0
        for finding in self.audit.findings(self.max_findings):
            yield from finding_text(finding, invariants[finding.code], style)
            yield ""
            shown += 1
        total = self.audit.findings_total
        if shown < total:
            yield (
                f"{shown:,} of {total:,} findings listed: --max-findings {total} lists all, and so "
                "does --format json"
            )
            yield ""
        if self.audit.in_flight_total:
            yield from self._in_flight()
            yield ""
        if not self.audit.tables.complete:
            yield style.warn(_describe_holes(self.audit.tables.holes))
            if self.filtered is not None:
                yield self.filtered.message
            yield ""
        if self.looked is not None:
            yield self._how_it_looked(self.looked)
            yield ""
        yield self._last_line(style)

    def _how_it_looked(self, looked: Looked) -> str:
        by_code = [
            f"{result.invariant.code} {result.total:,}"
            for result in self.audit.transient
            if result.total
        ]
        what = f"looked for {looked.describe()}"
        if not by_code:
            return f"{what}: no suspicion"
        return (
            f"{what}: {counted(self.audit.transient_total, 'suspicion')} transient, not there or "
            f"not at rest when read again ({', '.join(by_code)})"
        )

    # States that operations under way explain, a line each, by operation.
    def _in_flight(self) -> Iterator[str]:
        total = self.audit.in_flight_total
        kinds = ", ".join(
            f"{count:,} {name}" for name, count in sorted(self.audit.in_flight_counts.items())
        )
        yield (
            f"in flight: {counted(total, 'state')} explained by operations that hold their locks: "
            f"{kinds}"
        )
        states = sorted(
            self.audit.in_flight(self.max_findings), key=lambda state: state.operation.name
        )
        yield from table([self._in_flight_row(state) for state in states])
        if len(states) < total:
            yield f"  {len(states):,} of {total:,} listed"

    def _in_flight_document(self, state: InFlight) -> Document:
        lock = state.operation.lock
        owner: Document | None = None
        if lock.pid is not None:
            functions = self.functions.get(lock.pid)
            owner = {
                "pid": lock.pid,
                "comm": escape(lock.comm) if lock.comm else None,
                "functions": None if functions is None else list(functions),
            }
        return {
            **finding_document(state.finding),
            "operation": state.operation.name,
            "lock": {"type": lock.kind, "address": hexadecimal(lock.address), "held": lock.held},
            "owner": owner,
        }

    def _in_flight_row(self, state: InFlight) -> tuple[str, ...]:
        finding, lock = state.finding, state.operation.lock
        functions = () if lock.pid is None else self.functions.get(lock.pid, ())
        doing = f", in {describe_calls(functions)}" if functions else ""
        return (
            f"  {state.operation.name}",
            f"{finding.code} {finding.slug}",
            f"{finding.object_type} {hexadecimal(finding.object_address)}",
            _describe_lock(lock) + doing,
        )

    # What was asked for by name and could not be checked.
    def _not_done(self) -> list[str]:
        return [
            result.invariant.code
            for result in self.audit.results
            if result.state is State.NOT_CHECKED and result.invariant.code in self.must_run
        ]

    def _last_line(self, style: Style) -> str:
        audit, outcome = self.audit, self.outcome
        total, totals = audit.findings_total, audit.totals
        done = sum(result.state in _DONE for result in audit.results)
        figures = [counted(done, "check"), counted(total, "finding")]
        if total:
            figures[-1] += (
                f" ({counted(totals[Severity.ERROR], 'error')}, "
                f"{counted(totals[Severity.WARNING], 'warning')})"
            )
        if audit.in_flight_total:
            figures.append(f"{counted(audit.in_flight_total, 'state')} in flight")
        if not audit.tables.complete:
            figures.append(counted(len(audit.tables.holes.address), "hole"))
        not_done = sorted({*self._not_done(), *(r.invariant.code for r in audit.failures)})
        if not_done:
            figures.append(f"{' '.join(not_done)} not checked")
        if total:
            first = next(result.invariant.code for result in audit.results if result.total)
            figures.append(f"see: anonvma-inspect explain {first}")
        elif not audit.tables.complete:
            figures.append("see: anonvma-inspect --format json audit")
        paint = {Outcome.CLEAN: style.good, Outcome.VIOLATED: style.bad}.get(outcome, style.warn)
        return f"{paint(outcome.value + ':')} {', '.join(figures)}"


def _verdict_row(result: Result, style: Style) -> tuple[str, str, str]:
    paint = {State.OK: style.good, State.VIOLATED: style.bad, State.WARNED: style.warn}
    invariant = result.invariant
    if result.state in _DONE:
        what = f"{result.objects:,} {invariant.objects}"
        if result.total:
            what += f", {counted(result.total, 'finding')}"
    else:
        what = printable(result.reason or "")
    return (
        f"{invariant.code} {invariant.slug}",
        paint.get(result.state, style.faint)(result.state.value),
        what,
    )


def finding_document(finding: Finding) -> Document:
    """A finding as a part of a JSON answer."""
    where = finding.where
    return {
        "code": finding.code,
        "slug": finding.slug,
        "severity": finding.severity.value,
        "message": printable(finding.message),
        "object": {
            "type": finding.object_type,
            "address": hexadecimal(finding.object_address),
        },
        "expected": printable(finding.expected),
        "actual": printable(finding.actual),
        "where": {
            "pid": None if where.pid is None else int(where.pid),
            "comm": None if where.comm is None else escape(where.comm),
            "start": hex_or_null(where.start),
            "end": hex_or_null(where.end),
        },
        "root": hex_or_null(finding.root),
        "cause": hex_or_null(finding.cause),
    }


def _describe_lock(lock: Lock) -> str:
    if lock.held == "exit":
        return f"mm_struct {hexadecimal(lock.address)} has no users"
    struct = "mm_struct" if lock.kind == "mmap_lock" else "anon_vma"
    how = lock.held if lock.held == "waited for" else f"locked for {lock.held}"
    text = f"{struct} {hexadecimal(lock.address)} {how}"
    if lock.pid is not None:
        text += f" by PID {lock.pid}"
    if lock.comm:
        text += f" ({escape(lock.comm)})"
    return text


def finding_text(finding: Finding, invariant: Invariant, style: Style) -> Iterator[str]:
    """A finding for people, line by line."""
    paint = style.bad if finding.severity is Severity.ERROR else style.warn
    yield f"{paint(finding.code)} {finding.slug}: {printable(finding.message)}"
    object_ = f"{finding.object_type} {hexadecimal(finding.object_address)}"
    parts = [
        ("object", style.strong(object_)),
        ("expected", printable(finding.expected)),
        ("actual", printable(finding.actual)),
        ("word", hex_or_null(finding.word)),
        ("where", _describe_where(finding.where)),
        ("root", hex_or_null(finding.root)),
        (
            "cause",
            None
            if finding.cause is None
            else f"{hexadecimal(finding.cause)}, which other findings blame as well",
        ),
        ("leads to", invariant.consequence),
    ]
    for name, value in parts:
        if value is not None:
            yield f"  {name:8}  {value}"


def _describe_where(where: Where) -> str | None:
    parts = []
    if where.pid is not None:
        parts.append(f"PID {where.pid}")
    if where.comm:
        parts.append(f"({escape(where.comm)})")
    if where.start is not None and where.end is not None:
        parts.append(span(where.start, where.end))
    return " ".join(parts) or None


def _describe_holes(holes: Holes) -> str:
    kinds = Counter(str(needed_for) for needed_for in holes.needed_for)
    what = ", ".join(f"{count:,} for {kind}" for kind, count in sorted(kinds.items()))
    return (
        f"{counted(len(holes.address), 'hole')} in the target ({what}): what lies there was not "
        "checked"
    )
