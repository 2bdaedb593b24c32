"""Kernels built here, from Debian's source and a configuration of our own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .apt import run, unpack
from .errors import LabError

__all__ = ("CONFIGS", "build", "missing_options")

#: The configurations; each names what is on, and the rest is off (``allnoconfig``).
CONFIGS = Path(__file__).resolve().parent / "configs"

# So that a kernel does not tell who built it, and where.
_NOBODY = ("KBUILD_BUILD_USER=lab", "KBUILD_BUILD_HOST=lab")


def missing_options(wanted: str, made: str) -> list[str]:
    """The lines of a configuration that did not make it into the kernel's: something they need."""
    have = set(made.splitlines())
    return [line for line in wanted.splitlines() if line.startswith("CONFIG_") and line not in have]


def build(source: Path, config: Path, target: Path) -> None:
    """Build the kernel of a ``linux-source`` package, laid out in `target` like Debian's packages.

    :raises LabError: if the configuration asks for something that this source does not have.
    """
    scratch = target / "source"
    unpack(source, scratch)
    archives = list(scratch.glob("usr/src/linux-source-*.tar.xz"))
    if len(archives) != 1:
        raise LabError(f"{source.name} has {len(archives)} archives of a kernel's source")
    run(["tar", "-xf", str(archives[0]), "-C", str(scratch)])
    tree = next(scratch.glob("linux-source-*"))
    make = ["nice", "-n", "10", "make", "-s", "-C", str(tree), *_NOBODY]
    run([*make, f"KCONFIG_ALLCONFIG={config}", "allnoconfig"])
    missing = missing_options(config.read_text(), (tree / ".config").read_text())
    if missing:
        raise LabError(f"{source.name} does not take {', '.join(missing)}")
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
    shutil.rmtree(scratch)
