"""BTF as drgn types.

drgn 0.3.0 reads no BTF itself; once it does (osandov/drgn#625), this can go.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import drgn
from drgn import Object, Program, Qualifiers, Type, TypeEnumerator, TypeKind, TypeMember

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.btf import Btf, Kind, Parameter, Record

__all__ = ("BtfTypes",)

_KINDS = {
    TypeKind.STRUCT: (Kind.STRUCT,),
    TypeKind.UNION: (Kind.UNION,),
    TypeKind.ENUM: (Kind.ENUM, Kind.ENUM64),
    TypeKind.TYPEDEF: (Kind.TYPEDEF,),
    TypeKind.INT: (Kind.INT,),
    TypeKind.BOOL: (Kind.INT,),
    TypeKind.FLOAT: (Kind.FLOAT,),
}
_QUALIFIERS = {
    Kind.CONST: Qualifiers.CONST,
    Kind.VOLATILE: Qualifiers.VOLATILE,
    Kind.RESTRICT: Qualifiers.RESTRICT,
}
# What an enum is stored as: BTF tells the size and whether any value is negative.
_ENUM_TYPES = {1: "char", 2: "short", 4: "int", 8: "long"}
# No kernel nests types this deep; cycles do.
_MAX_DEPTH = 64


class BtfTypes:
    """Makes drgn types of BTF types, each once, members and parameters only when looked at.

    :param prog: The program that the types are for.
    :param btf: The kernel's types.
    """

    def __init__(self, prog: Program, btf: Btf) -> None:
        self.btf = btf
        self._prog = prog
        self._types: dict[int, Type] = {}
        self._depth = 0
        # By name: drgn does not keep what a finder in Python answers, and asks for the same few
        # types over and over.
        self._found: dict[tuple[str, drgn.TypeKindSet], Type | None] = {}

    def find(self, kinds: drgn.TypeKindSet, name: str) -> Type | None:
        """Find a type by name.

        :param kinds: The kinds that would do.
        :param name: Without a tag.
        """
        key = (name, kinds)
        if key not in self._found:
            self._found[key] = self._look_up(kinds, name)
        return self._found[key]

    def _look_up(self, kinds: drgn.TypeKindSet, name: str) -> Type | None:
        wanted = {kind for of in kinds for kind in _KINDS.get(of, ())}
        for type_id in self.btf.ids(name, *wanted) if wanted else ():
            type_ = self.type(type_id)
            if type_.kind in kinds:
                return type_
        return None

    def type(self, type_id: int) -> Type:
        """The type of an id."""
        type_ = self._types.get(type_id)
        if type_ is None:
            self._depth += 1
            try:
                if self._depth > _MAX_DEPTH:
                    raise TargetError(
                        f"{self.btf.origin}: damaged BTF: type {type_id} is nested more than "
                        f"{_MAX_DEPTH} deep"
                    )
                type_ = self._types[type_id] = self._make(self.btf.record(type_id))
            finally:
                self._depth -= 1
        return type_

    def _make(self, record: Record) -> Type:
        prog, kind = self._prog, record.kind
        tag = record.name or None
        if kind in _QUALIFIERS:
            type_ = self.type(record.type_id)
            return type_.qualified(type_.qualifiers | _QUALIFIERS[kind])
        if kind == Kind.TYPE_TAG:
            return self.type(record.type_id)
        if kind == Kind.VOID:
            return prog.void_type()
        if kind == Kind.INT:
            if record.boolean:
                return prog.bool_type(record.name, record.size)
            return prog.int_type(record.name, record.size, record.signed)
        if kind == Kind.FLOAT:
            return prog.float_type(record.name, record.size)
        if kind == Kind.PTR:
            return prog.pointer_type(self.type(record.type_id))
        if kind == Kind.ARRAY:
            return prog.array_type(self.type(record.type_id), record.length)
        if kind == Kind.TYPEDEF:
            return prog.typedef_type(record.name, self.type(record.type_id))
        if kind in (Kind.ENUM, Kind.ENUM64):
            return self._make_enum(record, tag)
        if kind == Kind.STRUCT:
            return prog.struct_type(tag, record.size, self._members(record))
        if kind == Kind.UNION:
            return prog.union_type(tag, record.size, self._members(record))
        if kind == Kind.FWD:
            return self._make_declared(record)
        if kind == Kind.FUNC_PROTO:
            return self._make_function(record)
        raise TargetError(
            f"{self.btf.origin}: damaged BTF: type {record.id} is a {kind.name} and cannot be part "
            "of a type"
        )

    def _make_enum(self, record: Record, tag: str | None) -> Type:
        if not record.enumerators:
            return self._prog.enum_type(tag)
        name = _ENUM_TYPES.get(record.size)
        if name is None:
            raise TargetError(
                f"{self.btf.origin}: damaged BTF: enum {record.name} of {record.size} bytes"
            )
        stored = self._prog.int_type(
            name if record.signed else f"unsigned {name}", record.size, record.signed
        )
        enumerators = [TypeEnumerator(each.name, each.value) for each in record.enumerators]
        return self._prog.enum_type(tag, stored, enumerators)

    # Where a file only declares a struct, drgn's own finders look for its definition elsewhere.
    def _make_declared(self, record: Record) -> Type:
        kind = Kind.UNION if record.flag else Kind.STRUCT
        defined = self.btf.ids(record.name, kind) if record.name else []
        if len(defined) == 1:
            return self.type(defined[0])
        make = self._prog.union_type if record.flag else self._prog.struct_type
        return make(record.name)

    def _make_function(self, record: Record) -> Type:
        parameters = record.parameters
        variadic = bool(parameters) and parameters[-1] == Parameter("", 0)
        return self._prog.function_type(
            self.type(record.type_id),
            [
                drgn.TypeParameter(self._later(parameter.type_id), parameter.name or None)
                for parameter in (parameters[:-1] if variadic else parameters)
            ],
            variadic,
        )

    def _members(self, record: Record) -> list[TypeMember]:
        members = [
            TypeMember(
                self._later(member.type_id)
                if member.bit_size is None
                else functools.partial(self._bit_field, member.type_id, member.bit_size),
                member.name or None,
                member.bit_offset,
            )
            for member in record.members
        ]
        # BTF writes a flexible array as one of no elements, which some kernels' C has as well; at
        # the end of a struct the first is likelier.
        if record.kind == Kind.STRUCT and members:
            last = record.members[-1]
            if self.btf.kind(last.type_id) == Kind.ARRAY:
                array = self.btf.record(last.type_id)
                if not array.length:
                    members[-1] = TypeMember(
                        functools.partial(self._flexible_array, array.type_id),
                        last.name or None,
                        last.bit_offset,
                    )
        return members

    def _later(self, type_id: int) -> Callable[[], Type]:
        return functools.partial(self.type, type_id)

    def _bit_field(self, type_id: int, bits: int) -> Object:
        return Object(self._prog, self.type(type_id), bit_field_size=bits)

    def _flexible_array(self, element: int) -> Type:
        return self._prog.array_type(self.type(element))
