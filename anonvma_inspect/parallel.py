"""Several processors at work: numpy lets go of the interpreter while it is busy with a column."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

__all__ = ("run_parallel",)

Item = TypeVar("Item")
Answer = TypeVar("Answer")

# Memory is what limits the work: more threads than this wait for it.
_MOST_THREADS = 8
_inside = threading.local()


def run_parallel(function: Callable[[Item], Answer], items: Iterable[Item]) -> list[Answer]:
    """Call a function for each of some items, several at a time.

    Called from inside such a function, it works off its items one after the other.

    :param function: Touches nothing that another call of it changes.
    :return: Its answers, in the order of the items.
    """
    work = list(items)
    pool = _pool()
    if len(work) < 2 or pool is None or getattr(_inside, "worker", False):
        return [function(item) for item in work]
    return list(pool.map(function, work))


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor | None:
    threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    return ThreadPoolExecutor(threads, initializer=_enter) if threads > 1 else None


def _enter() -> None:
    _inside.worker = True
