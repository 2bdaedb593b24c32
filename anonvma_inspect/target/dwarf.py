"""Layouts from debugging information, by way of drgn."""

from __future__ import annotations

import drgn
from drgn import TypeKind

from anonvma_inspect.target.layouts import Field, bit_field_storage, canonical_name

__all__ = ("DwarfLayouts",)


_KIND_OF = {
    TypeKind.VOID: "void",
    TypeKind.INT: "integer",
    TypeKind.BOOL: "integer",
    TypeKind.FLOAT: "float",
    TypeKind.STRUCT: "struct",
    TypeKind.UNION: "union",
    TypeKind.CLASS: "struct",
    TypeKind.ENUM: "enum",
    TypeKind.POINTER: "pointer",
    TypeKind.ARRAY: "array",
    TypeKind.FUNCTION: "function",
}

_COMPOUND = (TypeKind.STRUCT, TypeKind.UNION, TypeKind.CLASS)


class DwarfLayouts:
    """Layouts from a program's debugging information, by way of drgn's types.

    :param prog: Program whose types are loaded, from DWARF or any other type finder.
    """

    source = "dwarf"

    def __init__(self, prog: drgn.Program) -> None:
        self._prog = prog
        self._types: dict[str, drgn.Type | None] = {}

    def size(self, name: str) -> int | None:
        """See :meth:`~anonvma_inspect.target.layouts.Layouts.size`."""
        type_ = self._find(name)
        return None if type_ is None else _size(type_)

    def field(self, name: str, path: str) -> Field | None:
        """See :meth:`~anonvma_inspect.target.layouts.Layouts.field`."""
        type_ = self._find(name)
        end = 0 if type_ is None else _size(type_) or 0
        position = 0
        bits = None
        for part in path.split("."):
            if type_ is None:
                return None
            type_ = _strip(type_)
            if type_.kind not in _COMPOUND or not type_.is_complete() or not type_.has_member(part):
                return None
            member = type_.member(part)
            position += member.bit_offset
            type_ = member.type
            bits = member.bit_field_size
        assert type_ is not None
        return _make_field(type_, position, bits, end)

    def enumerator(self, name: str) -> int | None:
        """See :meth:`~anonvma_inspect.target.layouts.Layouts.enumerator`."""
        try:
            constant = self._prog.constant(name)
        except LookupError:
            return None
        # A type finder may offer macros of other types here: they are no enumerators.
        if _strip(constant.type_).kind != TypeKind.ENUM:
            return None
        return int(constant.value_())

    def _find(self, name: str) -> drgn.Type | None:
        if name not in self._types:
            self._types[name] = self._look_up(name)
        return self._types[name]

    def _look_up(self, name: str) -> drgn.Type | None:
        tagged = name.startswith(("struct ", "union ", "enum "))
        for spelling in (
            (name,) if tagged else (f"struct {name}", f"union {name}", f"enum {name}", name)
        ):
            try:
                return self._prog.type(spelling)
            except LookupError:
                pass
        return None


def _strip(type_: drgn.Type) -> drgn.Type:
    while type_.kind == TypeKind.TYPEDEF:
        type_ = type_.type
    return type_


def _size(type_: drgn.Type) -> int | None:
    type_ = _strip(type_)
    if type_.kind == TypeKind.ARRAY:
        # drgn has no size for a flexible array; to C it adds no bytes.
        element = _size(type_.type)
        return None if element is None else (type_.length or 0) * element
    if type_.kind in (TypeKind.VOID, TypeKind.FUNCTION) or not type_.is_complete():
        return None
    return int(drgn.sizeof(type_))


def _is_signed(type_: drgn.Type) -> bool:
    type_ = _strip(type_)
    if type_.kind == TypeKind.ARRAY:
        return _is_signed(type_.type)
    if type_.kind == TypeKind.ENUM:
        return type_.type is not None and _is_signed(type_.type)
    return type_.kind == TypeKind.INT and bool(type_.is_signed)


def _make_field(type_: drgn.Type, position: int, bits: int | None, end: int) -> Field | None:
    real = _strip(type_)
    size = _size(real)
    if size is None:
        return None
    kind = _KIND_OF[real.kind]
    type_name = canonical_name(type_.type_name())
    signed = _is_signed(real)
    if bits is not None:
        offset, storage, bit_offset = bit_field_storage(position, bits, size, end)
        return Field(offset, storage, kind, type_name, signed, bit_offset, bits)
    if real.kind != TypeKind.ARRAY:
        return Field(position // 8, size, kind, type_name, signed)
    length, element = real.length or 0, real.type
    while element.kind == TypeKind.ARRAY:
        length, element = length * (element.length or 0), element.type
    return Field(
        position // 8,
        size,
        kind,
        type_name,
        signed,
        length=length,
        element_size=_size(element),
        element_kind=_KIND_OF[_strip(element).kind],
    )
