"""A dump of a guest, step by step: kernel, programs, guest, word, dump, manifest."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import initramfs, manifest
from .busybox import find_busybox
from .console import complaints
from .errors import BootError, GuestError
from .figures import figures
from .guest import Guest, qemu_version
from .interpreter import package_archive, python_archive
from .kernels import Kernel, KernelImage, config_facts, fetch, fetch_system_map, kernel
from .machines import MACHINES, Machine
from .modules import find_modules
from .programs import compile_program
from .specs import Plan, word_options
from .stress import stress_archive
from .symbols import write_map
from .system import for_capture, require
from .word import parse_word

__all__ = ("Lab", "Prepared", "Say")

Say = Callable[[str], None]

# norandmaps: a seed gives the same addresses again, and so the same merges. Huge pages and their
# daemon off: nothing moves while the word is taken.
_APPEND = "panic=-1 norandmaps transparent_hugepage=never"


@dataclass(frozen=True)
class Prepared:
    """A plan with all that it takes to boot it."""

    plan: Plan
    machine: Machine
    image: KernelImage
    archive: bytes
    append: str


class Lab:
    """Where the lab keeps its things, how it runs guests, and to whom it reports progress."""

    def __init__(
        self, root: Path, say: Say, *, accelerator: str = "tcg", timeout: float = 180
    ) -> None:
        self.root = root
        self.cache = root / ".lab"
        self.fixtures = root / "fixtures"
        self.say = say
        self.accelerator = accelerator
        self.timeout = timeout

    def prepare(
        self,
        plan: Plan,
        options: list[str],
        files: Mapping[str, bytes] | None = None,
        chosen: tuple[Kernel, KernelImage] | None = None,
    ) -> Prepared:
        """Fetch the kernel, compile the programs, build the initramfs with further files in it.

        :param chosen: A kernel that is here already, and not the lab's perhaps.
        """
        wanted = chosen[0] if chosen else kernel(plan.kernel)
        machine = MACHINES[wanted.architecture]
        require(for_capture(machine))
        image = chosen[1] if chosen else fetch(wanted, self.cache)
        self.say(f"{plan.name}: {image.package.name} {image.package.version}")
        command = [*options, f"/lab/{plan.workload}", *plan.arguments()]
        modules = find_modules(image.root, (*wanted.modules, *plan.modules), image.release)
        with tempfile.TemporaryDirectory(prefix="lab-") as scratch:
            programs = {
                name: compile_program(name, Path(scratch) / name, machine.compiler)
                for name in (
                    ("storm", "many") if plan.shell else ("witness", plan.workload, *plan.programs)
                )
            }
            busybox = find_busybox(wanted, self.cache)
            if plan.shell:
                archive = initramfs.build_shell(busybox, programs, modules)
                archive += python_archive(self.cache) + package_archive(self.root)
                if plan.stress:
                    archive += stress_archive(self.cache)
            else:
                archive = initramfs.build(busybox, programs, modules, command, files)
        words = (f"console={machine.console}", _APPEND, wanted.append, plan.append)
        append = " ".join(filter(None, words))
        return Prepared(plan, machine, image, archive, append)

    def boot(self, prepared: Prepared, disk: Path | None = None) -> Guest:
        """A guest for a plan, not yet started."""
        return Guest(
            prepared.machine,
            vmlinuz=prepared.image.vmlinuz,
            initramfs=prepared.archive,
            append=prepared.append,
            console=self.cache / f"{prepared.plan.name}.console",
            memory=prepared.plan.memory,
            cpus=prepared.plan.cpus,
            accelerator=self.accelerator,
            disk=disk,
            doors=prepared.plan.shell,
            talk=prepared.plan.shell or bool(prepared.plan.parameters.get("talk")),
        )

    def run(
        self,
        prepared: Prepared,
        work: Callable[[Guest], None],
        disk: Path | None = None,
        until: str = "LAB-DONE",
        boots: int = 3,
    ) -> None:
        """Boot, wait until the guest is ready, and do the work; KVM that dies gives way to TCG.

        A kernel that dies before it runs anything is booted again, a few times: on a machine with
        much else to do, QEMU emulates badly what several processors do when they patch code.

        :param until: What the console says when the guest is ready, see :meth:`Guest.wait`.
        :param boots: How often at most.
        """
        begun = time.monotonic()
        try:
            with self.boot(prepared, disk) as guest:
                guest.wait(self.timeout, until)
                self.say(f"{prepared.plan.name}: ready after {time.monotonic() - begun:.1f} s")
                work(guest)
        except GuestError as error:
            first = str(error).splitlines()[0]
            if self.accelerator != "tcg":
                self.say(f"{prepared.plan.name}: not under {self.accelerator}: {first} Trying TCG.")
                self.accelerator = "tcg"
            elif isinstance(error, BootError) and boots > 1:
                self.say(f"{prepared.plan.name}: not booted: {first} Booting it again.")
                boots -= 1
            else:
                raise
            self.run(prepared, work, disk, until, boots)

    def describe(self, prepared: Prepared, command: str, word: bytes) -> dict[str, Any]:
        """The manifest of a guest."""
        plan, image = prepared.plan, prepared.image
        made = {
            "schema": manifest.SCHEMA,
            "name": plan.name,
            "command": command,
            "kernel": {
                "package": image.package.name,
                "version": image.package.version,
                "release": image.release,
                "architecture": image.package.architecture,
                "config": config_facts(image.config.read_text()),
            },
            "workload": plan.workload,
            "parameters": dict(plan.parameters),
            "seed": plan.seed,
            "guest": {
                "memory": plan.memory,
                "cpus": plan.cpus,
                "qemu": qemu_version(prepared.machine),
                "accelerator": self.accelerator,
                "append": prepared.append,
                "witness": word_options(plan),
            },
        }
        worked_out = figures(plan.workload, plan.parameters)
        if worked_out is not None:
            made["figures"] = worked_out
        return {**made, "word": manifest.describe_word(parse_word(word))}

    def dump(
        self, plan: Plan, core: Path, command: str, files: Mapping[str, bytes] | None = None
    ) -> dict[str, Any]:
        """Run a plan, with further files in the guest, and dump it; return its manifest."""
        prepared = self.prepare(plan, word_options(plan), files)
        words: list[bytes] = []

        def work(guest: Guest) -> None:
            guest.stop()
            words.append(guest.word())
            begun = time.monotonic()
            guest.dump(core)
            size = core.stat().st_size / 1e6
            self.say(f"{plan.name}: dumped {size:.0f} MB in {time.monotonic() - begun:.1f} s")

        self.run(prepared, work)
        made = self.describe(prepared, command, words[-1])
        console = self.cache / f"{plan.name}.console"
        made["complaints"] = complaints(console.read_text(errors="replace"))
        self.write_map(prepared, made, core)
        return made

    def write_map(self, prepared: Prepared, made: dict[str, Any], core: Path) -> None:
        """Write the kernel's symbols beside the dump, where the dump does not tell them."""
        path = core.with_suffix(".map")
        path.unlink(missing_ok=True)
        wanted = kernel(prepared.plan.kernel)
        if wanted.symbols == "guest" and prepared.plan.word:
            write_map(made["word"]["symbols"], path)
        elif wanted.symbols == "package":
            self.say(f"{prepared.plan.name}: System.map of {prepared.image.debug_package}")
            write_map(fetch_system_map(wanted, self.cache), path)
