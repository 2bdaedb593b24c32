"""Where the structs of page frames are, as the kernels tell it."""

from __future__ import annotations

import dataclasses

import pytest

from anonvma_inspect.target import Target
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo
from anonvma_inspect.target.vmemmap import find_vmemmap

from .captures import CAPTURES

BY_NAME = {capture.name: capture for capture in CAPTURES}
HEAD = b"OSRELEASE=5.10\nPAGESIZE=4096\n"


def told(name: str, facts: bytes, *symbols: str) -> int | None:
    target: Target = BY_NAME[name].target
    known = {symbol: target.symbols[symbol] for symbol in symbols}
    told = parse_vmcoreinfo(HEAD + facts, name)
    return find_vmemmap(dataclasses.replace(target, symbols=known), told)


def test_as_vmcoreinfo_says() -> None:
    assert told("forktree-5.10", b"SYMBOL(vmemmap)=ffffea0000000000\n") == 0xFFFFEA0000000000


def test_the_variable_says_what_vmcoreinfo_would() -> None:
    # 6.12 says both.
    target = BY_NAME["forktree-6.12"].target
    line = next(line for line in target.vmcoreinfo.splitlines() if b"SYMBOL(vmemmap)" in line)
    assert told("forktree-6.12", b"", "vmemmap_base") == int(line.partition(b"=")[2], 16)


@pytest.mark.parametrize(("levels", "start"), [(0, 0xFFFFEA0000000000), (1, 0xFFD4000000000000)])
def test_where_it_always_was(levels: int, start: int) -> None:
    facts = b"NUMBER(pgtable_l5_enabled)=%d\n" % levels
    assert told("forktree-5.10", facts) == start
    # With its base in a variable, it is anywhere.
    assert told("forktree-5.10", facts, "page_offset_base") is None


def test_the_array_begins_with_the_first_frame() -> None:
    facts = b"NUMBER(VMEMMAP_START)=0xfffffc0000000000\nNUMBER(PHYS_OFFSET)=0x40000000\n"
    # 0x40000 frames of 64 bytes each.
    assert told("forktree-6.12-arm64", facts) == 0xFFFFFC0000000000 - 0x40000 * 64
    assert told("forktree-6.12-arm64", b"NUMBER(PHYS_OFFSET)=0x40000000\n") is None
    assert told("forktree-6.12-arm64", facts.replace(b"0xff", b"0xgg")) is None


def test_both_ways_agree() -> None:
    # 6.12 for arm64 says both.
    target = BY_NAME["forktree-6.12-arm64"].target
    facts = parse_vmcoreinfo(target.vmcoreinfo, target.path)
    both = find_vmemmap(target, facts)
    assert both is not None
    del facts["SYMBOL(vmemmap)"]
    assert find_vmemmap(target, facts) == both
