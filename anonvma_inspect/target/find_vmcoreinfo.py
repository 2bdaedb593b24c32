"""Finding VMCOREINFO in the memory of a kernel that nobody has dumped.

A dump brings it along; whoever looks at a machine from outside has to find it. It is text in a page
of its own, to which a variable in the kernel's image points (``vmcoreinfo_data``,
``crash_save_vmcoreinfo_init()``, ``kernel/crash_core.c``, v5.10; ``kernel/vmcore_info.c``, v6.12),
and the first thing that is written to it is ``OSRELEASE=``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo

__all__ = ("find_vmcoreinfo", "image_around", "is_vmcoreinfo_of", "search_ram", "x86_image")

_BEGINNING = b"OSRELEASE="
# VMCOREINFO_BYTES is a page, of the smallest size at least.
_BYTES = 4096
_ALIGNMENT = 4096
# arch/x86/include/asm/page_64_types.h, v6.12: __START_KERNEL_map and KERNEL_IMAGE_SIZE; kernels
# are loaded at multiples of CONFIG_PHYSICAL_ALIGN, 2 MiB at least.
_X86_START, _X86_SIZE, _X86_STEP = 0xFFFFFFFF80000000, 1 << 30, 1 << 21
_CHUNK = 1 << 20
# arm64 maps the sections of its image apart from each other, with what was freed between them.
_STEP, _GAP = 1 << 16, 4 << 20
# As for KernelImage.
_MOST_IMAGE, _END = 128, 16
# Pages begin the direct map of every architecture here above this, and images do not lie below it.
_LOWEST = 0xFF00 << 48

Read = Callable[[int, int], bytes]


def x86_image(read: Read) -> int | None:
    """Where the image of an x86-64 kernel begins, by trying all places where it can be loaded."""
    for start in range(_X86_START, _X86_START + _X86_SIZE, _X86_STEP):
        if _try(read, start, 8):
            return start
    return None


def image_around(read: Read, address: int) -> int:
    """Where the image begins in which an address lies, or not long before."""
    start = address & -_STEP
    for at in range(start, max(start - _MOST_IMAGE * _CHUNK, _LOWEST), -_STEP):
        if _try(read, at, 8):
            start = at
        elif start - at > _GAP:
            break
    return start


def find_vmcoreinfo(read: Read, start: int) -> bytes | None:
    """Find VMCOREINFO by the pointer to it in the kernel's image.

    :param read: Reads ``(address, size)`` of virtual memory; raises :class:`LookupError` where
        there is nothing.
    :param start: Where the image begins, or an address in it.
    :return: ``None`` if there is none.
    """
    tried: set[int] = set()
    for chunk in _chunks(read, start):
        words = np.frombuffer(chunk, dtype="<u8")
        aligned = words[(words % _ALIGNMENT == 0) & (words >= _LOWEST)]
        for pointer in np.unique(aligned).tolist():
            if pointer in tried:
                continue
            tried.add(pointer)
            if _try(read, pointer, len(_BEGINNING)) == _BEGINNING:
                text = _text(_try(read, pointer, _BYTES) or b"")
                if text is not None and is_vmcoreinfo_of(read, text):
                    return text
    return None


# The last ones first: variables without a value of their own stand at the image's end.
def _chunks(read: Read, start: int) -> Iterator[bytes]:
    start &= -_CHUNK
    present: list[int] = []
    for index in range(_MOST_IMAGE):
        at = start + index * _CHUNK
        if at >= 2**64 or (present and index - present[-1] > _END):
            break
        if any(_try(read, at + inside, 8) for inside in range(0, _CHUNK, _CHUNK // 4)):
            present.append(index)
    for index in reversed(present):
        yield _present(read, start + index * _CHUNK, _CHUNK)


def _present(read: Read, address: int, size: int) -> bytes:
    data = _try(read, address, size)
    if data is not None:
        return data
    if size <= _ALIGNMENT:
        return bytes(size)
    half = size // 2
    return _present(read, address, half) + _present(read, address + half, half)


def _try(read: Read, address: int, size: int) -> bytes | None:
    try:
        return read(address, size)
    except LookupError:
        return None


def search_ram(read: Read, ranges: list[tuple[int, int]]) -> Iterator[bytes]:
    """Search physical memory for pages that begin as VMCOREINFO does.

    :param read: Reads ``(address, size)`` of physical memory.
    :param ranges: Half-open ranges of RAM.
    :return: What could be VMCOREINFO: of this kernel, or of one that ran before.
    """
    width = len(_BEGINNING)
    for start, end in ranges:
        for at in range(start, end, _CHUNK):
            data = _try(read, at, min(_CHUNK, end - at)) or b""
            for page in re.finditer(_BEGINNING, data):
                inside = page.start()
                if (at + inside) % _ALIGNMENT == 0 and inside + width <= len(data):
                    text = _text(data[inside : inside + _BYTES])
                    if text is not None:
                        yield text


# What is VMCOREINFO at the beginning of a page.
def _text(page: bytes) -> bytes | None:
    text = page.split(b"\0", 1)[0]
    try:
        facts = parse_vmcoreinfo(text, "")
    except TargetError:
        return None
    return text if "SYMBOL(init_uts_ns)" in facts else None


def is_vmcoreinfo_of(read: Read, text: bytes) -> bool:
    """Whether VMCOREINFO is that of a kernel, which has its release where this says.

    :param read: Reads ``(address, size)`` of virtual memory.
    :param text: VMCOREINFO.
    """
    facts = parse_vmcoreinfo(text, "VMCOREINFO")
    try:
        at = int(facts["SYMBOL(init_uts_ns)"], 16)
        # struct uts_namespace begins with its new_utsname, six times 65 bytes, before 5.11 behind a
        # reference count.
        return facts["OSRELEASE"].encode() in read(at, 6 * 65 + 8).split(b"\0")
    except (KeyError, ValueError, LookupError):
        return False
