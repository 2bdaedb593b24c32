"""Files that look like those in which a running kernel shows itself, made of snapshots."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from anonvma_inspect.target.elf import NO_PADDR, Note, parse_core, write_core
from anonvma_inspect.target.kcore import KernelFiles
from anonvma_inspect.target.memory import in_ranges
from anonvma_inspect.target.snapshot import decompress, parse_snapshot

__all__ = ("make_kernel_files",)

PAGE = 4096


def make_kernel_files(snapshot_path: Path, directory: Path, plugged: int = 0) -> KernelFiles:
    """Write the pages of a snapshot as ``/proc/kcore`` would show them.

    RAM has segments whether or not the snapshot has pages of it, as has the kernel's image; what
    was not captured is zero. VMCOREINFO does not name the symbol table, which snapshots lack.
    Nothing is said of what page frames are.

    :param plugged: Bytes of RAM that the snapshot does not know.
    """
    data = decompress(snapshot_path)
    core = parse_core(data, str(snapshot_path))
    snapshot = parse_snapshot(core, data, str(snapshot_path))
    assert snapshot is not None
    header, load = snapshot.header, core.load
    ram = np.array(header.ram, dtype=np.uint64).reshape(-1, 2)
    if plugged:
        end = ram[-1, 1] + np.uint64(1 << 20)
        ram = np.concatenate([ram, [[end, end + np.uint64(plugged)]]]).astype(np.uint64)
    text = int(load.vaddr.max()) >> 30 << 30
    image = load.vaddr >= text
    elsewhere = ~in_ranges(ram, load.vaddr) & ~image
    # Not in the order of addresses, as there.
    ends = load.vaddr + load.filesz
    vaddr = np.concatenate([[text], load.vaddr[elsewhere], ram[:, 0]]).astype(np.uint64)
    size = np.concatenate(
        [[int(ends[image].max()) - text], load.filesz[elsewhere], ram[:, 1] - ram[:, 0]]
    ).astype(np.uint64)
    # That of the image is told on x86-64 only.
    paddr = np.full(len(vaddr), NO_PADDR)
    paddr[0] = 1 << 24 if header.machine == "x86_64" else NO_PADDR
    paddr[-len(ram) :] = ram[:, 0] - np.uint64(header.direct_map)
    facts = [line for line in snapshot.vmcoreinfo.splitlines() if b"kallsyms" not in line]
    notes = [
        Note(b"CORE", 1, bytes(336)),
        Note(b"VMCOREINFO", 0, b"\n".join(facts) + b"\n"),
    ]
    head = write_core(header.machine, notes, vaddr, paddr, size)
    files = KernelFiles(
        **{name: str(directory / name) for name in ("kcore", "btf", "kallsyms", "page_flags")}
    )
    Path(files.btf).write_bytes(snapshot.btf)
    symbols = dict(header.symbols)
    for line in snapshot.vmcoreinfo.decode().splitlines():
        if line.startswith("SYMBOL("):
            name, _, value = line.removeprefix("SYMBOL(").partition(")=")
            symbols[name] = int(value, 16)
    Path(files.kallsyms).write_text(
        "".join(f"{address:016x} D {name}\n" for name, address in symbols.items())
    )
    offset = len(head) + np.cumsum(size) - size
    with open(files.kcore, "wb") as file:
        file.write(head)
        file.truncate(len(head) + int(size.sum()))
        for start, length, at in zip(load.vaddr, load.filesz, load.offset, strict=True):
            segment = int(np.flatnonzero((vaddr <= start) & (start < vaddr + size))[0])
            file.seek(int(offset[segment] + start - vaddr[segment]))
            file.write(data[int(at) : int(at + length)].tobytes())
    os.chmod(files.kcore, 0o400)
    return files
