"""The package's verdict on a dump. Only what judges dumps one after the other imports it."""

from __future__ import annotations

from pathlib import Path

from anonvma_inspect.collect import collect_audit
from anonvma_inspect.errors import TargetError
from anonvma_inspect.in_flight import audit
from anonvma_inspect.target import TargetOptions, open_target

__all__ = ("judge",)

_MOST = 20


def judge(core: Path) -> list[str]:
    """What an audit of a dump finds, and what keeps it from being complete.

    Objects that nothing leads to are looked for as well.
    """
    try:
        tables = collect_audit(open_target(TargetOptions(core=str(core))), leaks=True)
    except TargetError as error:
        return [f"cannot be read: {error}"]
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
