"""Several processors at work, whoever asks for them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from anonvma_inspect import parallel
from anonvma_inspect.parallel import run_parallel


@pytest.fixture
def two_processors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    parallel._pool.cache_clear()
    yield
    parallel._pool.cache_clear()


@pytest.mark.usefixtures("two_processors")
def test_answers_are_in_the_order_of_the_items() -> None:
    first = threading.Event()

    # The first item is done last.
    def answer(item: int) -> int:
        if item:
            first.set()
        else:
            assert first.wait(10)
        return item * item

    assert run_parallel(answer, range(3)) == [0, 1, 4]


@pytest.mark.usefixtures("two_processors")
def test_inside_itself() -> None:
    """However deep: nobody waits for a thread that waits for him."""

    def total(depth: int) -> int:
        return sum(run_parallel(total, [depth - 1] * 3)) if depth else 1

    assert total(5) == 3**5


@pytest.mark.usefixtures("two_processors")
def test_first_exception_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        run_parallel(lambda item: 1 // item, [1, 0, 2])


@pytest.mark.usefixtures("two_processors")
def test_after_fork() -> None:
    """A child has none of its parent's threads, and starts some of its own."""
    both = threading.Barrier(2)
    run_parallel(lambda item: both.wait(10), range(2))
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        os._exit(run_parallel(str, [1, 2]) != ["1", "2"])
    assert os.waitpid(child, 0)[1] == 0
