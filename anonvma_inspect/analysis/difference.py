"""What has changed from one reading to another: of one machine later, or of two machines."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from anonvma_inspect.analysis.families import Families, find_families
from anonvma_inspect.analysis.holdings import find_holdings
from anonvma_inspect.tables import NO_ROW, Tables
from anonvma_inspect.target.memory import U64Column

__all__ = ("COMMAND_FIGURES", "FIGURES", "Change", "Summary", "changes", "summarize")

#: What is counted of a family and of a process; of a command, how many processes it has as well.
FIGURES = ("vmas", "avcs", "anon_vmas", "bytes")
COMMAND_FIGURES = ("processes", *FIGURES)

Key = TypeVar("Key", bound=Hashable)
Figures = tuple[int, ...]
_BYTES = -1


@dataclass(frozen=True)
class Summary:
    """What is compared of one reading; small beside the tables.

    :ivar totals: Of all objects.
    :ivar leaks: Addresses of allocated objects that nothing led to, by C struct; of AVCs, those
        that look like such; ``None`` if they were not looked for.
    :ivar families: By the address of the root.
    :ivar first: PID and command of the first process of a family, where there is one.
    :ivar processes: By PID and command.
    :ivar commands: By command.
    """

    totals: Mapping[str, int]
    leaks: Mapping[str, U64Column] | None
    families: Mapping[int, Figures]
    first: Mapping[int, tuple[int, bytes]]
    processes: Mapping[tuple[int, bytes], Figures]
    commands: Mapping[bytes, Figures]


@dataclass(frozen=True)
class Change(Generic[Key]):
    """Something that is not as it was.

    :ivar before: Its figures; ``None`` if it was not there.
    :ivar after: Its figures; ``None`` if it is not there any more.
    """

    key: Key
    before: Figures | None
    after: Figures | None

    @property
    def grown(self) -> Figures:
        """By how much; below 0 by how much less."""
        one, other = self.before, self.after
        length = len(one or other or ())
        nothing = (0,) * length
        return tuple(b - a for a, b in zip(one or nothing, other or nothing, strict=True))


def changes(before: Mapping[Key, Figures], after: Mapping[Key, Figures]) -> list[Change[Key]]:
    """What differs, that which grew by most bytes first."""
    found = [
        Change(key, before.get(key), after.get(key))
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    ]
    # What was met first stands first among equals.
    found.sort(key=lambda change: -change.grown[_BYTES])
    return found


def summarize(tables: Tables) -> Summary:
    """Sum up one reading."""
    families = find_families(tables)
    processes, commands = _owners(tables, families)
    root = tables.anon_vmas.address[families.root].tolist()
    columns = (families.vmas, families.avcs, families.anon_vmas, families.bytes)
    return Summary(
        totals={
            "mms": int(np.count_nonzero(tables.mms.listed)),
            "vmas": len(tables.vmas.address),
            "avcs": len(tables.avcs.address),
            "anon_vmas": int(np.count_nonzero(tables.anon_vmas.reached)),
            "families": len(families.root),
            "waiting": int(families.waiting.sum()),
            "zombies": int(families.zombies.sum()),
            "bytes": int(families.bytes.sum()),
        },
        leaks=_leaks(tables),
        families=dict(zip(root, zip(*(c.tolist() for c in columns), strict=True), strict=True)),
        first=_first(tables, families),
        processes=processes,
        commands=commands,
    )


def _leaks(tables: Tables) -> dict[str, U64Column] | None:
    unreached = None if tables.allocation is None else tables.allocation.unreached
    if unreached is None:
        return None
    era = tables.era
    return {
        era.vma.struct: unreached.vmas,
        era.avc.struct: unreached.avcs[unreached.avc_linked],
        era.anon_vma.struct: unreached.anon_vmas,
    }


def _owners(
    tables: Tables, families: Families
) -> tuple[dict[tuple[int, bytes], Figures], dict[bytes, Figures]]:
    held = find_holdings(tables, families)
    columns = (held.vmas, held.avcs, held.anon_vmas, held.bytes)
    processes: dict[tuple[int, bytes], Figures] = {}
    commands: dict[bytes, Figures] = {}
    for mm in np.flatnonzero(tables.mms.task != NO_ROW).tolist():
        pid, comm = _speaker(tables, mm)
        figures = tuple(int(column[mm]) for column in columns)
        processes[pid, comm] = figures
        sums = commands.get(comm, (0,) * len(COMMAND_FIGURES))
        commands[comm] = tuple(a + b for a, b in zip(sums, (1, *figures), strict=True))
    return processes, commands


def _speaker(tables: Tables, mm: int) -> tuple[int, bytes]:
    task = int(tables.mms.task[mm])
    return int(tables.tasks.tgid[task]), bytes(tables.tasks.comm[task])


def _first(tables: Tables, families: Families) -> dict[int, tuple[int, bytes]]:
    listed = np.append(tables.mms.task != NO_ROW, False)[families.mm]
    return {
        int(tables.anon_vmas.address[families.root[family]]): _speaker(
            tables, int(families.mm[family])
        )
        for family in np.flatnonzero(listed).tolist()
    }
