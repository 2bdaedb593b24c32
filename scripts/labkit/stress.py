"""stress-ng in a guest: a load that nobody here wrote."""

from __future__ import annotations

from pathlib import Path

from .initramfs import Archive
from .packages import fetch_program

__all__ = ("STRESS", "stress_archive")

_FOLDER = "lab/stress"

#: What it does, for ever, as a line of shell.
STRESS = (
    f"LD_LIBRARY_PATH=/{_FOLDER} /{_FOLDER}/stress-ng --quiet --temp-path /tmp --timeout 0 "
    "--fork 1 --exec 1 --vfork 1 --clone 1 --mremap 1 --mremap-bytes 2m --mprotect 1 --madvise 1 "
    "--munmap 1 --vm-splice 1 --stack 1 --brk 1"
)


def stress_archive(cache: Path) -> bytes:
    """The archive of stress-ng and its libraries."""
    _, files = fetch_program("stress-ng", "usr/bin/stress-ng", (), cache)
    archive = Archive()
    archive.directory(_FOLDER)
    for name, path in sorted(files.items()):
        # Beside those of the interpreter, which may be others.
        archive.file(f"{_FOLDER}/{Path(name).name}", path.read_bytes(), 0o755)
    return archive.finish()
