"""What a dump's filter left out although an audit needs it, why that may be, and what to do.

Everything that an audit reads lies in slabs, and makedumpfile leaves out no slab page on purpose.
One that does not know how a kernel marks its slab pages takes some for pages of user memory. The
versions and levels were tried, on Debian's 6.1, 6.12, 7.2 and 7.3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from anonvma_inspect.report.facts import Document
from anonvma_inspect.tables import Holes
from anonvma_inspect.target import Target

__all__ = ("Filtered", "find_filtered")

# makedumpfile(8): the part of its level that leaves out pages of user memory.
_USER = 8
_EVERYTHING = 31


@dataclass(frozen=True)
class Filtered:
    """Pages that were needed and that the dump's filter left out.

    :ivar release: ``uname -r``.
    :ivar level: makedumpfile's ``-d``, if the dump tells it.
    :ivar pages: How many, by what they were needed for (a C struct).
    """

    release: str
    level: int | None
    pages: Mapping[str, int]

    def document(self) -> Document:
        """As a part of a JSON answer."""
        return {
            "level": self.level,
            "pages": [
                {"needed_for": kind, "pages": pages} for kind, pages in sorted(self.pages.items())
            ],
            "message": self.message,
        }

    @property
    def message(self) -> str:
        """What is missing, why, and what to do, in a sentence or two."""
        of_kinds = ", ".join(f"{pages:,} of {kind}" for kind, pages in sorted(self.pages.items()))
        who = "a filter" if self.level is None else f"makedumpfile -d {self.level}"
        what = f"{who} left out slab pages: {of_kinds}"
        if sum(self.pages.values()) == 1:
            return f"{what}, unless the pointers to it are wrong"
        if self.level is not None and not self.level & _USER:
            return f"{what}; why is not known, at this level it should keep them"
        keeping = (_EVERYTHING if self.level is None else self.level) & ~_USER
        return f"{what}. {self._reason()} -d {keeping}, which keeps user pages"

    def _reason(self) -> str:
        release = re.match(r"([0-9]{1,3})\.([0-9]{1,3})", self.release)
        version = (int(release[1]), int(release[2])) if release else (0, 0)
        if version >= (7, 2):
            return (
                "All versions up to 1.7.8 take slab pages of kernels from 7.2 on for user pages: "
                "dump with"
            )
        if version >= (6, 2):
            return (
                "1.7.2 takes slab pages of kernels from 6.2 on for user pages, which 1.7.3 to "
                "1.7.7 mended for one kernel after the other: dump with a newer one, or with"
            )
        return "It takes slab pages for user pages if it does not know the kernel: dump with"


def find_filtered(target: Target, holes: Holes) -> Filtered | None:
    """Which of the holes the dump's filter made.

    :return: ``None`` if none of them.
    """
    if target.left_out is None or not len(holes.address):
        return None
    last = holes.address + (holes.size - 1).astype(np.uint64)
    address = np.where(target.left_out.covers(holes.address), holes.address, last)
    left_out = target.left_out.covers(address) & target.space.in_ram(address)
    page = address[left_out] // np.uint64(target.page_size)
    if not len(page):
        return None
    kinds = holes.needed_for[left_out]
    return Filtered(
        release=target.release,
        level=target.left_out.level,
        pages={str(kind): len(np.unique(page[kinds == kind])) for kind in np.unique(kinds)},
    )
