"""Who blocks whom through more than one lock: a task that holds one lock waits for another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anonvma_inspect.tables import NO_ROW, I64Column, Locks, OwnerState, RowColumn
from anonvma_inspect.target.memory import BoolColumn

__all__ = ("LockChains", "find_chains")

# include/linux/sched.h: TASK_UNINTERRUPTIBLE, which a task that waits for a lock has in its state,
# and with PREEMPT_RT, TASK_RTLOCK_WAIT.
_ASLEEP = 0x2 | 0x1000


@dataclass(frozen=True)
class LockChains:
    """How the waits for semaphores hang together.

    :ivar next: Row in :class:`~anonvma_inspect.tables.Rwsems` of the one that the writer inside
        each waits for; NO_ROW if that waits for none.
    :ivar blocked: Tasks that wait for each, or for one whose owner is among those.
    :ivar deadlocks: Rows of semaphores whose owners wait for each other, in the order in which each
        waits for the next one; all of them sleep.
    """

    next: RowColumn
    blocked: I64Column
    deadlocks: list[list[int]]

    def path(self, lock: int) -> list[int]:
        """The semaphores that somebody who waits for this one waits for in the end, this first."""
        path = [lock]
        seen = {lock}
        while (following := int(self.next[path[-1]])) != NO_ROW and following not in seen:
            path.append(following)
            seen.add(following)
        return path


def find_chains(locks: Locks) -> LockChains:
    """Follow each semaphore's owner to what it waits for."""
    rwsems, tasks = locks.rwsems, locks.tasks
    following = np.full(len(rwsems.address), NO_ROW, dtype=np.int64)
    held = np.flatnonzero(rwsems.owner_state == OwnerState.WRITER)
    following[held] = tasks.waits_for[rwsems.owner_task[held]]
    blocked, in_cycles = _blocked(following, rwsems.waiters)
    asleep = ~tasks.on_cpu & ((tasks.state & np.uint64(_ASLEEP)) != 0)
    deadlocks = []
    while in_cycles.any():
        cycle = [int(np.flatnonzero(in_cycles)[0])]
        while (then := int(following[cycle[-1]])) != cycle[0]:
            cycle.append(then)
        in_cycles[cycle] = False
        # All of them keep out all others.
        blocked[cycle] = blocked[cycle].sum()
        # Up to v5.14 a writer is in the queue for a moment after it has got the lock.
        if asleep[rwsems.owner_task[cycle]].all():
            deadlocks.append(cycle)
    return LockChains(following, blocked, deadlocks)


# What waits for each, directly or not, but for those that hang on a cycle; and which are on one:
# those left when whatever nobody's owner waits for is taken away, again and again.
def _blocked(following: RowColumn, waiters: I64Column) -> tuple[I64Column, BoolColumn]:
    blocked = waiters.copy()
    behind = np.bincount(following[following != NO_ROW], minlength=len(following))
    left = np.ones(len(following), dtype=bool)
    free = np.flatnonzero(behind == 0)
    while len(free):
        left[free] = False
        then = following[free]
        free, then = free[then != NO_ROW], then[then != NO_ROW]
        np.add.at(blocked, then, blocked[free])
        np.subtract.at(behind, then, 1)
        free = np.unique(then[behind[then] == 0])
    return blocked, left
