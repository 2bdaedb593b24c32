"""What a PID, an address or a pointer of the command line names in the tables."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from anonvma_inspect.cli.parameters import parse_address, parse_pid, parse_pointer
from anonvma_inspect.cli.session import Session
from anonvma_inspect.errors import NotFoundError
from anonvma_inspect.kernel.tags import AnonVmaKind
from anonvma_inspect.report.objects import Process, process_of_mm
from anonvma_inspect.report.vma_words import vma_word_kind
from anonvma_inspect.report.words import counted, span
from anonvma_inspect.tables import NO_ROW, Tables, find_rows
from anonvma_inspect.target import Target
from anonvma_inspect.target.memory import U64Column

__all__ = (
    "find_anon_vma",
    "find_named",
    "find_process",
    "find_slot",
    "find_vma",
    "find_vma_at",
    "slots_of",
)


def find_named(
    session: Session,
    command: str,
    words: tuple[str, str | None],
    pointed_to: Callable[[Tables, int], int],
    of_vma: Callable[[Tables, int], int],
) -> tuple[Target, Tables, int]:
    """Open the target, read it, and find what ``PID ADDRESS`` or a pointer names.

    :param command: Whose arguments the words are.
    :param words: PID and address, or a pointer and nothing.
    :param pointed_to: The row of the object that a pointer points to.
    :param of_vma: The row of the object that the VMA in this row stands for.
    :raises UsageError: if the words cannot name anything.
    :raises NotFoundError: if they name nothing in this target.
    """
    first, address = words
    if address is None:
        pointer = parse_pointer(first, f"{command} PID ADDRESS")
        target = session.open()
        tables = session.collect(target)
        return target, tables, pointed_to(tables, pointer)
    pid, place = parse_pid(first), parse_address(address)
    target = session.open()
    tables = session.collect(target, (pid,))
    return target, tables, of_vma(tables, find_vma_at(tables, pid, place))


def find_process(tables: Tables, pid: int) -> Process:
    """The process that a PID means; a thread's id means its process.

    :raises NotFoundError: if there is none that has an mm.
    """
    tasks = tables.tasks
    found = np.flatnonzero((tasks.pid == pid) | (tasks.tgid == pid))
    if not len(found):
        raise NotFoundError(f"there is no PID {pid} with memory of its own in this target")
    # The thread named, if it is here; it is not if it is a dead leader.
    exact = found[tasks.pid[found] == pid]
    thread = int((exact if len(exact) else found)[0])
    leader = np.flatnonzero(tasks.pid == tasks.tgid[thread])
    speaker = int(leader[0]) if len(leader) else thread
    return Process(int(tasks.tgid[thread]), bytes(tasks.comm[speaker]), int(tasks.mm[thread]))


def slots_of(tables: Tables, process: Process) -> list[int]:
    """Rows of a process's entries in :class:`~anonvma_inspect.tables.Slots`, by address."""
    first, last = np.searchsorted(tables.slots.mm, [process.mm, process.mm + 1])
    return list(range(int(first), int(last)))


def find_slot(tables: Tables, process: Process, address: int) -> int:
    """The entry of a process's tree that an address lies in.

    :return: Row in :class:`~anonvma_inspect.tables.Slots`.
    :raises NotFoundError: if there is none; with the neighbours.
    """
    slots = tables.slots
    near: list[tuple[str, int]] = []
    for slot in slots_of(tables, process):
        if int(slots.first[slot]) <= address <= int(slots.last[slot]):
            return slot
        if int(slots.last[slot]) < address:
            near = [("below", slot)]
        else:
            near.append(("above", slot))
            break
    neighbours = " and ".join(
        f"{span(int(slots.first[slot]), int(slots.last[slot]) + 1)} {side}" for side, slot in near
    )
    raise NotFoundError(
        f"{address:#x} is in no VMA of {process}"
        + (f"; nearest: {neighbours}" if near else ": it has none")
    )


def find_vma_at(tables: Tables, pid: int, address: int) -> int:
    """The VMA of a process that an address lies in.

    :return: Row in :class:`~anonvma_inspect.tables.Vmas`.
    :raises NotFoundError: if there is none, or the target does not have it.
    """
    process = find_process(tables, pid)
    slot = find_slot(tables, process, address)
    row = int(tables.slots.vma[slot])
    if row == NO_ROW:
        raise NotFoundError(
            f"the VMA at {address:#x} of {process}, {int(tables.slots.pointer[slot]):#x}, cannot "
            "be read in this target"
        )
    return row


def find_vma(tables: Tables, pointer: int) -> int:
    """The VMA that a pointer points to.

    :return: Row in :class:`~anonvma_inspect.tables.Vmas`.
    :raises NotFoundError: if it points to none; with what it does point to.
    """
    return _find_object(tables, pointer, tables.vmas.address, "vm_area_struct")


def find_anon_vma(tables: Tables, pointer: int) -> int:
    """The anon_vma that a pointer points to.

    :return: Row in :class:`~anonvma_inspect.tables.AnonVmas`.
    :raises NotFoundError: if it points to none; with what it does point to.
    """
    return _find_object(tables, pointer, tables.anon_vmas.address, "anon_vma")


def _find_object(tables: Tables, pointer: int, addresses: U64Column, wanted: str) -> int:
    row = _row_of(addresses, pointer)
    if row == NO_ROW:
        raise NotFoundError(_describe_pointer(tables, pointer, wanted))
    return row


def _row_of(addresses: U64Column, pointer: int) -> int:
    return int(find_rows(addresses, np.array([pointer], dtype=np.uint64))[0])


def _describe_pointer(tables: Tables, pointer: int, wanted: str) -> str:
    vma = _row_of(tables.vmas.address, pointer)
    if vma != NO_ROW:
        process = process_of_mm(tables, int(tables.vmas.mm[vma]))
        owner = f" of {process}" if process else ""
        return (
            f"{pointer:#x} is a vm_area_struct{owner}, not {_article(wanted)}: "
            f"{_where_to_look(tables, vma)}"
        )
    avc = _row_of(tables.avcs.address, pointer)
    if avc != NO_ROW:
        field = "anon_vma" if wanted == "anon_vma" else "vma"
        column = tables.avcs.anon_vma if wanted == "anon_vma" else tables.avcs.vma
        return (
            f"{pointer:#x} is an anon_vma_chain, not {_article(wanted)}: its {field} is "
            f"{int(column[avc]):#x}"
        )
    if _row_of(tables.anon_vmas.address, pointer) != NO_ROW:
        return f"{pointer:#x} is an anon_vma, not {_article(wanted)}: see tree {pointer:#x}"
    if bool(tables.space.wild(np.array([pointer], dtype=np.uint64))[0]):
        return f"{pointer:#x} is not {_article(wanted)}: no object of the kernel's can lie there"
    met = counted(len(tables.vmas.address), "VMA")
    return f"{pointer:#x} is not {_article(wanted)} that any of the {met} read leads to"


# Instead of the tree of an anon_vma that a VMA does not have.
def _where_to_look(tables: Tables, vma: int) -> str:
    kind = vma_word_kind(tables, vma)
    target = int(tables.vmas.anon_vma_pointer[vma])
    if kind is AnonVmaKind.LAZY_VMA:
        return f"it has none yet, but the root VMA {target:#x}"
    if kind is AnonVmaKind.LAZY_PARENT:
        return f"it has its parent's, see tree {target:#x}"
    if kind is AnonVmaKind.UNFAULTED:
        return "it has none yet"
    return f"see chain {int(tables.vmas.address[vma]):#x}"


def _article(struct: str) -> str:
    return f"{'an' if struct[0] in 'aeiou' else 'a'} {struct}"
