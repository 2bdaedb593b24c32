"""Symbols from kallsyms tables and texts; the tables come from an encoder of our own."""

import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.kallsyms import Kallsyms, parse_system_map, relocate

from .kallsyms_image import BASE, FORMS, SYMBOLS, Image, symbols_for


@pytest.mark.parametrize("form", FORMS)
def test_lookup(form: str) -> None:
    kallsyms = Image(symbols_for(form), form).open()
    names = [name for name, _, _ in symbols_for(form)]
    expected: dict[str, int] = {}
    for name, _, address in symbols_for(form):
        expected.setdefault(name, address)
    assert kallsyms.lookup([*names, "nothing", "", "init_tasks", "nit_task"]) == expected
    # The same characters in another order have the same weight.
    assert kallsyms.lookup(["tini_task", "task_init"]) == {}
    assert len(kallsyms) == len(names)


@pytest.mark.parametrize("form", FORMS)
def test_all(form: str) -> None:
    names, addresses = Image(symbols_for(form), form).open().all()
    assert addresses.dtype == np.uint64
    found = list(zip(names, addresses.tolist(), strict=True))
    assert found == [(name, address) for name, _, address in symbols_for(form)]


def test_symbol_at() -> None:
    kallsyms = Image().open()
    assert kallsyms.symbol_at(BASE + 0x1000010) == ("init_task", 0x10)
    assert kallsyms.symbol_at(BASE) == ("_stext", 0)
    assert kallsyms.symbol_at(0x19FFF) == ("fixed_percpu_data", 0x19FFF)
    assert Image(SYMBOLS[2:]).open().symbol_at(0x1000) is None


def test_kernels_without_the_tables() -> None:
    with pytest.raises(TargetError, match=r"kernels before 6\.0.*--system-map"):
        Kallsyms(Image().read, {})


@pytest.mark.parametrize("name", ["names", "num_syms", "token_table", "token_index", "offsets"])
def test_tables_that_are_not_there(name: str) -> None:
    for value in ("10", "ffffffffffffffff", "x", "-1", "fffffffff82000000"):
        image = Image()
        image.vmcoreinfo[f"SYMBOL(kallsyms_{name})"] = value
        with pytest.raises(TargetError):
            image.open()


@pytest.mark.parametrize("count", [0, 100000, 0xFFFFFFFF])
def test_number_of_symbols(count: int) -> None:
    image = Image()
    struct.pack_into("<I", image.memory, image.place("num_syms"), count)
    with pytest.raises(TargetError, match=f"{count} symbols"):
        image.open()


def test_names_that_do_not_end() -> None:
    image = Image()
    struct.pack_into("<I", image.memory, image.place("num_syms"), len(SYMBOLS) + 20)
    with pytest.raises(TargetError, match=r"names end after|without a name"):
        image.open()


def test_addresses_that_contradict_vmcoreinfo() -> None:
    image = Image()
    image.vmcoreinfo["SYMBOL(_stext)"] = f"{BASE + 0x1000:x}"
    with pytest.raises(TargetError, match="not those in VMCOREINFO"):
        image.open()
    # Nothing to compare with.
    image = Image(SYMBOLS[:2])
    with pytest.raises(TargetError, match="not those in VMCOREINFO"):
        image.open()


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(FORMS),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=8)), max_size=4),
)
def test_overwritten_tables(form: str, patches: list[tuple[int, bytes]]) -> None:
    image = Image(symbols_for(form), form)
    for position, patch in patches:
        at = position % len(image.memory)
        image.memory[at : at + len(patch)] = patch
    del image.memory[position % len(image.memory) if patches and position & 1 else 1 << 30 :]
    with contextlib.suppress(TargetError):
        kallsyms = image.open()
        kallsyms.lookup(name for name, _, _ in SYMBOLS)
        kallsyms.all()
        kallsyms.symbol_at(BASE)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=300),
        max_size=20,
    ),
    st.lists(
        st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=2, max_size=2),
        max_size=100,
        unique=True,
    ),
)
def test_any_names(names: list[str], pairs: list[str]) -> None:
    unique = [name for name in dict.fromkeys(names) if name not in ("_stext", "init_uts_ns")]
    symbols = [("_stext", "T", BASE)]
    symbols += [(name, "d", BASE + 16 * row) for row, name in enumerate(unique, 1)]
    kallsyms = Image(symbols, pairs=pairs).open()
    assert kallsyms.lookup(unique) == {name: address for name, _, address in symbols[1:]}


TEXT = b"""\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
not a symbol
ffffffff81000040 t twice
ffffffff81000080 t twice
ffffffff82001000 D init_uts_ns
ffffffff81000080 t twice
ffffffff82000000 D init_task\r
zzz T word
ffffffffc0000000 t in_module\t[ext4]
fffffffffffffffff T too_long
"""


def test_system_map() -> None:
    expected = {
        "fixed_percpu_data": 0,
        "_stext": BASE,
        "twice": BASE + 0x40,
        "init_uts_ns": BASE + 0x1001000,
        "init_task": BASE + 0x1000000,
    }
    assert parse_system_map(TEXT, "map") == expected
    found = parse_system_map(TEXT, "map", ["twice", "init_task", "nothing", "in_module"])
    assert found == {name: expected[name] for name in ("twice", "init_task")}
    assert parse_system_map(TEXT, "map", ["nothing"]) == {}


@pytest.mark.parametrize("text", [b"", b"\x7fELF\0\0", b"hello, world\n" * 3])
def test_no_system_map(text: bytes) -> None:
    with pytest.raises(TargetError, match="file: no list of symbols"):
        parse_system_map(text, "file", ["init_task"])


@pytest.mark.parametrize("names", [None, ["init_task"]])
def test_hidden_addresses(names: list[str] | None) -> None:
    text = b"0000000000000000 T _stext\n0000000000000000 D init_task\n"
    with pytest.raises(TargetError, match=r"kptr_restrict.* as root"):
        parse_system_map(text, "/proc/kallsyms", names)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_text(text: bytes) -> None:
    with contextlib.suppress(TargetError):
        parse_system_map(text + b"\n" + TEXT, "map", None)
        parse_system_map(text, "map", ["init_task"])


def test_relocate() -> None:
    symbols = parse_system_map(TEXT, "map")
    there = {name: f"{symbols[name]:x}" for name in ("_stext", "init_uts_ns")}
    moved = {name: f"{symbols[name] + 0x1B600000:x}" for name in ("_stext", "init_uts_ns")}
    assert relocate(symbols, {f"SYMBOL({name})": at for name, at in there.items()}) == symbols
    vmcoreinfo = {f"SYMBOL({name})": at for name, at in moved.items()}
    assert relocate(symbols, vmcoreinfo)["init_task"] == symbols["init_task"] + 0x1B600000
    assert relocate(symbols, vmcoreinfo)["fixed_percpu_data"] == 0
    with pytest.raises(TargetError, match="cannot be placed"):
        relocate({"init_task": BASE}, vmcoreinfo)
    with pytest.raises(TargetError, match="another kernel"):
        relocate(symbols | {"init_uts_ns": BASE}, vmcoreinfo)
    with pytest.raises(TargetError, match="another kernel"):
        relocate({"_stext": BASE + 8}, vmcoreinfo)
    with pytest.raises(TargetError, match="damaged"):
        relocate(symbols, {"SYMBOL(_stext)": "?"})
