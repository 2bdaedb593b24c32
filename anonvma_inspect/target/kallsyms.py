"""Addresses of the kernel's symbols, from its own kallsyms tables or from their text form.

Follows ``kernel/kallsyms.c`` and ``scripts/kallsyms.c`` of v6.1, v6.12 and v7.0. Which of their
forms a kernel has is told by the tables that VMCOREINFO names and by the addresses that it gives
for a few symbols, never by the release. VMCOREINFO names the tables since Linux kernel commit
f09bddbd8661 ("vmcoreinfo: add kallsyms_num_syms symbol") (in v6.0).
"""

__all__ = (
    "ANCHORS",
    "MAX_TEXT",
    "Kallsyms",
    "find_names",
    "parse_system_map",
    "relocate",
)

from array import array
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.errors import TargetError

#: Symbols whose addresses VMCOREINFO has too: they tell whether others can be trusted.
ANCHORS = ("_stext", "swapper_pg_dir", "init_uts_ns")

# A kernel has some 200,000 symbols in 2 MB.
_MAX_SYMBOLS = 1 << 22
_MAX_NAMES = 1 << 26
#: Bytes of a text that is read.
MAX_TEXT = 1 << 28
# Several times KSYM_NAME_LEN, the most that scripts/kallsyms.c puts into one token.
_MAX_TOKEN = 2048

_KERNEL_HALF = 1 << 63


class Kallsyms:
    """The kallsyms tables of a kernel, in its memory.

    The names are compressed: each is a string of bytes that stand for tokens, preceded by its
    length. Looking up a few does not need to decode them all. Every character has a random weight;
    the sum over a name follows from the weights of its tokens, for all symbols at once, and only
    the symbols whose sum is that of a wanted name are decoded.

    :param read: Reads ``(address, size)`` of the kernel's memory; raises :class:`LookupError` or
        :class:`~anonvma_inspect.errors.TargetError` where there is nothing.
    :param vmcoreinfo: VMCOREINFO, as key and value.
    :raises TargetError: if VMCOREINFO does not tell where the tables are, or they are damaged.
    """

    def __init__(self, read: Callable[[int, int], bytes], vmcoreinfo: Mapping[str, str]) -> None:
        self._read = read
        self._vmcoreinfo = vmcoreinfo
        names, token_table = self._symbol("kallsyms_names"), self._symbol("kallsyms_token_table")
        count = int.from_bytes(self._bytes(self._symbol("kallsyms_num_syms"), 4), "little")
        # The token table follows the names, behind the markers, in every kernel.
        size = token_table - names
        if not 0 < size <= _MAX_NAMES or not 0 < count <= min(_MAX_SYMBOLS, size // 2):
            raise _damaged(f"{count} symbols with {size} bytes of names")
        data = self._bytes(names, size)
        self._names = np.frombuffer(data, np.uint8)
        self._first, self._ends = find_names(data, count)
        self._tokens = self._read_tokens(token_table)
        self._sums = self._sum_names()
        self._addresses = self._read_addresses(count)

    def __len__(self) -> int:
        """Number of symbols."""
        return len(self._ends)

    @property
    def addresses(self) -> NDArray[np.uint64]:
        """Address of each symbol, in the order of the tables."""
        return self._addresses

    def lookup(self, names: Iterable[str]) -> dict[str, int]:
        """Find the addresses of symbols.

        :return: Those that exist. Of several symbols of one name, the first in the tables, as
            ``kallsyms_lookup_name()`` finds it.
        """
        rows = self._find(names)
        return {name: int(self._addresses[row]) for name, row in rows.items()}

    def all(self) -> tuple[list[str], NDArray[np.uint64]]:
        """Decode all symbols, which takes about a microsecond each.

        :return: Names, and their addresses (uint64, one a name), in the order of the tables, which
            is that of addresses but for per-CPU symbols.
        """
        return [self._name(row) for row in range(len(self))], self._addresses

    def symbol_at(self, address: int) -> tuple[str, int] | None:
        """Name an address.

        :return: The last symbol at or before it (the first of several with one address), and how
            many bytes it is behind that; None if it is before all.
        """
        order = np.argsort(self._addresses, kind="stable")
        ordered = self._addresses[order]
        at = int(np.searchsorted(ordered, np.uint64(address), side="right")) - 1
        if at < 0:
            return None
        start = ordered[at]
        row = int(order[np.searchsorted(ordered, start)])
        return self._name(row), address - int(start)

    def _symbol(self, name: str) -> int:
        key = f"SYMBOL({name})"
        if key not in self._vmcoreinfo:
            raise TargetError(
                f"VMCOREINFO does not tell where {name} is (kernels before 6.0 do not): give the "
                "symbols with --system-map (a copy of /proc/kallsyms)"
            )
        return _hexadecimal(key, self._vmcoreinfo[key])

    def _bytes(self, address: int, size: int) -> bytes:
        try:
            data = self._read(address, size)
        except LookupError:
            data = b""
        if len(data) != size:
            raise TargetError(
                f"the kernel's symbol table is not there: {size} bytes at {address:#x} cannot be "
                "read; give the symbols with --system-map (a copy of /proc/kallsyms)"
            )
        return data

    # The strings that the 256 byte values stand for.
    def _read_tokens(self, token_table: int) -> list[bytes]:
        index_bytes = self._bytes(self._symbol("kallsyms_token_index"), 512)
        index = np.frombuffer(index_bytes, "<u2").tolist()
        # The index, which follows the table, can be read: so can all before it.
        size = min(self._symbol("kallsyms_token_index") - token_table, max(index) + _MAX_TOKEN)
        if size <= max(index):
            raise _damaged(f"a token at {max(index)} of a table of {size} bytes")
        table = self._bytes(token_table, size)
        ends = [table.find(b"\0", start) for start in index]
        if min(ends) < 0 or any(e - s > _MAX_TOKEN for s, e in zip(index, ends, strict=True)):
            raise _damaged("a token without end")
        return [table[start:end] for start, end in zip(index, ends, strict=True)]

    # Address of every symbol, in whichever form the kernel keeps them.
    def _read_addresses(self, count: int) -> NDArray[np.uint64]:
        candidates = []
        if "SYMBOL(kallsyms_addresses)" in self._vmcoreinfo:
            data = self._bytes(self._symbol("kallsyms_addresses"), 8 * count)
            candidates.append(np.frombuffer(data, "<u8").astype(np.uint64, copy=False))
        else:
            table = self._symbol("kallsyms_offsets")
            offsets = np.frombuffer(self._bytes(table, 4 * count), "<i4")
            signed = offsets.astype(np.int64).view(np.uint64)
            if "SYMBOL(kallsyms_relative_base)" in self._vmcoreinfo:
                base_bytes = self._bytes(self._symbol("kallsyms_relative_base"), 8)
                base = np.frombuffer(base_bytes, "<u8")
                # CONFIG_KALLSYMS_ABSOLUTE_PERCPU: what is not negative is an address.
                absolute = np.where(offsets < 0, base - np.uint64(1) - signed, signed)
                candidates = [absolute, base + offsets.view("<u4").astype(np.uint64)]
            else:
                # Since Linux kernel commit a081b5789255 ("kallsyms: Get rid of kallsyms relative
                # base") (in v7.0), an offset is relative to where it is itself.
                places = np.uint64(table) + np.uint64(4) * np.arange(count, dtype=np.uint64)
                candidates.append(places + signed)
        known = {}
        for name, row in self._find(ANCHORS).items():
            key = f"SYMBOL({name})"
            if key in self._vmcoreinfo:
                known[row] = _hexadecimal(key, self._vmcoreinfo[key])
        for addresses in candidates:
            if known and all(int(addresses[row]) == address for row, address in known.items()):
                return addresses
        raise _damaged("its addresses are not those in VMCOREINFO")

    # Sum of the weights of each name's characters.
    def _sum_names(self) -> NDArray[np.uint32]:
        tokens = np.array([_weigh(token) for token in self._tokens], np.uint32)
        weights = np.zeros(len(self._names) + 1, np.uint32)
        weights[:-1] = tokens[self._names]
        # From the start of each name to its end, and from there to the next one's (not wanted).
        bounds = np.stack((self._first, self._ends), axis=1).ravel()
        sums = np.add.reduceat(weights, bounds, dtype=np.uint32)[::2]
        # The first character is no part of the name: it is the symbol's type.
        types = np.array([_weigh(token[:1]) for token in self._tokens], np.uint32)
        return sums - types[self._names[self._first]]

    # Row of each name, of those that exist.
    def _find(self, names: Iterable[str]) -> dict[str, int]:
        wanted = {name.encode(errors="replace"): name for name in names}
        sought = np.array([_weigh(name) for name in wanted], np.uint32)
        found: dict[str, int] = {}
        for row in np.flatnonzero(np.isin(self._sums, sought)).tolist():
            name = wanted.get(self._encoded_name(row))
            if name is not None:
                found.setdefault(name, row)
        return found

    def _encoded_name(self, row: int) -> bytes:
        start, end = int(self._first[row]), int(self._ends[row])
        tokens = self._tokens
        return b"".join([tokens[byte] for byte in self._names[start:end].tobytes()])[1:]

    def _name(self, row: int) -> str:
        return self._encoded_name(row).decode(errors="backslashreplace")


def parse_system_map(
    text: bytes, origin: str, names: Iterable[str] | None = None
) -> dict[str, int]:
    """Read symbols in the form of ``/proc/kallsyms`` and ``System.map``.

    Lines of another form are passed over, as are symbols of modules.

    :param origin: What to call the text in error messages.
    :param names: The symbols wanted; all if None.
    :return: Addresses, as the text says; the first, if it has several symbols of one name.
    :raises TargetError: if there are no symbols in it, or all their addresses are zero.
    """
    if len(text) > MAX_TEXT:
        raise TargetError(f"{origin}: {len(text)} bytes are too many for a list of symbols")
    wanted = None if names is None else {name.encode(errors="replace") for name in names}
    understood = False
    found: dict[bytes, int] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) != 3 or len(fields[0]) > 16 or len(fields[1]) != 1:
            continue
        address, _, name = fields
        if understood and ((wanted is not None and name not in wanted) or name in found):
            continue
        try:
            value = int(address, 16)
        except ValueError:
            continue
        understood = True
        if wanted is None or name in wanted:
            found.setdefault(name, value)
    if not understood:
        raise TargetError(
            f"{origin}: no list of symbols: its lines are not of the form 'ffffffff81000000 T name'"
        )
    if found and not any(found.values()):
        raise TargetError(
            f"{origin}: all addresses are zero: the kernel hides them (sysctl "
            "kernel.kptr_restrict, which must be 0 or 1); read /proc/kallsyms as root"
        )
    return {name.decode(errors="backslashreplace"): value for name, value in found.items()}


def relocate(symbols: Mapping[str, int], vmcoreinfo: Mapping[str, str]) -> dict[str, int]:
    """Move symbols of a ``System.map`` to where the running kernel was loaded (KASLR).

    How far is told by the symbols whose addresses VMCOREINFO has as well. Symbols that are already
    where they belong, as in ``/proc/kallsyms``, stay there. Only addresses in the kernel's half are
    moved: the others are per-CPU offsets and constants.

    :param symbols: Addresses by name, some of :data:`ANCHORS` among them.
    :param vmcoreinfo: VMCOREINFO, as key and value.
    :raises TargetError: if they have no symbol in common, or their symbols disagree.
    """
    shifts = set()
    for name in ANCHORS:
        key = f"SYMBOL({name})"
        if name in symbols and key in vmcoreinfo:
            shifts.add(_hexadecimal(key, vmcoreinfo[key]) - symbols[name])
    if not shifts:
        raise TargetError(
            f"the symbols cannot be placed: none of {', '.join(ANCHORS)} is both among them and "
            "in VMCOREINFO"
        )
    if len(shifts) > 1 or (shift := shifts.pop()) % 4096:
        raise TargetError("the symbols are those of another kernel: VMCOREINFO contradicts them")
    return {
        name: (address + shift) % 2**64 if address >= _KERNEL_HALF else address
        for name, address in symbols.items()
    }


def find_names(
    data: bytes | memoryview, count: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Walk over the compressed names.

    :param data: The table of names; what follows it may be part of this.
    :param count: Number of symbols.
    :return: Position of each name's first byte, and that behind its last.
    :raises TargetError: if they do not all lie in it.
    """
    ends = array("I")
    append = ends.append
    at = 0
    try:
        for _ in range(count):
            length = data[at]
            if length >= 0x80:
                # A second byte of length, since Linux kernel commit 73bbb94466fd ("kallsyms:
                # support "big" kernel symbols") (in v6.1); no name was long enough before.
                length = (length & 0x7F | data[at + 1] << 7) + 1
            at += length + 1
            append(at)
    except IndexError:
        at = len(data) + 1
    if at > len(data):
        raise _damaged(f"its names end after {len(ends)} of {count} symbols")
    bounds = np.frombuffer(ends, np.uint32)
    heads = np.append(np.uint32(0), bounds[:-1])
    first = heads + np.uint32(1) + (np.frombuffer(data, np.uint8)[heads] >> 7)
    if np.any(first >= bounds):
        raise _damaged("a symbol without a name")
    return first, bounds


def _mix(byte: int) -> int:
    byte = (byte + 1) * 0x9E3779B1 & 0xFFFFFFFF
    byte = (byte ^ byte >> 15) * 0x85EBCA77 & 0xFFFFFFFF
    return byte ^ byte >> 13


_WEIGHTS = tuple(_mix(byte) for byte in range(256))


# Sum of the weights of the characters of a name or a token.
def _weigh(name: bytes) -> int:
    return sum(_WEIGHTS[byte] for byte in name) & 0xFFFFFFFF


def _hexadecimal(key: str, value: str) -> int:
    try:
        number = int(value, 16)
    except ValueError:
        number = -1
    if not 0 <= number < 2**64:
        raise TargetError(f"VMCOREINFO is damaged: {key}={value[:32]!r}")
    return number


def _damaged(what: str) -> TargetError:
    return TargetError(
        f"the kernel's symbol table is damaged: {what}; give the symbols with --system-map (a copy "
        "of /proc/kallsyms)"
    )
