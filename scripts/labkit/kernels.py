"""The kernels of the lab: Debian packages, the newest at run time, unpacked in a cache."""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from .apt import Apt, Package, extract, newest, unpack
from .build import CONFIGS, build, build_edited
from .cache import locked
from .edits import set_digest
from .errors import LabError
from .suites import other_suites
from .symbols import pick
from .system import for_build, require

__all__ = (
    "KERNELS",
    "Kernel",
    "KernelImage",
    "config_facts",
    "fetch",
    "fetch_debuginfo",
    "fetch_system_map",
    "kernel",
)


@dataclass(frozen=True)
class Kernel:
    """A line of kernels, of which the newest package is taken."""

    name: str
    #: The whole name of the package that holds the kernel's image, or its source.
    pattern: str
    architecture: str = "amd64"
    #: Debian suites; none for those that the machine itself is set up with.
    suites: tuple[str, ...] = ()
    #: Where the kernel's symbols are: ``dump`` for the dump itself; ``guest`` for the guest's own
    #: ``/proc/kallsyms``, where VMCOREINFO does not tell (before 6.0); ``package`` for the
    #: System.map of the package with the debug symbols, where kallsyms has no data symbols.
    symbols: str = "dump"
    #: Suites whose makedumpfile is right for this kernel; none for the machine's own. Debian 12's
    #: 1.7.2 takes slabs for user pages from 6.2 on.
    makedumpfile: tuple[str, ...] = ()
    #: Modules that the guest needs; what they need themselves is found out.
    modules: tuple[str, ...] = ("qemu_fw_cfg",)
    #: For a kernel that is built here, its configuration: a file in ``configs``.
    config: str | None = None
    #: Further lines for that: build switches.
    options: tuple[str, ...] = ()
    #: Sets of edits to its source, in ``kernel-edits``; each is made to what those before it made.
    edits: tuple[str, ...] = ()
    #: For an edited one, the tree it is built in, and with it the objects: its own name, or that of
    #: another from which it differs little.
    tree: str | None = None
    #: Words for its command line.
    append: str = ""

    def apt(self, cache: Path) -> Apt:
        """apt, so set up that it knows this kernel."""
        return other_suites(cache, self.suites, self.architecture) if self.suites else Apt()


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel(
            "5.10",
            r"linux-image-5\.10\.0-\d+-cloud-amd64",
            suites=("bullseye",),
            symbols="guest",
        ),
        Kernel("6.1", r"linux-image-6\.1\.0-\d+-cloud-amd64"),
        Kernel(
            "6.12",
            r"linux-image-6\.12\.\d+\+deb\d+-cloud-amd64",
            makedumpfile=("sid",),
        ),
        Kernel(
            "6.12-rt",
            r"linux-image-6\.12\.\d+\+deb\d+-rt-amd64",
            makedumpfile=("sid",),
        ),
        # Without KALLSYMS_ALL, as Debian's arm64 kernels were then; the next has it.
        Kernel(
            "6.1-arm64",
            r"linux-image-6\.1\.0-\d+-cloud-arm64",
            architecture="arm64",
            suites=("bookworm",),
            symbols="package",
        ),
        Kernel(
            "6.12-arm64",
            r"linux-image-6\.12\.\d+\+deb\d+-cloud-arm64",
            architecture="arm64",
            suites=("trixie",),
        ),
        # From 7.0 on the package of the image is signed apart, and its parts are packages.
        Kernel(
            "7.2",
            r"linux-binary-7\.2\.\d+\+deb\d+-cloud-amd64",
            suites=("trixie-backports", "sid"),
            makedumpfile=("sid",),
        ),
        Kernel(
            "7.3",
            r"linux-binary-7\.3\.\d+\+deb\d+-cloud-amd64",
            suites=("trixie-backports", "sid"),
            makedumpfile=("sid",),
        ),
        Kernel(
            "6.12-faults",
            r"linux-source-6\.12",
            modules=(),
            config="faults",
            append="qemu_fw_cfg.ioport=12@0x510",
        ),
        *(
            Kernel(
                f"7.3-{name}",
                r"linux-source-7\.3",
                suites=("trixie-backports", "sid"),
                makedumpfile=("sid",),
                modules=(),
                config="anon-vma",
                options=options,
                edits=edits,
                tree=f"7.3-{tree}",
                append="qemu_fw_cfg.ioport=12@0x510",
            )
            for name, tree, edits, options in (
                # As Debian has it, for comparison; and with a bug of ours.
                ("plain", "plain", (), ()),
                ("forgetful", "plain", ("forgetful",), ()),
                ("unfaulted", "unfaulted", ("word", "unfaulted"), ()),
                ("lazy", "lazy", ("word", "lazy"), ()),
                (
                    *("lazy-posted", "lazy", ("word", "lazy")),
                    ("CONFIG_ANON_VMA_LAZY_AS_POSTED=y",),
                ),
            )
        ),
    )
}


@dataclass(frozen=True)
class KernelImage:
    """An unpacked kernel package."""

    package: Package
    release: str
    root: Path
    #: The image, where it is not where packages have it.
    image: Path | None = None

    @property
    def debug_package(self) -> str:
        """Name of the package with the debug symbols."""
        return f"linux-image-{self.release}-dbg"

    @property
    def vmlinuz(self) -> Path:
        return self.image or _one(self.root, "boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz")

    @property
    def config(self) -> Path:
        return _one(self.root, "boot/config-*", "usr/lib/modules/*/config")


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


def _resolve(wanted: Kernel, pattern: str, cache: Path) -> tuple[Apt, Package]:
    apt = wanted.apt(cache)
    package = newest(apt.find(pattern, wanted.architecture))
    if package is None:
        advice = (
            f"The suites looked through are {', '.join(wanted.suites)}."
            if wanted.suites
            else "Run 'apt-get update'; if that does not help, this machine's suites lack it."
        )
        raise LabError(
            f"apt knows no package that matches {pattern} ({wanted.architecture}). {advice}"
        )
    return apt, package


def fetch(wanted: Kernel, cache: Path) -> KernelImage:
    """Download and unpack the newest package of a kernel, unless the cache has it.

    One that is built here takes some ten minutes and 3 GB, once; an edited one keeps them, and
    takes a minute or two when its edits change.
    """
    apt, package = _resolve(wanted, wanted.pattern, cache)
    root = cache / "kernels" / f"{package.name}_{package.version.replace(':', '_')}"
    if wanted.config is not None:
        return _build(wanted, apt, package, root)
    with locked(cache, "kernels"):
        _fetch(apt, package, root)
    release = _one(root, "lib/modules/*", "usr/lib/modules/*").name
    return KernelImage(package, release, root)


# What linux-image was until 6.18 or so, newer kernels have in three packages.
def _parts(package: Package) -> list[Package]:
    if not package.name.startswith("linux-binary-"):
        return [package]
    rest = package.name.removeprefix("linux-binary-")
    return [replace(package, name=f"linux-{part}-{rest}") for part in ("binary", "base", "modules")]


def _fetch(apt: Apt, package: Package, root: Path) -> None:
    if not root.is_dir():
        root.parent.mkdir(parents=True, exist_ok=True)
        partial = root.with_name(root.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        for part in _parts(package):
            deb = apt.download(part, root.parent)
            unpack(deb, partial)
            deb.unlink()
        partial.rename(root)


# A configuration that does not name its kernel is shared by several.
def _config(wanted: Kernel) -> str:
    assert wanted.config is not None
    text = "".join([(CONFIGS / wanted.config).read_text(), *(f"{one}\n" for one in wanted.options)])
    if "CONFIG_LOCALVERSION=" not in text:
        text += f'CONFIG_LOCALVERSION="-{wanted.name.partition("-")[2]}"\n'
    return text


def _build(wanted: Kernel, apt: Apt, package: Package, source: Path) -> KernelImage:
    config = _config(wanted)
    made_of = config.encode() + (set_digest(wanted.edits) if wanted.edits else b"")
    suffix = f"{wanted.name.partition('-')[2]}-{hashlib.sha256(made_of).hexdigest()[:8]}"
    root = source.with_name(f"{source.name}_{suffix}")
    cache = source.parent.parent
    with locked(cache, f"build-{wanted.tree or wanted.config}"):
        if not root.is_dir():
            require(for_build())
            partial = root.with_name(root.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            deb = apt.download(package, partial)
            if wanted.tree is None:
                build(deb, config, partial)
            else:
                tree = cache / "trees" / f"{wanted.tree}_{package.version.replace(':', '_')}"
                tree.parent.mkdir(parents=True, exist_ok=True)
                build_edited(deb, config, wanted.edits, tree, partial)
            deb.unlink()
            partial.rename(root)
    release = _one(root, "lib/modules/*").name
    return KernelImage(replace(package, architecture=wanted.architecture), release, root)


def fetch_system_map(wanted: Kernel, cache: Path) -> list[str]:
    """The symbols that the lab wants, out of the System.map of the same build; some 300 MB."""
    image = fetch(wanted, cache)
    target = cache / "debuginfo" / f"System.map-{image.release}-{image.package.version}"
    with locked(cache, "debuginfo"):
        if not target.is_file():
            _fetch_debug_file(wanted, image, cache, "System.map", target)
    return pick(target.read_text().splitlines())


def fetch_debuginfo(wanted: Kernel, cache: Path) -> Path:
    """The vmlinux with DWARF of the same build as `fetch` gives; some 300 MB to download."""
    image = fetch(wanted, cache)
    if wanted.config is not None:
        return _one(image.root, "boot/vmlinux-*")
    target = cache / "debuginfo" / f"vmlinux-{image.release}-{image.package.version}"
    with locked(cache, "debuginfo"):
        if not target.is_file():
            _fetch_debug_file(wanted, image, cache, "vmlinux", target)
    return target


def _fetch_debug_file(
    wanted: Kernel, image: KernelImage, cache: Path, name: str, target: Path
) -> None:
    apt, package = _resolve(wanted, re.escape(image.debug_package), cache)
    if package.version != image.package.version:
        raise LabError(
            f"{package.name} is {package.version}, the kernel {image.package.version}: "
            "these suites do not have the debug symbols of this build."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    deb = apt.download(package, target.parent)
    partial = target.parent / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    extract(deb, partial, f"*/{name}*")
    deb.unlink()
    _one(partial, f"usr/lib/debug/boot/{name}-*", f"usr/lib/debug/**/{name}*").rename(target)
    shutil.rmtree(partial)


# What decides how the structures look or how the guest behaves, and so may explain a difference.
_FACTS = (
    "DEBUG_INFO_BTF",
    "DEBUG_VM",
    "DEBUG_VM_MAPLE_TREE",
    "DEBUG_VM_RB",
    "FAULT_INJECTION",
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
    "SPARSEMEM_VMEMMAP",
    "TRANSPARENT_HUGEPAGE",
    "USERFAULTFD",
)


def config_facts(text: str) -> dict[str, str]:
    """Of a kernel's configuration file, the options that matter here; "n" if not set."""
    values = dict(re.findall(r"^CONFIG_(\w+)=(.*)$", text, re.MULTILINE))
    return {f"CONFIG_{name}": values.get(name, "n") for name in _FACTS}
