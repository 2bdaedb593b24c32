"""Several processors at work: numpy lets go of the interpreter while it is busy with a column."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

__all__ = ("run_both", "run_parallel")

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Other = TypeVar("Other")

# Memory is what limits the work: more threads than this wait for it.
_MOST_THREADS = 8
# With fewer rows of a table, handing them out takes longer than what is done with them.
_WORTH_ROWS = 1 << 15
_inside = threading.local()


def run_parallel(
    function: Callable[[Item], Answer], items: Iterable[Item], *, rows: int | None = None
) -> list[Answer]:
    """Call a function for each of some items, several at a time.

    Called from inside such a function, it works off its items one after the other.

    :param function: Touches nothing that another call of it changes.
    :param rows: How long the columns are that all of the calls work on: few are not worth it.
    :return: Its answers, in the order of the items.
    """
    work = list(items)
    worth = len(work) > 1 and (rows is None or rows >= _WORTH_ROWS)
    pool = _pool() if worth and not getattr(_inside, "worker", False) else None
    if pool is None:
        return [function(item) for item in work]
    return list(pool.map(function, work))


def run_both(one: Callable[[], Answer], other: Callable[[], Other]) -> tuple[Answer, Other]:
    """Call two functions at the same time; see :func:`run_parallel`."""
    calls: tuple[Callable[[], Any], ...] = (one, other)
    first, second = run_parallel(lambda call: call(), calls)
    return first, second


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor | None:
    threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    return ThreadPoolExecutor(threads, initializer=_enter) if threads > 1 else None


# A process that forks leaves its threads behind: the child's executor would wait for them for ever.
os.register_at_fork(after_in_child=_pool.cache_clear)


def _enter() -> None:
    _inside.worker = True
