"""What the tool said of a target: its exit code, and its answer in JSON taken together."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ("Verdict", "audit_command", "audited", "read_verdict", "rounds_command")

# Exit codes with which an audit has an answer: clean, violated, incomplete.
_ANSWERS = (0, 1, 4)


@dataclass
class Verdict:
    """One audit."""

    code: int
    counts: Mapping[str, int] = field(default_factory=dict)
    #: Findings of severity error, by code; a failure of the tool itself counts as ``failed``.
    errors: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    #: Operations that were under way, by name.
    in_flight: Counter[str] = field(default_factory=Counter)
    transient: int = 0
    #: The findings, a line each; or what the tool complained of.
    said: Sequence[str] = ()

    @property
    def wrong(self) -> bool:
        """Whether there is an error, or no answer."""
        return bool(self.errors)


def _line(finding: Mapping[str, Any]) -> str:
    thing = finding["object"]
    return (
        f"{finding['code']} {finding['message']}: {thing['type']} {thing['address']}, "
        f"expected {finding['expected']}, actual {finding['actual']}"
    )


def read_verdict(code: int, answer: str, complaint: str = "") -> Verdict:
    """A verdict from an audit's exit code, its JSON and what it wrote to standard error."""
    try:
        made = json.loads(answer) if code in _ANSWERS else None
    except ValueError:
        made = None
    if not isinstance(made, dict):
        said = complaint.strip().splitlines()[-5:] or ["(it said nothing)"]
        return Verdict(code, errors=Counter(failed=1), said=said)
    findings = made.get("findings", [])
    by_severity: dict[str, Counter[str]] = {"error": Counter(), "warning": Counter()}
    for one in findings:
        by_severity[one["severity"]][one["code"]] += 1
    # One operation leaves several states that it explains; its lock tells it from others.
    under_way = {(one["operation"], one["lock"]["address"]) for one in made.get("in_flight", [])}
    return Verdict(
        code,
        counts=made.get("counts", {}),
        errors=by_severity["error"],
        warnings=by_severity["warning"],
        in_flight=Counter(operation for operation, _ in under_way),
        transient=made.get("transient_total", 0),
        said=[_line(one) for one in findings],
    )


def audit_command(*target: str) -> list[str]:
    """The audit of a target as this interpreter runs it, with the package of this checkout."""
    return [sys.executable, "-m", "anonvma_inspect", *target, "audit", "--format", "json"]


def rounds_command(*target: str, count: int) -> list[str]:
    """The same of a target that runs, round after round."""
    command = [sys.executable, "-m", "anonvma_inspect", "-q", *target, "--format", "jsonl", "audit"]
    return [*command, "--every", "0", "--count", str(count)]


def audited(core: Path, patience: float = 300) -> Verdict:
    """Audit a dump, as anyone would: by the command line."""
    try:
        done = subprocess.run(
            audit_command("-c", str(core)),
            capture_output=True,
            text=True,
            check=False,
            timeout=patience,
        )
    except subprocess.TimeoutExpired:
        return Verdict(-1, errors=Counter(failed=1), said=[f"no answer within {patience:.0f} s"])
    return read_verdict(done.returncode, done.stdout, done.stderr)
