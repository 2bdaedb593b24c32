"""BTF as drgn types, over sections written by a writer of our own."""

from __future__ import annotations

import drgn
import pytest
from drgn import Program, TypeKind

from anonvma_inspect.errors import TargetError
from anonvma_inspect.helpers.btf_types import BtfTypes
from anonvma_inspect.target.btf import Btf, Kind

from .test_btf import Writer, sample


def types_of(section: bytes) -> BtfTypes:
    prog = Program(drgn.Platform(drgn.Architecture.X86_64))
    types = BtfTypes(prog, Btf(section))
    prog.register_type_finder(
        "btf",
        lambda prog, kinds, name, filename: None if filename else types.find(kinds, name),
        enable_index=0,
    )
    return types


@pytest.fixture
def types() -> BtfTypes:
    return types_of(sample())


@pytest.fixture
def prog(types: BtfTypes) -> Program:
    return types.type(1).prog


def test_every_kind_of_member(prog: Program) -> None:
    holder = prog.type("struct holder")
    assert holder.size == 128
    written = [
        (member.name, member.bit_offset, member.type.type_name(), member.bit_field_size)
        for member in holder.members or ()
    ]
    assert written == [
        (None, 0, "struct <anonymous>", None),
        ("node", 128, "struct node", None),
        ("text", 192, "const char *", None),
        ("grid", 256, "int [2][3]", None),
        ("color", 448, "color_t", None),
        ("sign", 480, "enum sign", None),
        ("call", 512, "int (*)(struct other *page, ...)", None),
        ("tagged", 576, "union opaque *", None),
        ("any", 640, "void * volatile restrict", None),
        ("ratio", 704, "double", None),
        ("narrow", 768, "unsigned int", 3),
        ("flag", 771, "_Bool", 1),
        ("wide", 832, "enum wide", None),
        ("table", 1024, "struct other *[]", None),
    ]
    assert holder.member("whole").bit_offset == 64


def test_a_value_is_read_by_its_type(prog: Program) -> None:
    data = bytearray(128)
    data[16:24] = (0x1122334455667788).to_bytes(8, "little")
    data[56:60] = (1).to_bytes(4, "little")
    data[60:64] = (2**32 - 1).to_bytes(4, "little")
    data[96] = 0b1101
    data[104:112] = (1 | 2 << 32).to_bytes(8, "little")
    holder = drgn.Object.from_bytes_(prog, "struct holder", data)
    assert holder.node.next.value_() == 0x1122334455667788
    assert holder.color.format_(type_name=False) == "BLACK"
    assert holder.sign.format_(type_name=False) == "MINUS"
    assert holder.sign.value_() == -1
    assert (holder.narrow.value_(), holder.flag.value_()) == (5, True)
    assert holder.wide.format_(type_name=False) == "HUGE"


def test_names(prog: Program) -> None:
    assert prog.type("unsigned long").size == 8
    assert prog.type("long unsigned int").type_name() == "unsigned long"
    assert prog.type("_Bool").kind == TypeKind.BOOL
    assert prog.type("color_t").type.type_name() == "enum color"
    assert prog.type("enum wide").enumerators == (drgn.TypeEnumerator("HUGE", 1 | 2 << 32),)
    for name in ("struct color", "enum holder", "struct opaque", "nothing"):
        with pytest.raises(LookupError):
            prog.type(name)


def test_types_are_made_once(types: BtfTypes) -> None:
    kinds = drgn.TypeKindSet({TypeKind.STRUCT})
    node = types.find(kinds, "node")
    assert node is not None
    assert types.find(kinds, "node") is node


def test_declared_struct_is_found_by_name() -> None:
    w = Writer()
    declared = w.add(Kind.FWD, "page", 0)
    w.struct("folio", 8, ("page", w.pointer(declared), 0))
    word = w.integer("int", 4, 1 << 24)
    w.struct("page", 4, ("flags", word, 0))
    folio = types_of(w.section()).type(1).prog.type("struct folio")
    assert folio.member("page").type.type.member("flags").type.type_name() == "int"


def test_ambiguous_declaration_stays_one() -> None:
    w = Writer()
    w.add(Kind.FWD, "page", 0)
    w.struct("page", 4)
    w.struct("page", 8)
    assert not types_of(w.section()).type(1).is_complete()


def test_circles_end() -> None:
    w = Writer()
    w.add(Kind.TYPEDEF, "a", 2)
    w.add(Kind.CONST, "", 1)
    w.add(Kind.PTR, "", 3)
    types = types_of(w.section())
    for type_id in (1, 2, 3):
        with pytest.raises(TargetError, match="damaged BTF"):
            types.type(type_id)


def test_what_is_no_type_is_refused() -> None:
    w = Writer()
    word = w.integer("int", 4)
    w.add(Kind.FUNC, "run", w.function(word))
    w.add(Kind.ENUM, "odd", 3, w.name("A"), 0, vlen=1)
    types = types_of(w.section())
    for type_id in (3, 4, 5):
        with pytest.raises(TargetError, match="damaged BTF"):
            types.type(type_id)
