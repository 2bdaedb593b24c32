"""The kernels of the lab: Debian packages, the newest at run time, unpacked in a cache."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from .apt import Apt, Package, extract, newest, unpack
from .cache import locked
from .errors import LabError

__all__ = ("KERNELS", "Kernel", "KernelImage", "config_facts", "fetch", "fetch_debuginfo", "kernel")


@dataclass(frozen=True)
class Kernel:
    """A line of kernels, of which the newest package is taken.

    ``suite`` is None for the suites that the machine itself is set up with.
    """

    name: str
    pattern: str
    architecture: str = "amd64"
    suite: str | None = None
    #: Modules that the guest needs, in the order in which they are loaded.
    modules: tuple[str, ...] = ("qemu_fw_cfg",)

    def apt(self) -> Apt:
        if self.suite is not None:
            raise LabError(f"Kernel {self.name} is in another suite ({self.suite}): not yet here.")
        return Apt()


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel("6.1", r"linux-image-6\.1\.0-\d+-cloud-amd64"),
        Kernel("6.12", r"linux-image-6\.12\.\d+\+deb\d+-cloud-amd64"),
    )
}


@dataclass(frozen=True)
class KernelImage:
    """An unpacked kernel package."""

    package: Package
    release: str
    root: Path

    @property
    def vmlinuz(self) -> Path:
        return _one(self.root, "boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz")

    @property
    def config(self) -> Path:
        return _one(self.root, "boot/config-*", "usr/lib/modules/*/config")

    def module(self, name: str) -> Path:
        return _one(
            self.root,
            f"lib/modules/*/kernel/**/{name}.ko*",
            f"usr/lib/modules/*/kernel/**/{name}.ko*",
        )


def _one(root: Path, *patterns: str) -> Path:
    for pattern in patterns:
        found = sorted(root.glob(pattern))
        if found:
            return found[0]
    raise LabError(f"The unpacked kernel package in {root} has no {' nor '.join(patterns)}.")


def kernel(name: str) -> Kernel:
    """The kernel of this name, or a LabError that lists the names."""
    try:
        return KERNELS[name]
    except KeyError:
        raise LabError(f"No kernel is called {name!r}; there are {', '.join(KERNELS)}.") from None


def _resolve(wanted: Kernel, pattern: str) -> tuple[Apt, Package]:
    apt = wanted.apt()
    package = newest(apt.find(pattern, wanted.architecture))
    if package is None:
        raise LabError(
            f"apt knows no package that matches {pattern} ({wanted.architecture}). "
            "Run 'apt-get update'; if that does not help, this machine's suites do not have it."
        )
    return apt, package


def fetch(wanted: Kernel, cache: Path) -> KernelImage:
    """Download and unpack the newest package of a kernel, unless the cache has it."""
    apt, package = _resolve(wanted, wanted.pattern)
    root = cache / "kernels" / f"{package.name}_{package.version.replace(':', '_')}"
    with locked(cache, "kernels"):
        _fetch(apt, package, root)
    release = _one(root, "lib/modules/*", "usr/lib/modules/*").name
    return KernelImage(package, release, root)


def _fetch(apt: Apt, package: Package, root: Path) -> None:
    if not root.is_dir():
        root.parent.mkdir(parents=True, exist_ok=True)
        deb = apt.download(package, root.parent)
        partial = root.with_name(root.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        unpack(deb, partial)
        deb.unlink()
        partial.rename(root)


def fetch_debuginfo(wanted: Kernel, cache: Path) -> Path:
    """The vmlinux with DWARF of the same build as `fetch` gives; some 300 MB to download."""
    image = fetch(wanted, cache)
    target = cache / "debuginfo" / f"vmlinux-{image.release}-{image.package.version}"
    with locked(cache, "debuginfo"):
        if not target.is_file():
            apt, package = _resolve(wanted, re.escape(image.package.name + "-dbg"))
            if package.version != image.package.version:
                raise LabError(
                    f"{package.name} is {package.version}, the kernel {image.package.version}: "
                    "these suites do not have the debug symbols of this build."
                )
            _fetch_debuginfo(apt, package, target)
    return target


def _fetch_debuginfo(apt: Apt, package: Package, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    deb = apt.download(package, target.parent)
    partial = target.parent / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    extract(deb, partial, "*/vmlinux-*")
    deb.unlink()
    _one(partial, "usr/lib/debug/boot/vmlinux-*", "usr/lib/debug/**/vmlinux*").rename(target)
    shutil.rmtree(partial)


# What decides how the structures look or how the guest behaves, and so may explain a difference.
_FACTS = (
    "DEBUG_INFO_BTF",
    "DEBUG_VM",
    "DEBUG_VM_MAPLE_TREE",
    "INIT_ON_ALLOC_DEFAULT_ON",
    "INIT_ON_FREE_DEFAULT_ON",
    "KALLSYMS_ALL",
    "KASAN",
    "KFENCE",
    "KFENCE_SAMPLE_INTERVAL",
    "KSM",
    "MEMCG",
    "NR_CPUS",
    "NUMA",
    "PER_VMA_LOCK",
    "PGTABLE_LEVELS",
    "PREEMPT_DYNAMIC",
    "PREEMPT_RT",
    "RANDOMIZE_BASE",
    "RANDOMIZE_MEMORY",
    "RANDSTRUCT_FULL",
    "SLAB_FREELIST_HARDENED",
    "SLAB_FREELIST_RANDOM",
    "SLAB_MERGE_DEFAULT",
    "SLUB",
    "SLUB_CPU_PARTIAL",
    "SLUB_DEBUG",
    "SLUB_DEBUG_ON",
    "TRANSPARENT_HUGEPAGE",
    "USERFAULTFD",
)


def config_facts(text: str) -> dict[str, str]:
    """Of a kernel's configuration file, the options that matter here; "n" if not set."""
    values = dict(re.findall(r"^CONFIG_(\w+)=(.*)$", text, re.MULTILINE))
    return {f"CONFIG_{name}": values.get(name, "n") for name in _FACTS}
