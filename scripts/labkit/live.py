"""Audits of a guest's own kernel, from inside, while a storm goes on; thousands of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import manifest
from .capture import Lab, Say
from .errors import GuestError
from .guest import Guest
from .interpreter import COMMAND
from .shell import Shell
from .specs import Plan
from .stress import STRESS

__all__ = (
    "ROUND",
    "History",
    "Round",
    "audit_rounds",
    "guest_command",
    "live",
    "operations",
    "read_round",
    "start_program",
    "start_storm",
)

ROUND = "anonvma-inspect/audit-round/1"
# Plain, although it writes to a terminal; and what it complains of belongs on the console.
_AUDIT = f"NO_COLOR=1 {COMMAND} -m anonvma_inspect -k --format jsonl audit --every 0"
_COMPLAINT = "2>/lab/complaint; ended=$?; cat /lab/complaint >/dev/console; exit $ended"
# Seconds: for a round under emulation, on a machine that has other things to do.
_PATIENCE = 900.0


@dataclass
class Round:
    """One audit, as the tool tells of it."""

    outcome: str
    seconds: float
    bytes_read: int
    transient: int
    findings: int
    vmas: int
    #: What is new in it: code, severity, message and object of each finding.
    said: list[str] = field(default_factory=list)
    #: Of these, of severity error.
    errors: int = 0


def read_round(line: str) -> Round | None:
    """A round from a line of the audit's answer; None for any other line."""
    try:
        made = json.loads(line)
    except ValueError:
        return None
    if not isinstance(made, dict) or made.get("schema") != ROUND:
        return None
    looked = made["looked"] or {"seconds": 0.0, "bytes_read": 0}
    new = made["new_findings"]
    return Round(
        outcome=made["outcome"],
        seconds=looked["seconds"],
        bytes_read=looked["bytes_read"],
        transient=made["transient_total"],
        findings=made["findings_total"],
        vmas=made["counts"]["vmas"],
        said=[_line(one) for one in new],
        errors=sum(one["severity"] == "error" for one in new),
    )


def _line(finding: Mapping[str, Any]) -> str:
    thing = finding["object"]
    return (
        f"{finding['code']} ({finding['severity']}) {finding['message']}: {thing['type']} "
        f"{thing['address']}, expected {finding['expected']}, actual {finding['actual']}"
    )


@dataclass
class History:
    """What all rounds on one kernel came to, in a file, so that they can be gone on with."""

    boots: int = 0
    rounds: int = 0
    #: How many rounds ended how.
    outcomes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    longest: float = 0.0
    bytes_read: int = 0
    transient: int = 0
    errors: int = 0
    #: What was found, and what went wrong.
    said: list[str] = field(default_factory=list)
    #: How often the tool ended with which code.
    exits: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> History:
        """The history in a file; an empty one if there is no file."""
        return cls(**json.loads(path.read_text())) if path.is_file() else cls()

    def save(self, path: Path) -> None:
        """Write the file."""
        manifest.write(asdict(self), path)

    def add(self, one: Round) -> None:
        """Take a round into account."""
        self.rounds += 1
        self.outcomes[one.outcome] = self.outcomes.get(one.outcome, 0) + 1
        self.seconds += one.seconds
        self.longest = max(self.longest, one.seconds)
        self.bytes_read += one.bytes_read
        self.transient += one.transient
        self.errors += one.errors
        self.said += one.said

    def ended(self, code: int) -> None:
        """Take the end of a process into account."""
        self.exits[str(code)] = self.exits.get(str(code), 0) + 1

    def summary(self, name: str) -> list[str]:
        """The history in a few lines."""
        each = max(self.rounds, 1)
        outcomes = ", ".join(f"{count} {name}" for name, count in sorted(self.outcomes.items()))
        exits = ", ".join(f"{code} ({count} times)" for code, count in sorted(self.exits.items()))
        return [
            f"{name}: {self.rounds} rounds in {self.boots} boots: {outcomes or 'none'}; "
            f"{self.errors} errors",
            f"  {self.seconds / each:.1f} s a round, {self.longest:.1f} s the longest; "
            f"{self.bytes_read / each / 2**20:.1f} MiB and {self.transient / each:.1f} transient "
            f"a round; exit codes {exits or 'none'}",
            *(f"  {line}" for line in self.said),
        ]


def start_storm(shell: Shell, words: Iterable[str]) -> None:
    """Start a storm and wait until all of it is there."""
    start_program(shell, "storm", words)


def start_program(shell: Shell, name: str, words: Iterable[str]) -> None:
    """Start a workload and wait until it says that it is ready."""
    command = f"/lab/{name} {' '.join(words)} 3>/lab/log & "
    wait = "for i in $(seq 120); do grep -q -e READY -e FAILED /lab/log && break; sleep 1; done"
    _, said = shell.run(f"{command} {wait}; cat /lab/log", patience=180)
    if said[-1:] != ["READY"]:
        raise GuestError(f"{name} did not begin: {' '.join(said) or 'it says nothing'}")


def operations(shell: Shell) -> tuple[float, int]:
    """The guest's clock, in seconds, and how many operations the storm has done."""
    _, said = shell.run("cat /proc/uptime; od -A n -t u8 -N 8 /lab/operations")
    return float(said[0].split()[0]), int(said[1])


def guest_command(count: int) -> str:
    """The line of shell with which a guest audits itself, round after round in one process."""
    return f"{_AUDIT} --count {count} {_COMPLAINT}"


def audit_rounds(shell: Shell, count: int) -> Iterable[Round]:
    """Have the guest audit itself; :attr:`Shell.status` has the exit code."""
    shell.start(guest_command(count))
    for line in shell.lines(_PATIENCE):
        one = read_round(line)
        if one is not None:
            yield one


def live(
    lab: Lab, plan: Plan, path: Path, total: int, show: Say, *, a_boot: int, evidence: Path
) -> History:
    """Go on with the rounds on one kernel until there are `total`, or one has an error.

    :param path: Where the history is.
    :param a_boot: Rounds a boot; the next one's storm has another seed.
    :param evidence: A directory for the dump of a guest in which something was found.
    """
    history = History.load(path)

    def work(guest: Guest) -> None:
        shell = Shell(guest)
        start_storm(shell, seeded.arguments())
        if plan.stress:
            shell.run(f"renice -n 19 -p $$ >/dev/null; {STRESS} >/dev/console 2>&1 &")
        history.boots += 1
        begun, before = operations(shell)
        for one in audit_rounds(shell, min(a_boot, total - history.rounds)):
            history.add(one)
            history.save(path)
            show(
                f"{history.rounds:5} {one.outcome} {one.seconds:6.1f} s {one.vmas:5} VMAs "
                f"{one.bytes_read / 2**20:6.1f} MiB {one.transient:5} transient"
            )
            for line in one.said:
                show(f"      {line}")
            if one.errors:
                save(guest)
                return
        assert shell.status is not None
        history.ended(shell.status)
        if shell.status not in (0, 1, 4):
            history.errors += 1
            history.said.append(f"The audit ended with status {shell.status}")
            save(guest)
            return
        ended, after = operations(shell)
        rate = (after - before) / max(ended - begun, 0.01)
        show(f"      the storm did {rate:.0f} operations a second meanwhile")

    def save(guest: Guest) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%S")
        guest.stop()
        guest.dump(evidence / f"{plan.name}-{stamp}.core")
        (evidence / f"{plan.name}-{stamp}.console").write_bytes(guest.console.read_bytes())
        (evidence / f"{plan.name}-{stamp}.jsonl").write_bytes(guest.word())

    while history.rounds < total and not history.errors:
        seeded = plan.with_seed(plan.seed + history.boots)
        try:
            lab.run(lab.prepare(seeded, []), work)
        finally:
            history.save(path)
    return history
