"""Folios: what the ``struct page`` of a page frame says of the pages that lie there.

A folio is what older kernels call a compound page, or a page by itself; its fields are in the first
``struct page``, the *head*, and of a large folio in the next ones as well. Follows
``include/linux/mm_types.h``, ``page-flags.h``, ``mm.h`` and ``mm/rmap.c`` (v5.10, v6.1, v6.12, and
Debian's 7.2 and 7.3).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.kernel.era import Record, resolve_record
from anonvma_inspect.target.layouts import Field, Layouts
from anonvma_inspect.target.memory import U64Column

__all__ = ("FolioEra", "MappingKind", "decode_mapping", "resolve_folio_era")

# FOLIO_MAPPING_ANON and FOLIO_MAPPING_ANON_KSM; before v6.17 PAGE_MAPPING_ANON and _MOVABLE.
_ANON, _SECOND = np.uint64(1), np.uint64(2)
# No large folio has more pages; what says so is damaged.
_MAX_PAGES = 1 << 18

#: Flags that are shown to people, where the kernel has them.
FLAGS = (
    *("locked", "referenced", "uptodate", "dirty", "lru", "active", "workingset", "head"),
    *("writeback", "swapbacked", "swapcache", "reclaim", "unevictable", "mlocked", "hwpoison"),
)


class MappingKind(enum.IntEnum):
    """What ``folio->mapping`` leads to, by its low bits."""

    #: Nothing.
    NONE = 0
    #: An ``address_space``: of a file, of shared memory.
    FILE = 1
    #: An ``anon_vma``.
    ANON = 2
    #: A stable node of KSM's, or nothing if KSM has just taken the page over.
    KSM = 3
    #: Second bit alone: a page of a driver's that can be moved (to v6.16), or what a proposal for
    #: lazy anon_vmas puts there.
    OTHER = 4


def decode_mapping(words: U64Column) -> tuple[U64Column, NDArray[np.uint8]]:
    """Split ``folio->mapping``.

    :return: The pointer part, and a :class:`MappingKind` each.
    """
    pointer = words & ~(_ANON | _SECOND)
    first, second = (words & _ANON) != 0, (words & _SECOND) != 0
    kind = np.select(
        [words == 0, first & second, first & (pointer != 0), ~first & ~second],
        [MappingKind.NONE, MappingKind.KSM, MappingKind.ANON, MappingKind.FILE],
        # The first bit without a pointer marks a page of DAX that several files share.
        MappingKind.OTHER,
    )
    return pointer, kind.astype(np.uint8)


@dataclass(frozen=True)
class FolioEra:
    """What this kernel's folios look like.

    :ivar page: ``page``.
    :ivar large: Where the further fields of a large folio are, from its head on: ``nr_pages``,
        ``entire_mapcount``, since v6.10 ``large_mapcount``; before v6.2 they are the next
        ``struct page``'s.
    :ivar flags: Bits of ``page.flags`` by name, of those that this kernel has.
    :ivar exclusive: The bit of each page that says that it belongs to one process
        (``PG_anon_exclusive``, since v5.19); 0 if there is none.
    :ivar struct: C name of what describes a folio.
    :ivar double_map: While a large folio is mapped by a table and as a whole, its pages count one
        mapping more than they have (``PG_double_map``, to v6.1).
    """

    page: Record
    large: Record
    flags: Mapping[str, int]
    exclusive: int
    double_map: int
    struct: str

    def nr_pages(self, rows: NDArray[np.uint8]) -> NDArray[np.int64]:
        """How many pages large folios have.

        :param rows: Shape (n, large.size), from their heads on.
        :return: 0 for a figure that no folio has.
        """
        if "order" in self.large.fields:
            order = self.large.column(rows, "order").astype(np.int64) & _ORDER
            pages = np.left_shift(1, np.minimum(order, 62), dtype=np.int64)
        else:
            pages = self.large.column(rows, "nr_pages").astype(np.int64)
        sound = (pages > 1) & (pages <= _MAX_PAGES) & ((pages & (pages - 1)) == 0)
        return np.where(sound, pages, 0)


_PAGE = (
    # Since v6.18 a struct.
    "flags=flags.f|flags",
    "mapping",
    # Since v6.16.
    "index=__folio_index|index",
    "private",
    "mapcount=_mapcount.counter",
    "refcount=_refcount.counter",
    "head=compound_info|compound_head",
)
_LARGE = {
    "nr_pages": ("_nr_pages", "_folio_nr_pages"),
    # folio_large_order(), without CONFIG_MEMCG and CONFIG_SLAB_OBJ_EXT (v6.15 on) all there is.
    "order": ("_flags_1",),
    "entire_mapcount": ("_entire_mapcount.counter",),
    "large_mapcount": ("_large_mapcount.counter",),
}
# folio->_flags_1 has it in its low byte.
_ORDER = 0xFF
_TAIL = {"nr_pages": "compound_nr", "entire_mapcount": "compound_mapcount.counter"}


def resolve_folio_era(layouts: Layouts) -> FolioEra | str:
    """Find what reading folios takes.

    :return: Or why they cannot be read.
    """
    missing: list[str] = []
    page = resolve_record(layouts, "page", _PAGE, missing)
    fields = _large_fields(layouts, page.size)
    missing += [f"folio.{name}" for name in ("nr_pages", "entire_mapcount") if name not in fields]
    if "order" in fields:
        missing.remove("folio.nr_pages")
    bits = {name: _flag(layouts, f"PG_{name}") for name in FLAGS}
    missing += [f"PG_{name}" for name in ("locked", "head") if not bits[name]]
    if missing:
        return f"{', '.join(missing)} not found"
    size = max(field.end for field in fields.values())
    return FolioEra(
        page=page,
        large=Record("folio", size, fields),
        flags={name: bit for name, bit in bits.items() if bit},
        exclusive=_flag(layouts, "PG_anon_exclusive"),
        double_map=_flag(layouts, "PG_double_map"),
        struct="page" if layouts.size("folio") is None else "folio",
    )


def _large_fields(layouts: Layouts, page_size: int) -> dict[str, Field]:
    found: dict[str, Field] = {}
    for name, paths in _LARGE.items():
        for path in paths:
            field = layouts.field("folio", path)
            if field is not None:
                found.setdefault(name, field)
    for name, path in _TAIL.items():
        field = layouts.field("page", path)
        if name not in found and field is not None:
            found[name] = Field(
                field.offset + page_size, field.size, field.kind, field.type_name, field.signed
            )
    if "nr_pages" in found:
        found.pop("order", None)
    return found


def _flag(layouts: Layouts, name: str) -> int:
    bit = layouts.enumerator(name)
    return 1 << bit if bit is not None and 0 <= bit < 64 else 0
