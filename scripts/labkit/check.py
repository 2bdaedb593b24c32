"""Whether a kernel keeps its reverse map right under the workloads: good, bad, or untestable."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .capture import Lab, Say
from .console import complaints
from .errors import BootError, GuestError, LabError
from .guest import Guest
from .kernels import Kernel, KernelImage
from .specs import PARAMETERS, Plan
from .word import parse_event

__all__ = ("BAD", "GOOD", "MATRIX", "UNTESTABLE", "Outcome", "check", "steps_text")

#: Exit codes, as ``git bisect run`` takes them.
GOOD, BAD, UNTESTABLE = 0, 1, 125

#: The workloads with their parameters, in the order in which they run.
MATRIX: tuple[tuple[str, dict[str, int]], ...] = (
    ("forktree", {"seed": 1}),
    ("forkchain", {"seed": 2}),
    ("vmaops", {"seed": 3}),
    ("vmaops", {"seed": 4, "guards": 25, "operations": 300}),
    ("special", {"seed": 5}),
    ("mixed", {"seed": 6}),
    ("forkchain", {"seed": 7, "length": 20, "percent": 80}),
    ("vmaops", {"seed": 8, "processes": 30, "pages": 24}),
    ("pages", {"seed": 9}),
)

# Lines a step.
_SHOWN = 8

#: What is wrong with a dump; a LabError if it cannot be read.
Judge = Callable[[Path], list[str]]


@dataclass
class Outcome:
    """What came of a check."""

    #: Steps that were audited.
    steps: int = 0
    #: Workloads that this kernel cannot run, and why.
    left_out: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    #: Why there is no verdict, if so.
    untestable: str | None = None

    @property
    def code(self) -> int:
        """The exit code."""
        if self.wrong:
            return BAD
        return UNTESTABLE if self.untestable or not self.steps else GOOD


# A kernel that warns does so often, of one task after the other.
def _each_once(said: Sequence[str]) -> list[str]:
    counts = Counter(re.sub(r",? CPU[:#].*", "", line) for line in said)
    return [line if count == 1 else f"{line} ({count} times)" for line, count in counts.items()]


def steps_text(matrix: Sequence[tuple[str, dict[str, int]]]) -> str:
    """The steps as the guest reads them."""
    lines = []
    for name, changed in matrix:
        words = {**PARAMETERS[name], **changed}
        lines.append(" ".join([name, *(f"{key}={value}" for key, value in words.items())]))
    return "\n".join([*lines, ""])


def check(
    lab: Lab,
    chosen: tuple[Kernel, KernelImage],
    judge: Judge,
    show: Say,
    *,
    append: str = "",
    memory: int = 256,
    matrix: Sequence[tuple[str, dict[str, int]]] = MATRIX,
    keep: Path | None = None,
) -> Outcome:
    """Boot a kernel, run the workloads in turn, and audit it with their processes and without.

    What the kernel itself complains of counts as well; so does a guest that dies, or hangs, after
    it ran something. One that does not come so far cannot be tested.

    :param keep: Where to keep dumps with which something is wrong.
    """
    outcome = Outcome()
    programs = tuple(sorted({name for name, _ in matrix}))
    plan = Plan(
        name=f"check-{chosen[1].release}",
        kernel=chosen[0].name,
        workload="matrix",
        parameters={"talk": 1},
        memory=memory,
        word=False,
        programs=programs,
        append=f"printk.devkmsg=on {append}".strip(),
    )
    files = {"lab/steps": steps_text(matrix).encode()}
    begun = False

    def work(guest: Guest) -> None:
        nonlocal begun
        begun = True
        with tempfile.TemporaryDirectory(prefix="lab-check-", dir=lab.cache) as scratch:
            _walk(guest, Path(scratch) / "step.core")

    def _walk(guest: Guest, core: Path) -> None:
        at = 0
        while True:
            start, at = at, guest.wait(lab.timeout, "LAB-(?:STEP|OVER)", at)
            text = guest.console.read_bytes()[start:at].decode("latin-1")
            event = parse_event(text[text.rindex("LAB-") :].strip())
            said = _each_once(complaints(text))
            if event["event"] == "LAB-OVER":
                outcome.wrong += said
                return
            name = f"{event['workload']} {event['state']}"
            if int(event["result"]) > 0:
                outcome.left_out.append(
                    f"{event['workload']}: {str(event['said']).replace('_', ' ')}"
                )
            elif int(event["result"]) < 0:
                said.append("the workload ended before it was ready")
            guest.dump(core)
            wrong = [*said, *judge(core)]
            guest.go_on()
            outcome.steps += 1
            show(f"{int(event['number']):3} {name:16} {len(wrong) or 'nothing'} wrong")
            for line in wrong[:_SHOWN]:
                show(f"      {line}")
            if wrong[_SHOWN:]:
                show(f"      and {len(wrong) - _SHOWN} more")
            outcome.wrong += [f"{name}: {line}" for line in wrong]
            if wrong and keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                core.replace(keep / f"{plan.name}-{int(event['number']):02}.core")

    try:
        prepared = lab.prepare(plan, ["word=0"], files, chosen)
        lab.run(prepared, work, until="LAB-(?:STEP|OVER)")
    except BootError as error:
        outcome.untestable = str(error)
    except GuestError as error:
        if begun:
            outcome.wrong.append(str(error))
        else:
            outcome.untestable = str(error)
    except LabError as error:
        outcome.untestable = str(error)
    return outcome
