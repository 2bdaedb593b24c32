"""makedumpfile: how it is called; and the program, with its libraries, out of Debian's packages."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .apt import Apt, Package, newest, run, unpack
from .cache import locked
from .errors import LabError
from .suites import other_suites

__all__ = (
    "COMPRESSIONS",
    "Filter",
    "Makedumpfile",
    "compression_of",
    "fetch_makedumpfile",
    "library_closure",
)

#: makedumpfile's options for each way of compressing.
COMPRESSIONS = {"zlib": "-c", "lzo": "-l", "snappy": "-p", "zstd": "-z", "none": ""}

_LOADER = "ld-linux-x86-64.so.2"


# The bits that say so in the status word of a dump's header (struct disk_dump_header).
_STATUS = {"zlib": 0x1, "lzo": 0x2, "snappy": 0x4, "zstd": 0x20}


@dataclass(frozen=True)
class Filter:
    """How makedumpfile makes a dump."""

    compression: str = "zlib"
    level: int = 31
    parts: int = 1
    #: Suites of the makedumpfile; None for those that are right for the kernel.
    suites: tuple[str, ...] | None = None

    def command(self) -> str:
        """The command of the capture kernel, in the directory of the dump."""
        parts = [f"part{number}" for number in range(1, self.parts + 1)]
        option = COMPRESSIONS[self.compression]
        split = ["--split"] if self.parts > 1 else []
        words = [option, "-d", str(self.level), *split, "/proc/vmcore", *parts]
        return " ".join(["makedumpfile", *filter(None, words)])


@dataclass(frozen=True)
class Makedumpfile:
    """An unpacked makedumpfile."""

    package: Package
    #: Path in the guest's file system, and the file.
    files: dict[str, Path]


def compression_of(header: bytes) -> str:
    """How a dump says it is compressed, by the beginning of its file."""
    if header[:8] != b"KDUMP   " or len(header) < 428:
        raise LabError("What makedumpfile wrote is no dump in its compressed format.")
    # Signature, version, the six names of uname(), padding, the time of the crash; then the status.
    status = int.from_bytes(header[424:428], "little")
    return next((name for name, bit in _STATUS.items() if status & bit), "none")


def fetch_makedumpfile(suites: Sequence[str], cache: Path) -> Makedumpfile:
    """The makedumpfile of these suites; of none, that of the machine's own."""
    apt = other_suites(cache, suites, "amd64") if suites else Apt()
    package = newest(apt.find("makedumpfile", "amd64"))
    if package is None:
        raise LabError("apt knows no makedumpfile.")
    root = cache / "makedumpfile" / f"{'-'.join(suites) or 'own'}_{package.version.split(':')[-1]}"
    with locked(cache, "makedumpfile"):
        if not root.is_dir():
            _fetch(apt, package, root)
    return Makedumpfile(package, library_closure(root, "usr/bin/makedumpfile"))


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
