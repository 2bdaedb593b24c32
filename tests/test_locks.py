"""The word of a read-write semaphore: what each bit of it says."""

from __future__ import annotations

import numpy as np
import pytest

from anonvma_inspect.kernel.locks import (
    LockState,
    lock_readers,
    lock_states,
    owner_tasks,
    queued_since,
    ticks_per_second,
)

# kernel/locking/rwsem.c (v6.12): bit 0 writer, 1 waiters, 2 handoff, 3 to 7 reserved, 8 to 62
# readers, 63 read fail.
COUNTS = [
    (0, LockState.IDLE),
    (1, LockState.WRITER),
    (3, LockState.WRITER),
    (2, LockState.QUEUED),
    (0x106, LockState.QUEUED),
    (0x100, LockState.IDLE),
    (0x300, LockState.IDLE),
    # A reader adds himself before he sees the writer.
    (0x101, LockState.WRITER),
    (8, LockState.IMPOSSIBLE),
    (0x80, LockState.IMPOSSIBLE),
    (1 << 63, LockState.IMPOSSIBLE),
    # One reader more than PID_MAX_LIMIT has numbers.
    ((1 << 22) << 8, LockState.IMPOSSIBLE),
    (((1 << 22) - 1) << 8, LockState.IDLE),
]
# include/linux/rwbase_rt.h (v6.12): READER_BIAS is bit 31, WRITER_BIAS bit 30.
READERS = [
    (1 << 31, LockState.IDLE),
    ((1 << 31) + 2, LockState.IDLE),
    (1 << 30, LockState.WRITER),
    (0, LockState.QUEUED),
    (2, LockState.QUEUED),
    ((1 << 30) + 1, LockState.IMPOSSIBLE),
    ((1 << 31) + (1 << 22), LockState.IMPOSSIBLE),
    (2**32 - 1, LockState.IMPOSSIBLE),
]


@pytest.mark.parametrize(("count", "state"), COUNTS)
def test_count(count: int, state: LockState) -> None:
    assert lock_states(np.array([count], dtype=np.uint64), None, True).tolist() == [state]


@pytest.mark.parametrize(("readers", "state"), READERS)
def test_readers_of_a_realtime_kernel(readers: int, state: LockState) -> None:
    assert lock_states(None, np.array([readers], dtype=np.uint64), False).tolist() == [state]


def test_count_of_another_meaning() -> None:
    """Before v5.3 a writer made the count negative: only bit 0 is looked at."""
    words = np.array([0, 1, 2**64 - 2**32 + 1, 2], dtype=np.uint64)
    expected = [LockState.IDLE, LockState.WRITER, LockState.WRITER, LockState.IDLE]
    assert lock_states(words, None, False).tolist() == expected


def test_readers_inside() -> None:
    words = np.array([0, 0x100, 0x306, 0x101, 1 << 63], dtype=np.uint64)
    assert lock_readers(words, None).tolist() == [0, 1, 3, 1, 0]
    words = np.array([1 << 31, (1 << 31) + 2, 2, 1 << 30], dtype=np.uint64)
    assert lock_readers(None, words).tolist() == [0, 2, 2, 0]


def test_flags_of_the_owner() -> None:
    """RWSEM_READER_OWNED is bit 0, NONSPINNABLE bit 1 (v5.10: bits 1 and 2)."""
    task = 0xFFFF888003C51000
    words = np.array([0, task, task | 1, task | 3, task | 6, 1], dtype=np.uint64)
    tasks, reader = owner_tasks(words, False)
    assert tasks.tolist() == [0, task, task, task, task, 0]
    assert reader.tolist() == [False, False, True, True, False, True]
    # RT_MUTEX_HAS_WAITERS
    tasks, reader = owner_tasks(np.array([task | 1, 0], dtype=np.uint64), True)
    assert tasks.tolist() == [task, 0]
    assert not reader.any()


@pytest.mark.parametrize("ticks", [100, 250, 300, 1000])
def test_ticks_per_second(ticks: int) -> None:
    """TICK_NSEC (include/vdso/jiffies.h) and JIFFIES_SHIFT, 8 for these."""
    tick_nsec = (1_000_000_000 + ticks // 2) // ticks
    assert ticks_per_second(tick_nsec << 8, 8) == ticks


@pytest.mark.parametrize(("mult", "shift"), [(0, 0), (1 << 31, 40), (5, 0)])
def test_no_ticks(mult: int, shift: int) -> None:
    assert ticks_per_second(mult, shift) is None


def test_queued_since() -> None:
    """RWSEM_WAIT_TIMEOUT is DIV_ROUND_UP(HZ, 250), and jiffies wrap round."""
    timeout = np.array([1004, 3], dtype=np.uint64)
    assert queued_since(timeout, 1000).tolist() == [1000, 2**64 - 1]
    assert queued_since(timeout, 250).tolist() == [1003, 2]
    assert queued_since(timeout, 300).tolist() == [1002, 1]
