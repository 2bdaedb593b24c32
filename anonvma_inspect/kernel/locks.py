"""Read-write semaphores, as memory shows them.

Follows ``kernel/locking/rwsem.c`` (v5.3 on) and, for PREEMPT_RT, ``kernel/locking/rwbase_rt.c``
(v6.12).
"""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import NDArray

__all__ = ("LockState", "is_write_locked", "lock_states")

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
