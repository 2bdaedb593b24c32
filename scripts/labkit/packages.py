"""A program out of Debian's packages, with the libraries that it needs; nothing is installed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from .apt import Apt, Package, newest, run, unpack
from .cache import locked
from .errors import LabError
from .suites import other_suites

__all__ = ("fetch_program", "library_closure")

_LOADER = "ld-linux-x86-64.so.2"


def fetch_program(
    name: str, program: str, suites: Sequence[str], cache: Path
) -> tuple[Package, dict[str, Path]]:
    """A package's program, the libraries it needs, and theirs.

    :param program: Its path in the package.
    :param suites: Where to take it from; none for the machine's own.
    :return: The package; and for each path in a guest's file system the file.
    """
    apt = other_suites(cache, suites, "amd64") if suites else Apt()
    package = newest(apt.find(re.escape(name), "amd64"))
    if package is None:
        raise LabError(f"apt knows no {name}.")
    root = cache / name / f"{'-'.join(suites) or 'own'}_{package.version.split(':')[-1]}"
    with locked(cache, name):
        if not root.is_dir():
            _fetch(apt, package, root)
    return package, library_closure(root, program)


def _fetch(apt: Apt, package: Package, root: Path) -> None:
    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    wanted = [package, *apt.libraries(package.name, "amd64")]
    for one in wanted:
        deb = apt.download(one, root.parent)
        unpack(deb, partial)
        deb.unlink()
    partial.rename(root)


def library_closure(root: Path, program: str) -> dict[str, Path]:
    """A program, the libraries it needs, and theirs, as path in the guest and file."""
    # In a package the loader is a link, absolute in some suites; by its name it is found anyhow.
    available = {
        path.name: path
        for path in sorted(root.glob("**/*.so*"))
        if path.is_file() and "gconv" not in path.parts
    }
    files = {program: root / program}
    waiting = {_LOADER, *_needed(root / program)}
    done: set[str] = set()
    while waiting:
        library = waiting.pop()
        done.add(library)
        if library not in available:
            raise LabError(f"The packages that {program} depends on have no {library}.")
        waiting |= _needed(available[library]) - done
        files[f"{'lib64' if library == _LOADER else 'lib'}/{library}"] = available[library]
    return files


def _needed(path: Path) -> set[str]:
    text = run(["readelf", "-d", str(path)])
    return set(re.findall(r"\(NEEDED\)\s+Shared library: \[([^\]]+)\]", text))
