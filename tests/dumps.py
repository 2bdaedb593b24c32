"""Plain dumps for tests, made of snapshots by taking away what makes them snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anonvma_inspect.target.elf import Note, parse_core, write_core
from anonvma_inspect.target.files import map_file
from anonvma_inspect.target.snapshot import decompress, parse_snapshot

__all__ = ("PlainDump", "make_plain_dump")


@dataclass(frozen=True)
class PlainDump:
    """A dump whose kernel tells nothing about itself, and beside it the files that do.

    :ivar core: An ELF core with VMCOREINFO, if that was kept.
    """

    core: Path
    btf: Path
    vmcoreinfo: Path
    system_map: Path

    @property
    def arguments(self) -> list[str]:
        return [
            "-c",
            str(self.core),
            "--btf",
            str(self.btf),
            "--system-map",
            str(self.system_map),
        ]


def make_plain_dump(
    snapshot_path: Path,
    directory: Path,
    *,
    notes: list[Note] | None = None,
    more: Mapping[int, bytes] | None = None,
) -> PlainDump:
    """Write the pages of a snapshot as a dump, with zeros where words were not captured.

    :param notes: Instead of VMCOREINFO.
    :param more: Memory that the snapshot does not have, by address.
    """
    more = more or {}
    compressed = snapshot_path.suffix == ".xz"
    data = decompress(snapshot_path) if compressed else map_file(str(snapshot_path))
    core = parse_core(data, str(snapshot_path))
    snapshot = parse_snapshot(core, data, str(snapshot_path))
    assert snapshot is not None
    load = core.load
    made = PlainDump(
        directory / "plain.core",
        directory / "plain.btf",
        directory / "plain.vmcoreinfo",
        directory / "plain.map",
    )
    made.btf.write_bytes(snapshot.btf)
    made.vmcoreinfo.write_bytes(snapshot.vmcoreinfo)
    symbols = dict(snapshot.header.symbols)
    for line in snapshot.vmcoreinfo.decode().splitlines():
        if line.startswith("SYMBOL("):
            name, _, value = line.removeprefix("SYMBOL(").partition(")=")
            symbols[name] = int(value, 16)
    made.system_map.write_text(
        "".join(f"{address:016x} D {name}\n" for name, address in symbols.items())
    )
    head = write_core(
        snapshot.header.machine,
        [Note(b"VMCOREINFO", 0, snapshot.vmcoreinfo)] if notes is None else notes,
        np.append(load.vaddr, np.array(list(more), np.uint64)),
        np.append(load.paddr, np.full(len(more), 2**64 - 1, np.uint64)),
        np.append(load.filesz, np.array([len(content) for content in more.values()], np.uint64)),
    )
    body = [
        data[int(start) : int(start + size)]
        for start, size in zip(load.offset, load.filesz, strict=True)
    ]
    body += [np.frombuffer(content, np.uint8) for content in more.values()]
    made.core.write_bytes(head + np.concatenate(body).tobytes())
    return made
