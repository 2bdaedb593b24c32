"""A real oops: a word of a running guest is changed, and the kernel comes upon it."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from anonvma_inspect.collect import save_snapshot
from anonvma_inspect.tables import NO_ROW
from anonvma_inspect.target import TargetOptions, open_target

from . import manifest
from .aim import Change, Scene, open_scene
from .capture import Lab
from .errors import GuestError
from .gdbstub import Stub
from .guest import Guest
from .live import start_program
from .shell import Shell
from .specs import Plan

__all__ = ("oops", "text_of_oops")

SCHEMA = "anonvma-inspect/oops/1"
# Not a bit that a pointer of the same kind could have otherwise.
_FLIP = 1 << 44
# From the first line of an oops to the last.
_OOPS = re.compile(r"^[^\n]*(?:BUG:|Oops:|Unable to handle).*?---\[ end trace[^\n]*$", re.S | re.M)
_BEFORE = re.compile(r"^\[ *[0-9.]+\] ?(?:\[ *[TC][0-9]+\] ?)?", re.M)


def text_of_oops(console: str) -> list[str]:
    """The lines of the first oops on a console, without their times.

    :raises GuestError: if there is none.
    """
    found = _OOPS.search(console)
    if found is None:
        raise GuestError("There is no oops on the console.")
    lines = _BEFORE.sub("", found.group().replace("\r", "")).splitlines()
    return [line.rstrip() for line in lines]


def oops(lab: Lab, plan: Plan, output: Path, command: str) -> None:
    """Have the kernel of a guest come upon a wrong pointer, and keep what it says and a snapshot.

    A child of many shares pages with its parent. In one AVC of its largest mapping, that to the
    family's root, one bit of ``anon_vma`` is changed; then it is killed, and unlinks its mappings.

    :param plan: A guest with a shell.
    :param output: The snapshot to write; the manifest goes beside it.
    """
    kept: dict[str, Any] = {}

    def work(guest: Guest) -> None:
        shell = Shell(guest)
        start_program(shell, "many", ["children=4", "pages=8", f"seed={plan.seed}"])
        with tempfile.TemporaryDirectory(prefix="lab-oops-", dir=lab.cache) as scratch:
            core = Path(scratch) / "guest.core"
            _dump(guest, core)
            guest.resume()
            scene = open_scene(core)
            pid, change = _victim(scene)
            with Stub(guest.gdb) as stub:
                if stub.read(scene.physical(change), change.size) != change.old:
                    raise guest.failure(f"{change}: another word is there")
                stub.write(scene.physical(change), change.size, change.new)
            begun = guest.console.stat().st_size
            shell.run(f"kill -9 {pid}")
            guest.wait(60, "end trace", begun)
            _dump(guest, core)
            lines = text_of_oops(guest.console.read_bytes()[begun:].decode(errors="replace"))
            target = open_target(TargetOptions(core=str(core)))
            save_snapshot(target, str(output), force=True)
        kept.update(
            schema=SCHEMA,
            name=plan.name,
            command=command,
            release=target.release,
            killed=pid,
            changed={
                "field": change.what,
                "object": f"{change.object:#x}",
                "address": f"{change.address:#x}",
                "old": f"{change.old:#x}",
                "new": f"{change.new:#x}",
            },
            oops=lines,
        )

    lab.run(lab.prepare(plan, []), work)
    manifest.write(kept, Path(str(output).removesuffix(".core.xz") + ".json"))


def _dump(guest: Guest, core: Path) -> None:
    guest.stop()
    guest.dump(core)


# The last child, and the AVC that ties its largest shared mapping to the root.
def _victim(scene: Scene) -> tuple[int, Change]:
    tables = scene.tables
    vmas, avcs = tables.vmas, tables.avcs
    child = int(np.flatnonzero(tables.tasks.comm == b"many-child")[-1])
    shared = (vmas.mm == tables.tasks.mm[child]) & (vmas.chain_length == 2)
    size = np.where(shared, vmas.vm_end - vmas.vm_start, np.uint64(0))
    vma = int(np.argmax(size))
    root = avcs.anon_vma_row
    is_root = (root != NO_ROW) & (tables.anon_vmas.root_row[root] == root)
    avc = int(np.flatnonzero((avcs.vma_row == vma) & is_root)[0])
    old = int(avcs.anon_vma[avc])
    at = int(avcs.address[avc])
    return int(tables.tasks.tgid[child]), Change(
        family="shared",
        what="anon_vma_chain.anon_vma",
        object=at,
        address=at + tables.era.avc.offset("anon_vma"),
        size=8,
        old=old,
        new=old ^ _FLIP,
        related=frozenset((at, old)),
    )
