"""Each allocation of the kernel's operations made to fail, one at a time, and what that leaves."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .capture import Lab, Say
from .console import complaints
from .guest import Guest
from .specs import Plan
from .word import Event, parse_event

__all__ = ("Operation", "Step", "failed_in", "run_faults")

# Slab caches apart, so that what is left over can be counted; and no message is held back.
APPEND = "slab_nomerge printk.devkmsg=on"

# What stands between the function that asks for memory and the one that refuses it.
_ALLOCATOR = re.compile(
    r"dump_stack|should_fail|__?should_fail|fail_dump|kmem_cache_|__kmem_cache|k[mz]alloc|__k[mz]"
    r"|_*alloc_(frozen_)?pages|_*get_free_pages|get_zeroed_page|_*slab_|new_slab|allocate_slab"
    r"|folio_alloc|vma_alloc_|mas_alloc_nodes|prepare_alloc_pages|_*vmalloc|pte_alloc_one$"
    r"|pagetable_alloc|bulk|kmemdup"
)
_FRAME = re.compile(r"^(?:\[[^\]]*\] )? ?([A-Za-z_]\w*)(?:\.\w+)*\+0x[0-9a-f]+/0x[0-9a-f]+", re.M)


def failed_in(console: str) -> str | None:
    """The function whose allocation was made to fail, by the first such stack on the console.

    None if there is none: some allocations ask for no message.
    """
    _, _, after = console.partition("FAULT_INJECTION: forcing a failure")
    names = (match.group(1) for match in _FRAME.finditer(after))
    return next((name for name in names if not _ALLOCATOR.match(name)), None)


@dataclass(frozen=True)
class Step:
    """An operation in which allocations failed, or the last one, in which none did."""

    number: int
    #: Which allocation failed, and how many from there on.
    nth: int
    row: int
    failed: bool
    #: What the operation said: 0, or an error's number, negative.
    result: int
    #: The function whose allocation failed, if the kernel told.
    where: str | None
    #: What is wrong: of the audit, and of the kernel's own checks.
    wrong: Sequence[str]


@dataclass
class Operation:
    """The steps of one operation."""

    name: str
    steps: list[Step] = field(default_factory=list)
    #: Whether it was done until nothing failed any more.
    finished: bool = False
    #: By slab cache: objects that there are more after it than before.
    left: dict[str, int] = field(default_factory=dict)

    @property
    def wrong(self) -> int:
        """Steps with which something is wrong; objects left over count as one."""
        return sum(bool(step.wrong) for step in self.steps) + bool(self.left)


#: Judges a dump: what is wrong with it.
Judge = Callable[[Path], list[str]]


def run_faults(lab: Lab, plan: Plan, limit: int, judge: Judge, keep: Path | None, show: Say) -> int:
    """Run the workload ``faults`` step by step, and judge a dump of each.

    Shows a line an operation: steps, allocations that failed, operations refused, steps with which
    something is wrong; then the functions whose allocations failed, and how often.

    :param limit: End after this many steps.
    :param keep: Where to keep dumps with which something is wrong.
    :return: With how many steps something is wrong.
    """
    prepared = lab.prepare(plan, ["word=0"])
    operations: list[Operation] = []
    show(_HEAD)

    def work(guest: Guest) -> None:
        with tempfile.TemporaryDirectory(prefix="lab-faults-") as scratch:
            walk(guest, Path(scratch) / "step.core")

    def walk(guest: Guest, core: Path) -> None:
        for event, text in _events(guest, lab.timeout):
            name = str(event["operation"])
            if not operations or operations[-1].name != name:
                operations.append(Operation(name))
            operation = operations[-1]
            if event["event"] == "LAB-LEFT":
                operation.finished = True
                counts = {key: int(value) for key, value in event.items() if _is_count(key)}
                operation.left = {key: value for key, value in counts.items() if value}
                show(_line(operation))
                continue
            guest.dump(core)
            # The guest does the next step while this one is judged.
            guest.go_on()
            step = Step(
                number=int(event["number"]),
                nth=int(event["nth"]),
                row=int(event["row"]),
                failed=bool(event["failed"]),
                result=int(event["result"]),
                where=failed_in(text) if event["failed"] else None,
                wrong=[*complaints(text), *judge(core)],
            )
            operation.steps.append(step)
            for line in step.wrong:
                lab.say(f"{name} nth={step.nth} row={step.row} ({step.where}): {line}")
            if step.wrong and keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                core.replace(keep / f"{name}-{step.nth}-{step.row}.core")
            if step.number == limit:
                return

    lab.run(prepared, work, until="LAB-(?:STEP|OVER)")
    if operations and not operations[-1].finished:
        show(_line(operations[-1]))
    steps = [step for operation in operations for step in operation.steps]
    wrong = sum(operation.wrong for operation in operations)
    show(
        f"{len(operations)} operations, {len(steps)} steps, "
        f"{sum(step.failed for step in steps)} allocations failed, {wrong} with something wrong"
    )
    return wrong


def _is_count(key: str) -> bool:
    return key not in ("event", "operation")


# What the workload says, with what the kernel said since the event before.
def _events(guest: Guest, timeout: float) -> Iterator[tuple[Event, str]]:
    start = 0
    while True:
        end = guest.wait(timeout, "LAB-(?:STEP|LEFT|OVER)", start)
        text = guest.console.read_bytes()[start:end].decode("latin-1")
        start = end
        event = parse_event(text[text.rindex("LAB-") :].strip())
        if event["event"] == "LAB-OVER":
            return
        yield event, text


_HEAD = f"{'operation':16} {'steps':>5} {'failed':>6} {'refused':>7} {'wrong':>5} allocations of"


def _line(operation: Operation) -> str:
    failed = [step for step in operation.steps if step.failed]
    where = Counter(step.where or "(not told)" for step in failed)
    refused = sum(step.result < 0 for step in failed)
    cells = [
        f"{operation.name:16} {len(operation.steps):5} {len(failed):6} {refused:7}",
        f"{operation.wrong:5} " + ", ".join(f"{name} {n}" for name, n in where.most_common()),
    ]
    if operation.left:
        cells.append("; left: " + ", ".join(f"{key} {n}" for key, n in operation.left.items()))
    if not operation.finished:
        cells.append("; not finished")
    return " ".join(cells)
