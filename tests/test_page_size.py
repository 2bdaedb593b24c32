"""Nothing assumes pages of 4 KiB.

An image of our own: a fixture whose VMAs are stretched to pages of 64 KiB. Every address in them
and in the pivots of the maple trees is multiplied by 16; page offsets, and so the interval trees,
stay as they are.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from anonvma_inspect.collect import collect
from anonvma_inspect.invariants.catalogue import audit
from anonvma_inspect.kernel import maple
from anonvma_inspect.target import Target
from anonvma_inspect.target.elf import parse_core
from anonvma_inspect.target.memory import SegmentMemory, U64Column
from anonvma_inspect.target.snapshot import decompress

from .captures import CAPTURES

CAPTURE = next(capture for capture in CAPTURES if capture.name == "forktree-6.12")
LARGE = 65536
FACTOR = np.uint64(LARGE // 4096)
NO_PIVOT = (np.uint64(0), np.uint64(2**64 - 1))


class Image:
    """The bytes of a snapshot, to be written to by virtual address."""

    def __init__(self) -> None:
        self.data = decompress(CAPTURE.core).copy()
        load = parse_core(self.data, str(CAPTURE.core)).load
        order = np.argsort(load.vaddr)
        self.start, self.size = load.vaddr[order], load.filesz[order]
        self.offset = load.offset[order]

    def words(self, addresses: U64Column) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Where words lie in the file."""
        segment = np.searchsorted(self.start, addresses, side="right") - 1
        return (self.offset[segment] + addresses - self.start[segment]).astype(np.int64)

    def stretch(self, addresses: U64Column, *, inclusive: bool) -> None:
        """Multiply words; one that is the last of a range stays the last of it."""
        at = self.words(np.unique(addresses))
        index = at[:, None] + np.arange(8)
        words = self.data[index].copy().view("<u8")[:, 0]
        one = np.uint64(inclusive)
        stretched = (words + one) * FACTOR - one
        stretched[np.isin(words, NO_PIVOT)] = words[np.isin(words, NO_PIVOT)]
        self.data[index] = stretched.reshape(-1, 1).view(np.uint8)

    def memory(self) -> SegmentMemory:
        return SegmentMemory(self.data, self.start, self.size, self.offset)


def maple_pivots(target: Target, monkeypatch: pytest.MonkeyPatch) -> U64Column:
    """Addresses of all pivots that a collection reads."""
    found: list[U64Column] = []
    decode = maple.decode_nodes

    def spy(*arguments: object) -> maple.NodeEntries:
        record, _, address, kind = arguments[:4]
        assert isinstance(address, np.ndarray)
        prefix = "mr64" if kind in (1, 2) else "ma64"
        field = record.fields[f"{prefix}_pivot"]  # type: ignore[attr-defined]
        offsets = field.offset + 8 * np.arange(field.size // 8, dtype=np.uint64)
        entries = decode(*arguments)  # type: ignore[arg-type]
        # What lies behind the last slot in use is garbage, or the node's metadata.
        used = entries.used[:, : len(offsets)]
        found.append((address[:, None] + offsets)[used])
        return entries

    with monkeypatch.context() as patch:
        patch.setattr(maple, "decode_nodes", spy)
        collect(target)
    return np.concatenate(found)


@pytest.fixture
def stretched(monkeypatch: pytest.MonkeyPatch) -> Target:
    image = Image()
    tables, target = CAPTURE.tables, CAPTURE.target
    for name in ("vm_start", "vm_end"):
        offset = np.uint64(tables.era.vma.offset(name))
        image.stretch(tables.vmas.address + offset, inclusive=False)
    image.stretch(maple_pivots(target, monkeypatch), inclusive=True)
    return dataclasses.replace(
        target,
        memory=image.memory(),
        page_size=LARGE,
        space=dataclasses.replace(target.space, page_size=LARGE),
    )


def test_large_pages_are_clean(stretched: Target) -> None:
    tables = collect(stretched)
    assert np.array_equal(tables.vmas.vm_start, CAPTURE.tables.vmas.vm_start * FACTOR)
    assert np.array_equal(tables.vmas.key_last, CAPTURE.tables.vmas.key_last)
    result = audit(tables)
    assert not list(result.findings(5))
    assert result.complete


def test_the_page_size_matters(stretched: Target) -> None:
    """The same image, taken for one of small pages, is not clean."""
    small = dataclasses.replace(stretched, page_size=4096)
    codes = {finding.code for finding in audit(collect(small)).findings()}
    assert "AV205" in codes
