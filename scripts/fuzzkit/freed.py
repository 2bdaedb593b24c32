"""Objects that are free: what a stale pointer leads to."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from anonvma_inspect.kernel.era import Record
from anonvma_inspect.target.memory import WORD

from .subjects import Population

__all__ = ("Freed", "freed_object")

# include/linux/poison.h: what list_del() leaves behind.
_POISON_NEXT, _POISON_PREV = 0xDEAD000000000100, 0xDEAD000000000122
_PAGE = 4096


@dataclass(frozen=True)
class Freed:
    """A freed object: where it is, and the bytes there."""

    address: int
    content: bytes


def freed_object(population: Population, kind: str, like: int, rng: random.Random) -> Freed:
    """Make one beside live ones, as the kernel leaves it behind.

    Its words are those of a live object, but for what unlinking and freeing change: an AVC is
    poisoned by ``list_del()``; an anon_vma's tree is empty and its counts are 0; a VMA has an empty
    list, no anon_vma, and says that it is detached (``unlink_anon_vmas()``, ``__put_anon_vma()`` in
    mm/rmap.c, ``vm_area_free()`` in kernel/fork.c, v6.12).

    :param kind: See :class:`Subject`.
    :param like: Address of a live object of that kind.
    """
    record = population.record(kind)
    rows, _ = population.target.memory.gather(np.array([like], dtype=np.uint64), record.size)
    content = bytearray(rows.tobytes())
    address = _room(population, record, rng)

    def put(name: str, value: int) -> None:
        if name in record:
            field = record.fields[name]
            content[field.offset : field.end] = value.to_bytes(field.size, "little")

    if kind == "avc":
        put("same_vma_next", _POISON_NEXT)
        put("same_vma_prev", _POISON_PREV)
    elif kind == "anon_vma":
        counts = ("refcount", "num_children", "num_active_vmas", "degree")
        for name in (*counts, "rb_node", "rb_leftmost"):
            put(name, 0)
    elif kind == "vma":
        head = address + record.offset("anon_vma_chain")
        put("anon_vma", 0)
        put("anon_vma_chain_next", head)
        put("anon_vma_chain_prev", head)
        put("detached", 1)
        put("vm_refcnt", 0)
    # Words that the target has there are the allocator's: the links of its lists of free objects.
    places = np.arange(0, record.size // WORD * WORD, WORD)
    words, present = population.target.memory.gather(np.uint64(address) + places.astype("u8"), WORD)
    for place, word in zip(places[present].tolist(), words[present], strict=True):
        content[place : place + WORD] = word.tobytes()
    return Freed(address, bytes(content))


# A place in or next to a page that holds live objects of the kind, where none of any kind is.
def _room(population: Population, record: Record, rng: random.Random) -> int:
    tables = population.tables
    era = tables.era
    kinds = (
        (era.vma, tables.vmas.address),
        (era.avc, tables.avcs.address),
        (era.anon_vma, tables.anon_vmas.address),
        (era.mm, tables.mms.address),
    )
    begin = np.concatenate([address for _, address in kinds])
    end = np.concatenate([address + np.uint64(of.size) for of, address in kinds])
    own = next(address for of, address in kinds if of is record)
    size = -(-record.size // WORD) * WORD
    pages = np.unique(own // np.uint64(_PAGE)) * np.uint64(_PAGE)
    # The page behind one of these may belong to anything; if no word of it was ever read, it may as
    # well belong to this kind.
    behind = np.setdiff1d(pages + np.uint64(_PAGE), pages)
    step = np.arange(0, max(_PAGE - size, WORD), WORD, dtype=np.uint64)
    for page in (*rng.sample(pages.tolist(), len(pages)), *behind.tolist()):
        place = np.uint64(page) + step
        free = tables.space.in_ram(place, size)
        if page in behind:
            words = np.uint64(page) + np.arange(0, _PAGE, WORD, dtype=np.uint64)
            _, present = population.target.memory.gather(words, WORD)
            free &= not present.any()
        for low, high in zip(begin, end, strict=True):
            if low < place[-1] + np.uint64(size) and high > place[0]:
                free &= (place + np.uint64(size) <= low) | (place >= high)
        if free.any():
            return int(rng.choice(place[free].tolist()))
    raise LookupError(f"no page has room for a freed {record.struct}")
