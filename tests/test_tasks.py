"""One wrong word in what leads to the tasks is told of, and does not hide the other processes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from anonvma_inspect.collect import collect
from anonvma_inspect.tables import Tables
from anonvma_inspect.target.memory import OverlayMemory

from .captures import CAPTURES
from .running import words_of

CAPTURE = next(capture for capture in CAPTURES if capture.name == "mixed-6.12")
# Neither is in RAM; the second is next to the end of the address space, where sums wrap.
WILD = (0xDEAD000000000100, 0x10)


def with_word(task: int, field: str, value: int) -> Tables:
    target = CAPTURE.target
    address = int(CAPTURE.tables.tasks.address[task]) + CAPTURE.tables.era.task.offset(field)
    memory = OverlayMemory(target.memory, {address: value})
    return collect(dataclasses.replace(target, memory=memory))


@pytest.mark.parametrize("value", WILD)
@pytest.mark.parametrize(
    ("field", "problem"),
    [
        ("signal", "signal is wild"),
        ("mm", "mm is wild"),
        ("tasks_next", "tasks_next is wild"),
        ("thread_node_next", "a thread is wild"),
    ],
)
def test_a_wild_word_of_a_task(field: str, problem: str, value: int) -> None:
    clean = CAPTURE.tables
    row = len(clean.tasks.pid) // 2
    broken = with_word(row, field, value)
    assert broken.broken.problem.tolist() == [problem]
    assert broken.broken.value.tolist() == [value]
    if problem != "a thread is wild":
        assert broken.broken.address.tolist() == [int(clean.tasks.address[row])]
    # The rest is looked for from the other end, by words that a snapshot of a sound list lacks.
    lost = set(clean.tasks.pid.tolist()) - set(broken.tasks.pid.tolist())
    assert len(lost) <= 1 or not broken.complete


def test_a_task_list_that_loops() -> None:
    tasks = CAPTURE.tables.tasks
    leaders = np.flatnonzero(tasks.pid == tasks.tgid)
    here, back = int(leaders[-1]), int(leaders[1])
    offset = CAPTURE.tables.era.task.offset("tasks_next")
    broken = with_word(here, "tasks_next", int(tasks.address[back]) + offset)
    assert broken.broken.problem.tolist() == ["the task list loops"]
    assert set(broken.tasks.pid.tolist()) == set(tasks.pid.tolist())


def test_a_thread_of_another_process() -> None:
    """As a freed task_struct may lead anywhere, so may a damaged one."""
    tasks, era = CAPTURE.tables.tasks, CAPTURE.tables.era
    here = len(tasks.pid) - 1
    # Of leaders, the capture has the word that tells.
    leaders = tasks.pid == tasks.tgid
    stranger = int(np.flatnonzero(leaders & (tasks.tgid != tasks.tgid[here]))[0])
    node = int(tasks.address[stranger]) + era.task.offset("thread_node_next")
    broken = with_word(here, "thread_node_next", node).broken
    assert broken.problem.tolist() == ["a thread is no thread of it"]
    assert broken.value.tolist() == [node]
    signal = words_of(CAPTURE.target, int(tasks.address[here]) + era.task.offset("signal"))
    head = signal + era.signal.offset("thread_head_next")
    assert broken.address.tolist() == [head]
