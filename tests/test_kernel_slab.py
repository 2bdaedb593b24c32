"""Slabs as each kernel has them, by its own rules, worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from anonvma_inspect.kernel.slab import SlabEra, decode_link, head_of, resolve_slab_era
from anonvma_inspect.target.layouts import Field

VMEMMAP = 0xFFFFEA0000000000
POINTER = "pointer"


def words(*values: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(values, dtype=np.uint64)


# ---- compound pages


def test_a_page_that_is_no_tail_is_its_own_head() -> None:
    page = words(VMEMMAP + 640, VMEMMAP + 704)
    # slab_cache lies over the word (since v6.12): a pointer has bit 0 clear.
    assert head_of(page, words(0, 0xFF11000012345600), 64).tolist() == page.tolist()


def test_a_tail_names_its_head() -> None:
    page = words(VMEMMAP + 9 * 64, VMEMMAP + 15 * 64)
    head = words(VMEMMAP + 8 * 64, VMEMMAP + 8 * 64)
    assert head_of(page, head | np.uint64(1), 64).tolist() == head.tolist()


def test_a_mask_leads_to_the_head() -> None:
    # set_compound_head() of 7.3: for order 3 and structs of 64 bytes, the 9 lower bits are off.
    page = words(VMEMMAP + 8 * 64 + 3 * 64, VMEMMAP + 8 * 64 + 7 * 64)
    mask = words(0xFFFFFFFFFFFFFE01, 0xFFFFFFFFFFFFFE01)
    assert head_of(page, mask, 64).tolist() == [VMEMMAP + 8 * 64] * 2


@pytest.mark.parametrize(
    "info",
    [
        VMEMMAP + 12 * 64 + 1,  # behind the tail
        VMEMMAP + 8 * 64 + 8 + 1,  # between two structs
        0xDEAD000000000101,
        1,
        0xFFFFFFFFFFFFFFFF,
    ],
)
def test_a_word_that_cannot_lead_to_a_head(info: int) -> None:
    page = words(VMEMMAP + 9 * 64)
    assert head_of(page, words(info), 64).tolist() == page.tolist()


# ---- links of free objects


def test_plain_links() -> None:
    assert decode_link(words(0x1234), words(0xFF110000), None).tolist() == [0x1234]


def test_hardened_links() -> None:
    # freelist_ptr_encode(): the pointer, the cache's random number, and where it stands, its bytes
    # in reverse order.
    address, next_, random = 0xFFFF888012345678, 0xFFFF888012345600, 0x0123456789ABCDEF
    swapped = 0x785634128088FFFF
    assert decode_link(words(next_ ^ random ^ swapped), words(address), random).tolist() == [next_]
    plain = words(next_ ^ random ^ address)
    assert decode_link(plain, words(address), random, swapped=False).tolist() == [next_]


# ---- eras


@dataclass
class FakeLayouts:
    """Layouts by struct and field; each field is 8 bytes at the next free place."""

    structs: dict[str, list[str]]
    enumerators: dict[str, int] = field(default_factory=dict)
    source: str = "fake"

    def size(self, name: str) -> int | None:
        return 8 * len(self.structs[name]) if name in self.structs else None

    def field(self, name: str, path: str) -> Field | None:
        if path not in self.structs.get(name, []):
            return None
        return Field(8 * self.structs[name].index(path), 8, POINTER, "void *")

    def enumerator(self, name: str) -> int | None:
        return self.enumerators.get(name)


CACHE = ["size", "offset", "oo.x", "min.x", "refcount", "name", "cpu_slab"]
SLAB = ["slab_cache", "freelist", "inuse", "objects"]


def kernel(**changes: list[str]) -> FakeLayouts:
    """Much like 6.1."""
    structs = {
        "kmem_cache": CACHE,
        "page": ["flags", "compound_head", "_mapcount.counter"],
        "slab": SLAB,
        "kmem_cache_cpu": ["freelist"],
        **changes,
    }
    return FakeLayouts({name: fields for name, fields in structs.items() if fields})


FLAG = {"NUMBER(PG_slab)": "9"}


def era_of(layouts: FakeLayouts, facts: dict[str, str]) -> SlabEra:
    era = resolve_slab_era(layouts, facts)
    assert isinstance(era, SlabEra), era
    return era


def page(
    era: SlabEra, flags: int, mapcount: int
) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    row = np.zeros(era.page.size // 8, dtype="<u8")
    row[0], row[2] = flags, mapcount
    return row.view(np.uint8).reshape(1, -1)


def test_flag_of_slabs() -> None:
    era = era_of(kernel(), FLAG)
    assert era.is_slab(page(era, 1 << 9 | 1 << 16, 0)).tolist() == [True]
    assert era.is_slab(page(era, 1 << 16, 0xF5000000)).tolist() == [False]


def test_type_of_slabs() -> None:
    # As v6.12 says it: a signed number; the lower three bytes belong to others.
    era = era_of(kernel(), {"NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)": "-184549376"})
    assert era.is_slab(page(era, 0, 0xF5000000)).tolist() == [True]
    assert era.is_slab(page(era, 1 << 9, 0xF5000123)).tolist() == [True]
    assert era.is_slab(page(era, 1 << 9, 0xF4000000)).tolist() == [False]
    # As v6.10 does: all bits but one.
    era = era_of(kernel(), {"NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)": "-4097"})
    assert era.is_slab(page(era, 0, 0xFFFFEFFF)).tolist() == [True]
    assert era.is_slab(page(era, 0, 0xFFFFFFFF)).tolist() == [False]


def test_enumerators_will_do() -> None:
    layouts = kernel()
    layouts.enumerators = {"PGTY_slab": 0xF5}
    era = era_of(layouts, {})
    assert (era.flag, era.type_value) == (0, 0xF5000000)
    layouts.enumerators = {"PG_slab": 7}
    assert era_of(layouts, {}).flag == 1 << 7


def test_slabs_before_they_had_a_struct() -> None:
    era = era_of(kernel(slab=[], page=["flags", "compound_head", "_mapcount.counter", *SLAB]), FLAG)
    assert era.slab.struct == "page"


def test_sheaves() -> None:
    sheaves = {
        "slub_percpu_sheaves": ["main", "spare", "rcu_free"],
        "slab_sheaf": ["cache", "size", "objects", "barn_list", "barn_list.next", "barn_list.prev"],
        "node_barn": ["sheaves_full", "sheaves_full.next"],
    }
    before = kernel(
        **sheaves,
        kmem_cache=[*CACHE, "cpu_sheaves", "sheaf_capacity", "node"],
        kmem_cache_node=["barn"],
    )
    era = era_of(before, FLAG)
    assert era.sheaves is not None
    assert era.sheaves.node.struct == "kmem_cache_node"
    after = kernel(
        **sheaves,
        kmem_cache=[*CACHE[:-1], "cpu_sheaves", "sheaf_capacity", "per_node"],
        kmem_cache_per_node_ptrs=["node", "barn"],
        kmem_cache_cpu=[],
    )
    era = era_of(after, FLAG)
    assert era.sheaves is not None
    assert era.sheaves.node.struct == "kmem_cache_per_node_ptrs"
    assert era.cpu is None


@pytest.mark.parametrize(
    ("layouts", "facts", "reason"),
    [
        (kernel(kmem_cache=["num", "gfporder"]), FLAG, "this kernel's allocator is not SLUB"),
        (
            kernel(kmem_cache=[*CACHE, "memcg_params"]),
            FLAG,
            "this kernel has slab caches for each memory cgroup, which are not told apart",
        ),
        (kernel(kmem_cache=[]), FLAG, "struct kmem_cache not found"),
        (kernel(slab=["slab_cache", "inuse", "objects"]), FLAG, "slab.freelist not found"),
        (
            kernel(),
            {"NUMBER(PG_slab)": "nine"},
            "what marks a page as a slab (PG_slab, PAGE_SLAB_MAPCOUNT_VALUE) not found",
        ),
    ],
)
def test_kernels_that_are_not_understood(
    layouts: FakeLayouts, facts: dict[str, str], reason: str
) -> None:
    assert resolve_slab_era(layouts, facts) == reason
