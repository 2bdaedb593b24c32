"""The answer of ``vma``: ``/proc/PID/maps`` with the anon_vma side added."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from anonvma_inspect.kernel.tags import AnonVmaKind
from anonvma_inspect.report.escape import escape
from anonvma_inspect.report.facts import Document, TargetFacts
from anonvma_inspect.report.objects import Process
from anonvma_inspect.report.style import Style
from anonvma_inspect.report.vma_words import vma_word, vma_word_kind
from anonvma_inspect.report.words import (
    counted,
    hexadecimal,
    permissions,
    span,
    table,
)
from anonvma_inspect.tables import NO_ROW, Tables

__all__ = ("VmaReport",)

SCHEMA = "anonvma-inspect/vma/1"


@dataclass(frozen=True)
class VmaReport:
    """VMAs of one process.

    :ivar slots: Rows of its entries in :class:`~anonvma_inspect.tables.Slots`.
    :ivar paths: Path of each ``struct file``, by its address.
    """

    facts: TargetFacts
    tables: Tables
    process: Process
    slots: Sequence[int]
    paths: Mapping[int, bytes]

    items = "vmas"

    def document(self) -> Document:
        """See :meth:`anonvma_inspect.report.render.Report.document`."""
        return {
            "schema": SCHEMA,
            "target": self.facts.document(),
            "pid": self.process.pid,
            "comm": escape(self.process.comm),
            "vmas": [self._entry(slot) for slot in self.slots],
        }

    def text(self, style: Style) -> Iterator[str]:
        """See :meth:`anonvma_inspect.report.render.Report.text`."""
        yield style.strong(f"{self.process}: {counted(len(self.slots), 'VMA')}")
        yield from self.facts.tag_lines()
        headers = ("RANGE", "PERM", "OFFSET", "VMA", "ANON_VMA", "CHAIN", "FILE")
        align = ("left", "left", "left", "left", "left", "right", "left")
        yield from table([self._row(slot, style) for slot in self.slots], headers, align)

    def _entry(self, slot: int) -> Document:
        slots, vmas = self.tables.slots, self.tables.vmas
        row = int(slots.vma[slot])
        if row == NO_ROW:
            # Only what the tree says of it is known.
            return {
                "address": hexadecimal(int(slots.pointer[slot])),
                "start": hexadecimal(int(slots.first[slot])),
                "end": hexadecimal(int(slots.last[slot]) + 1),
                "flags": None,
                "pgoff": None,
                "file": None,
                "anon_vma": None,
                "chain_length": None,
            }
        return {
            "address": hexadecimal(int(vmas.address[row])),
            "start": hexadecimal(int(vmas.vm_start[row])),
            "end": hexadecimal(int(vmas.vm_end[row])),
            "flags": hexadecimal(int(vmas.vm_flags[row])),
            "pgoff": hexadecimal(int(vmas.vm_pgoff[row])),
            "file": self._name(row),
            "anon_vma": vma_word(self.tables, row),
            "chain_length": int(vmas.chain_length[row]),
        }

    def _row(self, slot: int, style: Style) -> tuple[str, ...]:
        slots, vmas = self.tables.slots, self.tables.vmas
        row = int(slots.vma[slot])
        if row == NO_ROW:
            where = span(int(slots.first[slot]), int(slots.last[slot]) + 1)
            address = hexadecimal(int(slots.pointer[slot]))
            return where, "?", "?", address, style.warn("unreadable"), "?", ""
        pointer = int(vmas.anon_vma_pointer[row])
        kind = vma_word_kind(self.tables, row)
        if kind is AnonVmaKind.NONE:
            anon_vma = "-"
        elif kind is AnonVmaKind.ANON_VMA:
            anon_vma = hexadecimal(pointer)
        else:
            anon_vma = f"{hexadecimal(int(vmas.anon_vma[row]))} ({kind.word})"
            anon_vma = style.warn(anon_vma) if kind is AnonVmaKind.TAGGED else anon_vma
        # As show_map_vma() does: in bytes, and only of a file.
        has_file = bool(vmas.vm_file[row])
        offset = int(vmas.vm_pgoff[row]) * self.tables.era.page_size if has_file else 0
        return (
            span(int(vmas.vm_start[row]), int(vmas.vm_end[row])),
            permissions(int(vmas.vm_flags[row])),
            f"{offset & (2**64 - 1):08x}",
            hexadecimal(int(vmas.address[row])),
            anon_vma,
            str(int(vmas.chain_length[row])),
            self._name(row) or "",
        )

    # The last column of /proc/PID/maps, as far as it follows from the file and the mm's fields
    # (get_vma_name() in fs/proc/task_mmu.c, v6.12).
    def _name(self, row: int) -> str | None:
        vmas, mms = self.tables.vmas, self.tables.mms
        file = int(vmas.vm_file[row])
        if file:
            path = self.paths.get(file)
            return None if path is None else escape(path)
        mm = int(vmas.mm[row])
        if mm == NO_ROW:
            return None
        start, end = int(vmas.vm_start[row]), int(vmas.vm_end[row])
        if start == int(mms.vdso[mm]):
            return "[vdso]"
        if start < int(mms.brk[mm]) and end > int(mms.start_brk[mm]):
            return "[heap]"
        if start <= int(mms.start_stack[mm]) <= end:
            return "[stack]"
        return None
