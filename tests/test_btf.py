"""The BTF parser, over sections written here by a writer of our own."""

import contextlib
import struct
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.btf import Btf, BtfLayouts, Enumerator, Kind, Member, Parameter

SIGNED, BOOL = 1 << 24, 4 << 24


class Writer:
    """Writes a BTF section, record by record, each as the format's description says."""

    def __init__(self) -> None:
        self.types = b""
        self.strings = b"\0"
        self.count = 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        at = self.strings.find(b"\0" + text.encode() + b"\0")
        if at < 0:
            at = len(self.strings) - 1
            self.strings += text.encode() + b"\0"
        return at + 1

    def add(
        self, kind: int, name: str, value: int, *rest: int, vlen: int = 0, flag: int = 0
    ) -> int:
        words = (self.name(name), flag << 31 | kind << 24 | vlen, value, *rest)
        self.types += b"".join(struct.pack("<I", word & 0xFFFFFFFF) for word in words)
        self.count += 1
        return self.count

    def integer(self, name: str, size: int, encoding: int = 0) -> int:
        return self.add(Kind.INT, name, size, encoding | 8 * size)

    def pointer(self, target: int) -> int:
        return self.add(Kind.PTR, "", target)

    def compound(
        self, kind: Kind, name: str, size: int, *members: tuple[str, int, int], flag: int = 0
    ) -> int:
        words = [word for text, type_id, at in members for word in (self.name(text), type_id, at)]
        return self.add(kind, name, size, *words, vlen=len(members), flag=flag)

    def struct(self, name: str, size: int, *members: tuple[str, int, int], flag: int = 0) -> int:
        return self.compound(Kind.STRUCT, name, size, *members, flag=flag)

    def function(self, returned: int, *parameters: tuple[str, int]) -> int:
        words = [word for text, type_id in parameters for word in (self.name(text), type_id)]
        return self.add(Kind.FUNC_PROTO, "", returned, *words, vlen=len(parameters))

    def section(self, layout: bytes = b"") -> bytes:
        bounds = [0, len(self.types), len(self.types), len(self.strings)]
        if layout:
            bounds += [len(self.types) + len(self.strings), len(layout)]
        size = 8 + 4 * len(bounds)
        header = struct.pack(f"<HBBI{len(bounds)}I", 0xEB9F, 1, 0, size, *bounds)
        return header + self.types + self.strings + layout


def sample() -> bytes:
    """A small kernel: one record of each kind, and the ways in which structs hold others."""
    w = Writer()
    u32 = w.integer("unsigned int", 4)  # 1
    u64 = w.integer("long unsigned int", 8)
    s32 = w.integer("int", 4, SIGNED)
    char = w.integer("char", 1, SIGNED)
    boolean = w.integer("_Bool", 1, BOOL)
    other = w.struct("other", 8, ("number", u64, 0))
    union = w.compound(Kind.UNION, "", 8, ("low", u32, 0), ("whole", u64, 0))
    inner = w.struct("", 16, ("first", u64, 0), ("", union, 64))
    node = w.struct("node", 8, ("next", w.count + 2, 0))
    w.pointer(node)  # 10
    const_char = w.add(Kind.CONST, "", char)
    text = w.pointer(const_char)
    array = w.add(Kind.ARRAY, "", 0, s32, u32, 3)
    grid = w.add(Kind.ARRAY, "", 0, array, u32, 2)
    color = w.add(Kind.ENUM, "color", 4, w.name("RED"), 0, w.name("BLACK"), 1, vlen=2)
    sign = w.add(Kind.ENUM, "sign", 4, w.name("MINUS"), -1, w.name("PLUS"), 1, vlen=2, flag=1)
    wide = w.add(Kind.ENUM64, "wide", 8, w.name("HUGE"), 1, 2, vlen=1)
    callback = w.pointer(w.function(s32, ("page", w.pointer(other)), ("", 0)))
    typedef = w.add(Kind.TYPEDEF, "color_t", color)
    tagged = w.pointer(w.add(Kind.TYPE_TAG, "rcu", w.add(Kind.FWD, "opaque", 0, flag=1)))
    volatile = w.add(Kind.VOLATILE, "", w.add(Kind.RESTRICT, "", w.pointer(0)))
    double = w.add(Kind.FLOAT, "double", 8)
    flexible = w.add(Kind.ARRAY, "", 0, w.pointer(other), u32, 0)
    holder = w.struct(
        "holder",
        128,
        ("", inner, 0),
        ("node", node, 128),
        ("text", text, 192),
        ("grid", grid, 256),
        ("color", typedef, 448),
        ("sign", sign, 480),
        ("call", callback, 512),
        ("tagged", tagged, 576),
        ("any", volatile, 640),
        ("ratio", double, 704),
        ("narrow", u32, 3 << 24 | 768),
        ("flag", boolean, 1 << 24 | 771),
        ("wide", wide, 832),
        ("table", flexible, 1024),
        flag=1,
    )
    function = w.add(Kind.FUNC, "run", callback - 1, vlen=1)
    w.add(Kind.DECL_TAG, "kfunc", function, -1)
    variable = w.add(Kind.VAR, "counter", u64, 1)
    w.add(Kind.DATASEC, ".data..percpu", 8, variable, 0, 8, vlen=1)
    w.add(Kind.TYPEDEF, "holder_t", holder)
    w.struct("twin", 4, ("a", u32, 0))
    w.struct("twin", 8, ("b", u64, 0))
    return w.section()


HOLDER_FIELDS = (
    "first low whole node node.next text grid color sign call tagged any ratio narrow flag wide "
    "table"
)


@pytest.fixture
def btf() -> Btf:
    return Btf(sample())


def test_records(btf: Btf) -> None:
    (other,) = btf.ids("other", Kind.STRUCT)
    assert btf.record(other).members == (Member("number", 2, 0, None),)
    assert btf.record(other).size == 8
    (color,) = btf.ids("color")
    assert btf.record(color).enumerators == (Enumerator("RED", 0), Enumerator("BLACK", 1))
    (sign,) = btf.ids("sign")
    assert btf.record(sign).enumerators[0] == Enumerator("MINUS", -1)
    (run,) = btf.ids("run", Kind.FUNC)
    prototype = btf.record(btf.record(run).type_id)
    assert prototype.parameters[1] == Parameter("", 0)
    assert btf.record(btf.ids("_Bool")[0]).boolean
    assert [btf.record(id_).size for id_ in btf.ids("twin")] == [4, 8]
    assert {btf.kind(id_) for id_ in range(len(btf))} == set(Kind)
    assert btf.record(0).name == "void"


def test_names(btf: Btf) -> None:
    assert btf.find("struct other") == btf.find("other") != []
    assert btf.find("union other") == btf.find("enum other") == []
    assert btf.find("enum color") == btf.ids("color")
    assert btf.find("holder_t") == btf.ids("holder_t", Kind.TYPEDEF)
    # No part of another name, and no offset 0.
    assert btf.find("ther") == btf.find("") == btf.find("a b") == btf.find("other\0twin") == []
    assert btf.find("run") == []
    assert btf.find("unsigned long") == btf.find("long unsigned int") == [2]


@pytest.mark.parametrize(
    ("path", "offset", "size", "kind", "type_name"),
    [
        ("first", 0, 8, "integer", "unsigned long"),
        ("low", 8, 4, "integer", "unsigned int"),
        ("node.next", 16, 8, "pointer", "struct node *"),
        ("text", 24, 8, "pointer", "const char *"),
        ("color", 56, 4, "enum", "color_t"),
        ("call", 64, 8, "pointer", "int (*)(struct other *, ...)"),
        ("tagged", 72, 8, "pointer", "union opaque *"),
        ("any", 80, 8, "pointer", "void * volatile restrict"),
        ("ratio", 88, 8, "float", "double"),
        ("wide", 104, 8, "enum", "enum wide"),
    ],
)
def test_fields(btf: Btf, path: str, offset: int, size: int, kind: str, type_name: str) -> None:
    for name in ("holder", "struct holder", "holder_t"):
        field = BtfLayouts(btf).field(name, path)
        assert field is not None
        assert (field.offset, field.size, field.kind) == (offset, size, kind)
        assert field.type_name == type_name
        assert field.length is None


def test_arrays(btf: Btf) -> None:
    layouts = BtfLayouts(btf)
    grid, table = layouts.field("holder", "grid"), layouts.field("holder", "table")
    assert grid is not None
    assert (grid.size, grid.length, grid.element_size, grid.element_kind) == (24, 6, 4, "integer")
    assert (grid.type_name, grid.signed) == ("int [6]", True)
    assert table is not None
    assert (table.offset, table.size, table.length) == (128, 0, 0)
    assert (table.element_size, table.type_name) == (8, "struct other *[0]")


def test_bit_fields(btf: Btf) -> None:
    layouts = BtfLayouts(btf)
    narrow, flag = layouts.field("holder", "narrow"), layouts.field("holder", "flag")
    assert narrow is not None
    assert (narrow.offset, narrow.size, narrow.bit_offset, narrow.bit_size) == (96, 4, 0, 3)
    assert flag is not None
    assert (flag.offset, flag.size, flag.bit_offset, flag.bit_size) == (96, 1, 3, 1)


def test_absent(btf: Btf) -> None:
    layouts = BtfLayouts(btf)
    assert layouts.source == "btf"
    assert layouts.size("nothing") is layouts.size("union opaque") is None
    for path in ("nothing", "node.nothing", "text.x", "grid.x", "color.x", "", ".", "node."):
        assert layouts.field("holder", path) is None
    assert layouts.field("nothing", "x") is layouts.field("color", "RED") is None


def test_enumerators(btf: Btf) -> None:
    layouts = BtfLayouts(btf)
    values = {name: layouts.enumerator(name) for name in ("RED", "BLACK", "MINUS", "HUGE", "low")}
    assert values == {"RED": 0, "BLACK": 1, "MINUS": -1, "HUGE": 1 | 2 << 32, "low": None}


def test_enums_before_they_had_a_sign() -> None:
    w = Writer()
    w.add(Kind.ENUM, "zone", 4, w.name("BOTTOM"), -2, vlen=1)
    assert Btf(w.section()).enumerator("BOTTOM") == -2


def test_first_of_several_structs(btf: Btf) -> None:
    assert BtfLayouts(btf).size("twin") == 4


def test_array_as_input() -> None:
    layouts = BtfLayouts(Btf(np.frombuffer(sample(), np.uint8)))
    assert layouts.size("holder") == 128


def test_reduce(btf: Btf) -> None:
    section = btf.reduce(["holder", "nothing"])
    reduced = Btf(section)
    layouts, expected = BtfLayouts(reduced), BtfLayouts(btf)
    assert layouts.size("holder") == expected.size("holder")
    for path in HOLDER_FIELDS.split():
        assert layouts.field("holder", path) == expected.field("holder", path) is not None
    # Held by value; pointed to; not needed.
    assert layouts.size("node") == 8
    assert reduced.ids("other", Kind.FWD)
    assert layouts.size("other") is None
    assert not reduced.ids("twin")
    assert len(section) < len(sample())
    # Reducing it again changes nothing.
    assert reduced.reduce(["holder"]) == section


def test_reduce_keeps_the_enum_of_an_enumerator(btf: Btf) -> None:
    reduced = Btf(btf.reduce(["BLACK", "struct other"]))
    assert (reduced.enumerator("BLACK"), reduced.enumerator("PLUS")) == (1, None)
    assert BtfLayouts(reduced).size("other") == 8
    assert len(Btf(btf.reduce([]))) == 1


def test_layout_section_describes_unknown_kinds() -> None:
    w = Writer()
    w.add(25, "", 0, 1, 2, 3, 4, 5, vlen=2)
    w.integer("int", 4, SIGNED)
    with pytest.raises(TargetError, match="kind 25, which is not known"):
        Btf(w.section())
    # One word that is always there, two words each.
    layout = bytes(4 * 25) + bytes((4, 8, 0, 0))
    btf = Btf(w.section(layout))
    assert btf.record(2).name == "int"
    with pytest.raises(TargetError, match="unknown kind 25"):
        btf.record(1)


def header(**changes: int) -> bytes:
    values = {"magic": 0xEB9F, "version": 1, "size": 24, "types": 0, "types_size": 16}
    values |= {"strings": 16, "strings_size": 5} | changes
    v = list(values.values())
    data = struct.pack("<HBBIIIII", v[0], v[1], 0, *v[2:])
    return data + struct.pack("<4I", 1, Kind.INT << 24, 4, 32) + b"\0int\0"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "too few"),
        (header(magic=0x9FEB), "big-endian"),
        (header(magic=0x1234), "not BTF"),
        (b"\x7fELF" + bytes(60), "an ELF file"),
        (bytes((1 << 26) + 1), "more than any"),
        (header(version=2), "version 2"),
        (header(size=8), "header of 8"),
        (header(size=1 << 31), "header of"),
        (header(types=1 << 31), "the types end"),
        (header(strings_size=1 << 31), "the strings end"),
        (header(types=2), "aligned"),
        (header(types_size=14), "aligned"),
        (header(types_size=4), "truncated: type 1"),
        (header(types_size=12), "runs past"),
        (header(strings_size=0), "strings"),
        (header(strings_size=4), "strings"),
        (header(strings=17, strings_size=4), "strings"),
    ],
)
def test_damaged_sections(data: bytes, message: str) -> None:
    Btf(header())
    with pytest.raises(TargetError, match=message):
        Btf(data, "file")


def test_unknown_id_and_name(btf: Btf) -> None:
    w = Writer()
    w.struct("s", 8, ("a", 7, 0))
    with pytest.raises(TargetError, match="type 7 is referred to"):
        BtfLayouts(Btf(w.section())).field("s", "a")
    w.types = w.types.replace(struct.pack("<I", w.name("a")), struct.pack("<I", 999))
    with pytest.raises(TargetError, match="a name at 999"):
        BtfLayouts(Btf(w.section())).field("s", "a")
    with pytest.raises(TargetError, match="type 99 is referred to"):
        btf.record(99)


def test_circles_end() -> None:
    w = Writer()
    u64 = w.integer("u64", 8)
    loop = w.add(Kind.TYPEDEF, "loop", w.count + 1)  # refers to itself
    endless = w.add(Kind.ARRAY, "", 0, w.count + 1, u64, 2)  # an array of itself
    function = w.function(0, *[("f", w.count + 1)] * 2)  # takes itself, twice
    chain = w.pointer(w.count + 1)  # points to itself
    anonymous = w.struct("", 8, ("", w.count + 1, 0), ("", w.count + 1, 0), ("deep", u64, 0))
    pointer = w.pointer(function)
    members = {"loop": loop, "endless": endless, "function": pointer, "chain": chain}
    w.struct("s", 8, ("", anonymous, 0), *[(name, id_, 0) for name, id_ in members.items()])
    btf = Btf(w.section())
    layouts = BtfLayouts(btf)
    assert layouts.field("s", "deep") is not None
    for name in members:
        with pytest.raises(TargetError, match="damaged BTF: type"):
            layouts.field("s", name)
    with pytest.raises(TargetError):
        layouts.size("loop")
    # Reducing needs no answer about them.
    assert len(Btf(btf.reduce(["s"]))) == len(btf)


def test_fields_lie_inside_their_struct() -> None:
    w = Writer()
    u64 = w.integer("u64", 8)
    w.struct("s", 8, ("a", u64, 8))
    w.struct("t", 8, ("bits", u64, 65 << 24), flag=1)
    layouts = BtfLayouts(Btf(w.section()))
    with pytest.raises(TargetError, match="a ends 9 bytes into s, which has 8"):
        layouts.field("s", "a")
    with pytest.raises(TargetError, match="bit-field of 65 bits"):
        layouts.field("t", "bits")


def test_nothing_refers_to_sections_and_functions() -> None:
    w = Writer()
    section = w.add(Kind.DATASEC, ".data", 8)
    w.struct("s", 8, ("a", section, 0))
    btf = Btf(w.section())
    with pytest.raises(TargetError, match="DATASEC"):
        BtfLayouts(btf).field("s", "a")
    with pytest.raises(TargetError, match="DATASEC"):
        btf.reduce(["s"])


def test_too_many_members_are_refused() -> None:
    w = Writer()
    w.integer("u8", 1)
    w.types += struct.pack("<3I", 0, Kind.STRUCT << 24 | 1 << 17, 8) + bytes(12 << 17)
    with pytest.raises(TargetError, match="more than 65536 members"):
        Btf(w.section()).record(2)


def test_long_names_are_refused() -> None:
    w = Writer()
    w.struct("s" * 5000, 8)
    with pytest.raises(TargetError, match="longer than"):
        Btf(w.section()).record(1)


def ask_everything(data: bytes) -> None:
    """Every question that a caller can ask; only TargetError may come of it."""
    try:
        btf = Btf(data)
        names = ["holder", "other", "node", "color", "holder_t", "BLACK", "twin"]
        layouts = BtfLayouts(btf)
    except TargetError:
        return
    questions: list[Callable[[], object]] = [lambda: len(Btf(btf.reduce(names)))]
    for name in names:
        questions += [partial(layouts.size, name), partial(layouts.enumerator, name)]
    for path in HOLDER_FIELDS.split():
        questions.append(partial(layouts.field, "holder", path))
    for id_ in range(min(len(btf), 50)):
        questions += [partial(btf.record, id_), partial(btf.spell, id_), partial(btf.size, id_)]
    for question in questions:
        with contextlib.suppress(TargetError):
            question()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=4)), max_size=4))
def test_overwritten_words(patches: list[tuple[int, bytes]]) -> None:
    data = bytearray(sample())
    for position, patch in patches:
        at = position % len(data)
        data[at : at + len(patch)] = patch
    ask_everything(bytes(data))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=40))
def test_garbage(types: bytes, strings: bytes) -> None:
    w = Writer()
    w.types = types[: len(types) // 4 * 4]
    w.strings = b"\0" + strings + b"\0"
    ask_everything(w.section())


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_types_survive_reduction(data: st.DataObject) -> None:
    """Structs that hold and point to one another: fields are the same before and after."""
    w = Writer()
    kinds = [w.integer("u8", 1), w.integer("u64", 8, SIGNED)]
    sizes = dict.fromkeys(kinds, 1) | {kinds[1]: 8}
    structs = []
    for number in range(data.draw(st.integers(1, 6))):
        members = []
        at = 0
        for index, type_id in enumerate(data.draw(st.lists(st.sampled_from(kinds), max_size=5))):
            anonymous = w.types and type_id in structs and data.draw(st.booleans())
            members.append(("" if anonymous else f"m{number}_{index}", type_id, 8 * at))
            at += sizes[type_id]
        named = data.draw(st.booleans())
        id_ = w.struct(f"s{number}" if named else "", at, *members)
        sizes[id_] = at
        pointer, array = w.pointer(id_), w.add(Kind.ARRAY, "", 0, id_, kinds[0], 2)
        sizes |= {pointer: 8, array: 2 * at}
        kinds += [id_, pointer, array]
        structs.append(id_)
    btf = Btf(w.section())
    names = [btf.record(id_).name for id_ in structs if btf.record(id_).name]
    wanted = [name for name in names if data.draw(st.booleans())]
    reduced = BtfLayouts(Btf(btf.reduce(wanted)))
    layouts = BtfLayouts(btf)
    for name in wanted:
        assert reduced.size(name) == layouts.size(name) is not None
        (id_,) = btf.find(name)
        for member in btf.record(id_).members:
            if member.name:
                field = layouts.field(name, member.name)
                assert reduced.field(name, member.name) == field is not None
                assert field.offset == member.bit_offset // 8
