"""makedumpfile: how it is called; and the program, with its libraries, out of Debian's packages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .apt import Package
from .errors import LabError
from .packages import fetch_program

__all__ = (
    "COMPRESSIONS",
    "Filter",
    "Makedumpfile",
    "compression_of",
    "fetch_makedumpfile",
)

#: makedumpfile's options for each way of compressing.
COMPRESSIONS = {"zlib": "-c", "lzo": "-l", "snappy": "-p", "zstd": "-z", "none": ""}

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
    return Makedumpfile(*fetch_program("makedumpfile", "usr/bin/makedumpfile", suites, cache))
