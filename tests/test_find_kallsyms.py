"""kallsyms tables are found in an image by their form, and nothing else is taken for them."""

from __future__ import annotations

import contextlib
import copy
import functools
import struct
import time
from collections.abc import Collection

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.find_kallsyms import find_kallsyms
from anonvma_inspect.target.image import KernelImage
from anonvma_inspect.target.kallsyms import Kallsyms
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo

from .captures import Capture
from .kallsyms_image import BASE, PAGE, SINCE_6_4, TABLES, Image, Layout, many_symbols
from .programs import FULL, program

# Kernel, as far as it matters here: how the tables lie, and how addresses are kept.
KERNELS = {
    "4.18": (Layout(True, marker_bytes=8), "percpu"),
    "4.19-absolute": (Layout(True, marker_bytes=8), "absolute"),
    "4.19-arm64": (Layout(True, alignment=256, marker_bytes=8), "plain"),
    "4.20-arm64": (Layout(True, alignment=256), "plain"),
    "5.10": (Layout(True), "percpu"),
    "5.10-arm64": (Layout(True), "plain"),
    "5.10-absolute": (Layout(True), "absolute"),
    "6.2": (Layout(True, seq_bytes=4), "percpu"),
    "6.1-stable": (Layout(True, seq_bytes=3), "percpu"),
    "6.3-arm64": (Layout(True, seq_bytes=3), "plain"),
    "6.4": (SINCE_6_4, "percpu"),
    "6.4-absolute": (SINCE_6_4, "absolute"),
    "6.12-arm64": (SINCE_6_4, "plain"),
    "7.0": (Layout(False, alignment=4), "here"),
}

every_kernel = pytest.mark.parametrize("kernel", KERNELS)
# Of each order, alignment, width and form one.
some_kernels = pytest.mark.parametrize(
    "kernel", ["4.19-absolute", "4.19-arm64", "5.10", "6.1-stable", "7.0"]
)


@functools.cache
def _encoded(kernel: str, start: int, count: int) -> Image:
    layout, form = KERNELS[kernel]
    return Image(many_symbols(form, count), form, layout=layout, start=start)


def make(kernel: str, start: int = TABLES, count: int = 2100) -> Image:
    return copy.deepcopy(_encoded(kernel, start, count))


# The image of a kernel whose text is no-operations, from its text to behind its tables.
class Memory:
    def __init__(self, *images: Image, missing: Collection[int] = ()) -> None:
        self.data = bytearray(b"\x90") * (4 << 20)
        for image in images:
            at = image.start - BASE
            self.data[at : at + len(image.memory)] = image.memory
        self.missing = missing

    def read(self, address: int, size: int) -> bytes:
        at = address - BASE
        pages = range(at // PAGE, (at + size - 1) // PAGE + 1)
        if not 0 <= at <= at + size <= len(self.data) or any(p in self.missing for p in pages):
            raise LookupError(address)
        return bytes(self.data[at : at + size])

    def search(self, image: Image) -> Kallsyms | None:
        return find_kallsyms(KernelImage(self.read, BASE, PAGE), image.anchors)


def assert_same(found: Kallsyms | None, expected: Kallsyms) -> None:
    assert found is not None
    names, addresses = found.all()
    expected_names, expected_addresses = expected.all()
    assert names == expected_names
    assert np.array_equal(addresses, expected_addresses)


@every_kernel
@pytest.mark.parametrize("start", [TABLES, TABLES + 0x1700, BASE + (1 << 20) - 0x5800])
def test_found(kernel: str, start: int) -> None:
    image = make(kernel, start)
    assert_same(Memory(image).search(image), image.open())


@some_kernels
# What is left of 256 decides how the last marker's names end, and how tables are padded.
@pytest.mark.parametrize("count", [2295, 2296, 2297, 2298, 2299, 2300, 2303, 4000])
def test_found_whatever_the_number_of_symbols(kernel: str, count: int) -> None:
    image = make(kernel, count=count)
    assert_same(Memory(image).search(image), image.open())


def test_nothing_there() -> None:
    image = make("5.10")
    assert Memory().search(image) is None
    few = Image(layout=Layout(True))
    assert Memory(few).search(few) is None


@some_kernels
@pytest.mark.parametrize(
    "table", ["names", "token_table", "token_index", "num_syms", "markers", "addresses"]
)
def test_missing_page(kernel: str, table: str) -> None:
    image = make(kernel)
    if table == "addresses":
        table = "addresses" if KERNELS[kernel][1] == "absolute" else "offsets"
    page = (image.start + image.place(table) - BASE) // PAGE
    assert Memory(image, missing=[page]).search(image) is None


@some_kernels
@pytest.mark.parametrize("table", ["num_syms", "markers", "token_index", "names"])
@pytest.mark.parametrize("change", [1, 255])
def test_a_number_that_contradicts_the_others(kernel: str, table: str, change: int) -> None:
    image = make(kernel)
    at = image.place(table)
    if table in ("markers", "token_index"):
        at += 8  # the first is 0 in all
    image.memory[at] = (image.memory[at] + change) % 256
    assert Memory(image).search(image) is None


@every_kernel
def test_addresses_that_do_not_ascend(kernel: str) -> None:
    layout, form = KERNELS[kernel]
    symbols = many_symbols(form)
    symbols[1000], symbols[1001] = symbols[1001], symbols[1000]
    image = Image(symbols, form, layout=layout)
    assert Memory(image).search(image) is None


@every_kernel
def test_tables_of_another_kernel(kernel: str) -> None:
    """As in the page cache, had somebody copied a vmlinux there."""
    image = make(kernel)
    for name in ("_stext", "init_uts_ns"):
        elsewhere = image.anchors | {f"SYMBOL({name})": f"{BASE + 0x300000:x}"}
        memory = KernelImage(Memory(image).read, BASE, PAGE)
        assert find_kallsyms(memory, elsewhere) is None
    assert find_kallsyms(KernelImage(Memory(image).read, BASE + PAGE, PAGE), image.anchors) is None


@every_kernel
def test_two_tables(kernel: str) -> None:
    image, other = make(kernel), make(kernel, TABLES + 0x100000)
    with pytest.raises(TargetError, match=r"more than one place.*--system-map"):
        Memory(image, other).search(image)
    # One that is damaged is no second one.
    other.memory[other.place("names")] ^= 1
    assert_same(Memory(image, other).search(image), image.open())


def _fillers() -> dict[str, bytes]:
    image = make("5.10")
    names = bytes(image.memory[image.place("names") : image.place("markers")])
    return {
        "digits": b"".join(b"%d\0" % digit for digit in range(10)),
        "tokens": bytes(image.memory[image.place("token_table") :]),
        "names": names[:512],
        "markers": struct.pack("<9I", *range(0, 4608, 512)) + bytes(4),
        "numbers of symbols": struct.pack("<2I", 2110, 0),
        "one name": b"\x01\x41",
    }


@pytest.mark.parametrize("filler", _fillers())
@pytest.mark.parametrize("with_tables", [False, True])
def test_made_to_take_long(filler: str, with_tables: bool) -> None:
    """All around is full of what one step of the search looks for."""
    image = make("5.10")
    memory = Memory()
    pattern = _fillers()[filler]
    memory.data[:] = (pattern * (len(memory.data) // len(pattern) + 1))[: len(memory.data)]
    if with_tables:
        memory.data[TABLES - BASE : TABLES - BASE + len(image.memory)] = image.memory
    start = time.monotonic()
    with contextlib.suppress(TargetError):
        assert (memory.search(image) is not None) == with_tables
    assert time.monotonic() - start < 10


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(KERNELS)),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=8)), max_size=3),
    st.integers(0, 40),
)
def test_overwritten_tables(kernel: str, patches: list[tuple[int, bytes]], missing: int) -> None:
    """Either they are still tables, and then these, or there are none."""
    image = make(kernel)
    for position, patch in patches:
        at = position % len(image.memory)
        image.memory[at : at + len(patch)] = patch
    memory = Memory(image, missing=[(TABLES - BASE) // PAGE + missing])
    with contextlib.suppress(TargetError):
        found = memory.search(image)
        if found is not None:
            assert_same(found, image.open())


@pytest.mark.parametrize(
    "capture",
    [c for c in FULL if b"SYMBOL(kallsyms_names)" in c.target.vmcoreinfo],
    ids=lambda capture: capture.name,
)
def test_found_where_vmcoreinfo_says(capture: Capture) -> None:
    prog = program(capture)
    facts = parse_vmcoreinfo(capture.target.vmcoreinfo, capture.name)

    def read(address: int, size: int) -> bytes:
        try:
            return bytes(prog.read(address, size))
        except Exception as error:
            raise LookupError from error

    image = KernelImage(read, int(facts["SYMBOL(_stext)"], 16), capture.target.page_size)
    others = {key: value for key, value in facts.items() if "kallsyms" not in key}
    assert_same(find_kallsyms(image, others), Kallsyms(read, facts))
