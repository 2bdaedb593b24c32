"""One guest: a QEMU that is started, waited for, dumped, and in any case ended."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from .errors import GuestError
from .machines import Machine
from .qmp import Qmp

__all__ = ("Guest", "qemu_version")

# States of the virtual machine out of which it does not come by itself.
_DEAD = ("internal-error", "guest-panicked", "shutdown", "io-error")


def qemu_version(machine: Machine) -> str:
    """The version number that QEMU gives itself."""
    result = subprocess.run(
        [machine.qemu, "--version"], capture_output=True, text=True, check=False
    )
    match = re.search(r"version (\S+)", result.stdout)
    return match.group(1) if match else "unknown"


def _word_port(machine: Machine, word: Path) -> list[str]:
    if machine.word_device is None:
        return ["-serial", f"file:{word}"]
    return [
        *("-chardev", f"file,id=word,path={word}"),
        *("-device", f"{machine.word_device},chardev=word"),
    ]


def _disk(path: Path | None) -> list[str]:
    if path is None:
        return []
    return [
        *("-drive", f"file={path},format=raw,if=none,id=disk"),
        *("-device", "virtio-blk-pci,drive=disk"),
    ]


class Guest:
    """A running guest, as a context manager: on leaving it QEMU is dead.

    ``console`` is where the kernel's messages go; the word comes through a file beside it.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        vmlinuz: Path,
        initramfs: bytes,
        append: str,
        console: Path,
        memory: int = 256,
        cpus: int = 2,
        accelerator: str = "tcg",
        disk: Path | None = None,
    ) -> None:
        self.console = console
        self.accelerator = accelerator
        self._scratch = Path(tempfile.mkdtemp(prefix="lab-"))
        self._word = self._scratch / "word"
        (self._scratch / "initramfs").write_bytes(initramfs)
        console.parent.mkdir(parents=True, exist_ok=True)
        console.write_bytes(b"")
        self._word.write_bytes(b"")
        socket = self._scratch / "qmp"
        self._arguments = [
            *(machine.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *machine.arguments,
            *("-accel", "tcg,thread=multi" if accelerator == "tcg" else accelerator),
            # TCG's default CPU lacks instructions that ordinary programs are compiled for.
            *("-cpu", machine.cpu if accelerator == "tcg" else "host"),
            *("-m", str(memory), "-smp", str(cpus)),
            # With the guest's qemu_fw_cfg module, this is what brings VMCOREINFO into the dump.
            *("-device", "vmcoreinfo"),
            *("-kernel", str(vmlinuz), "-initrd", str(self._scratch / "initramfs")),
            *("-append", append),
            *("-serial", f"file:{console}"),
            *_word_port(machine, self._word),
            *_disk(disk),
            *("-qmp", f"unix:{socket},server=on,wait=off"),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._qmp: Qmp | None = None

    def __enter__(self) -> Guest:
        errors = (self._scratch / "errors").open("wb")
        with errors:
            self._process = subprocess.Popen(
                self._arguments, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
            )
        try:
            self._qmp = Qmp(self._scratch / "qmp")
        except GuestError as error:
            failure = self._failure(str(error))
            self.__exit__(None, None, None)
            raise failure from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._qmp is not None:
            self._qmp.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)

    # The error to raise, with what QEMU and the guest's kernel said last.
    def _failure(self, sentence: str) -> GuestError:
        lines = [sentence]
        try:
            complaint = (self._scratch / "errors").read_text(errors="replace").strip()
        except OSError:
            complaint = ""
        if complaint:
            lines.append(f"QEMU said: {complaint[-500:]}")
        tail = self.console.read_text(errors="replace").splitlines()[-15:]
        lines.append(f"The guest's console ({self.console}) " + ("ends:" if tail else "is empty."))
        lines += [f"    {line}" for line in tail]
        word = self._word.read_bytes()[-400:].decode(errors="replace").splitlines()
        lines.append("The guest's word " + ("ends:" if word else "is empty."))
        lines += [f"    {line}" for line in word]
        return GuestError("\n".join(lines))

    def _ask(self, command: str, timeout: float = 10, **arguments: object) -> object:
        assert self._qmp is not None, "used outside of its 'with' block"
        try:
            return self._qmp.execute(command, timeout, **arguments)
        except GuestError as error:
            raise self._failure(str(error)) from None

    def wait(self, timeout: float) -> None:
        """Wait until the witness has said all it had to say."""
        assert self._process is not None, "used outside of its 'with' block"
        deadline = time.monotonic() + timeout
        while True:
            text = self.console.read_bytes()
            if b"LAB-FAILED" in text:
                line = text[text.index(b"LAB-FAILED") :].splitlines()[0]
                raise self._failure(f"The workload failed in the guest: {line.decode('latin-1')}")
            if b"LAB-DONE" in text:
                return
            if self._process.poll() is not None:
                code = self._process.returncode
                raise self._failure(
                    f"The guest ended by itself, by a panic perhaps (QEMU: status {code})."
                )
            status = self._ask("query-status")
            state = status.get("status") if isinstance(status, dict) else None
            if state in _DEAD:
                raise self._failure(f"The guest died ({state}).")
            if time.monotonic() > deadline:
                raise self._failure(f"The guest was not ready within {timeout:.0f} s.")
            time.sleep(0.2)

    def word(self) -> bytes:
        """What came through the second serial port so far."""
        return self._word.read_bytes()

    def stop(self) -> None:
        self._ask("stop")

    def resume(self) -> None:
        self._ask("cont")

    def dump(self, path: Path, timeout: float = 300) -> None:
        """Write the guest's memory to an ELF core."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.resolve().with_name(path.name + ".partial")
        partial.unlink(missing_ok=True)
        try:
            self._ask("dump-guest-memory", timeout, paging=False, protocol=f"file:{partial}")
            partial.chmod(0o644)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
