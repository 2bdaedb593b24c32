"""
Pages
-----

The ``anonvma_inspect.helpers.rmap`` module provides the kernel's reverse walk
of an anonymous page: from the page to the virtual memory areas that map it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import drgn
from drgn import Object
from drgn.helpers import ValidationError

from anonvma_inspect.collect import find_frame, read_rmap
from anonvma_inspect.errors import MissingError, NotFoundError, TargetError
from anonvma_inspect.kernel.folio import MappingKind
from anonvma_inspect.target.program import target_of

__all__ = ("PageMapping", "for_each_page_mapping")


class PageMapping(NamedTuple):
    """A virtual memory area that the reverse map of a page leads to."""

    vma: Object
    """``struct vm_area_struct *``"""

    address: int
    """Where it would map the first page of the folio that it covers."""

    covered: int
    """How many pages of the folio it covers."""

    mapped: int
    """How many of these its page tables map: 0 if the walk visits it in vain."""


def for_each_page_mapping(page: Object) -> Iterator[PageMapping]:
    """
    Iterate over the virtual memory areas that the reverse map leads to for a
    page's folio, KSM's included: those in the interval tree of its
    ``anon_vma`` at its offset, and whether page tables map it there.

    >>> for mapping in for_each_page_mapping(page):  # doctest: +SKIP
    ...     print(mapping.vma.vm_mm.owner.comm, hex(mapping.address), mapping.mapped)
    (char [16])"init" 0x4c2000 1
    ...

    :param page: ``struct page *`` or ``struct folio *``
    :raises ValidationError: if *page* is none, or not of anonymous memory
    :raises FaultError: if something that is needed cannot be read
    """
    prog, address = page.prog_, page.value_()
    target = target_of(prog)
    try:
        rmap = read_rmap(target, find_frame(target, address))
    except MissingError as error:
        raise drgn.FaultError(str(error), address) from None
    except (NotFoundError, TargetError) as error:
        raise ValidationError(str(error)) from None
    if rmap.kind not in (MappingKind.ANON, MappingKind.KSM, MappingKind.LAZY_VMA):
        raise ValidationError(f"{address:#x} is no page of anonymous memory")
    walk = rmap.walk
    if not walk.known.all():
        raise drgn.FaultError("could not read page tables", address)
    for row, at, covered, mapped in zip(
        walk.vma.tolist(),
        walk.address.tolist(),
        walk.covered.tolist(),
        walk.mapped.tolist(),
        strict=True,
    ):
        vma = Object(prog, "struct vm_area_struct *", int(rmap.tables.vmas.address[row]))
        yield PageMapping(vma, at, covered, mapped)
