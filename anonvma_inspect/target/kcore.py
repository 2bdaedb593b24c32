"""The running kernel, through ``/proc/kcore``.

Follows ``fs/proc/kcore.c``, v5.10, v6.1, v6.12: an ELF core of all that the kernel has mapped, by
virtual address. Its headers tell where RAM lies in the direct map, so nothing needs to be looked up
to read slab objects. The file is opened to be read, and nothing is written anywhere.
"""

from __future__ import annotations

import bisect
import os
import stat
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.describe import Kernel
from anonvma_inspect.target.elf import NO_PADDR, ElfCore, LoadSegments, head_size, parse_core
from anonvma_inspect.target.files import TargetOptions
from anonvma_inspect.target.live import asked_of, live_target, metered, understand_live, view_limit
from anonvma_inspect.target.memory import AddressSpace, Memory, U64Column, merge_ranges
from anonvma_inspect.target.paged import Meter, PagedMemory
from anonvma_inspect.target.symbols import Symbols, symbols_of_map
from anonvma_inspect.target.target import Target
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo, read_vmcoreinfo

__all__ = ("KCORE", "KernelFiles", "is_kcore", "open_kcore")

#: Where the running kernel shows its memory.
KCORE = "/proc/kcore"

# include/uapi/linux/kernel-page-flags.h: KPF_HWPOISON, KPF_NOPAGE and KPF_OFFLINE.
_WITHHELD = np.uint64(1 << 19 | 1 << 20 | 1 << 23)
# Bytes of the flags of a page frame in /proc/kpageflags.
_FLAGS = 8
# Headers of some thousand segments, and notes of some pages.
_MAX_HEAD = 1 << 26
_PAGE = os.sysconf("SC_PAGE_SIZE")
_INSTEAD = "dump it instead, and name the dump with -c PATH"


@dataclass(frozen=True)
class KernelFiles:
    """Where the running kernel tells about itself.

    :ivar btf: Its types.
    :ivar page_flags: What each page frame is, a word each.
    """

    kcore: str = KCORE
    btf: str = "/sys/kernel/btf/vmlinux"
    kallsyms: str = "/proc/kallsyms"
    page_flags: str = "/proc/kpageflags"


def is_kcore(path: str) -> bool:
    """Whether a file that the user named is the running kernel."""
    return os.path.realpath(path) == KCORE


def open_kcore(options: TargetOptions, files: KernelFiles | None = None) -> Target:
    """Open the running kernel.

    :param options: What of it is not taken from the kernel itself.
    :param files: Those of another kernel, for tests.
    :raises TargetError: if it cannot be read or understood.
    """
    files = KernelFiles() if files is None else files
    given = read_vmcoreinfo(options.vmcoreinfo)
    kcore = _Kcore(files)
    vmcoreinfo = given if given is not None else _vmcoreinfo(kcore.core, files.kcore)
    facts = parse_vmcoreinfo(vmcoreinfo, options.vmcoreinfo or files.kcore)
    page_size = int(facts["PAGESIZE"])
    meter = Meter()
    kernel = Kernel(files.kcore, kcore.core.machine, metered(kcore.read, meter), facts)
    symbols = None
    if "SYMBOL(kallsyms_names)" not in facts and options.system_map is None:
        symbols, why = _listed(files.kallsyms, facts)
        kernel = replace(kernel, cut=why)
    known = understand_live(
        kernel,
        vmcoreinfo,
        options,
        symbols=symbols,
        btf=files.btf if os.path.exists(files.btf) else None,
    )

    # The headers are read again as well: memory can be plugged in and out, which moves all of the
    # file that lies behind them.
    def renew(before: Memory | None) -> tuple[Memory, AddressSpace]:
        now = _Kcore(files)
        view = PagedMemory(
            now.read,
            page_size,
            meter=meter,
            limit=view_limit(),
            read_into=now.read_into,
            ahead=asked_of(before),
        )
        return view, AddressSpace(now.ram, page_size, now.direct_map)

    return live_target("kcore", kernel, vmcoreinfo, known, renew, meter)


class _Kcore:
    """The file, opened.

    :ivar core: Its headers.
    :ivar direct_map: Virtual address of physical address 0, modulo 2**64.
    :ivar ram: Shape (n, 2): ranges of the direct map, half-open, sorted, disjoint.
    """

    def __init__(self, files: KernelFiles) -> None:
        self._file = _open(files.kcore)
        weakref.finalize(self, os.close, self._file)
        self._page_flags: int | None = None
        try:
            self._page_flags = os.open(files.page_flags, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._page_flags)
        except OSError:
            pass  # not every kernel has it (CONFIG_PROC_PAGE_MONITOR)
        # What was read goes through one page that belongs to the open file.
        self._lock = threading.Lock()
        self.core = self._headers(files.kcore)
        self.direct_map, self.ram = _find_ram(self.core, files.kcore)
        segments = _segments(self.core.load)
        self._start: list[int] = segments[:, 0].tolist()
        self._end: list[int] = segments[:, 1].tolist()
        self._shift: list[int] = segments[:, 2].tolist()
        self._ram_start: list[int] = self.ram[:, 0].tolist()
        self._ram_end: list[int] = self.ram[:, 1].tolist()

    def read(self, address: int, size: int) -> bytes:
        """Read kernel memory.

        :raises LookupError: if any of it is not there.
        """
        into = bytearray(size)
        self.read_into(address, memoryview(into))
        return bytes(into)

    def read_into(self, address: int, into: memoryview) -> None:
        """Read kernel memory.

        :raises LookupError: if any of it is not there.
        """
        index = bisect.bisect_right(self._start, address) - 1
        if index < 0 or address + len(into) > self._end[index]:
            raise LookupError("not in any segment")
        if self._page_flags is not None:
            self._check_flags(self._page_flags, address, len(into))
        with self._lock:
            try:
                size = os.preadv(self._file, [into], (address + self._shift[index]) % 2**64)
            except (OSError, OverflowError) as error:
                raise LookupError(str(error)) from None
        if size != len(into):
            raise LookupError("the file ends there")

    def _headers(self, path: str) -> ElfCore:
        head, size = b"", 1
        try:
            while len(head) < size <= _MAX_HEAD:
                head = os.pread(self._file, size, 0)
                if len(head) < size:
                    break
                size = head_size(head)
        except OSError as error:
            raise TargetError(
                f"{path}: cannot be read: {error.strerror or error}; {_INSTEAD}"
            ) from None
        return parse_core(np.frombuffer(head, dtype=np.uint8), path)

    # A page of RAM that is broken must not be touched, nor one that a hypervisor took. The kernel
    # gives zeros for them, which is not what is there; an older one does touch them.
    def _check_flags(self, page_flags: int, address: int, size: int) -> None:
        index = bisect.bisect_right(self._ram_start, address) - 1
        if index < 0 or address >= self._ram_end[index]:
            return
        first = (address - self.direct_map) % 2**64 // _PAGE
        last = (address + size - 1 - self.direct_map) % 2**64 // _PAGE
        data = os.pread(page_flags, _FLAGS * (last + 1 - first), _FLAGS * first)
        if (np.frombuffer(data, dtype="<u8") & _WITHHELD).any():
            raise LookupError("the kernel does not show all of these pages")


def _open(path: str) -> int:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise TargetError(
                f"{path}: not the kernel's memory but something laid over it, as in a container: "
                "look at the running kernel from outside of it"
            )
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise TargetError(
            f"{path}: no such file: this kernel does not show its memory (CONFIG_PROC_KCORE), or "
            f"/proc is not mounted; {_INSTEAD}"
        ) from None
    except PermissionError:
        if os.geteuid() != 0:
            raise TargetError(f"{path}: only root may read the running kernel (sudo)") from None
        raise TargetError(
            f"{path}: the kernel lets nobody read its memory: it is locked down (see "
            "/sys/kernel/security/lockdown), or this is a container without CAP_SYS_RAWIO; "
            f"{_INSTEAD}"
        ) from None
    except OSError as error:
        raise TargetError(f"{path}: cannot be opened: {error.strerror or error}") from None


# Start, end and what to add for an offset in the file. Segments that touch become one, so that a
# piece of memory that lies in two of them can be read at once.
def _segments(load: LoadSegments) -> U64Column:
    ranges = np.stack([load.vaddr, load.vaddr + load.filesz], axis=1)
    shift = load.offset - load.vaddr
    merged = []
    for one in np.unique(shift):
        of_shift = merge_ranges(ranges[shift == one])
        merged.append(np.column_stack([of_shift, np.full(len(of_shift), one)]))
    segments = np.concatenate(merged)
    ordered: U64Column = segments[np.argsort(segments[:, 0], kind="stable")]
    return ordered


# The segments whose physical address is told are those of RAM and, above them on x86-64, that of
# the kernel's image.
def _find_ram(core: ElfCore, path: str) -> tuple[int, U64Column]:
    load = core.load
    told = load.paddr != NO_PADDR
    if not told.any():
        raise TargetError(f"{path}: where RAM is mapped is not told in it; {_INSTEAD}")
    start, size = load.vaddr[told], load.filesz[told]
    shift = start - load.paddr[told]
    direct_map = shift[np.argmin(start)]
    ranges = np.stack([start, start + size], axis=1)[shift == direct_map]
    return int(direct_map), merge_ranges(ranges)


def _vmcoreinfo(core: ElfCore, path: str) -> bytes:
    for note in core.notes:
        if note.name == b"VMCOREINFO":
            return note.desc
    raise TargetError(
        f"{path}: there is no VMCOREINFO in it (kernels before 4.19): give one with --vmcoreinfo"
    )


# Where VMCOREINFO names the kernel's own table, that is as quick as the text of it, and nobody
# hides it. Else the text, or why there is none: then the table is searched for.
def _listed(path: str, facts: Mapping[str, str]) -> tuple[Symbols | None, str]:
    try:
        symbols = symbols_of_map(path, facts)
    except TargetError as error:
        return None, f" ({error})"
    if "init_task" not in symbols.addresses:
        return None, ""
    return replace(symbols, source="proc-kallsyms"), ""
