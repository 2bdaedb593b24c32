"""The target as the layers above see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.btf import Btf
from anonvma_inspect.target.kallsyms import Kallsyms
from anonvma_inspect.target.layouts import Layouts
from anonvma_inspect.target.left_out import LeftOut
from anonvma_inspect.target.memory import AddressSpace, Memory
from anonvma_inspect.target.paged import Meter
from anonvma_inspect.target.registers import Registers

__all__ = ("Target",)


@dataclass(frozen=True)
class Target:
    """A kernel's memory, with what is needed to understand it.

    Of a kernel that runs, ``memory`` is a view: it shows each page as it was when it was first
    asked for, and to whoever asks again the same bytes. What has changed since, :meth:`again`
    shows.

    :ivar kind: ``elf-core``, ``kdump``, ``snapshot``, ``program``, or of what runs ``kcore``,
        ``qemu``, ``gdb``.
    :ivar release: ``uname -r``.
    :ivar architecture: ``uname -m``.
    :ivar page_size: Bytes.
    :ivar path: The file.
    :ivar live: Whether it runs on while it is read.
    :ivar symbols: Addresses of those symbols that anything here looks up and that were found.
    :ivar symbols_source: Where they come from: ``program``, ``snapshot``, or as in
        :class:`~anonvma_inspect.target.symbols.Symbols`.
    :ivar vmcoreinfo: The bytes of VMCOREINFO.
    :ivar left_out: What a filter left out of a dump, where something tells.
    :ivar walks: The names of the walks that a snapshot serves; ``None``: all.
    :ivar kallsyms: The kernel's symbol table, if VMCOREINFO does not name it and it was found.
    :ivar renew: Makes a fresh view of the memory of a kernel that runs, to be read much like the
        one that it is given, and says where its RAM is now; ``None`` for what stands still.
    :ivar meter: What was read so far, over all views; ``None`` for what stands still.
    :ivar registers: Where the CPUs were, as far as a dump tells.
    :ivar scheme: How ``vma->anon_vma`` is encoded, as the user says: ``none``, ``unfaulted`` or
        ``lazy``; ``None``: find out.
    :ivar functions: Start and end of the functions that a snapshot knows; ``None``: the symbol
        table has all.
    """

    kind: str
    release: str
    architecture: str
    page_size: int
    path: str
    live: bool
    memory: Memory
    space: AddressSpace
    layouts: Layouts
    symbols: Mapping[str, int]
    symbols_source: str
    vmcoreinfo: bytes
    load_btf: Callable[[], Btf]
    left_out: LeftOut | None = None
    walks: frozenset[str] | None = None
    kallsyms: Kallsyms | None = None
    renew: Callable[[Memory | None], tuple[Memory, AddressSpace]] | None = None
    meter: Meter | None = None
    registers: Registers = ()
    functions: Mapping[str, tuple[int, int]] | None = None
    scheme: str | None = None

    @property
    def layouts_source(self) -> str:
        """Where layouts come from: ``btf`` or ``dwarf``."""
        return self.layouts.source

    def again(self) -> Target:
        """The target as it is now: with a fresh view, if it runs; else itself.

        What was asked of this view is read at once: the next one is much more of one moment.

        The view that this one has is given up when nobody holds this target any longer.

        :raises TargetError: if it cannot be read any longer.
        """
        if self.renew is None:
            return self
        memory, space = self.renew(self.memory)
        return replace(self, memory=memory, space=space)

    def symbol(self, name: str) -> int:
        """Address of a symbol.

        :raises TargetError: if it was not found.
        """
        try:
            return self.symbols[name]
        except KeyError:
            raise TargetError(
                f"the symbol {name} was not found in {self.path}; give the kernel's symbols with "
                "--system-map (a copy of /proc/kallsyms or System.map) or -s (a vmlinux with "
                "debugging information)"
            ) from None
