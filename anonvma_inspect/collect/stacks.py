"""What is on the kernel stacks of tasks.

Without the debugging information of its code a kernel's stack cannot be unwound. What can be told
is which return addresses are on it: where a known function has called another. Among them can be
some that are left from calls that have returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.collect.tasks import read_holders, read_threads
from anonvma_inspect.kernel.era import Era
from anonvma_inspect.kernel.functions import FUNCTIONS, spellings
from anonvma_inspect.tables import (
    NO_ROW,
    I64Column,
    LockTasks,
    RowColumn,
    TextColumn,
    marked,
)
from anonvma_inspect.target.functions import find_functions
from anonvma_inspect.target.layouts import Field
from anonvma_inspect.target.memory import WORD, BoolColumn, Memory, U64Column
from anonvma_inspect.target.target import Target

__all__ = (
    "KernelStacks",
    "functions_on_stacks",
    "known_functions",
    "read_kernel_stacks",
    "save_calls",
    "stack_size",
)

# x86-64 and arm64 without KASAN: THREAD_SIZE, for a kernel whose symbols do not tell.
_STACK_SIZE = 1 << 14
_MAX_STACK_SIZE = 1 << 20
# Where arm64 signs return addresses, the signature is in bits that are all set in an address of the
# kernel's image, but for bit 55.
_SIGNATURE = np.uint64(0xFFFF << 48)
_BIT_55 = np.uint64(1 << 55)


@dataclass(frozen=True)
class KernelStacks:
    """The kernel stacks of all threads, in the order of their addresses.

    :ivar pid: Of the thread.
    :ivar start: Lowest address.
    :ivar size: Bytes of each.
    """

    pid: I64Column
    comm: TextColumn
    start: U64Column
    size: int

    def find(self, addresses: U64Column) -> RowColumn:
        """Rows of the stacks that addresses lie in, NO_ROW for those that lie in none."""
        if not len(self.start):
            return np.full(len(addresses), NO_ROW, dtype=np.int64)
        row = np.searchsorted(self.start, addresses, side="right") - 1
        inside = (row >= 0) & (addresses - self.start[row] < np.uint64(self.size))
        return np.where(inside, row, NO_ROW)


def read_kernel_stacks(reader: Reader, era: Era, target: Target) -> KernelStacks:
    """Read where the kernel stacks of all threads are, as far as that is in the target.

    :raises TargetError: if the task list is out of reach.
    """
    threads = read_threads(reader, era, target)
    field = target.layouts.field("task_struct", "stack")
    known = threads.known if field is not None and field.size == WORD else threads.known[:0]
    offset = np.uint64(0 if field is None else field.offset)
    words, present = target.memory.gather(known + offset, WORD)
    start = words.view("<u8").reshape(-1).astype(np.uint64)
    # A dead thread's is given back before its task is.
    there = present & (start != 0)
    holders = read_holders(reader, era, threads, known[there])
    start = start[there]
    order = np.argsort(start, kind="stable")
    return KernelStacks(holders.pid[order], holders.comm[order], start[order], stack_size(target))


def stack_size(target: Target) -> int:
    """Bytes of a kernel stack: ``THREAD_SIZE``.

    That of the first task is as large as any: ``INIT_TASK_DATA()`` in
    ``include/asm-generic/vmlinux.lds.h``, whose labels have other names since v6.10.
    """
    start = target.symbols.get("init_stack")
    for name in ("__end_init_stack", "__end_init_task"):
        if start is not None and name in target.symbols:
            size = target.symbols[name] - start
            if target.page_size <= size <= _MAX_STACK_SIZE and size & (size - 1) == 0:
                return size
    return max(_STACK_SIZE, target.page_size)


def known_functions(target: Target) -> dict[str, tuple[int, int]]:
    """Start and end of the functions that :func:`functions_on_stacks` looks for.

    :return: By the names of the symbol table's; empty if the target does not have it.
    """
    return find_functions(target, [name for each in FUNCTIONS for name in spellings(each)])


def functions_on_stacks(
    target: Target, tasks: LockTasks, rows: RowColumn | Sequence[int]
) -> list[tuple[str, ...] | None]:
    """Name the functions on the stacks of tasks, of those that tell what one is doing.

    All of a stack is read from where its task left it, once; if a CPU is running it, from where a
    dump says that the CPU was.

    :param tasks: ``tables.locks.tasks``, see :func:`anonvma_inspect.collect.collect_locks`.
    :param rows: Rows in it.
    :return: For each row, names of :data:`~anonvma_inspect.kernel.functions.FUNCTIONS`, the
        innermost first, repeated ones once; ``None`` where nothing can be told: the task is
        running somewhere, part of its stack is missing, or the target has no symbol table.
    """
    rows = np.asarray(rows, dtype=np.int64)
    calls = _find_calls(target, tasks, rows)
    on_stack: list[dict[str, None]] = [{} for _ in rows]
    for index, name in zip(calls.task, calls.name, strict=True):
        on_stack[index].setdefault(name.partition(".")[0])
    return [tuple(on_stack[i]) if calls.known[i] else None for i in range(len(rows))]


def save_calls(target: Target, recording: Memory, tasks: LockTasks) -> dict[str, tuple[int, int]]:
    """Have the words recorded that :func:`functions_on_stacks` goes by.

    What else is on a kernel's stack can be anything, and nobody's business.

    :param recording: What records the words that are read through it.
    :return: As :func:`known_functions`, if there are any such words.
    """
    calls = _find_calls(target, tasks, np.arange(len(tasks.address)))
    if not len(calls.task):
        return {}
    field = _stack_pointer(target)
    assert field is not None
    recording.gather(tasks.address[calls.known] + np.uint64(field.offset), field.size)
    recording.gather(calls.address[calls.address != 0], WORD)
    return known_functions(target)


@dataclass(frozen=True)
class _Calls:
    # Words of stacks that are return addresses, from the innermost: the place in the rows asked for
    # of the task, the address of the word (0 for where a CPU is), and the function that it leads
    # into. And of which tasks all are known.
    task: RowColumn
    address: U64Column
    name: list[str]
    known: BoolColumn


def _find_calls(target: Target, tasks: LockTasks, rows: RowColumn) -> _Calls:
    task, address, words, known = _stacks(target, tasks, rows)
    found = known_functions(target) if known.any() else {}
    if not found:
        nothing = np.zeros(len(rows), dtype=bool)
        return _Calls(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64), [], nothing)
    names, ranges = list(found), np.array(list(found.values()), dtype=np.uint64)
    order = np.argsort(ranges[:, 0])
    start, end = ranges[order, 0], ranges[order, 1]
    if target.architecture == "aarch64":
        words = np.where((words & _BIT_55) != 0, words | _SIGNATURE, words)
    at = np.searchsorted(start, words, side="left") - 1
    # A call can be the last thing in a function that never returns: it comes back to its end.
    inside = (at >= 0) & (words <= end[at]) & known[task]
    return _Calls(task[inside], address[inside], [names[row] for row in order[at[inside]]], known)


# The words of the stacks, from the innermost: for each the place in `rows` of its task, and where
# it is; and which of the stacks are known.
def _stacks(
    target: Target, tasks: LockTasks, rows: RowColumn
) -> tuple[RowColumn, U64Column, U64Column, BoolColumn]:
    field = _stack_pointer(target)
    if field is None or not len(rows):
        no_words = np.empty(0, dtype=np.uint64)
        return np.empty(0, dtype=np.int64), no_words, no_words, np.zeros(len(rows), dtype=bool)
    pointers, known = target.memory.gather(
        tasks.address[rows] + np.uint64(field.offset), field.size
    )
    pointer = pointers.view("<u8").reshape(-1).astype(np.uint64)
    known &= ~tasks.on_cpu[rows]
    base, size = tasks.stack[rows], np.uint64(tasks.stack_size)
    running: list[int] = []
    counter: list[int] = []
    for pc, sp in target.registers:
        at = np.flatnonzero(tasks.on_cpu[rows] & (np.uint64(sp) - base < size))
        pointer[at], known[at] = sp, True
        running += at.tolist()
        # As if it were a return address: behind what is called.
        counter += [min(pc + 1, 2**64 - 1)] * len(at)
    used = (base + size - pointer).view(np.int64)
    known &= (pointer % np.uint64(WORD) == 0) & (used > 0) & (used <= tasks.stack_size)
    count = np.where(known, used // WORD, 0)
    task = np.repeat(np.arange(len(rows)), count)
    word = np.arange(len(task)) - (np.cumsum(count) - count)[task]
    address = pointer[task] + (word * WORD).astype(np.uint64)
    content, present = target.memory.gather(address, WORD)
    # A snapshot has no other words of a stack than return addresses.
    if target.walks is None:
        known[task[~present]] = False
    else:
        known &= marked(len(rows), np.append(task[present], np.array(running, dtype=np.int64)))
    every = np.concatenate([np.array(running, dtype=np.int64), task])
    order = np.argsort(every, kind="stable")
    zeros = np.zeros(len(running), dtype=np.uint64)
    words = np.append(np.array(counter, np.uint64), content.view("<u8").reshape(-1))
    return every[order], np.append(zeros, address)[order], words[order].astype(np.uint64), known


# struct thread_struct of x86-64 and of arm64.
def _stack_pointer(target: Target) -> Field | None:
    for path in ("thread.sp", "thread.cpu_context.sp"):
        field = target.layouts.field("task_struct", path)
        if field is not None and field.size == WORD:
            return field
    return None
