"""Opening a target: from what the user named to a :class:`Target`, or to one clear sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.errors import TargetError, UsageError
from anonvma_inspect.target import elf
from anonvma_inspect.target.btf import Btf, BtfLayouts
from anonvma_inspect.target.files import TargetOptions, map_file
from anonvma_inspect.target.kcore import is_kcore, open_kcore
from anonvma_inspect.target.left_out import parse_kdump
from anonvma_inspect.target.memory import AddressSpace
from anonvma_inspect.target.snapshot import Snapshot, decompress, is_compressed, parse_snapshot
from anonvma_inspect.target.target import Target

__all__ = ("open_target",)

# The beginnings of files that people take for dumps, and what to do with each.
_NOT_READ = (
    (b"\x1f\x8b", "compressed with gzip: unpack it first (gunzip)"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first (unzstd)"),
    (b"BZh", "compressed with bzip2: unpack it first (bunzip2)"),
    (b"makedumpfile", "a flattened kdump: rearrange it first (makedumpfile -R DUMP < FILE)"),
)
_KDUMP = (b"KDUMP   ", b"DISKDUMP")


def open_target(options: TargetOptions) -> Target:
    """Open what the user named.

    :raises UsageError: if nothing was named.
    :raises TargetError: if it cannot be opened or understood.
    """
    if options.qemu is not None:
        from anonvma_inspect.target.qemu import open_qemu  # drgn takes its time to load

        return open_qemu(options.qemu, options)
    if options.gdb is not None:
        from anonvma_inspect.target.gdb import open_gdb

        return open_gdb(options.gdb, options)
    if options.core is None:
        raise UsageError("no target named: give a vmcore or a snapshot with -c PATH")
    path = options.core
    if is_kcore(path):
        return open_kcore(options)
    data = map_file(path)
    head = data[:16].tobytes()
    for magic, advice in _NOT_READ:
        if head.startswith(magic):
            raise TargetError(f"{path}: {advice}")
    if head.startswith(_KDUMP):
        header = parse_kdump(data)
        if header is not None and header.split:
            raise TargetError(
                f"{path}: one part of a split dump: put the parts together first "
                "(makedumpfile --reassemble PART... DUMP)"
            )
        return _open_dump(path, None, data, options)
    if is_compressed(head):
        data = decompress(Path(path))
    elif not head.startswith(b"\x7fELF"):
        raise TargetError(
            f"{path}: neither a vmcore (ELF or kdump) nor a snapshot: it begins with {head[:8]!r}"
        )
    core = elf.parse_core(data, path)
    snapshot = parse_snapshot(core, data, path)
    if snapshot is not None:
        return _open_snapshot(path, snapshot, options)
    return _open_dump(path, core, data, options)


def _open_snapshot(path: str, snapshot: Snapshot, options: TargetOptions) -> Target:
    for option, value in (
        ("-s", options.symbols),
        ("--btf", options.btf),
        ("--vmcoreinfo", options.vmcoreinfo),
        ("--system-map", options.system_map),
    ):
        if value is not None:
            raise UsageError(f"{path} is a snapshot and brings its own: {option} is not for it")
    header = snapshot.header
    btf = Btf(snapshot.btf, f"the BTF in {path}")
    return Target(
        kind="snapshot",
        release=header.release,
        architecture=header.machine,
        page_size=header.page_size,
        path=path,
        live=False,
        memory=snapshot.memory,
        space=AddressSpace(
            np.array(header.ram, dtype=np.uint64).reshape(-1, 2),
            header.page_size,
            header.direct_map,
        ),
        layouts=BtfLayouts(btf),
        symbols=header.symbols,
        symbols_source="snapshot",
        vmcoreinfo=snapshot.vmcoreinfo,
        load_btf=lambda: btf,
        walks=frozenset(header.walks),
        registers=tuple((pc, sp) for pc, sp in header.registers),
        functions={name: (ends[0], ends[1]) for name, ends in header.functions.items()},
    )


def _open_dump(
    path: str, core: elf.ElfCore | None, data: NDArray[np.uint8], options: TargetOptions
) -> Target:
    # drgn is only needed for a dump, and takes its time to load.
    from anonvma_inspect.target.dump import open_dump

    return open_dump(path, core, data, options)
