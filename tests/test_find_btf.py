"""The BTF is found in an image by its own header, and nothing else is taken for it."""

from __future__ import annotations

import pytest

from anonvma_inspect.target.btf import Btf
from anonvma_inspect.target.elf import parse_core
from anonvma_inspect.target.find_btf import find_btf
from anonvma_inspect.target.image import KernelImage
from anonvma_inspect.target.snapshot import decompress, parse_snapshot

from .captures import CAPTURES

PAGE = 4096
BASE = 0xFFFFFFFF81000000
HEADER = bytes.fromhex("9feb010018000000")


def a_btf() -> bytes:
    path = CAPTURES[0].core
    data = decompress(path)
    snapshot = parse_snapshot(parse_core(data, str(path)), data, str(path))
    assert snapshot is not None
    return snapshot.btf


class Image:
    """A kernel's image with some pages missing."""

    def __init__(self, data: bytes, missing: tuple[int, ...] = ()) -> None:
        self.data, self.missing = data, missing

    def read(self, address: int, size: int) -> bytes:
        first, last = (address - BASE) // PAGE, (address - BASE + size - 1) // PAGE
        if last * PAGE >= len(self.data) or any(first <= page <= last for page in self.missing):
            raise LookupError
        return self.data[address - BASE : address - BASE + size]

    def search(self) -> Btf | None:
        return find_btf(KernelImage(self.read, BASE, PAGE), "test")


def image(at: int, btf: bytes, size: int = 1 << 20) -> bytes:
    return (bytes(at) + btf).ljust(size, b"\x90")


@pytest.mark.parametrize("at", [0, 8, 4092, 300 * PAGE + 16])
def test_found(at: int) -> None:
    data = image(at, a_btf(), 3 << 20)
    found = Image(data).search()
    assert found is not None
    assert found.find("struct vm_area_struct")


def test_found_behind_missing_pages_and_false_headers() -> None:
    false = HEADER + bytes(100) + HEADER + b"\xff" * 100
    data = image(20 * PAGE, a_btf())
    data = false + data[len(false) :]
    found = Image(data, missing=(3, 5, 6)).search()
    assert found is not None


def test_none() -> None:
    for data in (bytes(1 << 20), HEADER * (1 << 17), image(0, a_btf()[:5000])):
        assert Image(data).search() is None
