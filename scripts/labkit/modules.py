"""Kernel modules: their ELF files, and which others they need, in the order of loading."""

from __future__ import annotations

import gzip
import lzma
import re
from collections.abc import Iterable
from pathlib import Path

from .errors import LabError

__all__ = ("find_modules", "has_module", "modules_root", "needs", "read_module")

_FOLDERS = ("lib/modules", "usr/lib/modules")


def read_module(path: Path) -> bytes:
    """A kernel module's ELF file, whichever way the package compresses it."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix != ".ko":
        raise LabError(f"The module {path.name} is compressed in a way the lab does not know.")
    return data


def needs(module: bytes) -> list[str]:
    """The modules that a module needs, by its own `depends` (as modinfo shows it)."""
    match = re.search(rb"\0depends=([^\0]*)\0", module)
    return match.group(1).decode().split(",") if match and match.group(1) else []


def modules_root(image: Path, release: str) -> Path | None:
    """The directory above an image that has its modules, as a system or a package has them."""
    for parent in image.parents:
        if any((parent / folder / release).is_dir() for folder in _FOLDERS):
            return parent
    return None


def _files(root: Path, release: str) -> dict[str, Path]:
    return {
        _plain(path.name): path
        for folder in _FOLDERS
        for path in root.glob(f"{folder}/{release}/kernel/**/*.ko*")
    }


def has_module(root: Path, release: str, name: str) -> bool:
    """Whether a kernel has this as a module; not if it is built in."""
    return _plain(name) in _files(root, release)


def find_modules(root: Path, names: Iterable[str], release: str = "*") -> list[Path]:
    """The modules of an unpacked kernel, each behind those it needs; built-in ones left out."""
    builtin = {
        _plain(line.rpartition("/")[2])
        for folder in _FOLDERS
        for file in root.glob(f"{folder}/{release}/modules.builtin")
        for line in file.read_text().splitlines()
    }
    files = _files(root, release)
    ordered: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in ordered or name in builtin:
            return
        if name not in files:
            raise LabError(f"The unpacked kernel in {root} has no module {name}.")
        for other in needs(read_module(files[name])):
            add(_plain(other))
        ordered[name] = files[name]

    for name in names:
        add(_plain(name))
    return list(ordered.values())


# Files and `depends` do not agree on dashes; the kernel takes both for the same.
def _plain(name: str) -> str:
    return name.partition(".")[0].replace("-", "_")
