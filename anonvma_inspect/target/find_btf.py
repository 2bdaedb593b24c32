"""Finding the kernel's BTF in its memory when no symbol tells where it lies.

Before 6.0 VMCOREINFO does not name the kallsyms tables, and a kernel without CONFIG_KALLSYMS_ALL
has no data symbols in them; the BTF is in the read-only data of the kernel's image all the same
(``.BTF``, ``include/asm-generic/vmlinux.lds.h``, v5.10), and begins with a header of a fixed form.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.btf import Btf

__all__ = ("find_btf",)

# struct btf_header, include/uapi/linux/btf.h: magic, version, flags, hdr_len.
_HEADER = struct.pack("<HBBI", 0xEB9F, 1, 0, 24)
_HEADER_SIZE = 24
_MOST = 1 << 28
_CHUNK = 1 << 20


def find_btf(
    read: Callable[[int, int], bytes], start: int, size: int, page_size: int, origin: str
) -> Btf | None:
    """Search a range of the kernel's image.

    What is found must have ``struct vm_area_struct``: other data could look like a header.

    :param read: Reads ``(address, size)``; raises :class:`LookupError` where there is nothing.
    :param start: Where to begin.
    :param size: How many bytes to search.
    :param origin: What to call it in messages.
    :return: ``None`` if there is none.
    """
    for chunk in range(start, start + size, _CHUNK):
        data = _read_what_is_there(read, chunk, _CHUNK, page_size)
        at = data.find(_HEADER)
        while at >= 0:
            btf = _try(read, chunk + at, origin)
            if btf is not None:
                return btf
            at = data.find(_HEADER, at + 1)
    return None


def _try(read: Callable[[int, int], bytes], address: int, origin: str) -> Btf | None:
    try:
        header = read(address, _HEADER_SIZE)
        type_off, type_len, str_off, str_len = struct.unpack_from("<IIII", header, 8)
        length = _HEADER_SIZE + max(type_off + type_len, str_off + str_len)
        if length > _MOST:
            return None
        btf = Btf(read(address, length), origin)
    except (LookupError, TargetError):
        return None
    return btf if btf.find("struct vm_area_struct") else None


# With zeros for pages that are not there. A header never crosses into another chunk: it is aligned,
# and so are chunks.
def _read_what_is_there(
    read: Callable[[int, int], bytes], address: int, size: int, page_size: int
) -> bytes:
    try:
        return read(address, size)
    except LookupError:
        if size <= page_size:
            return bytes(size)
    half = size // 2
    return _read_what_is_there(read, address, half, page_size) + _read_what_is_there(
        read, address + half, half, page_size
    )
