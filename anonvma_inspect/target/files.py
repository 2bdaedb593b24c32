"""The files that the user named."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.errors import TargetError

__all__ = ("TargetOptions", "map_file")

# More than any kernel's types or symbols take.
_MAX_READ = 1 << 28


@dataclass(frozen=True)
class TargetOptions:
    """What the user named: one target, and the files that describe it, as paths.

    :ivar core: The vmcore or snapshot.
    :ivar qemu: Address of a QMP socket: a path, or ``host:port``.
    :ivar gdb: Address of a gdb remote stub, likewise.
    :ivar symbols: A vmlinux with debugging information.
    :ivar btf: A file of raw BTF, such as ``/sys/kernel/btf/vmlinux``.
    :ivar vmcoreinfo: The text of VMCOREINFO.
    :ivar system_map: Symbols in the form of ``/proc/kallsyms``.
    """

    core: str | None = None
    qemu: str | None = None
    gdb: str | None = None
    symbols: str | None = None
    btf: str | None = None
    vmcoreinfo: str | None = None
    system_map: str | None = None


def map_file(path: str) -> NDArray[np.uint8]:
    """Map a file into memory, or say what is wrong with it.

    :raises TargetError: if it is missing, unreadable, a directory, pipe or device, or empty.
    """
    try:
        status = os.stat(path)
        mode = status.st_mode
        if stat.S_ISDIR(mode):
            raise TargetError(f"{path}: a directory, not a file")
        # A dump can lie on a block device. Opening a pipe would wait for a writer.
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise TargetError(
                f"{path}: a pipe or a device, not a file: save what it gives in a file first"
            )
        with open(path, "rb") as file:
            size = file.seek(0, 2) if stat.S_ISBLK(mode) else status.st_size
            if size:
                with contextlib.suppress(OSError):
                    mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
                    return np.frombuffer(mapped, dtype=np.uint8)
            # The kernel's own files (/proc/kallsyms, /sys/kernel/btf/vmlinux) have no size, or
            # cannot be mapped (the latter before v6.16).
            file.seek(0)
            data = file.read(_MAX_READ + 1)
            if not data:
                raise TargetError(f"{path}: empty")
            if len(data) > _MAX_READ:
                raise TargetError(f"{path}: cannot be mapped, and is too large to be read")
            return np.frombuffer(data, dtype=np.uint8)
    except FileNotFoundError:
        raise TargetError(f"{path}: no such file") from None
    except PermissionError:
        raise TargetError(
            f"{path}: no permission to read it: as root, or after chmod a+r"
        ) from None
    except OSError as error:
        raise TargetError(f"{path}: cannot be read: {error.strerror or error}") from None
