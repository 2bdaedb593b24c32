"""Finding the kernel's BTF in its memory when no symbol tells where it lies.

Before 6.0 VMCOREINFO does not name the kallsyms tables, and a kernel without CONFIG_KALLSYMS_ALL
has no data symbols in them; the BTF is in the read-only data of the kernel's image all the same
(``.BTF``, ``include/asm-generic/vmlinux.lds.h``, v5.10), and begins with a header of a fixed form.
"""

from __future__ import annotations

import struct

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.btf import Btf
from anonvma_inspect.target.image import KernelImage

__all__ = ("find_btf",)

# struct btf_header, include/uapi/linux/btf.h: magic, version, flags, hdr_len.
_HEADER = struct.pack("<HBBI", 0xEB9F, 1, 0, 24)
_HEADER_SIZE = 24
_MOST = 1 << 28


def find_btf(image: KernelImage, origin: str) -> Btf | None:
    """Search the kernel's image.

    What is found must have ``struct vm_area_struct``: other data could look like a header.

    :param origin: What to call it in messages.
    :return: ``None`` if there is none.
    """
    for at in image.find(_HEADER):
        btf = _try(image, at, origin)
        if btf is not None:
            return btf
    return None


def _try(image: KernelImage, address: int, origin: str) -> Btf | None:
    try:
        header = image.read(address, _HEADER_SIZE)
        type_off, type_len, str_off, str_len = struct.unpack_from("<IIII", header, 8)
        length = _HEADER_SIZE + max(type_off + type_len, str_off + str_len)
        if length > _MOST:
            return None
        btf = Btf(image.read(address, length), origin)
    except (LookupError, TargetError):
        return None
    return btf if btf.find("struct vm_area_struct") else None
