"""Variables are found in an image by what they hold, and nothing else is taken for them."""

from __future__ import annotations

import struct
from collections.abc import Callable

import drgn
import pytest

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.find_data import find_init_task, find_iomem_resource
from anonvma_inspect.target.image import KernelImage
from anonvma_inspect.target.layouts import Field
from anonvma_inspect.target.page_tables import direct_map_base
from anonvma_inspect.target.program import read_program
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo

from .captures import Capture
from .programs import FULL

PAGE = 4096
BASE = 0xFFFFFFFF81000000
IMAGE_SIZE = 4 << 20
SLAB = 0xFFFF888012345000
TASK, OTHER_TASK = BASE + 0x200040, BASE + 0x300040
ROOT, OTHER_ROOT = BASE + 0x210008, BASE + 0x310008
NAME = BASE + 0x180003

OFFSETS = {
    "task_struct": {
        "tasks": 0x10,
        "tasks.next": 0x10,
        "tasks.prev": 0x18,
        "mm": 0x20,
        "pid": 0x28,
        "tgid": 0x2C,
        "real_parent": 0x30,
        "parent": 0x38,
        "group_leader": 0x40,
        "comm": 0x4B,
    },
    "resource": {
        "start": 0,
        "end": 8,
        "name": 0x10,
        "flags": 0x18,
        "parent": 0x20,
        "sibling": 0x28,
        "child": 0x30,
    },
}


class Layouts:
    """Those of no kernel."""

    source = "btf"

    def __init__(self, *lacking: str) -> None:
        self.lacking = lacking

    def size(self, name: str) -> int | None:
        return 0x60 if name in OFFSETS else None

    def field(self, name: str, path: str) -> Field | None:
        if path in self.lacking or path not in OFFSETS[name]:
            return None
        size = {"pid": 4, "tgid": 4, "comm": 16, "tasks": 16}.get(path, 8)
        return Field(OFFSETS[name][path], size, "integer", "unsigned long")

    def enumerator(self, name: str) -> int | None:
        return None


class Memory:
    """An image, and a page of slab objects elsewhere."""

    def __init__(self) -> None:
        self.image, self.slab = bytearray(IMAGE_SIZE), bytearray(PAGE)
        self.write(BASE, b"\x90" * 16)
        self.write(NAME, b"PCI mem\0")

    def _at(self, address: int, size: int) -> tuple[bytearray, int]:
        for start, data in ((BASE, self.image), (SLAB, self.slab)):
            if start <= address <= address + size <= start + len(data):
                return data, address - start
        raise LookupError(address)

    def read(self, address: int, size: int) -> bytes:
        data, at = self._at(address, size)
        return bytes(data[at : at + size])

    def write(self, address: int, content: bytes) -> None:
        data, at = self._at(address, len(content))
        data[at : at + len(content)] = content

    def put(self, address: int, kind: str, path: str, value: int) -> None:
        size = 4 if path in ("pid", "tgid") else 8
        self.write(address + OFFSETS[kind][path], value.to_bytes(size, "little"))

    def put_init_task(self, address: int = TASK, comm: bytes = b"swapper/0") -> None:
        self.write(address + OFFSETS["task_struct"]["comm"], comm.ljust(16, b"\0"))
        for path in ("real_parent", "parent", "group_leader"):
            self.put(address, "task_struct", path, address)
        head = address + OFFSETS["task_struct"]["tasks"]
        first, last = SLAB + 0x110, SLAB + 0x910
        self.put(address, "task_struct", "tasks.next", first)
        self.put(address, "task_struct", "tasks.prev", last)
        self.write(first, struct.pack("<QQ", last, head))
        self.write(last, struct.pack("<QQ", head, first))

    def put_iomem_resource(self, address: int = ROOT, child: int = SLAB + 0x400) -> None:
        for path, value in (("end", 2**46 - 1), ("name", NAME), ("flags", 0x200), ("child", child)):
            self.put(address, "resource", path, value)
        self.put(child, "resource", "parent", address)

    def open(self) -> KernelImage:
        return KernelImage(self.read, BASE, PAGE)


@pytest.mark.parametrize("comm", [b"swapper/0", b"swapper"])
def test_init_task(comm: bytes) -> None:
    memory = Memory()
    memory.put_init_task(comm=comm)
    assert find_init_task(memory.open(), Layouts()) == TASK


def test_init_task_alone() -> None:
    memory = Memory()
    memory.put_init_task()
    head = TASK + OFFSETS["task_struct"]["tasks"]
    for path in ("tasks.next", "tasks.prev"):
        memory.put(TASK, "task_struct", path, head)
    assert find_init_task(memory.open(), Layouts()) == TASK


def test_init_task_among_messages_of_its_name() -> None:
    memory = Memory()
    for number in range(2000):
        memory.write(BASE + 0x100000 + 112 * number, b"swapper/0\0")
    memory.put_init_task()
    assert find_init_task(memory.open(), Layouts()) == TASK


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("pid", 1),
        ("tgid", 1),
        ("mm", SLAB),
        ("real_parent", SLAB),
        ("parent", 0),
        ("group_leader", TASK + 8),
        ("tasks.next", 0),
        ("tasks.next", SLAB + 0x800),
        ("tasks.next", 0x1000),
        ("tasks.next", 2**64 - 8),
        ("tasks.prev", SLAB + 0x111),
        ("tasks.prev", 0xFFFF888099999000),
    ],
)
def test_no_init_task(path: str, value: int) -> None:
    memory = Memory()
    memory.put_init_task()
    memory.put(TASK, "task_struct", path, value)
    assert find_init_task(memory.open(), Layouts()) is None


@pytest.mark.parametrize("comm", [b"swapper/1", b"swapper/00", b"swappers", b"x"])
def test_no_init_task_of_another_name(comm: bytes) -> None:
    memory = Memory()
    memory.put_init_task(comm=comm)
    assert find_init_task(memory.open(), Layouts()) is None


@pytest.mark.parametrize("field", OFFSETS["task_struct"])
def test_no_init_task_without_its_layout(field: str) -> None:
    memory = Memory()
    memory.put_init_task()
    assert find_init_task(memory.open(), Layouts(field)) is None


def test_two_init_tasks() -> None:
    memory = Memory()
    memory.put_init_task()
    memory.put_init_task(OTHER_TASK)
    # The slab objects can point back to one of them only: the other has those in the image.
    head = TASK + OFFSETS["task_struct"]["tasks"]
    for path in ("tasks.next", "tasks.prev"):
        memory.put(TASK, "task_struct", path, head)
    with pytest.raises(TargetError, match=r"looks like init_task: .*--system-map"):
        find_init_task(memory.open(), Layouts())


def test_name_everywhere() -> None:
    memory = Memory()
    memory.image[:] = b"swapper\0" * (IMAGE_SIZE // 8)
    with pytest.raises(TargetError, match="looks like init_task"):
        find_init_task(memory.open(), Layouts())


def test_iomem_resource() -> None:
    memory = Memory()
    memory.write(BASE + 0x190000, struct.pack("<Q", NAME))  # somebody else's pointer to the name
    memory.put_iomem_resource()
    assert find_iomem_resource(memory.open(), Layouts()) == ROOT


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("start", 1),
        ("name", NAME + 1),
        ("flags", 0x100),
        ("parent", SLAB),
        ("sibling", SLAB),
        ("child", 0),
        ("child", SLAB + 0x800),
        ("child", 0xFFFF888099999000),
    ],
)
def test_no_iomem_resource(path: str, value: int) -> None:
    memory = Memory()
    memory.put_iomem_resource()
    memory.put(ROOT, "resource", path, value)
    assert find_iomem_resource(memory.open(), Layouts()) is None
    assert find_iomem_resource(memory.open(), Layouts("parent")) is None


def test_child_at_the_end_of_the_address_space() -> None:
    """Its parent's word would lie beyond: for drgn, that is a number it cannot convert."""
    memory = Memory()
    memory.put_iomem_resource()
    memory.put(ROOT, "resource", "child", 2**64 - 8)
    prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    prog.add_memory_segment(BASE, IMAGE_SIZE, lambda a, n, *_: memory.read(a, n))
    image = KernelImage(lambda address, size: read_program(prog, address, size), BASE, PAGE)
    assert find_iomem_resource(image, Layouts()) is None


def test_two_iomem_resources() -> None:
    memory = Memory()
    memory.put_iomem_resource()
    memory.put_iomem_resource(OTHER_ROOT, SLAB + 0x500)
    with pytest.raises(TargetError, match=r"looks like iomem_resource: .*--system-map"):
        find_iomem_resource(memory.open(), Layouts())
    for filler in (struct.pack("<Q", NAME), b"PCI mem\0"):
        memory.image[1 << 21 :] = filler * (IMAGE_SIZE // 16)
        with pytest.raises(TargetError, match="looks like iomem_resource"):
            find_iomem_resource(memory.open(), Layouts())


def test_image_with_gaps() -> None:
    """What is freed after booting is not mapped any more; far behind the image, something else."""
    memory = Memory()
    memory.put_init_task()

    def read(address: int, size: int) -> bytes:
        first = (address - BASE) >> 12
        last = (address + size - 1 - BASE) >> 12
        if BASE <= address < BASE + IMAGE_SIZE and first <= 0x100 and last >= 0x40:
            raise LookupError(address)
        return memory.read(address, size)

    assert find_init_task(KernelImage(read, BASE, PAGE), Layouts()) == TASK


# ---- page tables

PGD = BASE + 0x400000
MASK = (1 << 47) - 1


class PageTables:
    """Tables that map one page of the direct map, with ``pages`` of 4 KiB, 2 MiB or 1 GiB."""

    def __init__(self, address: int, physical: int, levels: int, pages: int, sme: int = 0) -> None:
        self.words: dict[tuple[bool, int], int] = {}
        table, physical_table = PGD, False
        for level in range(levels, 0, -1):
            shift = 12 + 9 * (level - 1)
            at = table + 8 * (address >> shift & 511)
            if 1 << shift == pages:
                entry = physical & -(1 << shift) | 0x63 | (0x80 if level > 1 else 0)
                # NX, and PAT of a large page.
                entry |= 1 << 63 | (0x1000 if level > 1 else 0)
            else:
                table = 0x5000 + 0x1000 * level
                entry = table | 0x67
            self.words[physical_table, at] = entry | sme
            if 1 << shift == pages:
                break
            physical_table = True
        self.vmcoreinfo = {
            "SYMBOL(swapper_pg_dir)": f"{PGD:x}",
            "NUMBER(pgtable_l5_enabled)": str(int(levels == 5)),
            "NUMBER(sme_mask)": str(sme),
        }

    def reader(self, physical: bool) -> Callable[[int, int], bytes]:
        def read(address: int, size: int) -> bytes:
            assert size == 8
            return self.words[physical, address].to_bytes(8, "little")  # or a LookupError

        return read

    def find(self, address: int) -> int | None:
        return direct_map_base(self.reader(False), self.reader(True), self.vmcoreinfo, address)


@pytest.mark.parametrize(("levels", "base"), [(4, 0xFFFF8C8340000000), (5, 0xFF11000000000000)])
@pytest.mark.parametrize("pages", [1 << 12, 1 << 21, 1 << 30])
@pytest.mark.parametrize("sme", [0, 1 << 47])
def test_direct_map(levels: int, base: int, pages: int, sme: int) -> None:
    physical = 0x123456789 & ~7
    tables = PageTables(base + physical, physical, levels, pages, sme)
    assert tables.find(base + physical) == base
    # Not mapped, or not there.
    assert tables.find(base + physical + (1 << 39)) is None
    for key, entry in list(tables.words.items()):
        tables.words[key] = entry & ~1
        assert tables.find(base + physical) is None
        tables.words[key] = entry


def test_no_direct_map() -> None:
    """What is mapped by pages of a vmalloc area has no base."""
    address = 0xFFFFC90000123000
    assert PageTables(address, 0x7654000, 4, 1 << 12).find(address) is None
    tables = PageTables(address, 0x7654000, 4, 1 << 12)
    for key, value in (
        ("SYMBOL(swapper_pg_dir)", "?"),
        ("NUMBER(sme_mask)", "?"),
        ("SYMBOL(swapper_pg_dir)", "0"),
    ):
        tables.vmcoreinfo[key] = value
        assert tables.find(address) is None
    assert direct_map_base(tables.reader(False), tables.reader(True), {}, address) is None


# ---- real kernels


@pytest.mark.parametrize("capture", FULL, ids=lambda capture: capture.name)
def test_found_where_kallsyms_says(capture: Capture) -> None:
    target = capture.target
    prog = drgn.Program()
    prog.set_core_dump(str(capture.core))
    facts = parse_vmcoreinfo(target.vmcoreinfo, capture.name)

    def read(address: int, size: int) -> bytes:
        return read_program(prog, address, size)

    image = KernelImage(read, int(facts["SYMBOL(_stext)"], 16), target.page_size)
    init_task = find_init_task(image, target.layouts)
    assert init_task == target.symbols["init_task"]
    assert find_iomem_resource(image, target.layouts) == target.symbols["iomem_resource"]
    if target.architecture == "x86_64":
        tasks = target.layouts.field("task_struct", "tasks.next")
        assert init_task is not None
        assert tasks is not None
        first = int.from_bytes(read(init_task + tasks.offset, 8), "little")
        base = direct_map_base(
            read, lambda at, size: read_program(prog, at, size, physical=True), facts, first
        )
        stored = int.from_bytes(read(target.symbols["page_offset_base"], 8), "little")
        assert base == stored
