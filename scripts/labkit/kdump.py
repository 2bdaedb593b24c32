"""A real crash dump: the guest's kernel dies, and makedumpfile in a capture kernel saves it.

The guest boots with room for a second kernel (`crashkernel=`), the witness loads it, gives the
guest's word and makes the first one panic. The second one, the same image with an initramfs of its
own, filters and compresses the memory of the first and leaves the files on a disk, as a tar.
"""

from __future__ import annotations

import gzip
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import initramfs
from .busybox import find_busybox
from .capture import Lab
from .errors import LabError
from .guest import Guest
from .kernels import Kernel, fetch, kernel
from .makedumpfile import Filter, Makedumpfile, compression_of, fetch_makedumpfile
from .modules import find_modules
from .specs import Plan, word_options

__all__ = ("dump_names", "kdump")

_DISK = 2 << 30  # bytes, sparse


def dump_names(output: Path, parts: int) -> list[Path]:
    """The files of a dump: OUTPUT, or OUTPUT.1, OUTPUT.2 ... if it is split."""
    if parts == 1:
        return [output]
    return [output.with_name(f"{output.name}.{number}") for number in range(1, parts + 1)]


def kdump(lab: Lab, plan: Plan, how: Filter, output: Path, command: str) -> dict[str, Any]:
    """Crash a guest and save its dump to `output`; return the manifest."""
    wanted = kernel(plan.kernel)
    if wanted.architecture != "amd64":
        raise LabError("The lab has a capture kernel for amd64 only.")
    suites = wanted.makedumpfile if how.suites is None else how.suites
    tool = fetch_makedumpfile(suites, lab.cache)
    lab.say(f"{plan.name}: makedumpfile {tool.package.version}")
    # MiB for the capture kernel, which holds the dump in memory before it goes to the disk. As much
    # again for what is in the initramfs twice: unpacked, and loaded for the crash.
    reserved = max(256, plan.memory // 6)
    plan = replace(
        plan,
        memory=plan.memory + reserved + 256,
        append=f"crashkernel={reserved}M {plan.append}".strip(),
    )
    files = _capture_files(lab, wanted, tool, how)
    prepared = lab.prepare(plan, [*word_options(plan), "crash=1"], files)
    words: list[bytes] = []

    def work(guest: Guest) -> None:
        words.append(guest.word())

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix=".lab-", dir=output.parent) as disk:
        disk.truncate(_DISK)
        lab.run(prepared, work, Path(disk.name))
        written = _extract(Path(disk.name), dump_names(output, how.parts))
    with written[0].open("rb") as file:
        compressed = compression_of(file.read(4096))
    if compressed != how.compression:
        for path in written:
            path.unlink()
        raise LabError(
            f"makedumpfile {tool.package.version} is built without {how.compression}: "
            f"the compression of what it wrote is {compressed}."
        )
    lab.say(f"{plan.name}: {sum(path.stat().st_size for path in written) / 1e6:.0f} MB")
    made = lab.describe(prepared, command, words[-1])
    made["makedumpfile"] = {"version": tool.package.version, "command": how.command()}
    lab.write_map(prepared, made, output)
    return made


# What the witness loads: the kernel's own image again, the initramfs, the command line.
def _capture_files(lab: Lab, wanted: Kernel, tool: Makedumpfile, how: Filter) -> dict[str, bytes]:
    image = fetch(wanted, lab.cache)
    modules = find_modules(image.root, ("virtio_pci", "virtio_blk"))
    busybox = find_busybox(wanted, lab.cache)
    archive = initramfs.build_capture(busybox, modules, tool.files, how.command())
    return {
        "lab/crash/vmlinuz": image.vmlinuz.read_bytes(),
        "lab/crash/initramfs": gzip.compress(archive, 1, mtime=0),
        "lab/crash/append": b"console=ttyS0 panic=-1 nr_cpus=1 irqpoll reset_devices",
    }


def _extract(disk: Path, targets: list[Path]) -> list[Path]:
    with tarfile.open(disk) as archive:
        for number, target in enumerate(targets, start=1):
            member = archive.extractfile(f"part{number}")
            assert member is not None
            with member, target.open("wb") as file:
                while block := member.read(1 << 20):
                    file.write(block)
    return targets
