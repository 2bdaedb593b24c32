"""Read-write semaphores, as memory shows them.

Follows ``kernel/locking/rwsem.c`` (v5.3 on) and, for PREEMPT_RT, ``kernel/locking/rwbase_rt.c``
(v6.12).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ("is_write_locked",)

_RWSEM_WRITER_LOCKED = 1
# include/linux/rwbase_rt.h: with a writer inside, the reader count is this bias.
_RT_WRITER_BIAS = 1 << 30


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
