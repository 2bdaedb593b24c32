"""Where a field lies: the question that every layer above asks.

Layouts come from BTF (:class:`anonvma_inspect.target.btf.BtfLayouts`, the normal case) or from
DWARF through drgn (:class:`anonvma_inspect.target.dwarf.DwarfLayouts`). Both answer alike, down to
the spelling of types, so that nothing above this layer knows which of them it talks to. Nothing is
raised for a struct or field that the kernel does not have: the answer is None, since which fields
exist is how a kernel is told from another.
"""

__all__ = (
    "BIT_FIELD_KINDS",
    "KINDS",
    "Field",
    "Layouts",
    "bit_field_storage",
    "canonical_name",
)

import math
import re
from dataclasses import dataclass
from typing import Protocol

#: What a field can be, behind typedefs and qualifiers. ``bool`` and ``char`` are integers.
KINDS = frozenset(
    ("array", "enum", "float", "function", "integer", "pointer", "struct", "union", "void")
)

#: The kinds that C lets be a bit-field.
BIT_FIELD_KINDS = frozenset(("enum", "integer"))


@dataclass(frozen=True)
class Field:
    """One member of a struct or union, as the bytes in memory see it."""

    #: Bytes from the start of the struct that was asked about. Of a bit-field: of its storage.
    offset: int
    #: Bytes. Of a bit-field: of its storage, so that ``size`` bytes at ``offset`` hold all of it.
    size: int
    #: One of :data:`KINDS`, behind typedefs and qualifiers.
    kind: str
    #: The type as C writes it, typedef names kept: ``struct anon_vma *``, ``unsigned long [16]``,
    #: ``int (*)(struct file *)``, ``struct <anonymous>``. See :func:`canonical_name`.
    type_name: str
    #: Whether the value is signed: of an integer, an enum or, for an array, its elements.
    signed: bool = False
    #: Bits from the least significant bit of the little-endian storage, None if not a bit-field.
    bit_offset: int | None = None
    #: Bits, None if not a bit-field.
    bit_size: int | None = None
    #: Elements of an array (0 of a flexible one; of one of several dimensions, all of them), None
    #: if not an array.
    length: int | None = None
    #: Bytes of an array's element, None if not an array.
    element_size: int | None = None
    #: One of :data:`KINDS`, of an array's elements; None if not an array.
    element_kind: str | None = None

    @property
    def end(self) -> int:
        """Bytes from the start of the struct to the first byte behind the field."""
        return self.offset + self.size


class Layouts(Protocol):
    """Where the fields of the target's structs lie.

    A type is named as C does, ``"struct page"``, ``"union x"``, ``"enum zone_type"``, or without
    the tag: ``"page"`` is the struct of that name if there is one, else the union, the enum or the
    typedef (``"atomic_t"``).
    """

    @property
    def source(self) -> str:
        """Where the answers come from: ``"btf"`` or ``"dwarf"``."""

    def size(self, name: str) -> int | None:
        """Bytes of a type.

        :return: None if there is no such type, or only a declaration of it.
        """

    def field(self, name: str, path: str) -> Field | None:
        """Find a field of a struct or union.

        :param name: The struct, the union, or a typedef of one.
        :param path: Member names joined by dots. Members of anonymous members are named as in C,
            without them. A path crosses no pointer and no array.
        :return: None if the struct or any part of the path does not exist.
        """

    def enumerator(self, name: str) -> int | None:
        """Value of an enumeration constant, of a named or an anonymous enum; None if unknown."""


def bit_field_storage(position: int, bits: int, unit: int, end: int) -> tuple[int, int, int]:
    """Choose the bytes to read for a bit-field.

    C's own storage unit, an aligned object of the declared type, is what a reader of one field of
    many objects wants (its size is that of an integer). In a packed struct a bit-field may straddle
    two units, or its unit may reach behind the struct: then the fewest bytes that hold it.

    :param position: Bits from the start of the struct.
    :param bits: Bits of the bit-field.
    :param unit: Bytes of its declared type.
    :param end: Bytes of the struct.
    :return: Offset of the storage in bytes, its size in bytes, bits from its least significant bit.
    """
    offset = position // (8 * unit) * unit
    if position + bits <= 8 * (offset + unit) and offset + unit <= end:
        return offset, unit, position - 8 * offset
    offset = position // 8
    return offset, (position % 8 + bits + 7) // 8, position % 8


def canonical_name(type_name: str) -> str:
    """Leave out of a type's name what BTF does not keep.

    ``pahole``, which makes a kernel's BTF from its DWARF, writes a flexible array as one of no
    elements, and one of several dimensions as one of a single dimension.
    """

    def join(dimensions: re.Match[str]) -> str:
        return f"[{math.prod(int(number or 0) for number in dimensions[0][1:-1].split(']['))}]"

    return re.sub(r"(\[\d*\])+", join, type_name)
