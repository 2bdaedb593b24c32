"""Slab caches, and what CPUs and nodes keep for each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.kernel.era import Record
from anonvma_inspect.kernel.slab import SlabEra, objects_per_slab, pages_per_slab
from anonvma_inspect.target.memory import WORD, Memory, U64Column
from anonvma_inspect.target.target import Target

__all__ = (
    "Cache",
    "per_cpu",
    "read_cache",
    "read_cpus",
    "read_names",
    "read_variable",
    "read_words",
)

# Names of caches are short; include/linux/slab.h knows no limit.
_MAX_NAME = 64
# CONFIG_NODES_SHIFT is 10 at most, CONFIG_NR_CPUS 8192.
_MAX_NODES = 1 << 10
_MAX_CPUS = 1 << 13


@dataclass(frozen=True)
class Cache:
    """A ``kmem_cache``.

    :ivar size: Bytes from one object to the next.
    :ivar offset: Of the link in a free object.
    :ivar least: Objects of its smallest slabs.
    :ivar most: Objects of its ordinary slabs.
    :ivar least_pages: Pages of its smallest slabs.
    :ivar most_pages: Pages of its ordinary slabs.
    :ivar pad: Bytes before the first object of a slab, and before each other one (slub_debug).
    :ivar random: What links are hardened with; ``None`` if they are not.
    :ivar cpu_slab: Per-CPU pointer; 0 if there is none.
    :ivar cpu_sheaves: Likewise.
    :ivar sheaf_capacity: Most objects of a sheaf.
    :ivar barns: Addresses of ``node_barn``.
    """

    address: int
    size: int
    offset: int
    least: int
    most: int
    least_pages: int
    most_pages: int
    pad: int
    random: int | None
    cpu_slab: int
    cpu_sheaves: int
    sheaf_capacity: int
    barns: U64Column


def read_words(memory: Memory, addresses: U64Column) -> tuple[U64Column, NDArray[np.bool_]]:
    """Words anywhere, and which are there."""
    rows, present = memory.gather(addresses, WORD)
    return rows.view("<u8").reshape(len(addresses)).astype(np.uint64), present


def read_cache(reader: Reader, era: SlabEra, target: Target, address: int) -> Cache | None:
    """Read a ``kmem_cache``.

    :return: ``None`` if it is not there, or says what no cache says.
    """
    record = era.cache
    # The array of nodes at its end has only as many elements as there are nodes.
    size = record.offset("node") if "node" in record else record.size
    at = np.array([address], dtype=np.uint64)
    if reader.space.wild(at, size)[0]:
        return None
    rows, present = reader.memory.gather(at, size)
    if not present[0]:
        return None

    def word(name: str) -> int:
        return int(record.column(rows, name)[0]) if name in record else 0

    cache = Cache(
        address=address,
        size=word("size"),
        offset=word("offset"),
        least=objects_per_slab(word("min")),
        most=objects_per_slab(word("oo")),
        least_pages=pages_per_slab(word("min")),
        most_pages=pages_per_slab(word("oo")),
        pad=word("red_left_pad"),
        random=word("random") if "random" in record else None,
        cpu_slab=word("cpu_slab"),
        cpu_sheaves=word("cpu_sheaves"),
        sheaf_capacity=word("sheaf_capacity"),
        barns=_barns(reader, era, target, address),
    )
    sound = cache.size > 0 and cache.offset < cache.size and 0 < cache.least <= cache.most
    return cache if sound else None


# Addresses of the barns of all nodes.
def _barns(reader: Reader, era: SlabEra, target: Target, address: int) -> U64Column:
    nothing: U64Column = np.empty(0, dtype=np.uint64)
    if era.sheaves is None or "node" not in era.cache:
        return nothing
    field = era.cache.fields["node"]
    element = field.element_size or WORD
    count = _nodes(reader, target, field.length or 1)
    at = np.uint64(address + field.offset) + np.arange(count, dtype=np.uint64) * np.uint64(element)
    holder = era.sheaves.node
    if field.element_kind == "pointer":
        at, present = read_words(reader.memory, at)
        at = at[present & ~reader.space.wild(at, holder.size)]
    barn, present = read_words(reader.memory, at + np.uint64(holder.offset("barn")))
    return barn[present & ~reader.space.wild(barn, era.sheaves.barn.size)]


# A kernel for one node has an array of one.
def _nodes(reader: Reader, target: Target, length: int) -> int:
    said = read_variable(reader, target, "nr_node_ids", 4)
    count = 1 if said is None else int(said.view("<u4")[0])
    return min(max(count, 1), length, _MAX_NODES)


def read_cpus(reader: Reader, target: Target) -> U64Column | None:
    """What to add to a per-CPU pointer for each CPU that can be.

    :return: ``None`` if the target does not tell.
    """
    offsets, cpus = target.symbols.get("__per_cpu_offset"), _possible_cpus(reader, target)
    if offsets is None or cpus is None:
        return None
    words, there = read_words(reader.memory, np.uint64(offsets) + cpus * np.uint64(WORD))
    return words if there.all() else None


# Their numbers; nobody leaves gaps, so how many there are will do.
def _possible_cpus(reader: Reader, target: Target) -> U64Column | None:
    size = min(target.layouts.size("cpumask") or 0, _MAX_CPUS // 8)
    if size and "__cpu_possible_mask" in target.symbols:
        rows = read_variable(reader, target, "__cpu_possible_mask", size)
        if rows is None:
            return None
        return np.flatnonzero(np.unpackbits(rows, bitorder="little")).astype(np.uint64)
    rows = read_variable(reader, target, "nr_cpu_ids", 4)
    if rows is None:
        return None
    return np.arange(min(int(rows.view("<u4")[0]), _MAX_CPUS), dtype=np.uint64)


def read_variable(
    reader: Reader, target: Target, name: str, size: int = WORD
) -> NDArray[np.uint8] | None:
    """Bytes of a variable of the kernel's.

    :return: ``None`` if it is not known where it is, or if it is not there.
    """
    if name not in target.symbols:
        return None
    at = np.array([target.symbols[name]], dtype=np.uint64)
    rows, present = reader.memory.gather(at, size)
    reader.hole(at[~present], size, name)
    return rows[0] if present[0] else None


def read_names(reader: Reader, era: SlabEra, caches: U64Column) -> dict[int, bytes]:
    """Names of caches, of those that can be read."""
    address = caches[~reader.space.wild(caches, era.cache.offset("name") + WORD)]
    pointer, present = read_words(reader.memory, address + np.uint64(era.cache.offset("name")))
    rows, there = reader.memory.gather(pointer, _MAX_NAME)
    return {
        int(cache): row.tobytes().split(b"\0")[0]
        for cache, row, known in zip(address, rows, present & there, strict=True)
        if known
    }


def per_cpu(pointer: int, cpus: U64Column, record: Record, name: str) -> U64Column:
    """Addresses of a field of a per-CPU struct, one a CPU."""
    return np.uint64(pointer) + cpus + np.uint64(record.offset(name))
