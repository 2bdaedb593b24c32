"""This Python with its standard library, the package's dependencies and the package, for a guest.

It is the very interpreter that runs the lab, laid out under ``/usr`` of the guest, with the shared
libraries that ``ldd`` names. Modules are compiled here: an emulated guest would take minutes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import marshal
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from .apt import run
from .cache import locked
from .initramfs import Archive

__all__ = ("COMMAND", "compiled", "dependencies", "libraries", "package_archive", "python_archive")

_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
_STDLIB = f"usr/lib/{_VERSION}"
_PACKAGES = f"{_STDLIB}/site-packages"
_OWN = "lab/own"

#: What starts it in the guest.
COMMAND = f"PYTHONHOME=/usr PYTHONPATH=/{_OWN}:/{_PACKAGES} /usr/bin/python3"

# Parts of a standard library or a wheel that no program run here imports.
_LEFT_OUT = frozenset(
    (
        *("test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3"),
        *("pydoc_data", "site-packages", "dist-packages", "__pycache__", "include"),
    )
)
_KEPT = (".py", ".json", ".txt", ".dat")


def compiled(source: bytes, name: str) -> bytes:
    """A module's ``.pyc``, which is valid whatever becomes of the source."""
    code = compile(source, name, "exec", dont_inherit=True)
    unchecked = (1).to_bytes(4, "little") + bytes(8)
    return importlib.util.MAGIC_NUMBER + unchecked + marshal.dumps(code)


def dependencies(name: str) -> list[importlib.metadata.Distribution]:
    """What a distribution needs to run, and what that needs; not the distribution itself."""
    found: dict[str, importlib.metadata.Distribution] = {}

    def add(requirements: Iterable[str] | None) -> None:
        for requirement in requirements or ():
            wanted, _, marker = requirement.partition(";")
            match = re.match(r"[\w.-]+", wanted)
            # Markers name extras, or systems that this is not.
            if match is None or marker or match.group() in found:
                continue
            found[match.group()] = importlib.metadata.distribution(match.group())
            add(found[match.group()].requires)

    add(importlib.metadata.distribution(name).requires)
    return [found[wanted] for wanted in sorted(found)]


def libraries(listing: str) -> list[Path]:
    """The files in what ``ldd`` prints, the loader among them."""
    return [Path(path) for path in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listing, re.MULTILINE)]


# The files of the standard library and of the packages, by their names in the guest.
def _files() -> Iterator[tuple[str, Path]]:
    paths = sysconfig.get_paths(
        vars={"platbase": sys.base_prefix, "installed_base": sys.base_prefix}
    )
    for root in dict.fromkeys((Path(paths["stdlib"]), Path(paths["platstdlib"]))):
        for folder, folders, names in os.walk(root):
            folders[:] = [
                one for one in folders if one not in _LEFT_OUT and not one.startswith("config-")
            ]
            for name in names:
                path = Path(folder, name)
                if not name.startswith(("_test", "_ctypes_test", "_tkinter", "xxlimited")):
                    yield f"{_STDLIB}/{path.relative_to(root)}", path
    for distribution in dependencies("anonvma-inspect"):
        for file in distribution.files or ():
            if not _LEFT_OUT.intersection(file.parts) and ".." not in file.parts:
                yield f"{_PACKAGES}/{file}", Path(str(file.locate()))


class _Tree:
    """An archive in which directories come before what is in them."""

    def __init__(self) -> None:
        self._archive = Archive()
        self._folders: set[str] = set()

    def add(self, name: str, content: bytes, mode: int = 0o644) -> None:
        for folder in reversed(Path(name).parents[:-1] if "/" in name else ()):
            if str(folder) not in self._folders:
                self._folders.add(str(folder))
                self._archive.directory(str(folder))
        self._archive.file(name, content, mode)

    def finish(self) -> bytes:
        return self._archive.finish()


def _make() -> bytes:
    tree = _Tree()
    programs = [Path(sys.executable).resolve()]
    tree.add("usr/bin/python3", programs[0].read_bytes(), 0o755)
    inside = set()
    for name, path in sorted(dict(_files()).items()):
        if path.suffix == ".py":
            # Without the source: half the size, and nothing in the guest asks for it.
            tree.add(f"{name}c", compiled(path.read_bytes(), f"/{name}"))
        elif ".so" in path.suffixes:
            tree.add(name, path.read_bytes(), 0o755)
            programs.append(path)
            inside.add(path.resolve())
        elif path.suffix in _KEPT or path.name in ("METADATA", "entry_points.txt"):
            tree.add(name, path.read_bytes())
    needed = {found for path in programs for found in libraries(run(["ldd", str(path)]))}
    for path in sorted(needed):
        if path.resolve() not in inside:
            # The loader's place is written into programs; it looks for the others in /lib.
            folder = "lib64" if path.name.startswith("ld-linux") else "lib"
            tree.add(f"{folder}/{path.name}", path.read_bytes(), 0o755)
    return tree.finish()


def python_archive(cache: Path) -> bytes:
    """The archive of the interpreter and the dependencies; made once for each set of versions."""
    parts = [sys.version, sys.base_prefix, Path(__file__).read_text()]
    parts += [f"{one.name} {one.version}" for one in dependencies("anonvma-inspect")]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    target = cache / "interpreter" / f"{_VERSION}-{digest}.cpio"
    with locked(cache, "interpreter"):
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(".partial")
            partial.write_bytes(_make())
            partial.rename(target)
        return target.read_bytes()


def package_archive(root: Path) -> bytes:
    """The archive of the package in this checkout, with its sources."""
    tree = _Tree()
    for path in sorted((root / "anonvma_inspect").rglob("*")):
        name = f"{_OWN}/{path.relative_to(root)}"
        if path.suffix == ".py":
            source = path.read_bytes()
            tree.add(name, source)
            cached = (
                f"{Path(name).parent}/__pycache__/{path.stem}.{sys.implementation.cache_tag}.pyc"
            )
            tree.add(cached, compiled(source, f"/{name}"))
    return tree.finish()
