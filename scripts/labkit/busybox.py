"""The static busybox that goes into a guest: this machine's, or that of another architecture."""

from __future__ import annotations

import shutil
from pathlib import Path

from .apt import extract, newest
from .cache import locked
from .errors import LabError
from .kernels import Kernel
from .system import BUSYBOX

__all__ = ("find_busybox",)


def find_busybox(wanted: Kernel, cache: Path) -> Path:
    """A static busybox for the kernel's architecture, of the same suites if it is a foreign one."""
    if wanted.architecture == "amd64":
        return BUSYBOX
    target = cache / "busybox" / f"busybox-{'-'.join(wanted.suites)}-{wanted.architecture}"
    with locked(cache, "busybox"):
        if not target.is_file():
            _fetch(wanted, cache, target)
    return target


def _fetch(wanted: Kernel, cache: Path, target: Path) -> None:
    apt = wanted.apt(cache)
    package = newest(apt.find("busybox-static", wanted.architecture))
    if package is None:
        raise LabError(f"apt knows no busybox-static for {wanted.architecture}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    deb = apt.download(package, target.parent)
    scratch = target.with_name("partial")
    shutil.rmtree(scratch, ignore_errors=True)
    extract(deb, scratch, "*/bin/busybox")
    deb.unlink()
    next(scratch.glob("**/bin/busybox")).rename(target)
    shutil.rmtree(scratch)
