"""A target is a view: of what runs, one can have a fresh one."""

from __future__ import annotations

import dataclasses

import numpy as np

from anonvma_inspect.target.memory import AddressSpace, Memory, OverlayMemory

from .captures import CAPTURES

CAPTURE = next(capture for capture in CAPTURES if capture.name == "forktree-6.12")


def test_what_stands_still_is_looked_at_once() -> None:
    assert CAPTURE.target.again() is CAPTURE.target


def test_what_runs_is_looked_at_anew() -> None:
    """Memory plugged in between lies in RAM; symbols and layouts stay."""
    tasks = CAPTURE.target.layouts.field("task_struct", "tasks.next")
    assert tasks is not None
    first = CAPTURE.target.symbol("init_task") + tasks.offset
    grown = np.concatenate([CAPTURE.target.space.ram, np.array([[2**64 - 8192, 2**64 - 4096]])])

    def renew(before: Memory | None) -> tuple[Memory, AddressSpace]:
        return (
            OverlayMemory(CAPTURE.target.memory, {first: 1}),
            dataclasses.replace(CAPTURE.target.space, ram=grown.astype(np.uint64)),
        )

    target = dataclasses.replace(CAPTURE.target, live=True, renew=renew)
    fresh = target.again()
    at = np.array([first], dtype=np.uint64)
    before, after = (each.memory.gather(at, 8)[0].view("<u8")[0, 0] for each in (target, fresh))
    assert before != 1
    assert after == 1
    place = np.array([2**64 - 8192], dtype=np.uint64)
    assert not target.space.in_ram(place)[0]
    assert fresh.space.in_ram(place)[0]
    assert fresh.symbols is target.symbols
    assert fresh.layouts is target.layouts
    assert fresh.again() is not fresh
