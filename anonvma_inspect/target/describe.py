"""From a kernel's bytes to what is needed to understand them, for every kind of target alike.

A dump, a program that somebody else has opened and a kernel that runs differ in how memory is read.
Where the kernel's symbols, types and direct map are found in it does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.btf import Btf, BtfLayouts
from anonvma_inspect.target.files import TargetOptions, map_file
from anonvma_inspect.target.find_btf import find_btf
from anonvma_inspect.target.image import KernelImage
from anonvma_inspect.target.layouts import Layouts
from anonvma_inspect.target.memory import KERNEL_HALF, Memory
from anonvma_inspect.target.page_tables import direct_map_base
from anonvma_inspect.target.ram import direct_map_shift
from anonvma_inspect.target.symbols import Symbols, search_data, symbols_of_dump, symbols_of_map
from anonvma_inspect.target.target import Target

__all__ = ("DebugInfo", "Kernel", "Known", "check_direct_map")

_MAX_BTF = 1 << 28

#: From a vmlinux to the layouts and symbols in its debugging information.
DebugInfo = Callable[[str], tuple[Layouts, Symbols]]


@dataclass(frozen=True)
class Known:
    """What a kernel's memory is understood by.

    :ivar symbols: ``init_task`` is among them.
    :ivar load_btf: Its types as BTF; raises :class:`~anonvma_inspect.errors.TargetError` if there
        is none.
    """

    symbols: Symbols
    layouts: Layouts
    load_btf: Callable[[], Btf]


@dataclass(frozen=True)
class Kernel:
    """A kernel of which nothing is known yet but its memory and its VMCOREINFO.

    :ivar path: What to call it in messages.
    :ivar machine: ``uname -m``.
    :ivar read: Reads ``(address, size)`` of its virtual memory; raises :class:`LookupError` where
        there is nothing.
    :ivar facts: VMCOREINFO, as key and value.
    :ivar cut: What to add to a message that something is not there, if something is known to be
        missing: " (the file is truncated: copy it again)".
    """

    path: str
    machine: str
    read: Callable[[int, int], bytes]
    facts: Mapping[str, str]
    cut: str = ""

    def must_read(self, address: int, size: int) -> bytes:
        """Read what has to be there.

        :raises TargetError: if it is not.
        """
        try:
            return self.read(address, size)
        except LookupError:
            raise TargetError(
                f"{self.path}: the kernel's own data at {address:#x} cannot be read{self.cut}"
            ) from None

    @cached_property
    def image(self) -> KernelImage | None:
        """Where to search for what no symbol names; ``None`` if VMCOREINFO does not tell."""
        text = self.facts.get("SYMBOL(_stext)", "")
        if not re.fullmatch("[0-9a-f]{16}", text) or int(text, 16) < KERNEL_HALF:
            return None
        return KernelImage(self.read, int(text, 16), int(self.facts["PAGESIZE"]))

    def understand(
        self,
        options: TargetOptions,
        debug_info: DebugInfo,
        *,
        symbols: Symbols | None = None,
        btf: str | None = None,
    ) -> Known:
        """Find symbols and types: those that the user gives, else the kernel's own.

        :param debug_info: For a vmlinux that the user gives.
        :param symbols: Symbols that are known already, if the user gives none.
        :param btf: File of the kernel's own BTF, where there is one.
        :raises TargetError: if something of these cannot be found, or is another kernel's.
        """
        layouts: Layouts | None = None
        if options.symbols is not None:
            layouts, symbols = debug_info(options.symbols)
        if options.system_map is not None:
            symbols = symbols_of_map(options.system_map, self.facts)
        elif symbols is None:
            symbols = symbols_of_dump(self.must_read, self.image, self.facts)
        addresses = symbols.addresses

        def load_btf() -> Btf:
            return self.btf(addresses, options.btf or btf)

        if layouts is None:
            layouts = BtfLayouts(load_btf())
        return Known(self._search(symbols, layouts), layouts, load_btf)

    def btf(self, symbols: Mapping[str, int], file: str | None = None) -> Btf:
        """Types, from a file if one is given, else from the kernel's memory.

        :param symbols: Addresses; if they do not tell where the BTF is, it is searched for.
        :raises TargetError: if there is none.
        """
        if file is not None:
            return Btf(map_file(file), file)
        origin = f"the BTF in {self.path}"
        start, stop = symbols.get("__start_BTF"), symbols.get("__stop_BTF")
        if start is not None and stop is not None and 0 < stop - start <= _MAX_BTF:
            return Btf(self.must_read(start, stop - start), origin)
        found = None if self.image is None else find_btf(self.image, origin)
        if found is None:
            raise TargetError(
                f"{self.path}: no BTF in it{self.cut or ' (CONFIG_DEBUG_INFO_BTF)'}: give its "
                "types with -s (a vmlinux with debugging information) or --btf (a file of raw BTF)"
            )
        return found

    # Adds the variables without which nothing can be read, if need be by a search for them.
    def _search(self, symbols: Symbols, layouts: Layouts) -> Symbols:
        if self.image is not None:
            if symbols.source not in ("system-map", "dwarf"):
                symbols = search_data(symbols, self.image, layouts)
            self.image.forget()
        if "init_task" not in symbols.addresses:
            raise TargetError(
                f"{self.path}: the address of init_task is not known: this kernel "
                f"({self.facts['OSRELEASE']}) does not tell it in VMCOREINFO or kallsyms, and no "
                f"search of its image finds it{self.cut}; give its symbols with --system-map (a "
                "copy of /proc/kallsyms) or -s (a vmlinux with debugging information)"
            )
        return symbols

    def direct_map(
        self,
        symbols: Symbols,
        layouts: Layouts,
        read_physical: Callable[[int, int], bytes] | None = None,
    ) -> int:
        """Virtual address of physical address 0, modulo 2**64.

        On x86-64 that is the value of ``page_offset_base``, where the kernel has it; else what the
        page tables tell of the first task, which is a slab object.

        :param read_physical: Reads physical memory as ``read`` does virtual, if anything can.
        :raises TargetError: if nothing tells.
        """
        return direct_map_shift(
            self.machine, self.facts, self._page_offset_base(symbols, layouts, read_physical)
        )

    def _page_offset_base(
        self,
        symbols: Symbols,
        layouts: Layouts,
        read_physical: Callable[[int, int], bytes] | None,
    ) -> int | None:
        addresses = symbols.addresses
        if "page_offset_base" in addresses:
            return int.from_bytes(self.must_read(addresses["page_offset_base"], 8), "little")
        tasks = layouts.field("task_struct", "tasks.next")
        if (
            self.machine != "x86_64"
            or symbols.source != "search"
            or tasks is None
            or read_physical is None
        ):
            return None
        first = self.must_read(addresses["init_task"] + tasks.offset, 8)
        return direct_map_base(
            self.read, read_physical, self.facts, int.from_bytes(first, "little")
        )


def check_direct_map(target: Target, slow: Memory, cut: str = "") -> None:
    """See whether the direct map is where arithmetic says.

    One word read through it must be what the kernel's own page tables give.

    :param slow: The target's memory by way of the page tables.
    :param cut: As in :class:`Kernel`.
    :raises TargetError: if it is not.
    """
    tasks = target.layouts.field("task_struct", "tasks.next")
    if tasks is None:
        return  # the era's answer will say so
    init_task = np.array([target.symbol("init_task") + tasks.offset], dtype=np.uint64)
    rows, present = slow.gather(init_task, 8)
    if not present[0]:
        reason = cut or ": the symbols may be of another kernel"
        raise TargetError(f"{target.path}: init_task cannot be read{reason}")
    first = rows.view("<u8").reshape(1).astype(np.uint64)
    if first[0] == init_task[0]:
        return  # no task but init_task
    slow_rows, slow_present = slow.gather(first, 8)
    fast_rows, fast_present = target.memory.gather(first, 8)
    if target.space.wild(first)[0] or (
        slow_present[0] and not (fast_present[0] and np.array_equal(slow_rows, fast_rows))
    ):
        raise TargetError(
            f"{target.path}: the first task is at {int(first[0]):#x}, outside RAM as far as known: "
            "the symbols or the VMCOREINFO are of another kernel, or the dump is damaged"
        )
