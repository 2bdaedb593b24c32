"""Programs on captures, and captures with words of them overwritten."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import drgn
import numpy as np
from drgn import Object, Program

from anonvma_inspect.helpers import open_core
from anonvma_inspect.tables import NO_ROW

from .captures import CAPTURES, Capture

__all__ = ("FULL", "forked_vma", "program", "vma_at", "with_words")

#: Captures that are whole dumps, not snapshots.
FULL = [capture for capture in CAPTURES if capture.core.suffix != ".xz"]


@functools.cache
def program(capture: Capture) -> Program:
    """A program that no test changes."""
    return open_core(capture.core)


def with_words(capture: Capture, words: Mapping[int, int | None]) -> Program:
    """A program on a capture with some 64-bit words changed.

    :param words: New values by address; None where the word cannot be read any more.
    """
    prog = open_core(capture.core)
    for word_address, value in words.items():

        def read(
            address: int,
            count: int,
            offset: int,
            physical: bool,
            value: int | None = value,
        ) -> bytes:
            if value is None:
                raise drgn.FaultError("taken away by the test", address)
            return value.to_bytes(8, "little")[offset : offset + count]

        prog.add_memory_segment(word_address, 8, read)
    return prog


def vma_at(prog: Program, address: int) -> Object:
    """``struct vm_area_struct *``"""
    return Object(prog, "struct vm_area_struct *", address)


@functools.cache
def forked_vma(capture: Capture) -> int:
    """Address of a VMA with a longest chain: as many generations above it as there are."""
    vmas = capture.tables.vmas
    rows = np.flatnonzero(vmas.active != NO_ROW)
    return int(vmas.address[rows[np.argmax(vmas.chain_length[rows])]])
