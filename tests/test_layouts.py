"""BTF and DWARF answer alike; the rules that both follow."""

import os
from collections.abc import Iterator

import drgn
import pytest

from anonvma_inspect.target.btf import Btf, BtfLayouts, Kind
from anonvma_inspect.target.dwarf import DwarfLayouts
from anonvma_inspect.target.kallsyms import Kallsyms
from anonvma_inspect.target.layouts import bit_field_storage, canonical_name
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo

# What is asked about, by whichever layer.
STRUCTS = [
    "task_struct",
    "signal_struct",
    "mm_struct",
    "vm_area_struct",
    "maple_node",
    "maple_tree",
    "anon_vma",
    "anon_vma_chain",
    "rw_semaphore",
    "file",
    "dentry",
    "qstr",
    "vfsmount",
    "mount",
    "inode",
    "kmem_cache",
    "slab",
    "page",
    "folio",
    "list_head",
    "rb_node",
    "rb_root_cached",
]


@pytest.mark.parametrize(
    ("position", "bits", "unit", "end", "storage"),
    [
        (0, 1, 4, 4, (0, 4, 0)),
        (33, 7, 4, 8, (4, 4, 1)),
        # Packed: from one unit into the next, and a unit that the struct ends in.
        (30, 4, 4, 8, (3, 2, 6)),
        (9, 7, 4, 2, (1, 1, 1)),
    ],
)
def test_bit_field_storage(
    position: int, bits: int, unit: int, end: int, storage: tuple[int, int, int]
) -> None:
    assert bit_field_storage(position, bits, unit, end) == storage


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("char *[]", "char *[0]"),
        ("int [2][3]", "int [6]"),
        ("int (*(*)[2][4])(char [])", "int (*(*)[8])(char [0])"),
        ("struct page *", "struct page *"),
    ],
)
def test_canonical_name(written: str, canonical: str) -> None:
    assert canonical_name(written) == canonical


@pytest.fixture
def program() -> drgn.Program:
    """Types as DWARF would give them, made by hand."""
    prog = drgn.Program(
        drgn.Platform(
            drgn.Architecture.X86_64,
            drgn.PlatformFlags.IS_64_BIT | drgn.PlatformFlags.IS_LITTLE_ENDIAN,
        )
    )
    u32 = prog.int_type("unsigned int", 4, False)
    color = prog.enum_type(
        "color", u32, (drgn.TypeEnumerator("RED", 0), drgn.TypeEnumerator("BLACK", 1))
    )
    inner = prog.struct_type(
        None,
        8,
        (
            drgn.TypeMember(u32, "plain", 0),
            drgn.TypeMember(drgn.Object(prog, u32, bit_field_size=3), "narrow", 33),
        ),
    )
    outer = prog.struct_type(
        "outer",
        40,
        (
            drgn.TypeMember(prog.pointer_type(prog.struct_type("other", None, None)), "link", 0),
            drgn.TypeMember(inner, None, 64),
            drgn.TypeMember(prog.typedef_type("color_t", color), "color", 128),
            drgn.TypeMember(prog.array_type(prog.array_type(u32, 2), 2), "grid", 160),
            drgn.TypeMember(prog.array_type(inner), "tail", 320),
        ),
    )

    def find(
        prog: drgn.Program, kinds: drgn.TypeKindSet, name: str, filename: str | None
    ) -> drgn.Type | None:
        found = {"outer": outer, "color": color}.get(name)
        return found if found is not None and found.kind in kinds else None

    prog.register_type_finder("test", find, enable_index=0)
    return prog


def test_dwarf(program: drgn.Program) -> None:
    layouts = DwarfLayouts(program)
    assert layouts.source == "dwarf"
    assert layouts.size("outer") == layouts.size("struct outer") == 40
    assert layouts.size("color") == 4
    assert layouts.size("nothing") is None

    link = layouts.field("outer", "link")
    assert link is not None
    assert (link.offset, link.size, link.kind) == (0, 8, "pointer")
    assert link.type_name == "struct other *"

    narrow = layouts.field("outer", "narrow")
    assert narrow is not None
    assert (narrow.offset, narrow.size, narrow.bit_offset, narrow.bit_size) == (12, 4, 1, 3)

    color = layouts.field("outer", "color")
    assert color is not None
    assert (color.kind, color.type_name, color.signed) == ("enum", "color_t", False)

    grid = layouts.field("outer", "grid")
    assert grid is not None
    assert (grid.size, grid.length, grid.element_size) == (16, 4, 4)
    assert (grid.element_kind, grid.type_name, grid.end) == ("integer", "unsigned int [4]", 36)

    tail = layouts.field("outer", "tail")
    assert tail is not None
    assert (tail.offset, tail.size, tail.length, tail.element_size) == (40, 0, 0, 8)

    for path in ("nothing", "link.x", "grid.x", "plain.x", "", "outer.plain"):
        assert layouts.field("outer", path) is None
    assert layouts.field("nothing", "x") is None


def _paths(btf: Btf, type_id: int, prefix: str = "", depth: int = 3) -> Iterator[str]:
    for member in btf.record(type_id).members:
        inner = btf.resolve(member.type_id)
        path = f"{prefix}{member.name}"
        if member.name:
            yield path
        if depth and btf.kind(inner) in (Kind.STRUCT, Kind.UNION):
            yield from _paths(btf, inner, f"{path}." if member.name else prefix, depth - 1)


@pytest.mark.skipif(
    "ANONVMA_VMLINUX" not in os.environ or "ANONVMA_CORE" not in os.environ,
    reason="needs a dump and its vmlinux: ANONVMA_CORE, ANONVMA_VMLINUX",
)
def test_btf_equals_dwarf() -> None:
    prog = drgn.Program()
    prog.set_core_dump(os.environ["ANONVMA_CORE"])
    prog.load_debug_info([os.environ["ANONVMA_VMLINUX"]])
    dwarf = DwarfLayouts(prog)

    vmcoreinfo = parse_vmcoreinfo(prog["VMCOREINFO"].string_(), "dump")
    symbols = Kallsyms(prog.read, vmcoreinfo).lookup(("__start_BTF", "__stop_BTF"))
    start, stop = symbols["__start_BTF"], symbols["__stop_BTF"]
    whole = Btf(prog.read(start, stop - start))
    for btf in (whole, Btf(whole.reduce(STRUCTS))):
        layouts = BtfLayouts(btf)
        compared = 0
        for name in STRUCTS:
            assert layouts.size(name) == dwarf.size(name), name
            for type_id in btf.find(name)[:1]:
                for path in _paths(btf, type_id):
                    assert layouts.field(name, path) == dwarf.field(name, path), (name, path)
                    compared += 1
        assert compared > 1000
    for name in ("PG_locked", "ZONE_NORMAL", "maple_leaf_64", "MM_ANONPAGES"):
        assert BtfLayouts(whole).enumerator(name) == dwarf.enumerator(name) is not None
