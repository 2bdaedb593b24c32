"""The slab allocator (SLUB), era by era: which pages are slabs, and how free objects are linked.

Follows ``mm/slub.c``, ``mm/slab.h``, ``include/linux/page-flags.h`` and ``mm/kfence/`` (v5.10,
v6.1, v6.12, and Debian's 7.2 and 7.3). SLAB (gone in v6.8) and SLOB (gone in v6.4) are not
understood.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.kernel.era import Record, resolve_record
from anonvma_inspect.target.layouts import Layouts
from anonvma_inspect.target.memory import BoolColumn, U64Column

__all__ = (
    "KfenceEra",
    "SheafEra",
    "SlabEra",
    "decode_link",
    "head_of",
    "objects_per_slab",
    "pages_per_slab",
    "resolve_slab_era",
)

# include/linux/page-flags.h, v6.12: the type stands in the top byte.
_TYPE_MASK = np.uint64(0xFF << 24)
# mm/slub.c, OO_MASK: the lower half of kmem_cache.oo is the number of objects.
_OO_MASK = np.uint64(0xFFFF)
# No page of an order that the buddy allocator has is further from its head.
_MAX_TAIL = 1 << 12
# A mask of compound_info leaves out no more than the structs of so many pages.
_MAX_MASKED = 1 << 36


@dataclass(frozen=True)
class SheafEra:
    """Arrays of free objects that CPUs and nodes keep: sheaves and barns.

    :ivar per_cpu: ``slub_percpu_sheaves``.
    :ivar sheaf: ``slab_sheaf``.
    :ivar barn: ``node_barn``.
    :ivar node: What holds the pointer to a node's barn.
    """

    per_cpu: Record
    sheaf: Record
    barn: Record
    node: Record


@dataclass(frozen=True)
class KfenceEra:
    """The pool of guarded objects, each in a page of its own.

    :ivar metadata: ``kfence_metadata``.
    :ivar allocated: Its ``state`` while the object is in use.
    """

    metadata: Record
    allocated: int


@dataclass(frozen=True)
class SlabEra:
    """What this kernel's slabs look like.

    :ivar page: ``page``.
    :ivar slab: ``slab``, which lies over it; before v5.17 it is ``page`` itself.
    :ivar cache: ``kmem_cache``.
    :ivar cpu: ``kmem_cache_cpu``; ``None`` where CPUs have no slabs (since v7.0).
    """

    page: Record
    slab: Record
    cache: Record
    cpu: Record | None
    sheaves: SheafEra | None
    kfence: KfenceEra | None
    #: Of ``page.flags``; 0 where a type says it.
    flag: int
    #: The word in ``page._mapcount``, and which of its bits count.
    type_value: int
    type_mask: int

    def is_slab(self, rows: NDArray[np.uint8]) -> BoolColumn:
        """Which pages are slabs.

        :param rows: Shape (n, page.size), of pages that are no tails.
        """
        if self.flag:
            flagged: BoolColumn = (self.page.column(rows, "flags") & np.uint64(self.flag)) != 0
            return flagged
        typed: BoolColumn = self.page.column(rows, "mapcount") & np.uint64(
            self.type_mask
        ) == np.uint64(self.type_value)
        return typed


_PAGE = (
    "flags",
    "mapcount=_mapcount.counter",
    # compound_info since v7.1 or so; see head_of().
    "head=compound_info|compound_head",
)
_SLAB = ("slab_cache", "freelist", "inuse", "objects")
_CACHE = (
    "size",
    "offset",
    "oo=oo.x",
    "min=min.x",
    "refcount",
    "name",
    "?random",
    "?red_left_pad",
    "?cpu_slab",
    # Since Linux kernel commit 2d517aa09bbc ("slab: add opt-in caching layer of percpu sheaves")
    # (in v6.18).
    "?cpu_sheaves",
    "?sheaf_capacity",
    # Since Linux kernel commit 5ba6bc27b1f9 ("slab: decouple pointer to barn from kmem_cache_node")
    # (in v7.1) the nodes' pointers come in pairs.
    "?node=per_node|node",
)
_CPU = ("freelist",)
_SHEAVES = ("main", "spare", "rcu_free", "?acquired=lock.acquired")
_SHEAF = (
    *("cache", "size", "objects"),
    *("barn_list", "barn_list_next=barn_list.next", "barn_list_prev=barn_list.prev"),
)
_BARN = ("sheaves_full", "sheaves_full_next=sheaves_full.next")
_KFENCE = ("state", "addr")


def resolve_slab_era(layouts: Layouts, vmcoreinfo: Mapping[str, str]) -> SlabEra | str:
    """Find what reading slabs takes.

    :param vmcoreinfo: As key and value.
    :return: Or why slabs cannot be read.
    """
    missing: list[str] = []
    cache = resolve_record(layouts, "kmem_cache", _CACHE, missing)
    if cache.size and "offset" not in cache:
        return "this kernel's allocator is not SLUB"
    if layouts.field("kmem_cache", "memcg_params") is not None:
        return "this kernel has slab caches for each memory cgroup, which are not told apart"
    page = resolve_record(layouts, "page", _PAGE, missing)
    # Since Linux kernel commit d122019bf061 ("mm: Split slab into its own type") (in v5.17).
    own = layouts.size("slab") is not None
    slab = resolve_record(layouts, "slab" if own else "page", _SLAB, missing)
    cpu = None
    if "cpu_slab" in cache:
        cpu = resolve_record(layouts, "kmem_cache_cpu", _CPU, missing)
    sheaves = None
    if "cpu_sheaves" in cache:
        paired = layouts.size("kmem_cache_per_node_ptrs") is not None
        sheaves = SheafEra(
            per_cpu=resolve_record(layouts, "slub_percpu_sheaves", _SHEAVES, missing),
            sheaf=resolve_record(layouts, "slab_sheaf", _SHEAF, missing),
            barn=resolve_record(layouts, "node_barn", _BARN, missing),
            node=resolve_record(
                layouts,
                "kmem_cache_per_node_ptrs" if paired else "kmem_cache_node",
                ("barn",),
                missing,
            ),
        )
    marks = _marks(layouts, vmcoreinfo)
    if marks is None:
        missing.append("what marks a page as a slab (PG_slab, PAGE_SLAB_MAPCOUNT_VALUE)")
    if missing or marks is None:
        return f"{', '.join(missing)} not found"
    return SlabEra(page, slab, cache, cpu, sheaves, _kfence(layouts), *marks)


# How a slab is marked: flag, or value and mask of the type.
def _marks(layouts: Layouts, vmcoreinfo: Mapping[str, str]) -> tuple[int, int, int] | None:
    def number(name: str) -> int | None:
        try:
            return int(vmcoreinfo[f"NUMBER({name})"])
        except (KeyError, ValueError):
            return None

    # Since Linux kernel commit 46df8e73a4a3 ("mm: free up PG_slab") (in v6.10) a page type, at
    # first one bit of several, since v6.12 a number in the top byte.
    value = number("PAGE_SLAB_MAPCOUNT_VALUE")
    if value is None and (type_ := layouts.enumerator("PGTY_slab")) is not None:
        value = type_ << 24
    if value is not None:
        value %= 1 << 32
        mask = int(_TYPE_MASK) if value & ~int(_TYPE_MASK) == 0 else (1 << 32) - 1
        return 0, value, mask
    bit = number("PG_slab")
    if bit is None:
        bit = layouts.enumerator("PG_slab")
    return None if bit is None or not 0 <= bit < 64 else (1 << bit, 0, 0)


def _kfence(layouts: Layouts) -> KfenceEra | None:
    missing: list[str] = []
    metadata = resolve_record(layouts, "kfence_metadata", _KFENCE, missing)
    allocated = layouts.enumerator("KFENCE_OBJECT_ALLOCATED")
    return None if missing or allocated is None else KfenceEra(metadata, allocated)


def head_of(page: U64Column, info: U64Column, size: int) -> U64Column:
    """The head of the compound page that each page belongs to.

    Follows ``_compound_head()``: bit 0 marks a tail, and the rest is the head's address or, where
    ``struct page`` has a power of two of bytes and CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP is set
    (since v7.1 or so), a mask that takes the tail's address to the head's. Which of them it is
    shows: an address is no run of ones followed by a few zeros.

    :param page: Addresses of ``struct page``.
    :param info: Their ``compound_head`` or ``compound_info``.
    :param size: Bytes of ``struct page``.
    :return: Addresses. A page that is no tail is its own head, and so is one whose word cannot be
        right.
    """
    tail = (info & np.uint64(1)) != 0
    word = info & ~np.uint64(1)
    inverse = ~word
    is_mask = ((inverse & (inverse + np.uint64(1))) == 0) & (inverse < np.uint64(_MAX_MASKED))
    head = np.where(tail, np.where(is_mask, page & word, word), page)
    distance = page - head
    steps, rest = np.divmod(distance, np.uint64(size))
    return np.where((rest == 0) & (steps < np.uint64(_MAX_TAIL)), head, page)


def objects_per_slab(oo: int) -> int:
    """How many objects ``kmem_cache.oo`` or ``.min`` says that a slab has."""
    return oo & int(_OO_MASK)


def pages_per_slab(oo: int) -> int:
    """Pages of a slab, by the order in the upper half of ``kmem_cache.oo`` or ``.min``."""
    # No order of the buddy allocator's makes a compound page larger than this.
    return min(1 << min(oo >> 16, 64), _MAX_TAIL)


def decode_link(
    word: U64Column, address: U64Column, random: int | None, swapped: bool = True
) -> U64Column:
    """What a free object's link leads to.

    Follows ``freelist_ptr_decode()``, ``mm/slub.c``.

    :param word: What stands there.
    :param address: Where it stands.
    :param random: ``kmem_cache.random`` with CONFIG_SLAB_FREELIST_HARDENED, else ``None``.
    :param swapped: Since Linux kernel commit 1ad53d9fa3f6 ("slub: improve bit diffusion for
        freelist ptr obfuscation") (in v5.7, and in stable kernels) the bytes of the address are
        swapped.
    """
    if random is None:
        return word
    key = address.byteswap() if swapped else address
    return word ^ np.uint64(random) ^ key
