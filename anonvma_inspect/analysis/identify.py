"""What an address is: which object of the reverse map, which other, or none."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from anonvma_inspect.collect.look_up import LookedUp
from anonvma_inspect.kernel.era import Record
from anonvma_inspect.kernel.tags import decode_anon_vma
from anonvma_inspect.tables import NO_ROW, ObjectState, Tables, find_rows
from anonvma_inspect.target.memory import U64Column

__all__ = ("Identity", "Kind", "identify")

_USER_END = 1 << 56
_KERNEL_START = -(1 << 56) % (1 << 64)
# include/linux/err.h, MAX_ERRNO: the last page has no pointers.
_LAST_POINTER = (1 << 64) - 4096
# include/linux/poison.h: LIST_POISON1 and LIST_POISON2 where POISON_POINTER_DELTA is that of 64
# bits; POISON_FREE, POISON_INUSE, SLUB_RED_ACTIVE, SLUB_RED_INACTIVE in each byte of a word.
_POISON = {
    0xDEAD000000000100: "LIST_POISON1, the next of an entry that was taken off its list",
    0xDEAD000000000122: "LIST_POISON2, the prev of an entry that was taken off its list",
    0x6B6B6B6B6B6B6B6B: "POISON_FREE: from an object that is free (slub_debug)",
    0x5A5A5A5A5A5A5A5A: "POISON_INUSE: from an object that was never written to (slub_debug)",
    0xCCCCCCCCCCCCCCCC: "SLUB_RED_ACTIVE: from behind an object (slub_debug)",
    0xBBBBBBBBBBBBBBBB: "SLUB_RED_INACTIVE: from behind a free object (slub_debug)",
}
# A field of a struct that is made from such a pointer is not far from it.
_NEAR_POISON = 0x80
_ALL_BITS = (1 << 64) - 1
_BITS = np.uint64(1) << np.arange(64, dtype=np.uint64)
_SHARED = "other objects than AVCs are in this cache as well"
# Objects whose caches have these names are of these structs.
_STRUCTS = {b"mm_struct": "mm_struct", b"task_struct": "task_struct"}


class Kind(str, enum.Enum):
    """What an address is, in a word or two."""

    #: In an object of the tables, or of a slab cache.
    OBJECT = "object"
    #: In a slab, but in no object.
    SLAB = "slab"
    #: A ``struct page``, or memory, of anonymous memory.
    FOLIO = "folio"
    #: In a ``struct page``, of other memory or of memory of which that is not known.
    PAGE = "page"
    #: In the kernel stack of a thread.
    STACK = "stack"
    #: In RAM, and nothing that is known here.
    MEMORY = "memory"
    #: A value that the kernel writes into what is gone.
    POISON = "poison"
    NULL = "null"
    #: A negative number that functions return instead of a pointer.
    ERROR = "error"
    USER = "user"
    #: No address of x86-64's or arm64's.
    IMPOSSIBLE = "impossible"
    #: Somewhere else in the kernel: its image, a module, a stack that no thread has.
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True)
class Identity:
    """What one address is.

    :ivar struct: C name of the object that it lies in, if that is known.
    :ivar start: Address of the object.
    :ivar size: Bytes of it.
    :ivar field: Of the struct, where the address is in it; "" if it is in none that is known.
    :ivar state: What the slab allocator says of it.
    :ivar cache: Address of its ``kmem_cache``; 0 if that is not known.
    :ivar met: It is an object of the tables.
    :ivar vma: Row in :class:`~anonvma_inspect.tables.Vmas` of the VMA that it is, or is of.
    :ivar mm: Row in :class:`~anonvma_inspect.tables.Mms`, likewise.
    :ivar anon_vma: Row in :class:`~anonvma_inspect.tables.AnonVmas`, likewise.
    :ivar folio: Row in :attr:`~anonvma_inspect.collect.look_up.LookedUp.folios`.
    :ivar page: Number of the page frame whose ``struct page`` it lies in; -1: in none.
    :ivar head: Address of the ``struct page`` of that one's folio; 0 if that is not known.
    :ivar stack: Row in :attr:`~anonvma_inspect.collect.look_up.LookedUp.stacks`.
    :ivar one_bit_from: What it would lie in if one bit of it were another, and which bit; only of
        what is in nothing that is known, and if there is one such object.
    :ivar note: What else is to be said.
    """

    address: int
    kind: Kind
    struct: str | None = None
    start: int = 0
    size: int = 0
    field: str = ""
    state: ObjectState = ObjectState.UNKNOWN
    cache: int = 0
    met: bool = False
    vma: int = NO_ROW
    mm: int = NO_ROW
    anon_vma: int = NO_ROW
    folio: int = NO_ROW
    page: int = -1
    head: int = 0
    stack: int = NO_ROW
    one_bit_from: tuple[Identity, int] | None = None
    note: str | None = None


@dataclass(frozen=True)
class _Found:
    tables: Tables
    looked_up: LookedUp
    names: Mapping[int, bytes] = field(default_factory=dict)

    def of(self, index: int, address: int) -> Identity:
        if address == 0:
            return Identity(address, Kind.NULL)
        if address > _LAST_POINTER:
            return Identity(address, Kind.ERROR, note=f"-{(1 << 64) - address}")
        nearest = min(_POISON, key=lambda poison: abs(address - poison))
        if abs(address - nearest) < _NEAR_POISON:
            return Identity(address, Kind.POISON, note=_POISON[nearest])
        return self._in_tables(index, address) or self._elsewhere(index, address)

    # Objects that the tables have.
    def _in_tables(self, index: int, address: int) -> Identity | None:
        tables, era = self.tables, self.tables.era
        vmas, avcs, anon_vmas = tables.vmas, tables.avcs, tables.anon_vmas
        row = _inside(vmas.address, era.vma.size, address)
        if row != NO_ROW:
            found = self._object(index, address, era.vma, int(vmas.address[row]))
            return replace(found, vma=row, mm=int(vmas.mm[row]), anon_vma=self._lineage(row))
        row = _inside(avcs.address, era.avc.size, address)
        if row != NO_ROW:
            found = self._object(index, address, era.avc, int(avcs.address[row]))
            vma = int(avcs.vma_row[row])
            mm = NO_ROW if vma == NO_ROW else int(vmas.mm[vma])
            return replace(found, vma=vma, mm=mm, anon_vma=self._of_avc(row, vma))
        row = _inside(anon_vmas.address, era.anon_vma.size, address)
        if row != NO_ROW:
            found = self._object(index, address, era.anon_vma, int(anon_vmas.address[row]))
            return replace(found, anon_vma=row)
        for record, column in ((era.mm, tables.mms.address), (era.task, tables.tasks.address)):
            row = _inside_unsorted(column, record.size, address)
            if row != NO_ROW:
                found = self._object(index, address, record, int(column[row]))
                mm = row if record is era.mm else int(tables.tasks.mm[row])
                return replace(found, mm=mm)
        return self._of_ksm(index, address)

    def _of_ksm(self, index: int, address: int) -> Identity | None:
        tables, records = self.tables, self.tables.ksm.records
        if records is None:
            return None
        items, nodes = tables.rmap_items, tables.stable_nodes
        row = _inside(items.address, records.rmap_item.size, address)
        if row != NO_ROW:
            found = self._object(index, address, records.rmap_item, int(items.address[row]))
            return replace(found, mm=int(items.mm_row[row]), anon_vma=int(items.anon_vma_row[row]))
        row = _inside(nodes.address, records.stable_node.size, address)
        if row == NO_ROW:
            return None
        return self._object(index, address, records.stable_node, int(nodes.address[row]))

    # What an AVC says, else in whose tree it was met, else what its VMA belongs to.
    def _of_avc(self, avc: int, vma: int) -> int:
        tables = self.tables
        said = int(tables.avcs.anon_vma_row[avc])
        if said != NO_ROW:
            return said
        nodes = tables.nodes.anon_vma[tables.nodes.avc == avc]
        if len(nodes):
            return int(nodes[0])
        return NO_ROW if vma == NO_ROW else self._lineage(vma)

    # The family of a VMA: that of what it has active, else of the first in its chain.
    def _lineage(self, vma: int) -> int:
        tables = self.tables
        active = int(tables.vmas.active[vma])
        if active != NO_ROW:
            return active
        first, last = np.searchsorted(tables.links.vma, [vma, vma + 1])
        chain = tables.avcs.anon_vma_row[tables.links.avc[first:last]]
        chain = chain[chain != NO_ROW]
        return int(chain[0]) if len(chain) else NO_ROW

    def _object(self, index: int, address: int, record: Record, start: int) -> Identity:
        places = self.looked_up.objects
        return Identity(
            address,
            Kind.OBJECT,
            struct=record.struct,
            start=start,
            size=record.size,
            field=_field(record, address - start),
            state=ObjectState(int(places.state[index])),
            cache=int(places.cache[index]),
            met=True,
        )

    # Objects that nothing leads to, and what is none.
    def _elsewhere(self, index: int, address: int) -> Identity:
        looked_up, tables = self.looked_up, self.tables
        places = looked_up.objects
        stack = int(looked_up.stack[index])
        if stack != NO_ROW:
            return Identity(address, Kind.STACK, stack=stack)
        state, cache = ObjectState(int(places.state[index])), int(places.cache[index])
        start = int(places.start[index])
        if cache and start:
            record = self._record(cache)
            lost = Identity(
                address,
                Kind.OBJECT,
                struct=None if record is None else record.struct,
                start=start,
                size=int(places.size[index]),
                field="" if record is None else _field(record, address - start),
                state=state,
                cache=cache,
                anon_vma=self._led_to(int(looked_up.leads_to[index])),
            )
            allocated = state is ObjectState.ALLOCATED
            if record is tables.era.avc and allocated and lost.anon_vma == NO_ROW:
                # Slab caches of the same size are merged.
                return replace(lost, struct=None, field="", note=_SHARED)
            name = places.names.get(cache, b"")
            if record is None and name in _STRUCTS:
                return replace(lost, struct=_STRUCTS[name])
            return lost
        if cache:
            return Identity(address, Kind.SLAB, state=state, cache=cache)
        folio = int(looked_up.folio[index])
        if folio != NO_ROW and looked_up.folios is not None:
            pointer = int(looked_up.folios.pointer[folio])
            of_folio = Identity(address, Kind.FOLIO, folio=folio, anon_vma=self._led_to(pointer))
            return self._of_page(index, of_folio)
        if looked_up.frame[index] >= 0:
            return self._of_page(index, Identity(address, Kind.PAGE))
        if bool(tables.space.in_ram(np.array([address], dtype=np.uint64))[0]):
            return Identity(address, Kind.MEMORY, note=places.not_read)
        if address < _USER_END:
            return Identity(address, Kind.USER)
        kind = Kind.ELSEWHERE if address >= _KERNEL_START else Kind.IMPOSSIBLE
        return Identity(address, kind, one_bit_from=self._one_bit_from(index, address))

    # With the struct page that it lies in, if any.
    def _of_page(self, index: int, identity: Identity) -> Identity:
        looked_up = self.looked_up
        frame, start = int(looked_up.frame[index]), int(looked_up.page_start[index])
        if frame < 0:
            return identity
        return replace(
            identity,
            struct=looked_up.page.struct,
            start=start,
            size=looked_up.page.size,
            field=_field(looked_up.page, identity.address - start),
            page=frame,
            head=int(looked_up.head[index]),
        )

    # What is neither in RAM nor anywhere else agrees with an object's address in all bits but one
    # for a reason; unless it is the bit that tells the halves of the kernel's addresses apart, one
    # of which is arm64's for RAM, and the other has all else (arch/arm64/include/asm/memory.h:
    # PAGE_OFFSET, PAGE_END).
    def _one_bit_from(self, index: int, address: int) -> tuple[Identity, int] | None:
        space = self.tables.space
        if self.looked_up.readable[index] or not len(space.ram):
            return None
        halves = (~int(space.ram[0][0]) & _ALL_BITS).bit_length() - 1
        others = np.uint64(address) ^ _BITS
        found = []
        for bit in np.flatnonzero(space.in_ram(others)).tolist():
            if bit == halves:
                continue
            other = self._in_tables(index, int(others[bit]))
            if other is not None:
                found.append((replace(other, state=ObjectState.UNKNOWN, cache=0), bit))
        return found[0] if len(found) == 1 else None

    # The struct that a cache is of. Others may share that of AVCs.
    def _record(self, cache: int) -> Record | None:
        allocation, era = self.tables.allocation, self.tables.era
        if allocation is None:
            return None
        for placement, record in (
            (allocation.vmas, era.vma),
            (allocation.avcs, era.avc),
            (allocation.anon_vmas, era.anon_vma),
        ):
            if placement.cache == cache:
                return record
        return None

    def _led_to(self, word: int) -> int:
        pointer, _ = decode_anon_vma(word)
        return _row(self.tables.anon_vmas.address, pointer)


def identify(tables: Tables, addresses: U64Column, looked_up: LookedUp) -> list[Identity]:
    """Find out what some addresses are.

    :param tables: With what the slab allocator says.
    :param addresses: Any values at all.
    :param looked_up: What the target has there.
    """
    found = _Found(tables, looked_up)
    return [found.of(index, address) for index, address in enumerate(addresses.tolist())]


def _row(addresses: U64Column, address: int) -> int:
    return int(find_rows(addresses, np.array([address], dtype=np.uint64))[0])


# The object, of a table that is sorted by address, that an address lies in.
def _inside(addresses: U64Column, size: int, address: int) -> int:
    row = int(np.searchsorted(addresses, np.uint64(address), side="right")) - 1
    return row if row >= 0 and address - int(addresses[row]) < size else NO_ROW


def _inside_unsorted(addresses: U64Column, size: int, address: int) -> int:
    rows = np.flatnonzero(np.uint64(address) - addresses < np.uint64(size))
    return int(rows[0]) if len(rows) else NO_ROW


# Where in a struct: the largest field that begins there, else the smallest that reaches over it.
def _field(record: Record, offset: int) -> str:
    begins = [(place.size, name) for name, place in record.fields.items() if place.offset == offset]
    over = [
        (-place.size, name)
        for name, place in record.fields.items()
        if place.offset <= offset < place.end
    ]
    if not begins and not over:
        return ""
    _, name = max(begins) if begins else max(over)
    for ending in ("_next", "_prev"):
        if name.endswith(ending) and name != ending:
            return f"{name.removesuffix(ending)}.{ending[1:]}"
    return name
