"""A kernel that somebody else built: its image, and what can be found beside it."""

from __future__ import annotations

import struct
from pathlib import Path

from .apt import Package
from .errors import LabError
from .kernels import KERNELS, Kernel, KernelImage, fetch
from .modules import has_module, modules_root

__all__ = ("any_kernel", "image_release")

# Without ACPI, a kernel must be told where QEMU's configuration device is.
_APPEND = "qemu_fw_cfg.ioport=12@0x510"


def image_release(data: bytes) -> str:
    """The release of a bzImage (``Documentation/arch/x86/boot.rst``: kernel_version).

    :raises LabError: if it is none.
    """
    if data[0x202:0x206] == b"HdrS":
        start = struct.unpack_from("<H", data, 0x20E)[0] + 0x200
        version = data[start : start + 256].partition(b"\0")[0].split()
        if version:
            return version[0].decode(errors="replace")
    raise LabError("it is no kernel image for x86 (bzImage)")


def any_kernel(name: str, cache: Path) -> tuple[Kernel, KernelImage]:
    """A kernel of the lab by its name, or one by the path of its image.

    The modules that a guest takes are looked for as packages lay them out, and as they are
    installed; in a tree in which a kernel was built there are none, and what the guest takes must
    be built in.
    """
    if name in KERNELS:
        return KERNELS[name], fetch(KERNELS[name], cache)
    path = Path(name)
    try:
        release = image_release(path.read_bytes())
    except OSError as error:
        raise LabError(
            f"{name}: {error.strerror}; kernels by name are {', '.join(KERNELS)}."
        ) from None
    except LabError as error:
        raise LabError(f"{name}: {error}") from None
    path = path.resolve()
    root = modules_root(path, release)
    modules = ("qemu_fw_cfg",) if root and has_module(root, release, "qemu_fw_cfg") else ()
    kernel = Kernel(release, pattern="", modules=modules, append="" if modules else _APPEND)
    package = Package(path.name, release, kernel.architecture)
    return kernel, KernelImage(package, release, root or path.parent, path)
