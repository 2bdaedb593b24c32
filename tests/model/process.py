"""Processes: ``kernel/fork.c``, since v6.16 partly ``mm/mmap.c``."""

from __future__ import annotations

from .objects import Flag, Machine, Mm, OutOfMemory, Process, Vma
from .rmap import anon_vma_fork
from .sharing import shared_at_fork
from .vma import release

__all__ = ("exit_process", "fork", "new_process", "share")


def new_process(machine: Machine, index: int) -> Process:
    """A process with an empty address space."""
    return _add(machine, index, machine.allocate(Mm(machine)))


def _add(machine: Machine, index: int, mm: Mm) -> Process:
    machine.processes[index] = Process(index, mm)
    return machine.processes[index]


def fork(parent: Process, index: int) -> Process:
    """``dup_mmap()``: a child with a copy of all mappings.

    :raises OutOfMemory: there is no child.
    """
    machine = parent.mm.machine
    mm = machine.allocate(Mm(machine, writer=parent.mm.writer))
    try:
        for vma in parent.mm.vmas:
            if not vma.flags & Flag.DONTCOPY:
                _dup_vma(mm, vma)
    except OutOfMemory:
        _put_mm(mm)
        raise
    mm.writer = None
    return _add(machine, index, mm)


def _dup_vma(mm: Mm, old: Vma) -> None:
    new = mm.machine.allocate(old.dup())
    new.mm = mm
    try:
        if old.flags & Flag.WIPEONFORK:
            new.anon_vma = new.lazy = None
            new.unfaulted = False
        else:
            anon_vma_fork(new, old, shared_at_fork(mm, old))
    except OutOfMemory:
        mm.machine.free(new)
        raise
    mm.add(new)


def share(process: Process, index: int) -> Process:
    """``clone(CLONE_VM)``: a process with the same address space."""
    process.mm.users += 1
    return _add(process.mm.machine, index, process.mm)


def _put_mm(mm: Mm) -> None:
    # mmput() and exit_mmap().
    mm.users -= 1
    if mm.users == 0:
        release(mm.vmas)
        mm.machine.free(mm)


def exit_process(process: Process) -> None:
    """``exit_mm()``: who has left an address space is the last to know what becomes of it."""
    machine = process.mm.machine
    machine.leaving = machine.processes.pop(process.index)
    process.mm.writer = None
    _put_mm(process.mm)
    machine.leaving = None
