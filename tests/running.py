"""Kernels that run on while they are read, made of captures: each view shows other words."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from anonvma_inspect.kernel.era import Record
from anonvma_inspect.target import Target
from anonvma_inspect.target.memory import AddressSpace, Memory, OverlayMemory
from anonvma_inspect.target.paged import Meter

__all__ = ("at_rest", "field_words", "running", "words_of")

Words = Mapping[int, int]

_WORD = 8


def words_of(target: Target, address: int) -> int:
    """The 64-bit word at an address."""
    rows, present = target.memory.gather(np.array([address], dtype=np.uint64), _WORD)
    assert present.all()
    return int(rows.view("<u8")[0, 0])


def field_words(target: Target, record: Record, address: int, name: str, value: int) -> Words:
    """What makes a field of an object another one: the word that it lies in, with its new value."""
    field = record.fields[name]
    assert field.size in (4, _WORD)
    at = address + field.offset
    word = at & ~(_WORD - 1)
    mask = (1 << 8 * field.size) - 1
    shift = 8 * (at - word)
    return {word: words_of(target, word) & ~(mask << shift) | (value & mask) << shift}


def at_rest() -> Iterator[Words]:
    """Views of a kernel that does nothing."""
    return itertools.repeat({})


def running(target: Target, views: Iterable[Words]) -> Target:
    """A target that runs.

    :param views: What each view shows otherwise than the capture: the first one, the second one,
        and so on. The last one stays.
    """
    upcoming = iter(views)
    last: Words = {}

    def renew(before: Memory | None) -> tuple[Memory, AddressSpace]:
        nonlocal last
        last = next(upcoming, last)
        return OverlayMemory(target.memory, dict(last)), target.space

    return dataclasses.replace(target, live=True, renew=renew, meter=Meter())
