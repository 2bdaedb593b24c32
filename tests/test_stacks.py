"""What is on kernel stacks: of tasks that sleep, of those that a CPU is running, of broken ones."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence

import numpy as np
import pytest

from anonvma_inspect.collect import collect, collect_locks, functions_on_stacks
from anonvma_inspect.tables import LockTasks
from anonvma_inspect.target import Target
from anonvma_inspect.target.elf import Note
from anonvma_inspect.target.memory import OverlayMemory
from anonvma_inspect.target.registers import read_registers

from .captures import FIXTURES, Capture

CAPTURE = Capture(FIXTURES / "locks" / "locks-6.1.core.xz", FIXTURES / "locks" / "locks-6.1.json")
WILD = 0xFFFFDEAD00000000


def lock_tasks() -> LockTasks:
    locks = collect_locks(CAPTURE.target, collect(CAPTURE.target)).locks
    assert locks is not None
    return locks.tasks


TASKS = lock_tasks()
EVERY = np.arange(len(TASKS.address))
FOUND = functions_on_stacks(CAPTURE.target, TASKS, EVERY)


def pointer_at(row: int) -> int:
    """Address of a task's saved stack pointer."""
    field = CAPTURE.target.layouts.field("task_struct", "thread.sp")
    assert field is not None
    return int(TASKS.address[row]) + field.offset


def saved_pointer(row: int) -> int:
    address = np.array([pointer_at(row)], dtype=np.uint64)
    return int.from_bytes(CAPTURE.target.memory.gather(address, 8)[0].tobytes(), "little")


def with_words(words: dict[int, int]) -> Target:
    return dataclasses.replace(CAPTURE.target, memory=OverlayMemory(CAPTURE.target.memory, words))


def running(row: int) -> LockTasks:
    on_cpu = np.zeros(len(EVERY), dtype=bool)
    on_cpu[row] = True
    return dataclasses.replace(TASKS, on_cpu=on_cpu)


def test_all_sleep_and_are_known() -> None:
    assert len(FOUND) > 5
    assert all(FOUND)


def test_a_running_task_is_not_where_it_was_when_it_last_slept() -> None:
    assert functions_on_stacks(CAPTURE.target, running(0), EVERY)[0] is None
    assert functions_on_stacks(CAPTURE.target, running(0), EVERY)[1:] == FOUND[1:]


def test_a_running_task_is_where_its_cpu_is() -> None:
    """The innermost function is the one that the program counter is in, its first byte included."""
    assert CAPTURE.target.functions is not None
    start, end = CAPTURE.target.functions["handle_mm_fault"]
    for pc in (start, end - 1):
        registers = ((0xFFFFFFFF00000000, 0x7FFF0000), (pc, saved_pointer(0)))
        target = dataclasses.replace(CAPTURE.target, registers=registers)
        found = functions_on_stacks(target, running(0), EVERY)[0]
        assert found is not None
        assert FOUND[0] is not None
        others = [name for name in FOUND[0] if name != "handle_mm_fault"]
        assert found == ("handle_mm_fault", *others)
        # A CPU says nothing of those that it does not run.
        assert functions_on_stacks(target, TASKS, EVERY) == FOUND


@pytest.mark.parametrize(
    "pointer", [0, WILD, 2**64 - 8, 0x7FFFFFFFE000, "odd", "below", "top", "above"]
)
def test_a_stack_pointer_that_leads_elsewhere(pointer: int | str) -> None:
    base = int(TASKS.stack[0])
    words = {
        "odd": saved_pointer(0) + 4,
        "below": base - 8,
        "top": base + TASKS.stack_size,
        "above": base + TASKS.stack_size + 8,
    }
    word = pointer if isinstance(pointer, int) else words[pointer]
    found = functions_on_stacks(with_words({pointer_at(0): word}), TASKS, EVERY)
    assert found[0] is None
    assert found[1:] == FOUND[1:]


def test_no_symbol_table() -> None:
    target = dataclasses.replace(CAPTURE.target, functions={})
    assert functions_on_stacks(target, TASKS, EVERY) == [None] * len(EVERY)


def test_nobody() -> None:
    assert functions_on_stacks(CAPTURE.target, TASKS, []) == []


def status(registers: Sequence[int]) -> bytes:
    """``struct elf_prstatus``: 112 bytes of signals, ids and times, registers, ``pr_fpvalid``."""
    return struct.pack(f"<112x{len(registers)}Q8x", *registers)


X86 = """
    r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs flags sp ss fs_base gs_base ds
    es fs gs
"""


def test_registers() -> None:
    """Their order is that of ``struct user_regs_struct`` and of ``struct user_pt_regs``."""
    x86 = X86.split()
    arm = [*(f"x{number}" for number in range(31)), "sp", "pc", "pstate"]
    for machine, names, pc, sp in (("x86_64", x86, "ip", "sp"), ("aarch64", arm, "pc", "sp")):
        desc = status(range(1000, 1000 + len(names)))
        notes = [Note(b"CORE", 1, desc), Note(b"QEMU", 0, desc), Note(b"CORE", 1, desc[:100])]
        assert read_registers(notes, machine) == ((1000 + names.index(pc), 1000 + names.index(sp)),)
    assert read_registers([Note(b"CORE", 1, status([0] * 40))], "s390x") == ()
