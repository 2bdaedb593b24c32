"""The package's verdict on a dump. Only what judges dumps one after the other imports it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from anonvma_inspect.collect import collect_audit
from anonvma_inspect.errors import TargetError
from anonvma_inspect.in_flight import audit
from anonvma_inspect.target import TargetOptions, open_target

from .errors import LabError

__all__ = ("examine", "judge", "judge_with")

_MOST = 20


def judge(core: Path) -> list[str]:
    """What an audit of a dump finds, and what keeps it from being complete.

    Objects that nothing leads to are looked for as well.
    """
    try:
        return examine(TargetOptions(core=str(core)))
    except TargetError as error:
        return [f"cannot be read: {error}"]


def examine(options: TargetOptions) -> list[str]:
    """The same of any target.

    :raises TargetError: if it cannot be read.
    """
    tables = collect_audit(open_target(options), leaks=True)
    made = audit(tables)
    said = [
        f"{one.code} {one.slug} ({one.severity.value}): {one.message}: {one.object_type} "
        f"{one.object_address:#x}, expected {one.expected}, actual {one.actual}"
        for one in made.findings(_MOST)
    ]
    if made.findings_total > _MOST:
        said.append(f"and {made.findings_total - _MOST} more findings")
    said += [f"{result.invariant.code} failed: {result.error!r}" for result in made.failures]
    if not tables.complete:
        said.append(f"incomplete: {len(tables.holes.address)} holes")
    return said


def judge_with(symbols: str | None) -> Callable[[Path], list[str]]:
    """The judge of dumps of a kernel whose vmlinux is this.

    :raises LabError: (the judge) if a dump cannot be read.
    """

    def judged(core: Path) -> list[str]:
        try:
            return examine(TargetOptions(core=str(core), symbols=symbols))
        except TargetError as error:
            raise LabError(f"The dump cannot be read: {error}") from None

    return judged
