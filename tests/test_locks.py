"""The word of a read-write semaphore: what each bit of it says."""

from __future__ import annotations

import numpy as np
import pytest

from anonvma_inspect.kernel.locks import LockState, lock_states

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
