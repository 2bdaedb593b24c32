"""All threads and the mms that they have.

Follows ``for_each_process_thread()``, ``include/linux/sched/signal.h``, v6.12: leaders hang on
``init_task.tasks``, the threads of each on ``signal->thread_head``. A leader can be dead while its
threads run on, so every thread is asked for its mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.errors import TargetError
from anonvma_inspect.kernel.era import Era, resolve_era
from anonvma_inspect.tables import NO_ROW, Broken, Holders, find_rows
from anonvma_inspect.target.memory import BoolColumn, U64Column
from anonvma_inspect.target.target import Target

__all__ = ("Threads", "broken_threads", "read_holders", "read_threads", "until_nul")

# include/linux/sched.h: a kernel thread. One can borrow a process's mm for a while.
_PF_KTHREAD = 0x00200000
# The largest pid_max there can be (include/linux/threads.h): no list of tasks is longer.
_PID_MAX_LIMIT = 4 << 20


@dataclass(frozen=True)
class Threads:
    """Threads that have an mm, as columns, by address of the ``task_struct``.

    :ivar known: Every thread of the target, those without an mm too, sorted.
    :ivar pid_known: The PID of each of them.
    """

    address: U64Column
    pid: NDArray[np.int64]
    tgid: NDArray[np.int64]
    comm: NDArray[np.bytes_]
    start_boottime: U64Column
    self_exec_id: U64Column
    mm: U64Column
    known: U64Column
    pid_known: NDArray[np.int64]


def read_threads(reader: Reader, era: Era, target: Target) -> Threads:
    """Read all threads.

    :raises TargetError: if not even the first entry of the task list can be read.
    """
    leaders = _leaders(reader, era, target)
    tasks = np.unique(np.concatenate([leaders, _threads(reader, era, leaders)]))
    reader.progress("tasks", len(tasks))
    pid, present = reader.words(era.task, tasks, "pid")
    tasks, pid = tasks[present], pid[present]
    mm, _ = reader.words(era.task, tasks, "mm")
    flags, _ = reader.words(era.task, tasks, "flags")
    has_mm = (mm != 0) & ((flags & np.uint64(_PF_KTHREAD)) == 0)
    wild = has_mm & reader.space.wild(mm, era.mm.size)
    for index in np.flatnonzero(wild):
        reader.broken(NO_ROW, int(tasks[index]), "task_struct", int(mm[index]), "mm is wild")
    kept = has_mm & ~wild
    tgid, _ = reader.words(era.task, tasks[kept], "tgid")
    comm_field = era.task.fields["comm"]
    comm, _ = reader.memory.gather(tasks[kept] + np.uint64(comm_field.offset), comm_field.size)
    return Threads(
        address=tasks[kept],
        pid=pid[kept].astype(np.int64),
        tgid=tgid.astype(np.int64),
        comm=until_nul(comm),
        start_boottime=reader.optional_words(era.task, tasks[kept], "start_boottime")[0],
        self_exec_id=reader.optional_words(era.task, tasks[kept], "self_exec_id")[0],
        mm=mm[kept],
        known=tasks,
        pid_known=pid.astype(np.int64),
    )


def broken_threads(target: Target) -> Broken:
    """What a walk of the tasks, and of nothing else, comes upon that cannot be right.

    :raises TargetError: See :func:`read_threads`; if the kernel is of no era that is understood.
    """
    reader = Reader(target)
    read_threads(reader, resolve_era(target.layouts, target.page_size, target.release), target)
    return reader.broken_words(np.empty(0, dtype=np.int64))


def read_holders(reader: Reader, era: Era, threads: Threads, owners: U64Column) -> Holders:
    """Of what words say to be the owners of locks, those that are tasks.

    :param owners: Any values at all.
    """
    rows = find_rows(threads.known, np.unique(owners))
    rows = rows[rows != NO_ROW]
    address = threads.known[rows]
    field = era.task.fields["comm"]
    # A snapshot may lack the names of tasks that have no mm.
    comm, _ = reader.memory.gather(address + np.uint64(field.offset), field.size)
    return Holders(address=address, pid=threads.pid_known[rows], comm=until_nul(comm))


def until_nul(text: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """Rows of bytes as text, up to the first NUL of each; what follows that is garbage."""
    # numpy drops NULs at the end of fixed-width text only.
    behind = np.cumsum(text == 0, axis=1) > 0
    clean = np.where(behind, np.uint8(0), text)
    width = max(text.shape[1], 1)
    return np.ascontiguousarray(clean).view(f"S{width}").reshape(len(text))


# The leaders of all thread groups but the idle task's. A list that breaks off is followed from its
# other end as well.
def _leaders(reader: Reader, era: Era, target: Target) -> U64Column:
    offset = np.uint64(era.task.offset("tasks_next"))
    head = np.uint64(target.symbol("init_task")) + offset
    found: dict[int, None] = {}
    for direction in ("tasks_next", "tasks_prev"):
        whole = _follow(reader, era, head, offset, direction, found)
        if whole:
            break
        if not found:
            raise TargetError(
                f"{target.path}: the list of tasks cannot be read: nothing is known of any process"
                " (is the file truncated, or were slab pages left out of it? makedumpfile keeps"
                " them at -d 23)"
            )
    return np.array(list(found), dtype=np.uint64)


def _follow(
    reader: Reader,
    era: Era,
    head: np.uint64,
    offset: np.uint64,
    direction: str,
    found: dict[int, None],
) -> bool:
    task = np.array([head - offset], dtype=np.uint64)
    seen: set[int] = set()
    while len(seen) <= _PID_MAX_LIMIT:
        node, present = reader.words(era.task, task, direction)
        if not present[0]:
            return False
        if node[0] == head:
            return True
        address = int((node - offset)[0])
        if address in seen or reader.space.wild(node)[0]:
            problem = "the task list loops" if address in seen else f"{direction} is wild"
            reader.broken(NO_ROW, int(task[0]), "task_struct", int(node[0]), problem)
            return False
        seen.add(address)
        found[address] = None
        task[0] = node[0] - offset
    return False


# The threads of all groups, a step along each group's list a round.
def _threads(reader: Reader, era: Era, leaders: U64Column) -> U64Column:
    signal, present = reader.words(era.task, leaders, "signal")
    wild = present & reader.space.wild(signal, era.signal.size)
    for index in np.flatnonzero(wild):
        reader.broken(
            NO_ROW, int(leaders[index]), "task_struct", int(signal[index]), "signal is wild"
        )
    signal = signal[present & ~wild]
    head = signal + np.uint64(era.signal.offset("thread_head_next"))
    node, present = reader.words(era.signal, signal, "thread_head_next")
    offset = np.uint64(era.task.offset("thread_node_next"))
    met: list[U64Column] = []
    total = 0
    head, node = head[present], node[present]
    mark, origin = node.copy(), head
    step = 0
    while len(node) and total <= _PID_MAX_LIMIT:
        more = node != head
        head, node, mark, origin = head[more], node[more], mark[more], origin[more]
        wild = reader.space.wild(node)
        strange = ~wild & _strangers(reader, era, node - offset, head, origin)
        for which, problem in (
            (wild, "a thread is wild"),
            (strange, "a thread is no thread of it"),
        ):
            for index in np.flatnonzero(which):
                reader.broken(NO_ROW, int(head[index]), "signal_struct", int(node[index]), problem)
        on = ~wild & ~strange
        head, node, mark, origin = head[on], node[on], mark[on], node[on]
        tasks = node - offset
        met.append(tasks)
        total += len(tasks)
        node, present = reader.words(era.task, tasks, "thread_node_next")
        head, node, mark, origin = head[present], node[present], mark[present], origin[present]
        # Brent's: a list that comes back to the mark without passing its head loops.
        loops = node == mark
        for index in np.flatnonzero(loops & (node != head)):
            reader.broken(
                NO_ROW, int(head[index]), "signal_struct", int(node[index]), "its threads loop"
            )
        head, node, mark, origin = head[~loops], node[~loops], mark[~loops], origin[~loops]
        step += 1
        if step & (step - 1) == 0:
            mark = node.copy()
    return np.concatenate(met) if met else np.empty(0, dtype=np.uint64)


# Entries of the groups' lists that say of themselves that they are another group's, and do not
# lead back to where the walk comes from either.
def _strangers(
    reader: Reader, era: Era, tasks: U64Column, head: U64Column, origin: U64Column
) -> BoolColumn:
    named, present = reader.optional_words(era.task, tasks, "signal")
    signal = head - np.uint64(era.signal.offset("thread_head_next"))
    strange: BoolColumn = present & (named != signal)
    rows = np.flatnonzero(strange)
    before, present = reader.optional_words(era.task, tasks[rows], "thread_node_prev")
    strange[rows] = ~present | (before != origin[rows])
    return strange
