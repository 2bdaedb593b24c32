"""Clean data with holes: the audit ends, says that it is incomplete, and accuses nobody.

Pages are taken away at random, but the same ones each time: first those that hold the reverse map
itself, then of all that an audit reads.
"""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anonvma_inspect.collect import collect, collect_audit
from anonvma_inspect.invariants.catalogue import Audit, audit
from anonvma_inspect.tables import Tables
from anonvma_inspect.target import Target
from anonvma_inspect.target.memory import (
    BoolColumn,
    ByteRows,
    Memory,
    RecordingMemory,
    U64Column,
)

from .captures import CAPTURES, KERNELS, Capture, pairs_with
from .clirun import Cli
from .model.eras import ERAS, Rules
from .model.image import Image
from .model.made_up import made_up
from .model.script import play
from .model.slabs import PAGE
from .test_model import write_snapshot

PERCENTAGES = (1, 5, 20)

# Where KSM merged pages.
WITH_KSM = [capture for capture in CAPTURES if capture.name.startswith("pages")]

_percentages = pytest.mark.parametrize("percent", PERCENTAGES)
_eras = pytest.mark.parametrize("rules", ERAS.values(), ids=ERAS)


class WithoutPages:
    """A memory that some pages are missing from.

    :param pages: Their addresses.
    """

    def __init__(self, memory: Memory, pages: U64Column) -> None:
        self._memory = memory
        self._pages = pages

    def gather(self, addresses: U64Column, size: int) -> tuple[ByteRows, BoolColumn]:
        rows, present = self._memory.gather(addresses, size)
        for at in (*range(0, size, PAGE), size - 1):
            page = (addresses + np.uint64(at)) & np.uint64(-PAGE % 2**64)
            present &= ~np.isin(page, self._pages)
        rows[~present] = 0
        return rows, present

    def uncached(self) -> Memory:
        return self


def pages_of_reverse_map(tables: Tables) -> U64Column:
    """The pages that VMAs, AVCs and anon_vmas start in."""
    objects = (tables.vmas.address, tables.avcs.address, tables.anon_vmas.address)
    return np.unique(np.concatenate(objects) & np.uint64(-PAGE % 2**64))


def pages_read(target: Target) -> U64Column:
    """The pages that an audit reads; but for that of the head of the list of tasks, without which
    there is nothing to begin with."""
    recording = RecordingMemory(target.memory)
    collect_audit(replace(target, memory=recording), leaks=True)
    pages = [range(low // PAGE * PAGE, high, PAGE) for low, high in recording.ranges().tolist()]
    first = target.symbol("init_task")
    size = target.layouts.size("task_struct")
    assert size is not None
    head = range(first // PAGE * PAGE, first + size, PAGE)
    return np.array(sorted({*itertools.chain(*pages)} - {*head}), dtype=np.uint64)


def audit_without(target: Target, pages: U64Column, percent: int, seed: str) -> Audit:
    """Audit what is left when some of the pages are gone, one of the reverse map among them.

    (There are words that only tell more where they are there.)
    """
    rng = random.Random(f"{seed} {percent}")
    gone = rng.sample(pages.tolist(), max(1, len(pages) * percent // 100))
    gone[0] = rng.choice(pages_of_reverse_map(collect_audit(target)).tolist())
    holed = WithoutPages(target.memory, np.array(sorted(gone), dtype=np.uint64))
    return audit(collect_audit(replace(target, memory=holed), leaks=True))


def assert_incomplete_and_clean(result: Audit) -> None:
    assert not result.failures
    assert not result.complete
    assert not list(result.findings())


def state(rules: Rules) -> Target:
    player, _ = play(rules, made_up(7, operations=200, processes=12))
    return Image(player.machine, 7).target()


@_percentages
@_eras
def test_model(rules: Rules, percent: int) -> None:
    target = state(rules)
    pages = pages_of_reverse_map(collect(target))
    assert_incomplete_and_clean(audit_without(target, pages, percent, rules.name))


@_percentages
@_eras
def test_model_with_anything_missing(rules: Rules, percent: int) -> None:
    target = state(rules)
    assert_incomplete_and_clean(audit_without(target, pages_read(target), percent, rules.name))


@_percentages
@pytest.mark.parametrize("capture", KERNELS, ids=lambda capture: capture.name)
def test_capture(capture: Capture, percent: int) -> None:
    pages = pages_of_reverse_map(capture.tables)
    assert_incomplete_and_clean(audit_without(capture.target, pages, percent, capture.name))


@functools.cache
def pages_read_of(capture: Capture) -> U64Column:
    return pages_read(capture.target)


@pytest.mark.parametrize(
    ("capture", "percent"),
    [
        pytest.param(*pair, id=f"{pair[0].name}-{pair[1]}")
        for pair in pairs_with(PERCENTAGES, CAPTURES)
    ],
)
def test_capture_with_anything_missing(capture: Capture, percent: int) -> None:
    pages = pages_read_of(capture)
    assert_incomplete_and_clean(audit_without(capture.target, pages, percent, capture.name))


@pytest.mark.parametrize("capture", WITH_KSM, ids=lambda capture: capture.name)
def test_references_of_ksm_that_are_missing(capture: Capture) -> None:
    """Each page of KSM's objects alone: what it holds is then no surplus of anybody's."""
    tables = capture.tables
    objects = np.concatenate([tables.stable_nodes.address, tables.rmap_items.address])
    assert len(objects)
    for page in np.unique(objects & np.uint64(-PAGE % 2**64)):
        assert_incomplete_and_clean(audit_without(capture.target, page[None], 100, ""))


def test_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a file that pages are missing from."""
    player, _ = play(ERAS["7.3"], made_up(7))
    image = Image(player.machine)
    target = image.target()
    missing = pages_of_reverse_map(collect(target))[::9]
    ranges = [run for run in image.ram.ranges().tolist() if run[0] not in missing]
    core = tmp_path / "holes.core"
    write_snapshot(core, target, np.array(ranges, dtype=np.uint64))
    ran = Cli(capsys)("-c", str(core), "audit")
    assert ran.code == 4
    assert "0 findings" in ran.out
