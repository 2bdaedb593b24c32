"""Finding the kallsyms tables in the kernel's image when VMCOREINFO does not name them.

It does so only since 6.0. The tables are written by ``write_src()`` in ``scripts/kallsyms.c`` (read
in v4.19, v5.10, v6.1 and v6.12), one behind the other, each aligned alike::

    before 6.4   offsets, relative_base, num_syms, names, markers, token_table, token_index
    since 6.4    num_syms, names, markers, token_table, token_index, offsets, relative_base

- Instead of offsets and their base there may be addresses (CONFIG_KALLSYMS_BASE_RELATIVE unset); in
  7.0 the base is gone.
- Markers, which tell where in the names every 256th symbol begins, have 8 bytes before Linux kernel
  commit 80ffbaa5b1bd ("kallsyms: reduce size a little on 64-bit") (in v4.20), later 4.
- 6.2 and 6.3, and stable kernels before, have ``seqs_of_names`` between markers and token table,
  with 4 or 3 bytes a symbol; 6.4 moved it to the end.
- Tables begin at multiples of 8 bytes, of 4 since 7.0; of 256 in older kernels for arm64, whose
  assembler takes the 8 of ``.align 8`` for a power of two.

The search begins at the token table, for which the ten digits stand in a row, since each is in some
symbol's name. Nothing that is found is believed because it looks like a table: the index must be
that of the tokens, the number of symbols and of markers must fill what lies between the names and
the tokens to the byte, every marker must meet the beginning of a name, addresses must ascend, and
be those that VMCOREINFO gives for a few symbols.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.image import KernelImage
from anonvma_inspect.target.kallsyms import ANCHORS, Kallsyms, find_names

__all__ = ("find_kallsyms",)

_DIGITS = b"0\0001\0002\0003\0004\0005\0006\0007\0008\0009\0"
_TOKENS = 256
# Several times what 256 tokens take, and less than an index of 16 bits can reach.
_TOKEN_BYTES = 16384
# Names, markers and seqs_of_names, of twice as many symbols as any distribution's kernel has.
_REACH = 16 << 20
# Seven steps from one to the next: a kernel of 1,800 symbols would be smaller than any.
_FEWEST_MARKERS = 8
# A name takes two bytes at least, and at most those of KSYM_NAME_LEN and its length.
_LEAST_STEP, _MOST_STEP = 256 * 2, 256 * 514
_ALIGNMENTS = (8, 4, 256)
# How many places may look like what is sought, at each step, before it is somebody's intention.
# Debian's kernels have six rows of digits, one table of tokens (which may fit two alignments), and
# up to four runs of words that could be markers.
_MOST_DIGITS, _MOST_TABLES, _MOST_RUNS = 1024, 8, 32

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Tokens:
    """A token table and the index behind it."""

    table: int
    index: int
    alignment: int


@dataclass(frozen=True)
class _Names:
    """A table of names, and how many there are."""

    table: int
    count: int


def find_kallsyms(image: KernelImage, vmcoreinfo: Mapping[str, str]) -> Kallsyms | None:
    """Search the kernel's image for its kallsyms tables.

    :param vmcoreinfo: VMCOREINFO, as key and value.
    :return: ``None`` if there are none.
    :raises TargetError: if more than one place could be meant.
    """
    anchors = {f"SYMBOL({name})" for name in ANCHORS}
    facts = {key: value for key, value in vmcoreinfo.items() if key in anchors}
    found: dict[frozenset[tuple[str, int]], Kallsyms] = {}
    for tokens in _few(_find_tokens(image), _MOST_TABLES):
        for names in _few(_find_names_before(image, tokens), _MOST_TABLES):
            for tables in _addresses_beside(tokens, names):
                kallsyms = _open(image, facts, tables)
                if kallsyms is not None:
                    found[frozenset(tables.items())] = kallsyms
    if len(found) > 1:
        raise _ambiguous()
    return next(iter(found.values()), None)


# Of what there should be one of, no more than can be tried in a few seconds.
def _few(candidates: Iterator[_T], most: int) -> Iterator[_T]:
    for number, candidate in enumerate(candidates):
        if number >= most:
            raise _ambiguous()
        yield candidate


def _ambiguous() -> TargetError:
    return TargetError(
        "more than one place in this dump looks like the kernel's symbol table: give the symbols "
        "with --system-map (a copy of /proc/kallsyms)"
    )


# Token tables with the index that belongs to them, for each alignment that fits both.
def _find_tokens(image: KernelImage) -> Iterator[_Tokens]:
    for digits in _few(image.find(_DIGITS), _MOST_DIGITS):
        data = np.frombuffer(image.view(digits, digits + _TOKEN_BYTES), np.uint8)
        ends = np.flatnonzero(data == 0)[: _TOKENS - ord("0")]
        if len(ends) < _TOKENS - ord("0"):
            continue
        end = digits + int(ends[-1]) + 1
        for alignment in _ALIGNMENTS:
            index = _up(end, alignment)
            starts = np.frombuffer(image.view(index, index + 2 * _TOKENS), "<u2").astype(np.int64)
            table = digits - int(starts[ord("0")])
            if starts[0] != 0 or table % alignment or table < image.stext:
                continue
            text = np.frombuffer(image.view(table, end), np.uint8)
            behind = np.flatnonzero(text == 0) + 1
            if np.array_equal(behind[:-1], starts[1:]) and not np.any(
                (text != 0) & ((text < 0x20) | (text > 0x7E))
            ):
                yield _Tokens(table, index, alignment)


# Names, with all markers fitting, that lie before a token table.
def _find_names_before(image: KernelImage, tokens: _Tokens) -> Iterator[_Names]:
    start = max(tokens.table - _REACH, image.stext) & -256
    data = image.view(start, tokens.table)
    runs = ((width, *run) for width in (4, 8) for run in _find_markers(data, width))
    for width, at, most in _few(runs, _MOST_RUNS):
        markers = np.frombuffer(data, f"<u{width}", most, at).astype(np.int64)
        counted = _counted_names(data, start, at, width, markers, tokens)
        for names in _few(counted, _MOST_RUNS):
            if _names_fit(data, names, start, at, markers, tokens.alignment):
                yield names


# Where markers may stand: 0, and words that ascend in the steps of 256 names. Position, and number
# of words at most. Their true number is that of the symbols' to tell: words that follow may ascend
# as well.
def _find_markers(data: bytes, width: int) -> Iterator[tuple[int, int]]:
    words = np.frombuffer(data, f"<u{width}", len(data) // width)
    step = words[1:] - words[:-1]
    ascends = (step >= _LEAST_STEP) & (step <= _MOST_STEP)
    # Of as many markers as there are at least.
    two = ascends[:-1] & ascends[1:]
    four = two[:-2] & two[2:]
    seven = four[:-3] & four[3:]
    for first in np.flatnonzero((words[: len(seven)] == 0) & seven).tolist():
        run = ascends[first:]
        yield first * width, 1 + (len(run) if run.all() else int(run.argmin()))


# Names, by a number before them with which markers, and seqs_of_names if it is there, reach to the
# tokens, and the names of the last marker to the markers.
def _counted_names(
    data: bytes, start: int, at: int, width: int, markers: NDArray[np.int64], tokens: _Tokens
) -> Iterator[_Names]:
    alignment = tokens.alignment
    if at % alignment:
        return
    words = np.frombuffer(data, "<u4", at // 4)[:: alignment // 4]
    row = np.flatnonzero((words > 256 * (_FEWEST_MARKERS - 1)) & (words <= 256 * len(markers)))
    count = words[row].astype(np.int64)
    blocks = (count + 255) // 256
    names = (row + 1) * alignment
    last = at - names - markers[blocks - 1]
    end = tokens.table - start
    behind = -(-(at + width * blocks) // alignment) * alignment
    meets = behind == end
    for bytes_a_symbol in (3, 4):
        meets |= -(-(behind + bytes_a_symbol * count) // alignment) * alignment == end
    meets &= (last > 0) & (last < _MOST_STEP + alignment)
    for place in np.flatnonzero(meets).tolist():
        yield _Names(start + int(names[place]), int(count[place]))


# Whether there are as many names as that, every 256th begins where its marker says, and the last
# one ends where the markers begin.
def _names_fit(
    data: bytes, found: _Names, start: int, at: int, markers: NDArray[np.int64], alignment: int
) -> bool:
    names = memoryview(data)[found.table - start : at]
    end, left = 0, found.count
    for marker in markers.tolist():
        if left <= 0:
            break
        if marker != end:
            return False
        try:
            _, ends = find_names(names[end : end + _MOST_STEP], min(left, 256))
        except TargetError:
            return False
        end += int(ends[-1])
        left -= 256
    return _up(end, alignment) == len(names) and not any(names[end:])


# All places where the addresses can be.
def _addresses_beside(tokens: _Tokens, names: _Names) -> Iterator[dict[str, int]]:
    alignment, count = tokens.alignment, names.count
    num_syms = names.table - alignment
    tables = {
        "num_syms": num_syms,
        "names": names.table,
        "token_table": tokens.table,
        "token_index": tokens.index,
    }
    behind = _up(tokens.index + 2 * _TOKENS, alignment)
    before = num_syms - alignment
    yield tables | {"offsets": behind}
    yield tables | {"offsets": behind, "relative_base": _up(behind + 4 * count, alignment)}
    yield tables | {"addresses": behind}
    yield tables | {"offsets": before - _up(4 * count, alignment), "relative_base": before}
    yield tables | {"addresses": num_syms - _up(8 * count, alignment)}


def _open(
    image: KernelImage, facts: Mapping[str, str], tables: Mapping[str, int]
) -> Kallsyms | None:
    named = {f"SYMBOL(kallsyms_{name})": f"{address:x}" for name, address in tables.items()}
    try:
        kallsyms = Kallsyms(image.read, {**facts, **named})
    except TargetError:
        return None
    addresses = kallsyms.addresses
    right = kallsyms.lookup(["_stext"]) == {"_stext": image.stext}
    return kallsyms if right and np.all(addresses[1:] >= addresses[:-1]) else None


# The next multiple of `alignment`.
def _up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment
