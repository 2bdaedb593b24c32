"""Read-write semaphores, as memory shows them.

Follows ``kernel/locking/rwsem.c`` (v5.3 on) and, for PREEMPT_RT, ``kernel/locking/rwbase_rt.c``
(v6.12).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.kernel.era import Record, resolve_record
from anonvma_inspect.target.layouts import Layouts

__all__ = (
    "LockRecords",
    "LockState",
    "is_free",
    "is_write_locked",
    "lock_readers",
    "lock_states",
    "owner_tasks",
    "queued_since",
    "resolve_locks",
    "ticks_per_second",
)

_RWSEM_WRITER_LOCKED = 1
# The waiters' bit and the one with which the first of them claims the lock.
_RWSEM_QUEUED = 2 | 4
_RWSEM_RESERVED = 0xF8 | 1 << 63
_RWSEM_READER_SHIFT = 8
# include/linux/rwbase_rt.h: with a writer inside, the reader count is the writer's bias; without
# one it has the readers', which a writer that waits for readers to leave takes away.
_RT_WRITER_BIAS = 1 << 30
_RT_READER_BIAS = 1 << 31
# PID_MAX_LIMIT, include/linux/threads.h: a task counts once.
_MAX_READERS = 1 << 22
# Flags in the low bits of the owner's word: kernel/locking/rwsem.c (v5.10 has three of them), and
# RT_MUTEX_HAS_WAITERS, kernel/locking/rtmutex_common.h.
_OWNER_FLAGS = 7
_OWNER_READER = 1
_RT_OWNER_FLAGS = 1
# PREEMPT_RT has another rw_semaphore. By v7.2, it leads to the first waiter of a ring; before, it
# is the head of a list.
_RWSEM = (
    "?count=count.counter",
    "?owner=owner.counter",
    "?wait_list",
    "?wait_list_next=wait_list.next",
    "?first_waiter",
    "?rt_readers=rwbase.readers.counter",
    "?rt_owner=rwbase.rtmutex.owner",
    "?rt_waiters=rwbase.rtmutex.waiters.rb_root.rb_node",
)
_WAITER = ("list", "list_next=list.next", "list_prev=list.prev", "task", "type", "timeout")
# Since Linux kernel commit f7853c342418 ("locking/rtmutex: Fix task->pi_waiters integrity") (in
# v6.5) its nodes are in structs of their own.
_RT_WAITER = (
    "rb=tree.entry|tree_entry",
    "rb_parent_color=tree.entry.__rb_parent_color|tree_entry.__rb_parent_color",
    "rb_left=tree.entry.rb_left|tree_entry.rb_left",
    "rb_right=tree.entry.rb_right|tree_entry.rb_right",
    "task",
)
_TASK = (
    "stack",
    "pid",
    "tgid",
    "comm",
    "flags",
    "mm",
    # Since Linux kernel commit 2f064a59a11f ("sched: Change task_struct::state") (in v5.14).
    "state=__state|state",
    "exit_state",
    "on_cpu",
    "?last_arrival=sched_info.last_arrival",
)


class LockState(enum.IntEnum):
    """What the word of a read-write semaphore says."""

    #: Nobody holds it but, perhaps, readers.
    IDLE = 0
    #: Held for write.
    WRITER = 1
    #: Not held for write, but somebody waits for it.
    QUEUED = 2
    #: No semaphore has such a word.
    IMPOSSIBLE = 3


def lock_states(
    count: NDArray[np.uint64] | None, rt_readers: NDArray[np.uint64] | None, has_owner: bool
) -> NDArray[np.uint8]:
    """The state of semaphores, as :class:`LockState`.

    :param count: See :func:`is_write_locked`.
    :param rt_readers: Likewise.
    :param has_owner: ``rw_semaphore.owner`` is an ``atomic_long_t``, as it is since v5.3. Before,
        the bits of ``count`` mean something else, and all that is told is whether bit 0 is set.
    """
    writer = is_write_locked(count, rt_readers)
    if rt_readers is not None:
        entered = (rt_readers & np.uint64(_RT_READER_BIAS)) == 0
        impossible = (rt_readers & np.uint64(_RT_READER_BIAS - 1)) >= np.uint64(_MAX_READERS)
        return _states(writer, entered, impossible & ~writer)
    assert count is not None
    if not has_owner:
        return writer.astype(np.uint8)
    readers = (count & np.uint64(2**63 - 1)) >> np.uint64(_RWSEM_READER_SHIFT)
    impossible = (count & np.uint64(_RWSEM_RESERVED)) != 0
    impossible |= readers >= np.uint64(_MAX_READERS)
    return _states(writer, (count & np.uint64(_RWSEM_QUEUED)) != 0, impossible)


def _states(
    writer: NDArray[np.bool_], queued: NDArray[np.bool_], impossible: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    return np.select(
        [impossible, writer, queued],
        [LockState.IMPOSSIBLE, LockState.WRITER, LockState.QUEUED],
        LockState.IDLE,
    ).astype(np.uint8)


def is_free(
    count: NDArray[np.uint64] | None, rt_readers: NDArray[np.uint64] | None
) -> NDArray[np.bool_]:
    """Whether nobody holds semaphores, for read or write, nor waits for them.

    :param count: See :func:`is_write_locked`.
    :param rt_readers: Likewise. Whoever waits for a reader to leave has taken the bias away.
    """
    free: NDArray[np.bool_]
    if count is not None:
        free = count == 0
        return free
    assert rt_readers is not None
    free = rt_readers == np.uint64(_RT_READER_BIAS)
    return free


def is_write_locked(
    count: NDArray[np.uint64] | None, rt_readers: NDArray[np.uint64] | None
) -> NDArray[np.bool_]:
    """Whether semaphores are held for write.

    :param count: ``rw_semaphore.count``, or ``None`` on PREEMPT_RT.
    :param rt_readers: ``rw_semaphore.rwbase.readers``, 32 bits, or ``None``.
    """
    held: NDArray[np.bool_]
    if count is not None:
        held = (count & np.uint64(_RWSEM_WRITER_LOCKED)) != 0
        return held
    assert rt_readers is not None
    held = rt_readers == np.uint64(_RT_WRITER_BIAS)
    return held


def lock_readers(
    count: NDArray[np.uint64] | None, rt_readers: NDArray[np.uint64] | None
) -> NDArray[np.int64]:
    """How many hold semaphores for read; nonsense where the state is impossible.

    A reader that finds a writer inside has counted itself by then, and takes that back.

    :param count: See :func:`is_write_locked`.
    :param rt_readers: Likewise.
    """
    if rt_readers is not None:
        inside = rt_readers & np.uint64(_RT_READER_BIAS - 1)
        return np.where(is_write_locked(None, rt_readers), 0, inside).astype(np.int64)
    assert count is not None
    readers = (count & np.uint64(2**63 - 1)) >> np.uint64(_RWSEM_READER_SHIFT)
    return readers.astype(np.int64)


def owner_tasks(
    owner: NDArray[np.uint64], realtime: bool
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Take the owner's word of semaphores apart.

    :param realtime: It is that of a PREEMPT_RT kernel's ``rtmutex``.
    :return: Addresses of tasks, 0 for none, and whether each is the last one that took the
        semaphore for read; nobody removes it when it gives that back.
    """
    flags = _RT_OWNER_FLAGS if realtime else _OWNER_FLAGS
    task = owner & np.uint64(2**64 - 1 - flags)
    if realtime:
        return task, np.zeros(len(owner), dtype=bool)
    return task, (owner & np.uint64(_OWNER_READER)) != 0


def ticks_per_second(mult: int, shift: int) -> int | None:
    """The kernel's ``HZ``, by ``clocksource_jiffies``: how many nanoseconds a tick is.

    Follows ``kernel/time/jiffies.c``, v5.10 to v7.3.

    :return: ``None`` if these cannot be its words.
    """
    nanoseconds = mult >> shift if 0 <= shift < 32 else 0
    # Between one and a million ticks a second.
    if not 1_000 <= nanoseconds <= 1_000_000_000:
        return None
    return (1_000_000_000 + nanoseconds // 2) // nanoseconds


def queued_since(timeout: NDArray[np.uint64], ticks: int) -> NDArray[np.uint64]:
    """When waiters queued, in ``jiffies``, by ``rwsem_waiter.timeout``.

    That is when a waiter may ask for the lock to be handed to it, 4 ms later. Nothing changes it
    while it waits (``rwsem_down_read_slowpath()``, ``rwsem_down_write_slowpath()``, v5.10 to v7.3).

    :param ticks: The kernel's ``HZ``.
    """
    since: NDArray[np.uint64] = timeout - np.uint64(-(-ticks // 250))
    return since


@dataclass(frozen=True)
class LockRecords:
    """Structs of read-write semaphores and of those who wait for them.

    :ivar anon_vma: Bytes from the start of an ``anon_vma`` to its semaphore.
    :ivar mm: Bytes from the start of an ``mm_struct`` to ``mmap_lock``.
    :ivar waiter: ``rwsem_waiter``, or ``rt_mutex_waiter`` with PREEMPT_RT; ``None`` if the types
        are not known.
    :ivar task: ``None`` if something about tasks is not known.
    """

    anon_vma: int
    mm: int
    rwsem: Record
    waiter: Record | None
    task: Record | None

    @property
    def realtime(self) -> bool:
        """The kernel is one with PREEMPT_RT."""
        return "rt_readers" in self.rwsem


def resolve_locks(layouts: Layouts) -> LockRecords | None:
    """Find the structs' members.

    :return: ``None`` if the kernel's semaphores are none that are understood.
    """
    missing: list[str] = []
    rwsem = resolve_record(layouts, "rw_semaphore", _RWSEM, missing)
    anon_vma = layouts.field("anon_vma", "rwsem")
    # Since Linux kernel commit da1c55f1b272 ("mmap locking API: rename mmap_sem to mmap_lock") (in
    # v5.8).
    mm = layouts.field("mm_struct", "mmap_lock") or layouts.field("mm_struct", "mmap_sem")
    realtime = {"rt_readers", "rt_owner", "rt_waiters"} <= rwsem.fields.keys()
    # Before v5.3 the owner is a plain pointer, and the count means something else.
    plain = {"count", "owner"} <= rwsem.fields.keys()
    plain &= "wait_list" in rwsem or "first_waiter" in rwsem
    if anon_vma is None or mm is None or missing or not (realtime or plain):
        return None
    if realtime:
        waiter = resolve_record(layouts, "rt_mutex_waiter", _RT_WAITER, missing)
    else:
        waiter = resolve_record(layouts, "rwsem_waiter", _WAITER, missing)
    no_task: list[str] = []
    task = resolve_record(layouts, "task_struct", _TASK, no_task)
    return LockRecords(
        anon_vma=anon_vma.offset,
        mm=mm.offset,
        rwsem=rwsem,
        waiter=None if missing else waiter,
        task=None if no_task else task,
    )
