"""Reading in bulk: every kind of memory answers alike, and never what it does not have."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anonvma_inspect.parallel import run_parallel
from anonvma_inspect.target.memory import (
    AddressSpace,
    Memory,
    OverlayMemory,
    RecordingMemory,
    SegmentMemory,
    U64Column,
    distinct,
    merge_ranges,
    take_rows,
)
from anonvma_inspect.target.paged import Meter, PagedMemory

BASE = 0xFFFF888000000000
PAGE = 4096
# Pages of a toy machine; the one in the middle is missing.
PRESENT = (0, 1, 3, 7)
IMAGE = np.random.default_rng(1).integers(0, 256, 8 * PAGE, dtype=np.uint8)


def column(*addresses: int) -> U64Column:
    return np.array(addresses, dtype=np.uint64)


def oracle(address: int, size: int) -> bytes | None:
    """The bytes, one by one."""
    offsets = range(address - BASE, address - BASE + size)
    if any(not 0 <= offset < len(IMAGE) or offset // PAGE not in PRESENT for offset in offsets):
        return None
    return bytes(int(IMAGE[offset]) for offset in offsets)


def known(address: int, size: int) -> bytes:
    data = oracle(address, size)
    assert data is not None
    return data


def paged() -> PagedMemory:
    def read(address: int, size: int) -> bytes:
        data = oracle(address, size)
        if data is None:
            raise LookupError
        return data

    return PagedMemory(read, PAGE)


def segments() -> SegmentMemory:
    """The same machine as a file: pages in another order, neighbours in one segment."""
    start = column(BASE, BASE + 3 * PAGE, BASE + 7 * PAGE)
    size = column(2 * PAGE, PAGE, PAGE)
    offset = column(100 + 2 * PAGE, 100 + PAGE, 100)
    file = np.zeros(100 + 4 * PAGE, dtype=np.uint8)
    for at, length, to in zip(start, size, offset, strict=True):
        source = int(at) - BASE
        file[int(to) : int(to + length)] = IMAGE[source : source + int(length)]
    return SegmentMemory(file, start, size, offset)


@pytest.mark.parametrize("make", [paged, segments])
@settings(max_examples=200, deadline=None)
@given(
    offsets=st.lists(st.integers(-20, 8 * PAGE + 20), max_size=12),
    size=st.sampled_from([1, 2, 4, 8, 16, 64, 176, PAGE, PAGE + 8, 2 * PAGE]),
)
def test_gather_is_the_oracle(make: Callable[[], Memory], offsets: list[int], size: int) -> None:
    memory = make()
    addresses = column(*(BASE + offset for offset in offsets))
    rows, present = memory.gather(addresses, size)
    assert rows.shape == (len(offsets), size)
    for address, row, there in zip(addresses, rows, present, strict=True):
        expected = oracle(int(address), size)
        assert there == (expected is not None)
        assert row.tobytes() == (expected if expected is not None else bytes(size))


@settings(max_examples=200, deadline=None)
@given(
    offset=st.integers(-20, 8 * PAGE + 20),
    size=st.sampled_from([1, 2, 4, 8, 16, 64, 176, PAGE, PAGE + 8, 2 * PAGE]),
)
def test_read_is_the_oracle(offset: int, size: int) -> None:
    expected = oracle(BASE + offset, size)
    if expected is not None:
        assert segments().read(BASE + offset, size) == expected
    else:
        with pytest.raises(LookupError):
            segments().read(BASE + offset, size)


@given(
    captured=st.lists(st.booleans(), min_size=8, max_size=8),
    offset=st.integers(0, 63),
    size=st.integers(1, 24),
)
def test_read_is_as_gather_where_words_are_missing(
    captured: list[bool], offset: int, size: int
) -> None:
    memory = SegmentMemory(
        IMAGE[:80], column(BASE), column(64), column(16),
        captured=np.array(captured), captured_from=16,
    )  # fmt: skip
    rows, present = memory.gather(column(BASE + offset), size)
    if present[0]:
        assert memory.read(BASE + offset, size) == rows[0].tobytes()
    else:
        with pytest.raises(LookupError):
            memory.read(BASE + offset, size)


def test_read_never_the_lower_half() -> None:
    memory = SegmentMemory(IMAGE, column(0), column(len(IMAGE)), column(0))
    with pytest.raises(LookupError):
        memory.read(0, 8)


@pytest.mark.parametrize("make", [paged, segments])
def test_never_the_lower_half(make: Callable[[], Memory]) -> None:
    """In QEMU's ELF dumps physical address 0 answers for a NULL pointer."""
    memory = make()
    _, present = memory.gather(column(0, 8, 1 << 40, 2**64 - 4, 2**64 - 1), 8)
    assert not present.any()


def test_lower_half_is_not_read_even_where_there_is_something() -> None:
    everything = PagedMemory(lambda _, size: b"\xff" * size, PAGE)
    rows, present = everything.gather(column(0, 1 << 46, 1 << 63), 8)
    assert present.tolist() == [False, False, True]
    assert rows[0].tobytes() == bytes(8)


def test_fallback_answers_where_no_segment_does() -> None:
    whole = np.arange(PAGE, dtype=np.uint64).view(np.uint8)[:PAGE]
    memory = SegmentMemory(whole, column(BASE), column(64), column(0), fallback=paged())
    rows, present = memory.gather(column(BASE, BASE + 3 * PAGE, BASE + 2 * PAGE), 8)
    assert present.tolist() == [True, True, False]
    assert rows[0].tobytes() == whole[:8].tobytes()
    assert rows[1].tobytes() == known(BASE + 3 * PAGE, 8)


class Running:
    """A memory that changes: every word of it is how often it was read."""

    def __init__(self) -> None:
        self.reads = 0

    def read(self, address: int, size: int) -> bytes:
        self.reads += 1
        return self.reads.to_bytes(8, "little") * (size // 8)


def test_view_of_what_runs_stands_still() -> None:
    running = Running()
    view = PagedMemory(running.read, PAGE)
    first, _ = view.gather(column(BASE), 8)
    view.gather(column(BASE + PAGE), 8)
    again, _ = view.gather(column(BASE, BASE + 64), 8)
    fresh, _ = PagedMemory(running.read, PAGE).gather(column(BASE), 8)
    assert first.view("<u8").tolist() == [[1]]
    assert again.view("<u8").tolist() == [[1], [1]]
    assert fresh.view("<u8").tolist() == [[3]]


def test_what_was_asked_of_one_view_is_read_ahead_for_the_next() -> None:
    """All of it at once, before anything is asked for; what nobody asks for again is let go."""
    running = Running()
    first = PagedMemory(running.read, PAGE)
    first.gather(column(BASE + 7 * PAGE, BASE, BASE + 600 * PAGE), 8)
    pages = first.asked()
    assert pages.tolist() == [BASE // PAGE + page for page in (0, 7, 600)]
    before = running.reads
    view = PagedMemory(running.read, PAGE, ahead=pages)
    assert running.reads == before + 3
    running.read(BASE, 8)
    values, _ = view.gather(column(BASE + 7 * PAGE, BASE + 8 * PAGE), 8)
    assert values.view("<u8")[:, 0].tolist() == [before + 2, before + 5]
    assert view.asked().tolist() == [BASE // PAGE + page for page in (7, 8)]


def test_what_is_read_ahead_is_no_hole_until_it_is_asked_for() -> None:
    def read(address: int, size: int) -> bytes:
        if address < BASE + PAGE <= address + size:
            raise LookupError
        return bytes(size)

    meter = Meter()
    pages = column(*range(BASE // PAGE, BASE // PAGE + 4))
    view = PagedMemory(read, PAGE, ahead=pages, limit=3 * PAGE, meter=meter)
    assert meter.pages_refused == 0
    at = column(BASE, BASE + PAGE, BASE + 2 * PAGE, BASE + 3 * PAGE)
    _, present = view.gather(at, 8)
    assert present.tolist() == [False, True, True, True]
    assert view.asked().tolist() == pages[1:].tolist()


def test_view_that_nobody_holds_is_gone() -> None:
    """Not when the interpreter gets round to it: a view is large."""
    view = PagedMemory(Running().read, PAGE, limit=100 * PAGE)
    view.gather(column(BASE), 8)
    gone = weakref.ref(view)
    gc.disable()
    try:
        del view
        assert gone() is None
    finally:
        gc.enable()


def test_threads_see_the_same_view() -> None:
    """Whichever of them reads a page, the others see what it read."""
    view = PagedMemory(Running().read, PAGE)
    rng = np.random.default_rng(6)
    asked = [
        np.uint64(BASE) + rng.integers(0, 4000, 300).astype(np.uint64) * np.uint64(PAGE)
        for _ in range(64)
    ]
    answers = run_parallel(lambda addresses: view.gather(addresses, 8)[0].view("<u8")[:, 0], asked)
    seen: dict[int, int] = {}
    for addresses, values in zip(asked, answers, strict=True):
        for address, value in zip(addresses.tolist(), values.tolist(), strict=True):
            assert seen.setdefault(address, value) == value > 0


def test_meter_counts_what_is_read_and_not_what_is_asked() -> None:
    meter = Meter()
    view = PagedMemory(Running().read, PAGE, meter=meter)
    view.gather(column(BASE, BASE + 8, BASE + 3 * PAGE), 8)
    view.gather(column(BASE), 8)
    assert meter.bytes_read == 2 * PAGE
    view.uncached().gather(column(BASE), 8)
    assert meter.bytes_read == 3 * PAGE, "the same meter for another view"


def test_view_behind_its_limit_has_holes_and_keeps_them() -> None:
    """What was read stays, and what was refused stays refused, or two answers would differ."""
    meter = Meter()
    view = PagedMemory(Running().read, PAGE, meter=meter, limit=3 * PAGE)
    _, present = view.gather(column(*(BASE + 2 * page * PAGE for page in range(5))), 8)
    assert present.tolist() == [True, True, True, False, False]
    assert (meter.bytes_read, meter.pages_refused) == (3 * PAGE, 2)
    _, present = view.gather(column(BASE, BASE + 8 * PAGE, BASE + 100 * PAGE), 8)
    assert present.tolist() == [True, False, False]
    assert (meter.bytes_read, meter.pages_refused) == (3 * PAGE, 3)


def test_words_not_captured_are_absent() -> None:
    captured = np.ones(PAGE // 8, dtype=bool)
    captured[3] = False
    memory = SegmentMemory(
        IMAGE[:PAGE],
        column(BASE),
        column(PAGE),
        column(0),
        captured=captured,
        captured_from=0,
    )
    _, present = memory.gather(column(BASE + 16, BASE + 20, BASE + 24, BASE + 28, BASE + 32), 4)
    assert present.tolist() == [True, True, False, False, True]
    _, present = memory.gather(column(BASE, BASE + 8, BASE + 32), 24)
    assert present.tolist() == [True, False, True]


def test_overlay_replaces_words_only() -> None:
    memory = OverlayMemory(paged(), {BASE + 8: 0x1122334455667788, BASE + 2 * PAGE: 1})
    rows, present = memory.gather(column(BASE + 4, BASE + 8, BASE + 12, BASE + 16), 8)
    new = (0x1122334455667788).to_bytes(8, "little")
    assert rows[0].tobytes() == known(BASE + 4, 4) + new[:4]
    assert rows[1].tobytes() == new
    assert rows[2].tobytes() == new[4:] + known(BASE + 16, 4)
    assert rows[3].tobytes() == known(BASE + 16, 8)
    assert present.all()
    _, present = memory.gather(column(BASE + 2 * PAGE), 8)
    assert not present[0], "an overlay makes no missing page appear"


def test_recording_keeps_whole_words_of_what_was_there() -> None:
    memory = RecordingMemory(paged())
    memory.gather(column(BASE + 4, BASE + 2 * PAGE), 8)
    memory.gather(column(BASE + 24, BASE + 16), 8)
    assert memory.ranges().tolist() == [[BASE, BASE + 32]]


def test_recording_joins_many_readings() -> None:
    memory = RecordingMemory(paged())
    for offset in range(0, 1000, 8):
        memory.gather(column(BASE + offset), 8)
    assert memory.ranges().tolist() == [[BASE, BASE + 1000]]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=10))
def test_merge_ranges_is_the_union(pairs: list[tuple[int, int]]) -> None:
    merged = merge_ranges(np.array(pairs, dtype=np.uint64).reshape(-1, 2))
    points = {point for low, high in pairs for point in range(low, high)}
    assert {point for low, high in merged.tolist() for point in range(low, high)} == points
    flat = merged.reshape(-1).tolist()
    assert flat == sorted(set(flat)), "sorted, disjoint, not touching, none empty"


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.sampled_from((0, 1, 1000, 5000, 150_000)),
    base=st.sampled_from((0, 8, BASE, BASE + 24, 2**64 - (1 << 31))),
    span=st.sampled_from((1, 1 << 6, 1 << 14, 1 << 20, 1 << 30)),
    size=st.sampled_from((1, 8, 64, 96, 8192)),
    strays=st.lists(st.sampled_from((0, 1, 2**63, 2**64 - 1)), max_size=2),
)
def test_distinct_is_sorted_and_each_once(
    seed: int, count: int, base: int, span: int, size: int, strays: list[int]
) -> None:
    places = np.random.default_rng(seed).integers(0, span, count, dtype=np.uint64)
    addresses = np.uint64(base) + places // np.uint64(size) * np.uint64(size)
    addresses = np.concatenate([addresses, column(*strays)])
    found = distinct(addresses)
    assert found.dtype == np.uint64
    assert found.tolist() == sorted(set(addresses.tolist()))


def test_take_rows_at_both_ends() -> None:
    buffer = np.arange(10, dtype=np.uint8)
    assert take_rows(buffer, np.array([0, 7, 3]), 3).tolist() == [[0, 1, 2], [7, 8, 9], [3, 4, 5]]
    assert take_rows(buffer, np.array([], dtype=np.int64), 64).shape == (0, 64)


SPACE = AddressSpace(
    np.array([[BASE, BASE + PAGE], [BASE + 2 * PAGE, BASE + 4 * PAGE]], dtype=np.uint64), PAGE, BASE
)


@pytest.mark.parametrize(
    ("address", "wild"),
    [
        (BASE, False),
        (BASE + PAGE - 64, False),
        (BASE + PAGE - 56, True),  # reaches out of RAM
        (BASE + PAGE, True),
        (BASE + 2 * PAGE, False),
        (BASE + 4, True),  # misaligned
        (BASE - 64, True),
        (0, True),
        (0xDEAD000000000100, True),  # LIST_POISON1
        (0x0000DEADBEEF0000, True),  # not canonical, or a user's
        (2**64 - 64, True),
        (2**64 - 8, True),  # wraps
    ],
)
def test_wild(address: int, wild: bool) -> None:
    assert SPACE.wild(column(address), 64).tolist() == [wild]


def test_without_ram_everything_is_wild() -> None:
    nothing = AddressSpace(np.empty((0, 2), dtype=np.uint64), PAGE, BASE)
    assert nothing.wild(column(BASE, 0), 8).all()
