"""What the command sets for the whole of its process, which a library must not."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys

__all__ = ("set_up_process",)

# malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_NEVER = 2**31 - 1
# The most that glibc allows; the columns of an audit are mostly smaller.
_MMAP_THRESHOLD = 32 << 20
# What glibc adds when the heap grows, and what it is to add once.
_TOP_PAD, _HEAP = 128 << 10, 1 << 30
_PART = 8
_HUGE_PAGE = 2 << 20


def set_up_process() -> None:
    """Set up output streams, the allocator, drgn and numpy."""
    _make_writable()
    _set_up_memory()
    # Looking for drgn's plugins takes longer than opening a dump, and there is nothing for them to
    # add. Those that DRGN_PLUGINS names are loaded.
    os.environ.setdefault("DRGN_DISABLE_PLUGINS", "*")
    # numpy starts threads for linear algebra, of which there is none here.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _make_writable() -> None:
    # A stream that was closed before we began is None; what is written to it goes nowhere.
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open to the end)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (open to the end)
    # Names that the locale's encoding does not have must not end the run; nor must file names of
    # the command line that are no text.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _set_up_memory() -> None:
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        _keep_freed_memory(libc)
        _take_huge_pages(libc)


# A column of a million words that is freed goes back to the kernel, which clears the pages of the
# next one: a fifth of the time of a large audit, if glibc is not told to keep them.
def _keep_freed_memory(libc: ctypes.CDLL) -> None:
    libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    # Arenas of threads give it back whatever they are told.
    libc.mallopt(_M_ARENA_MAX, 1)


# To get the memory of a large audit in small pages takes a tenth of its time. So the heap gets room
# enough, and the kernel is told; where there is no such room, the heap grows as it would. A small
# machine is asked for no more than a part: its kernel's log has a line about each refusal.
def _take_huge_pages(libc: ctypes.CDLL) -> None:
    libc.sbrk.restype = libc.malloc.restype = ctypes.c_void_p
    nothing = ctypes.c_ssize_t(0)
    start = -(-libc.sbrk(nothing) // _HUGE_PAGE) * _HUGE_PAGE
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    libc.mallopt(_M_TOP_PAD, min(_HEAP, memory // _PART))
    libc.free(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(_MMAP_THRESHOLD // 2))))
    libc.mallopt(_M_TOP_PAD, _TOP_PAD)
    size = libc.sbrk(nothing) - start
    if size > 0:
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)
