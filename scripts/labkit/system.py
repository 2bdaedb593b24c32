"""What the lab needs from the machine, checked before anything is begun."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from .errors import LabError
from .machines import Machine

__all__ = ("BUSYBOX", "Need", "for_build", "for_capture", "for_packages", "require")

BUSYBOX = Path("/bin/busybox")


class Need:
    """One thing that must be there, and the Debian package that brings it."""

    def __init__(self, what: str, package: str, *, file_pattern: str | None = None) -> None:
        self.what = what
        self.package = package
        self.file_pattern = file_pattern

    def met(self) -> bool:
        if self.file_pattern is not None:
            return any(Path("/").glob(self.file_pattern))
        return shutil.which(self.what) is not None


class _StaticBusybox(Need):
    # The dynamic busybox has the same name and place, and would not start in the guest.
    def met(self) -> bool:
        try:
            head = BUSYBOX.read_bytes()[:4096]
        except OSError:
            return False
        return b"ld-linux" not in head


def for_packages() -> list[Need]:
    """What fetching and unpacking packages takes."""
    return [Need("apt-get", "apt"), Need("dpkg-deb", "dpkg"), Need("tar", "tar")]


def for_build() -> list[Need]:
    """What building a kernel takes."""
    return [
        *for_packages(),
        *(Need(name, name) for name in ("gcc", "make", "flex", "bison", "bc")),
        Need("xz", "xz-utils"),
        Need("pahole", "dwarves"),
        Need("libelf.h", "libelf-dev", file_pattern="usr/include/libelf.h"),
    ]


def for_capture(machine: Machine) -> list[Need]:
    """What building and running a guest takes."""
    return [
        *for_packages(),
        Need(machine.qemu, machine.qemu_package),
        *([_StaticBusybox("busybox", "busybox-static")] if machine.architecture == "amd64" else []),
        Need(machine.compiler, machine.compiler_package),
        Need("libc.a", machine.libc_package, file_pattern=machine.libc_pattern),
    ]


def require(needs: Sequence[Need]) -> None:
    """Raise LabError with the one line that installs what is missing."""
    missing = [need for need in needs if not need.met()]
    if missing:
        names = ", ".join(need.what for need in missing)
        packages = " ".join(dict.fromkeys(need.package for need in missing))
        raise LabError(
            f"The lab needs {names} on this machine. To install:\n"
            f"    apt-get install --no-install-recommends {packages}"
        )
