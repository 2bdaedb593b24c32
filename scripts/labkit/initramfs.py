"""An initramfs: a cpio archive ("newc") of what a guest needs, written here.

The format is a header of hexadecimal fields, the name and the content for each file, all padded to
four bytes. Writing it ourselves takes no program, and no root for the device node.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from .modules import read_module
from .programs import HERE
from .symbols import NAMES

__all__ = ("Archive", "build", "build_capture", "build_shell")


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


class Archive:
    """A cpio archive in the making; times and owners are zero, so equal content is equal bytes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def _add(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (
            *(self._inode, mode, 0, 0, 1, 0, len(data), 0, 0),
            *(device[0], device[1], len(encoded), 0),
        )
        header = b"070701" + "".join(f"{field:08X}" for field in fields).encode()
        self._parts += [_padded(header + encoded), _padded(data)]

    def directory(self, name: str) -> None:
        self._add(name, stat.S_IFDIR | 0o755)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self._add(name, stat.S_IFREG | mode, data)

    def character_device(self, name: str, major: int, minor: int) -> None:
        self._add(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def finish(self) -> bytes:
        self._add("TRAILER!!!", 0)
        return b"".join(self._parts)


def _begin(busybox: Path, init: str, modules: Sequence[Path]) -> Archive:
    archive = Archive()
    for name in ("bin", "dev", "proc", "sys", "lab", "lab/crash", "modules", "tmp"):
        archive.directory(name)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    archive.file("init", (HERE / "guest" / init).read_bytes(), 0o755)
    for number, module in enumerate(modules):
        name = module.name.partition(".")[0]
        archive.file(f"modules/{number:02}-{name}.ko", read_module(module))
    return archive


def build(
    busybox: Path,
    programs: Mapping[str, Path],
    modules: Sequence[Path],
    command: Sequence[str],
    files: Mapping[str, bytes] | None = None,
) -> bytes:
    """The archive: busybox, our init, the programs in /lab, and the witness's arguments.

    `files` are further ones, by their path.
    """
    archive = _begin(busybox, "init", modules)
    for name, path in sorted(programs.items()):
        archive.file(f"lab/{name}", path.read_bytes(), 0o755)
    archive.file("lab/symbols", ("\n".join(["", *NAMES, ""])).encode())
    archive.file("lab/command", (" ".join(command) + "\n").encode())
    for name, content in (files or {}).items():
        archive.file(name, content)
    return archive.finish()


def build_shell(busybox: Path, programs: Mapping[str, Path], modules: Sequence[Path]) -> bytes:
    """The archive of a guest that is told what to do; further archives may follow it."""
    archive = _begin(busybox, "shell-init", modules)
    for name, path in sorted(programs.items()):
        archive.file(f"lab/{name}", path.read_bytes(), 0o755)
    return archive.finish()


def build_capture(
    busybox: Path, modules: Sequence[Path], files: Mapping[str, Path], command: str
) -> bytes:
    """The archive of a capture kernel: busybox, makedumpfile's files, and its command line."""
    archive = _begin(busybox, "capture-init", modules)
    for name in ("lib", "lib64", "usr", "usr/bin"):
        archive.directory(name)
    for name, path in sorted(files.items()):
        archive.file(name, path.read_bytes(), 0o755)
    archive.file("lab/command", f"{command}\n".encode())
    return archive.finish()
