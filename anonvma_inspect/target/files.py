"""The files that the user named."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.errors import TargetError

__all__ = ("TargetOptions", "map_file")


@dataclass(frozen=True)
class TargetOptions:
    """What the user named, as paths.

    :ivar core: The vmcore or snapshot.
    :ivar symbols: A vmlinux with debugging information.
    :ivar btf: A file of raw BTF, such as ``/sys/kernel/btf/vmlinux``.
    :ivar vmcoreinfo: The text of VMCOREINFO.
    :ivar system_map: Symbols in the form of ``/proc/kallsyms``.
    """

    core: str | None = None
    symbols: str | None = None
    btf: str | None = None
    vmcoreinfo: str | None = None
    system_map: str | None = None


def map_file(path: str) -> NDArray[np.uint8]:
    """Map a file into memory, or say what is wrong with it.

    :raises TargetError: if it is missing, unreadable, no regular file, or empty.
    """
    try:
        if Path(path).is_dir():
            raise TargetError(f"{path}: a directory, not a file")
        with open(path, "rb") as file:
            # Only regular files can be mapped; the length of a pipe or device is 0.
            size = file.seek(0, 2)
            if not size:
                raise TargetError(f"{path}: empty")
            return np.frombuffer(
                mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), dtype=np.uint8
            )
    except FileNotFoundError:
        raise TargetError(f"{path}: no such file") from None
    except PermissionError:
        raise TargetError(
            f"{path}: no permission to read it: as root, or after chmod a+r"
        ) from None
    except OSError as error:
        raise TargetError(f"{path}: cannot be read: {error.strerror or error}") from None
