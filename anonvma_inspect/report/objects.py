"""Facts about single objects of the tables, that more than one report tells."""

from __future__ import annotations

from dataclasses import dataclass

from anonvma_inspect.report.escape import escape
from anonvma_inspect.report.words import hex_or_null, permissions, span
from anonvma_inspect.tables import NO_ROW, AnonVmas, Tables
from anonvma_inspect.target.memory import U64Column

__all__ = ("Process", "anon_vma_counters", "describe_vma", "process_of_mm", "word_at")


@dataclass(frozen=True)
class Process:
    """A process (thread group) that has an mm.

    :ivar mm: Row in :class:`~anonvma_inspect.tables.Mms`.
    """

    pid: int
    comm: bytes
    mm: int

    def __str__(self) -> str:
        # An anonymized snapshot has no names.
        return f"PID {self.pid} ({escape(self.comm)})" if self.comm else f"PID {self.pid}"


def process_of_mm(tables: Tables, mm: int) -> Process | None:
    """The process that speaks for an mm.

    :param mm: Row, or NO_ROW.
    :return: ``None`` for an mm that no task has.
    """
    task = NO_ROW if mm == NO_ROW else int(tables.mms.task[mm])
    if task == NO_ROW:
        return None
    return Process(int(tables.tasks.tgid[task]), bytes(tables.tasks.comm[task]), mm)


def word_at(column: U64Column, row: int) -> int | None:
    """A word of the object at a row; ``None`` for NO_ROW."""
    return None if row == NO_ROW else int(column[row])


def anon_vma_counters(tables: Tables, row: int) -> dict[str, int | None]:
    """The counters that this kernel's anon_vmas have; ``None`` for those they lack."""
    era = tables.era
    anon_vmas: AnonVmas = tables.anon_vmas
    return {
        "refcount": int(anon_vmas.refcount[row]),
        "num_children": int(anon_vmas.num_children[row]) if era.has_separate_counts else None,
        "num_active_vmas": (
            int(anon_vmas.num_active_vmas[row]) if era.has_separate_counts else None
        ),
        "degree": int(anon_vmas.degree[row]) if era.has_degree else None,
    }


def describe_vma(tables: Tables, row: int) -> str:
    """A VMA in one line."""
    vmas = tables.vmas
    process = process_of_mm(tables, int(vmas.mm[row]))
    owner = f"of {process}" if process else "of an mm that no task has"
    return (
        f"VMA {hex_or_null(int(vmas.address[row]))} "
        f"{span(int(vmas.vm_start[row]), int(vmas.vm_end[row]))} "
        f"{permissions(int(vmas.vm_flags[row]))} {owner}"
    )
