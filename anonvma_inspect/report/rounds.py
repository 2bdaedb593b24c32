"""The answers of ``audit --every``: one a round, and a summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from anonvma_inspect.invariants.base import Finding, Severity
from anonvma_inspect.report.audit import AuditReport, Outcome, finding_document, finding_text
from anonvma_inspect.report.counts import count_objects, describe_counts
from anonvma_inspect.report.facts import Document, TargetFacts
from anonvma_inspect.report.style import Style
from anonvma_inspect.report.words import counted

__all__ = ("History", "RoundReport", "RoundsReport")

ROUND_SCHEMA = "anonvma-inspect/audit-round/1"
ROUNDS_SCHEMA = "anonvma-inspect/audit-rounds/1"

# What findings are told apart by is kept for so many of them; the target may be corrupt throughout.
_MAX_KNOWN = 100_000
_NAMES = {"vmas": "VMAs", "avcs": "AVCs", "unlisted_mms": "unlisted mms"}


class History:
    """What rounds have come to, in memory that does not grow with their number."""

    def __init__(self) -> None:
        self.facts: TargetFacts | None = None
        self.rounds = 0
        self.outcomes: Counter[Outcome] = Counter()
        self.seconds = 0.0
        self.transient = 0
        self.findings: Counter[Severity] = Counter()
        self.first: dict[str, int] = {}
        self.last: dict[str, int] = {}
        #: In how many rounds each count was higher than in the one before.
        self.grew: Counter[str] = Counter()
        self._known: set[tuple[str, str, int]] = set()

    def add(self, report: AuditReport) -> RoundReport:
        """Take a round into account.

        :param report: Of a target that runs.
        """
        counts = count_objects(report.audit.tables)
        before = self.last or counts
        delta = {name: count - before[name] for name, count in counts.items()}
        self.first = self.first or counts
        self.last = counts
        self.grew.update(name for name, change in delta.items() if change > 0)
        self.facts = report.facts
        self.rounds += 1
        self.outcomes[report.outcome] += 1
        self.seconds += report.looked.seconds if report.looked is not None else 0
        self.transient += report.audit.transient_total
        new = [finding for finding in report.audit.findings(_MAX_KNOWN) if self._is_new(finding)]
        self.findings.update(finding.severity for finding in new)
        return RoundReport(self.rounds, report, counts, delta, new)

    def _is_new(self, finding: Finding) -> bool:
        key = (finding.code, finding.message, finding.object_address)
        if key in self._known or len(self._known) >= _MAX_KNOWN:
            return False
        self._known.add(key)
        return True


@dataclass(frozen=True)
class RoundReport:
    """One round.

    :ivar number: From 1 on.
    :ivar report: Its audit.
    :ivar counts: What it read.
    :ivar delta: How much more than the round before.
    :ivar new: Findings that no round before had.
    """

    number: int
    report: AuditReport
    counts: Mapping[str, int]
    delta: Mapping[str, int]
    new: Sequence[Finding]

    items = None

    def document(self) -> Document:
        """See :meth:`anonvma_inspect.report.render.Report.document`."""
        audit, looked = self.report.audit, self.report.looked
        return {
            "schema": ROUND_SCHEMA,
            "round": self.number,
            "outcome": self.report.outcome.value,
            "counts": dict(self.counts),
            "delta": dict(self.delta),
            "complete": audit.complete,
            "looked": None if looked is None else looked.document(),
            "transient_total": audit.transient_total,
            "findings_total": audit.findings_total,
            "new_findings": [
                finding_document(finding) for finding in self.new[: self.report.max_findings]
            ],
        }

    def text(self, style: Style) -> Iterator[str]:
        """See :meth:`anonvma_inspect.report.render.Report.text`."""
        report = self.report
        paint = {Outcome.CLEAN: style.good, Outcome.VIOLATED: style.bad}.get(
            report.outcome, style.warn
        )
        parts = [counted(report.audit.findings_total, "finding")]
        if report.audit.transient_total:
            parts.append(f"{report.audit.transient_total:,} transient")
        if report.looked is not None:
            parts.append(report.looked.describe())
        parts += [
            f"{self.counts[name]:,} {_NAMES.get(name, name)}"
            + (f" ({change:+,})" if change else "")
            for name, change in self.delta.items()
            if name in ("processes", "vmas", "avcs", "anon_vmas")
        ]
        yield f"round {self.number}: {paint(report.outcome.value)}, {', '.join(parts)}"
        invariants = {result.invariant.code: result.invariant for result in report.audit.results}
        for finding in self.new[: report.max_findings]:
            yield from finding_text(finding, invariants[finding.code], style)


@dataclass(frozen=True)
class RoundsReport:
    """What all rounds have come to.

    :ivar interrupted: Somebody ended them.
    """

    history: History
    interrupted: bool

    items = None

    def document(self) -> Document:
        """See :meth:`anonvma_inspect.report.render.Report.document`."""
        history = self.history
        return {
            "schema": ROUNDS_SCHEMA,
            "target": None if history.facts is None else history.facts.document(),
            "rounds": history.rounds,
            "interrupted": self.interrupted,
            "outcomes": {outcome.value: history.outcomes[outcome] for outcome in Outcome},
            "findings_total": history.findings.total(),
            "transient_total": history.transient,
            "seconds": round(history.seconds, 3),
            "counts": {
                name: {
                    "first": count,
                    "last": history.last[name],
                    "rounds_grown": history.grew[name],
                }
                for name, count in history.first.items()
            },
        }

    def text(self, style: Style) -> Iterator[str]:
        """See :meth:`anonvma_inspect.report.render.Report.text`."""
        history = self.history
        if not history.rounds:
            yield "no round was finished"
            return
        yield ""
        yield f"first  {describe_counts(history.first)}"
        yield f"last   {describe_counts(history.last)}"
        # One that only ever grew.
        grown = [
            f"{_NAMES.get(name, name)} by {history.last[name] - count:,}"
            for name, count in history.first.items()
            if history.rounds > 2 and history.grew[name] == history.rounds - 1
        ]
        if grown:
            yield style.warn(f"grew in every round: {', '.join(grown)}")
        outcomes = ", ".join(
            f"{history.outcomes[outcome]:,} {outcome.value}"
            for outcome in Outcome
            if history.outcomes[outcome]
        )
        findings = history.findings
        ended = "interrupted after " if self.interrupted else ""
        yield (
            f"{ended}{counted(history.rounds, 'round')}: {outcomes}; "
            f"{counted(findings.total(), 'finding')} "
            f"({counted(findings[Severity.ERROR], 'error')}, "
            f"{counted(findings[Severity.WARNING], 'warning')}), "
            f"{history.transient:,} transient, {history.seconds / history.rounds:.2f} s a round"
        )
