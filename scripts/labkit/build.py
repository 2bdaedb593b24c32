"""Kernels built here, from Debian's source, a configuration of our own, and edits to the source."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from .apt import run, unpack
from .edits import edited_files
from .errors import LabError

__all__ = ("CONFIGS", "build", "build_edited", "lay_out", "missing_options")

#: The configurations; each names what is on, and the rest is off (``allnoconfig``).
CONFIGS = Path(__file__).resolve().parent / "configs"

# So that a kernel does not tell who built it, and where.
_NOBODY = ("KBUILD_BUILD_USER=lab", "KBUILD_BUILD_HOST=lab")


def missing_options(wanted: str, made: str) -> list[str]:
    """The lines of a configuration that did not make it into the kernel's: something they need."""
    have = set(made.splitlines())
    return [line for line in wanted.splitlines() if line.startswith("CONFIG_") and line not in have]


def build(source: Path, config: str, target: Path) -> None:
    """Build the kernel of a ``linux-source`` package, laid out in `target` like Debian's packages.

    :param config: The text of the configuration.
    :raises LabError: if the configuration asks for something that this source does not have.
    """
    scratch = target / "source"
    _make(unpack_source(source, scratch), config, target)
    shutil.rmtree(scratch)


def build_edited(source: Path, config: str, edits: Sequence[str], tree: Path, target: Path) -> None:
    """The same of an edited source; the tree with its objects stays, and the next build is short.

    :param edits: Names of sets of edits.
    :param tree: Where the source is, or shall be, unpacked.
    """
    kernel = next(tree.glob("linux-source-*"), None) if tree.is_dir() else None
    if kernel is None:
        partial = tree.with_name(tree.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        unpack_source(source, partial)
        partial.rename(tree)
        kernel = next(tree.glob("linux-source-*"))
    lay_out(kernel, tree / "originals", edits)
    _make(kernel, config, target)


def unpack_source(source: Path, target: Path) -> Path:
    """Unpack the source in a ``linux-source`` package; return its directory."""
    unpack(source, target)
    archives = list(target.glob("usr/src/linux-source-*.tar.xz"))
    if len(archives) != 1:
        raise LabError(f"{source.name} has {len(archives)} archives of a kernel's source")
    run(["tar", "-xf", str(archives[0]), "-C", str(target)])
    shutil.rmtree(target / "usr")
    return next(target.glob("linux-source-*"))


def lay_out(tree: Path, originals: Path, edits: Sequence[str]) -> None:
    """Make a tree what the edits say, and write only the files that are not so already.

    :param originals: Where files are kept as they were; one that was not there is empty.
    """
    known = {
        str(path.relative_to(originals)): path.read_text()
        for path in originals.rglob("*")
        if path.is_file()
    }

    def read(path: str) -> str | None:
        if path in known:
            return known[path] or None
        file = tree / path
        return file.read_text() if file.is_file() else None

    made = edited_files(read, edits)
    for path in made.keys() - known.keys():
        known[path] = read(path) or ""
        kept = originals / path
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(known[path])
    for path, before in known.items():
        now, file = made.get(path, before), tree / path
        if not now:
            file.unlink(missing_ok=True)
        elif not file.is_file() or file.read_text() != now:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(now)


def _make(tree: Path, config: str, target: Path) -> None:
    wanted = tree / "lab.config"
    wanted.write_text(config)
    make = ["nice", "-n", "10", "make", "-s", "-C", str(tree), *_NOBODY]
    run([*make, f"KCONFIG_ALLCONFIG={wanted}", "allnoconfig"])
    missing = missing_options(config, (tree / ".config").read_text())
    if missing:
        raise LabError(f"{tree.name} does not take {', '.join(missing)}")
    run([*make, f"-j{os.cpu_count() or 1}", "bzImage"])
    release = run([*make, "kernelrelease"]).strip()
    for file, name in (
        ("arch/x86/boot/bzImage", f"boot/vmlinuz-{release}"),
        (".config", f"boot/config-{release}"),
        ("vmlinux", f"boot/vmlinux-{release}"),
    ):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tree / file, target / name)
    (target / "lib" / "modules" / release).mkdir(parents=True)
