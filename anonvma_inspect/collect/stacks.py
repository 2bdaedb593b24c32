"""What is on the kernel stacks of tasks.

Without the debugging information of its code a kernel's stack cannot be unwound. What can be told
is which return addresses are on it: where a known function has called another. Among them can be
some that are left from calls that have returned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anonvma_inspect.kernel.functions import FUNCTIONS, spellings
from anonvma_inspect.tables import LockTasks, RowColumn
from anonvma_inspect.target.functions import find_functions
from anonvma_inspect.target.memory import WORD, BoolColumn, U64Column
from anonvma_inspect.target.target import Target

__all__ = ("functions_on_stacks", "known_functions")

# Where arm64 signs return addresses, the signature is in bits that are all set in an address of the
# kernel's image, but for bit 55.
_SIGNATURE = np.uint64(0xFFFF << 48)
_BIT_55 = np.uint64(1 << 55)


def known_functions(target: Target) -> dict[str, tuple[int, int]]:
    """Start and end of the functions that :func:`functions_on_stacks` looks for.

    :return: By the names of the symbol table's; empty if the target does not have it.
    """
    return find_functions(target, [name for each in FUNCTIONS for name in spellings(each)])


def functions_on_stacks(
    target: Target, tasks: LockTasks, rows: RowColumn | Sequence[int]
) -> list[tuple[str, ...] | None]:
    """Name the functions on the stacks of tasks, of those that tell what one is doing.

    All of a stack is read from where its task left it, once. That is not known of a task that a CPU
    is running.

    :param tasks: ``tables.locks.tasks``, see :func:`anonvma_inspect.collect.collect_locks`.
    :param rows: Rows in it.
    :return: For each row, names of :data:`~anonvma_inspect.kernel.functions.FUNCTIONS`, the
        innermost first, repeated ones once; ``None`` where nothing can be told: the task is
        running, part of its stack is missing, or the target has no symbol table.
    """
    rows = np.asarray(rows, dtype=np.int64)
    nothing: list[tuple[str, ...] | None] = [None] * len(rows)
    task, words, there = _stacks(target, tasks, rows)
    if not there.any():
        return nothing
    found = known_functions(target)
    if not found:
        return nothing
    names, ranges = list(found), np.array(list(found.values()), dtype=np.uint64)
    order = np.argsort(ranges[:, 0])
    start, end = ranges[order, 0], ranges[order, 1]
    if target.architecture == "aarch64":
        words = np.where((words & _BIT_55) != 0, words | _SIGNATURE, words)
    at = np.searchsorted(start, words, side="left") - 1
    # A call can be the last thing in a function that never returns: it comes back to its end.
    inside = (at >= 0) & (words <= end[at])
    on_stack: list[dict[str, None]] = [{} for _ in rows]
    for index, name in zip(task[inside], order[at[inside]], strict=True):
        on_stack[index].setdefault(names[name].partition(".")[0])
    return [tuple(on_stack[i]) if there[i] else None for i in range(len(rows))]


# The words of the stacks, from the innermost; for each the place in `rows` of its task; and which
# of the stacks are whole.
def _stacks(
    target: Target, tasks: LockTasks, rows: RowColumn
) -> tuple[RowColumn, U64Column, BoolColumn]:
    empty = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64), np.zeros(len(rows), bool)
    # struct thread_struct of x86-64 and of arm64.
    field = target.layouts.field("task_struct", "thread.sp") or target.layouts.field(
        "task_struct", "thread.cpu_context.sp"
    )
    if field is None or field.size != WORD or not len(rows):
        return empty
    pointers, there = target.memory.gather(
        tasks.address[rows] + np.uint64(field.offset), field.size
    )
    pointer = pointers.view("<u8").reshape(-1).astype(np.uint64)
    used = (tasks.stack[rows] + np.uint64(tasks.stack_size) - pointer).view(np.int64)
    there = there & ~tasks.on_cpu[rows] & (pointer % np.uint64(WORD) == 0)
    there &= (used > 0) & (used <= tasks.stack_size)
    count = np.where(there, used // WORD, 0)
    task = np.repeat(np.arange(len(rows)), count)
    word = np.arange(len(task)) - (np.cumsum(count) - count)[task]
    content, present = target.memory.gather(pointer[task] + (word * WORD).astype(np.uint64), WORD)
    there[task[~present]] = False
    return task, content.view("<u8").reshape(-1).astype(np.uint64), there
