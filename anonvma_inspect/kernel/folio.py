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
    #: Second bit alone: a page of a driver's that can be moved (to v6.16).
    OTHER = 4
    #: The same where ANON_VMA_LAZY is: the root VMA of a VMA that has no anon_vma yet.
    LAZY_VMA = 5

    @property
    def word(self) -> str:
        """As answers spell it."""
        return "anon_vma" if self is MappingKind.ANON else self.name.lower()


def decode_mapping(words: U64Column, *, lazy: bool = False) -> tuple[U64Column, NDArray[np.uint8]]:
    """Split ``folio->mapping``.

    :param lazy: The kernel has ANON_VMA_LAZY.
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
    if lazy:
        kind[~first & second & (pointer != 0)] = MappingKind.LAZY_VMA
    return pointer, kind.astype(np.uint8)


@dataclass(frozen=True)
class HugetlbMark:
    """What tells a folio of hugetlb from other large ones: ``folio_test_hugetlb()``.

    :ivar field: Name of the field in :class:`FolioEra`'s ``page`` or ``large``.
    :ivar of_page: It is in ``page``.
    :ivar value: What its bits are.
    :ivar mask: Which of its bits count.
    :ivar huge_index: ``index`` counts huge pages, not pages (``linear_hugepage_index()``).  Since
        Linux kernel commit a08c7193e4f1 ("mm/filemap: remove hugetlb special casing in filemap.c")
        (in v6.7) it does not; ``None`` where the mark is of both sides of that.
    """

    field: str
    of_page: bool
    value: int
    mask: int
    huge_index: bool | None


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
    hugetlb: HugetlbMark | None = None

    @property
    def busy(self) -> int:
        """Bits of ``page.flags`` that say that somebody is at work on a folio."""
        return self.flags["locked"] | self.flags.get("writeback", 0)

    def is_hugetlb(self, rows: NDArray[np.uint8], large: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which large folios are hugetlb's.

        :param rows: Shape (n, page.size), of their heads.
        :param large: Shape (n, large.size), from their heads on.
        """
        mark = self.hugetlb
        if mark is None:
            return np.zeros(len(rows), dtype=bool)
        record, of = (self.page, rows) if mark.of_page else (self.large, large)
        marked: NDArray[np.bool_] = record.column(of, mark.field) & np.uint64(
            mark.mask
        ) == np.uint64(mark.value)
        return marked

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
    "dtor": ("_folio_dtor",),
    "flags_1": ("_flags_1",),
}
# folio->_flags_1 has it in its low byte.
_ORDER = 0xFF
_TAIL = {
    "nr_pages": "compound_nr",
    "entire_mapcount": "compound_mapcount.counter",
    "dtor": "compound_dtor",
}
# include/linux/page-flags.h, v6.12: the type stands in the top byte.
_TYPE_MASK, _TYPE_SHIFT = 0xFF << 24, 24


def resolve_folio_era(layouts: Layouts, vmcoreinfo: Mapping[str, str]) -> FolioEra | str:
    """Find what reading folios takes.

    :param vmcoreinfo: As key and value.
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
    mark = _hugetlb_mark(layouts, vmcoreinfo, fields)
    # What is not read must not be missed in a snapshot.
    for name in {"dtor", "flags_1"} & fields.keys() - {mark.field if mark else ""}:
        del fields[name]
    size = max(field.end for field in fields.values())
    return FolioEra(
        page=page,
        large=Record("folio", size, fields),
        flags={name: bit for name, bit in bits.items() if bit},
        exclusive=_flag(layouts, "PG_anon_exclusive"),
        double_map=_flag(layouts, "PG_double_map"),
        struct="page" if layouts.size("folio") is None else "folio",
        hugetlb=mark,
    )


def _hugetlb_mark(
    layouts: Layouts, vmcoreinfo: Mapping[str, str], fields: Mapping[str, Field]
) -> HugetlbMark | None:
    def number(name: str, enumerator: str) -> int | None:
        try:
            return int(vmcoreinfo[f"NUMBER({name})"])
        except (KeyError, ValueError):
            return layouts.enumerator(enumerator)

    # Since Linux kernel commit d99e3140a4d3 ("mm: turn folio_test_hugetlb into a PageType") (in
    # v6.9, and in the stable trees of v6.6 and v6.8) a page type, at first one bit of several,
    # since v6.12 a number in the top byte.
    try:
        value: int | None = int(vmcoreinfo["NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)"])
    except (KeyError, ValueError):
        type_ = layouts.enumerator("PGTY_hugetlb")
        value = None if type_ is None else type_ << _TYPE_SHIFT
    if value is not None:
        value %= 1 << 32
        numbered = value & ~_TYPE_MASK == 0
        # The number came after v6.7.
        unit = False if numbered else None
        return HugetlbMark("mapcount", True, value, _TYPE_MASK if numbered else 2**32 - 1, unit)
    # The destructor of compound pages, to v6.5.
    dtor = number("HUGETLB_PAGE_DTOR", "HUGETLB_PAGE_DTOR")
    if dtor is not None and "dtor" in fields:
        return HugetlbMark("dtor", False, dtor, 0xFF, True)
    # Since Linux kernel commit 9c5ccf2db04b ("mm: remove HUGETLB_PAGE_DTOR") (in v6.6) a flag.
    bit = number("PG_hugetlb", "PG_hugetlb")
    if bit is not None and 0 <= bit < 64 and "flags_1" in fields:
        return HugetlbMark("flags_1", False, 1 << bit, 1 << bit, None)
    return None


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
