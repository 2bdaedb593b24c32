"""kallsyms tables from an encoder of our own, in the order and form of each kernel."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anonvma_inspect.target.kallsyms import Kallsyms

__all__ = (
    "BASE",
    "FORMS",
    "PAGE",
    "SINCE_6_4",
    "SYMBOLS",
    "TABLES",
    "Image",
    "Layout",
    "many_symbols",
    "symbols_for",
)

PAGE = 4096
BASE = 0xFFFFFFFF81000000
TABLES = BASE + 0x200000

# Name, type and address, in order of address; the first two are per-CPU.
SYMBOLS = (
    ("fixed_percpu_data", "A", 0),
    ("cpu_number", "A", 0x1A000),
    ("_stext", "T", BASE),
    ("static_call", "t", BASE + 0x40),
    ("static_call", "t", BASE + 0x80),
    ("static_calls", "t", BASE + 0xC0),
    ("a_symbol_of_a_name_that_needs_two_bytes_of_length" * 5, "T", BASE + 0x100),
    ("init_task", "D", BASE + 0x1000000),
    ("init_uts_ns", "D", BASE + 0x1001000),
    ("_end", "B", BASE + 0x1800000),
)
#: How addresses can be kept. Only two of the forms can say 0.
FORMS = ("percpu", "plain", "absolute", "here")


def symbols_for(form: str) -> Sequence[tuple[str, str, int]]:
    """:data:`SYMBOLS`, as far as a form can say their addresses."""
    return SYMBOLS if form in ("percpu", "absolute") else SYMBOLS[2:]


def many_symbols(form: str, count: int = 2500) -> list[tuple[str, str, int]]:
    """As many as a small kernel has, :data:`SYMBOLS` among them."""
    first, rest = symbols_for(form)[:-3], symbols_for(form)[-3:]
    between = [(f"function_{row:x}", "t", BASE + 0x200 + 32 * row) for row in range(count)]
    return [*first, *between, *rest]


@dataclass(frozen=True)
class Layout:
    """How the tables of a kernel lie, as ``write_src()`` of scripts/kallsyms.c has it."""

    addresses_first: bool
    alignment: int = 8
    marker_bytes: int = 4
    #: Of ``seqs_of_names``, for each symbol; 0 where it is not between markers and tokens.
    seq_bytes: int = 0


SINCE_6_4 = Layout(addresses_first=False)


class Image:
    """Kernel memory with kallsyms tables, and the VMCOREINFO that tells where they are."""

    def __init__(
        self,
        symbols: Sequence[tuple[str, str, int]] = SYMBOLS,
        form: str = "percpu",
        pairs: Sequence[str] = ("st", "at", "_s", "T_", "ta"),
        layout: Layout = SINCE_6_4,
        start: int = TABLES,
        base: int = BASE,
    ) -> None:
        # Tokens: a character for itself, and pairs of characters for values that none has.
        tokens = [chr(value) if 32 <= value < 127 else "" for value in range(256)]
        free = [value for value in range(256) if not tokens[value]]
        for value, pair in zip(free, pairs, strict=False):
            tokens[value] = pair
        values = {token: value for value, token in enumerate(tokens) if token}
        names, markers = bytearray(), []
        for row, (name, kind, _) in enumerate(symbols):
            if row % 256 == 0:
                markers.append(len(names))
            names += self.compress(kind + name, values)
        table = b"".join(token.encode() + b"\0" for token in tokens)
        starts = [len("".join(tokens[:value])) + value for value in range(256)]
        self.start = start
        self.layout = layout
        self.base = base
        self.memory = bytearray()
        self.vmcoreinfo: dict[str, str] = {}
        addresses = [address for _, _, address in symbols]
        if layout.addresses_first:
            self.add_addresses(addresses, form)
        count_form = "<Q" if layout.marker_bytes == 8 else "<I"
        self.add("num_syms", struct.pack(count_form, len(symbols)))
        self.add("names", bytes(names))
        marker_form = "Q" if layout.marker_bytes == 8 else "I"
        self.add("markers", struct.pack(f"<{len(markers)}{marker_form}", *markers))
        if layout.seq_bytes:
            seqs = sorted(range(len(symbols)), key=lambda row: symbols[row][0])
            packed = np.array(seqs, ">u4" if layout.seq_bytes == 3 else "<u4")
            self.add("seqs", packed.view("u1").reshape(-1, 4)[:, -layout.seq_bytes :].tobytes())
        self.add("token_table", table)
        self.add("token_index", struct.pack("<256H", *starts))
        if not layout.addresses_first:
            self.add_addresses(addresses, form)
        for name, _, address in symbols:
            if name in ("_stext", "init_uts_ns"):
                self.vmcoreinfo[f"SYMBOL({name})"] = f"{address:x}"

    def add_addresses(self, addresses: Sequence[int], form: str) -> None:
        count = len(addresses)
        if form == "absolute":
            self.add("addresses", struct.pack(f"<{count}Q", *addresses))
        elif form == "here":
            here = self.start + len(self.memory) + -len(self.memory) % self.layout.alignment
            offsets = [address - here - 4 * row for row, address in enumerate(addresses)]
            self.add("offsets", struct.pack(f"<{count}i", *offsets))
        elif form == "plain":
            offsets = [address - self.base for address in addresses]
            self.add("offsets", struct.pack(f"<{count}I", *offsets))
        else:
            offsets = [a if a < self.base else self.base - 1 - a for a in addresses]
            self.add("offsets", struct.pack(f"<{count}i", *offsets))
        if form in ("plain", "percpu"):
            self.add("relative_base", struct.pack("<Q", self.base))

    @staticmethod
    def compress(text: str, values: dict[str, int]) -> bytes:
        packed = bytearray()
        at = 0
        while at < len(text):
            pair = text[at : at + 2]
            token = pair if pair in values else text[at]
            packed.append(values[token])
            at += len(token)
        size = len(packed)
        head = bytes((size,)) if size < 128 else bytes((size & 127 | 128, size >> 7))
        return head + packed

    def add(self, name: str, data: bytes) -> None:
        self.memory += bytes(-len(self.memory) % self.layout.alignment)
        self.vmcoreinfo[f"SYMBOL(kallsyms_{name})"] = f"{self.start + len(self.memory):x}"
        self.memory += data

    def place(self, name: str) -> int:
        return int(self.vmcoreinfo[f"SYMBOL(kallsyms_{name})"], 16) - self.start

    def read(self, address: int, size: int) -> bytes:
        start = address - self.start
        if not 0 <= start <= start + size <= len(self.memory):
            raise LookupError(address)
        return bytes(self.memory[start : start + size])

    def open(self) -> Kallsyms:
        return Kallsyms(self.read, self.vmcoreinfo)

    @property
    def anchors(self) -> dict[str, str]:
        """What VMCOREINFO says in a kernel before 6.0."""
        return {key: value for key, value in self.vmcoreinfo.items() if "kallsyms" not in key}
