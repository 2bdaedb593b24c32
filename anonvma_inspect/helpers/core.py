"""Programs on dumps that nobody has debugging information for."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterable

import drgn
from drgn import Program
from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

from anonvma_inspect.helpers.finders import enable_finders
from anonvma_inspect.target import Target, TargetOptions, open_target
from anonvma_inspect.target.files import map_file
from anonvma_inspect.target.kallsyms import parse_system_map, relocate
from anonvma_inspect.target.left_out import RangesLeftOut
from anonvma_inspect.target.memory import KERNEL_HALF, SegmentMemory
from anonvma_inspect.target.program import ARCHITECTURES, hide_unwritten, remember_target
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo

__all__ = ("open_core",)

_Path = str | os.PathLike[str]


def open_core(
    path: _Path,
    *,
    btf: _Path | None = None,
    vmcoreinfo: _Path | None = None,
    system_map: _Path | None = None,
) -> Program:
    """
    Open a dump of a kernel, or a snapshot of one, without debugging information.

    Types come from the kernel's BTF, symbols from its kallsyms, both of which
    are in the dump itself; global variables that drgn's helpers read are typed
    by a table. So drgn's own helpers work as well.

    >>> from drgn.helpers.linux.list import list_for_each_entry
    >>> prog = open_core(path)
    >>> for task in list_for_each_entry(
    ...     "struct task_struct", prog["init_task"].tasks.address_of_(), "tasks"
    ... ):
    ...     if task.mm:
    ...         print(task.pid, task.comm)
    ...
    (pid_t)1 (char [16])"..."
    ...

    The lower half of the address space raises :class:`drgn.FaultError`, as a
    ``NULL`` dereference should: in a dump by QEMU, address 0 is readable. In a
    snapshot, so does every word that was not captured. Type information that is
    loaded later (:meth:`drgn.Program.load_debug_info()`) takes precedence.

    :param path: An ELF vmcore, a kdump file, or a snapshot (``.xz`` or not).
    :param btf: File of raw BTF, for a kernel that brings none.
    :param vmcoreinfo: Text of VMCOREINFO, for a dump that lacks it.
    :param system_map: Symbols as in ``/proc/kallsyms``, for a dump in which
        they are neither named nor found.
    :raises anonvma_inspect.errors.TargetError: if it cannot be opened or understood
    """
    options = TargetOptions(
        core=os.fspath(path),
        btf=_fspath(btf),
        vmcoreinfo=_fspath(vmcoreinfo),
        system_map=_fspath(system_map),
    )
    target = open_target(options)
    if target.kind == "snapshot":
        prog = _snapshot_program(target)
    else:
        prog = Program(vmcoreinfo=target.vmcoreinfo)
        prog.set_core_dump(target.path)
        if isinstance(target.left_out, RangesLeftOut):
            hide_unwritten(prog, target.left_out)
    enable_finders(prog, target, functools.partial(_load_symbols, target, options))
    prog.add_memory_segment(0, KERNEL_HALF, _fault)
    remember_target(prog, target)
    return prog


def _fspath(path: _Path | None) -> str | None:
    return None if path is None else os.fspath(path)


def _fault(address: int, count: int, offset: int, physical: bool) -> bytes:
    raise drgn.FaultError("not a kernel address", address)


# drgn opens a snapshot by itself, but would read what was not captured as zero.
def _snapshot_program(target: Target) -> Program:
    memory = target.memory
    assert isinstance(memory, SegmentMemory)

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        try:
            return memory.read(address, count)
        except LookupError as error:
            raise drgn.FaultError(f"{target.path}: {error}", address) from None

    prog = Program(drgn.Platform(ARCHITECTURES[target.architecture]))
    prog.set_linux_kernel_custom(target.vmcoreinfo, is_live=False)
    prog.add_memory_segment(KERNEL_HALF, 2**64 - KERNEL_HALF, read)
    return prog


def _load_symbols(target: Target, options: TargetOptions, prog: Program) -> drgn.SymbolIndex:
    if target.kind == "snapshot":
        return _symbol_index(target.symbols.items())
    if options.system_map is not None:
        text = map_file(options.system_map).tobytes()
        facts = parse_vmcoreinfo(target.vmcoreinfo, target.path)
        return _symbol_index(relocate(parse_system_map(text, options.system_map), facts).items())
    if target.kallsyms is not None:
        names, addresses = target.kallsyms.all()
        return _symbol_index(zip(names, addresses.tolist(), strict=True))
    if b"SYMBOL(kallsyms_names)=" not in target.vmcoreinfo:
        return _symbol_index(target.symbols.items())
    return load_vmlinux_kallsyms(prog)


# Each symbol reaches to the next one; nothing tells where it really ends.
def _symbol_index(symbols: Iterable[tuple[str, int]]) -> drgn.SymbolIndex:
    symbols = list(symbols)
    starts = sorted({address for _, address in symbols})
    size = {start: end - start for start, end in itertools.pairwise(starts)}
    return drgn.SymbolIndex(
        drgn.Symbol(
            name,
            address,
            size.get(address, 0),
            drgn.SymbolBinding.UNKNOWN,
            drgn.SymbolKind.UNKNOWN,
        )
        for name, address in symbols
    )
