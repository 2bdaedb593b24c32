"""What is said of pages that a dump's filter left out although they are needed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from anonvma_inspect.report.filtered import Filtered, find_filtered
from anonvma_inspect.tables import Holes
from anonvma_inspect.target.left_out import RangesLeftOut

from .captures import CAPTURES

CAPTURE = next(capture for capture in CAPTURES if capture.name == "forktree-6.12")


@pytest.mark.parametrize(
    ("release", "level", "advice"),
    [
        ("7.3.4+deb13-cloud-amd64", 31, "up to 1.7.8 take slab pages of kernels from 7.2 on"),
        ("7.2.13", 15, "dump with -d 7, which keeps user pages"),
        ("6.12.117", 31, "dump with a newer one, or with -d 23"),
        ("6.2", 8, "1.7.2 takes slab pages of kernels from 6.2 on"),
        ("6.1.0-56-cloud-amd64", 31, "if it does not know the kernel: dump with -d 23"),
        ("5.14.0-503.el9", 31, "if it does not know the kernel: dump with -d 23"),
        ("not a number", None, "a filter left out slab pages: 2 of anon_vma, 12 of mm_struct."),
        ("7.3", 23, "why is not known"),
    ],
)
def test_cause_and_advice(release: str, level: int | None, advice: str) -> None:
    pages = {"mm_struct": 12, "anon_vma": 2}
    message = Filtered(release, level, pages).message
    assert advice in message
    assert "2 of anon_vma, 12 of mm_struct" in message


def test_one_page_can_be_a_wrong_pointer() -> None:
    message = Filtered("7.3", 31, {"anon_vma": 1}).message
    assert message.endswith("1 of anon_vma, unless the pointers to it are wrong")


def test_as_json() -> None:
    assert Filtered("6.12", 31, {"mm_struct": 12, "anon_vma": 2}).document() == {
        "level": 31,
        "pages": [
            {"needed_for": "anon_vma", "pages": 2},
            {"needed_for": "mm_struct", "pages": 12},
        ],
        "message": Filtered("6.12", 31, {"mm_struct": 12, "anon_vma": 2}).message,
    }


def test_which_holes_a_filter_made() -> None:
    """Of the first page an object that ends in the next, of the fourth two; one behind RAM."""
    target = CAPTURE.target
    start = target.space.ram[0, 0]
    size = np.uint64(target.page_size)
    at = np.array([1, 3, 3, 6], dtype=np.uint64) * size + start
    at[0] -= np.uint64(8)
    at[2] += np.uint64(64)
    beyond = target.space.ram[-1, 1] + size
    holes = Holes(
        address=np.append(at, beyond),
        size=np.full(5, 64, dtype=np.int64),
        needed_for=np.array(["mm_struct", *["anon_vma"] * 2, "mm_struct", "mm_struct"]),
    )
    pages = np.array([[1, 2], [3, 4]], dtype=np.uint64) * size + start
    left_out = RangesLeftOut(np.append(pages, [[beyond, beyond + size]], axis=0), level=31)
    found = find_filtered(dataclasses.replace(target, left_out=left_out), holes)
    assert found == Filtered(target.release, 31, {"anon_vma": 1, "mm_struct": 1})


def test_holes_that_no_filter_made() -> None:
    target = CAPTURE.target
    hole = Holes(target.space.ram[:1, 0], np.array([64]), np.array(["anon_vma"]))
    nothing = RangesLeftOut(np.empty((0, 2), dtype=np.uint64))
    assert find_filtered(target, hole) is None
    assert find_filtered(dataclasses.replace(target, left_out=nothing), hole) is None
    assert (
        find_filtered(dataclasses.replace(target, left_out=nothing), CAPTURE.tables.holes) is None
    )
