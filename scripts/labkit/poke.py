"""One word of a running guest changed from outside, and whether all who look at it find that."""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .aim import Change, Scene, open_scene
from .capture import Lab, Say
from .gdbstub import Stub
from .guest import Guest
from .live import ROUND, guest_command, start_storm
from .shell import Shell
from .specs import Plan
from .verdict import audit_command, rounds_command

__all__ = ("Poked", "about", "poke")

_ROUNDS = 2
# What a kernel survives to whom nothing happens in that family.
_HARMLESS = ("anon_vma_chain.rb_subtree_last", "anon_vma.parent")


@dataclass(frozen=True)
class Poked:
    """What one way of looking made of one change.

    :ivar round: The round in which it was found; None: it was not.
    :ivar others: Errors about other things.
    """

    change: Change
    way: str
    round: int | None
    codes: tuple[str, ...]
    others: tuple[str, ...]

    def __str__(self) -> str:
        found = "NOT FOUND" if self.round is None else f"found in round {self.round}"
        other = f"; and {', '.join(self.others)}" if self.others else ""
        return f"{self.way:6} {self.change}: {found} {' '.join(self.codes)}{other}"


def about(change: Change, rounds: list[dict[str, Any]], way: str) -> Poked:
    """What rounds of audits, in JSON, say of a change."""
    named = {f"{address:#x}" for address in change.related}
    found: int | None = None
    codes: set[str] = set()
    others: set[str] = set()
    for one in rounds:
        for finding in one["new_findings"]:
            if finding["severity"] != "error":
                continue
            if {finding["object"]["address"], finding["root"], finding["cause"]} & named:
                found = one["round"] if found is None else found
                codes.add(finding["code"])
            else:
                others.add(finding["code"])
    return Poked(change, way, found, tuple(sorted(codes)), tuple(sorted(others)))


def _rounds(answer: str) -> list[dict[str, Any]]:
    made = []
    for line in answer.splitlines():
        try:
            one = json.loads(line)
        except ValueError:
            continue
        if isinstance(one, dict) and one.get("schema") == ROUND:
            made.append(one)
    return made


def poke(lab: Lab, plan: Plan, show: Say) -> list[Poked]:
    """Change words of a quiet family while a storm goes on beside it, one after the other.

    Each is looked for from inside the guest and from outside, and then put back.

    :param plan: A guest with a shell, and a storm with a quiet family.
    """
    outcome: list[Poked] = []

    def work(guest: Guest) -> None:
        shell = Shell(guest)
        start_storm(shell, plan.arguments())
        scene = _scene(lab, guest)
        changes = [
            change
            for change in scene.changes("quiet", scene.quiet(), random.Random(plan.seed))
            if change.what in _HARMLESS
        ]
        ways: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "-k": lambda: _inside(shell),
            "--qemu": lambda: _rounds(
                _outside(rounds_command("--qemu", str(guest.second_qmp), count=_ROUNDS))
            ),
            "--gdb": lambda: _once(_outside(audit_command("--gdb", str(guest.gdb)))),
        }
        for change in changes:
            _write(guest, scene, change, change.old, change.new)
            for way, look in ways.items():
                outcome.append(about(change, look(), way))
                show(str(outcome[-1]))
            _write(guest, scene, change, change.new, change.old)
        # And put back, nobody finds it any more.
        for way, look in ways.items():
            rounds = look()
            for change in changes:
                again = about(change, rounds, way)
                if again.round is not None:
                    show(f"{way} still finds what was put back: {again}")
                    outcome.append(Poked(change, way, None, again.codes, again.others))

    lab.run(lab.prepare(plan, []), work)
    return outcome


# The quiet family stays where it is, so a dump tells where its words are.
def _scene(lab: Lab, guest: Guest) -> Scene:
    with tempfile.TemporaryDirectory(prefix="lab-poke-", dir=lab.cache) as scratch:
        core = Path(scratch) / "guest.core"
        guest.stop()
        guest.dump(core)
        guest.resume()
        return open_scene(core)


def _write(guest: Guest, scene: Scene, change: Change, old: int, new: int) -> None:
    at = scene.physical(change)
    with Stub(guest.gdb) as stub:
        if stub.read(at, change.size) != old:
            raise guest.failure(f"{change}: another word is there, so it is not quiet")
        stub.write(at, change.size, new)


def _inside(shell: Shell) -> list[dict[str, Any]]:
    shell.start(guest_command(_ROUNDS))
    return _rounds("\n".join(shell.lines(900)))


def _outside(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    return done.stdout


# One audit as a round: what stands still while it is looked at is looked at once.
def _once(answer: str) -> list[dict[str, Any]]:
    try:
        return [{"round": 1, "new_findings": json.loads(answer)["findings"]}]
    except (ValueError, KeyError):
        return []
