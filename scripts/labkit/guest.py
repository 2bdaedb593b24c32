"""One guest: a QEMU that is started, waited for, dumped, and in any case ended."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from .errors import BootError, GuestError
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


# What comes out of the port goes to the file, or to the socket, if what that is told shall go in.
# (Not to both: a socket that is slow makes QEMU write twice to a log file.)
def _word_port(machine: Machine, word: Path, socket: Path | None) -> list[str]:
    device = ("-serial", "chardev:word")
    if machine.word_device is not None:
        device = ("-device", f"{machine.word_device},chardev=word")
    if socket is None:
        return ["-chardev", f"file,id=word,path={word}", *device]
    return ["-chardev", f"socket,id=word,path={socket},server=on,wait=off", *device]


def _disk(path: Path | None) -> list[str]:
    if path is None:
        return []
    return [
        *("-drive", f"file={path},format=raw,if=none,id=disk"),
        *("-device", "virtio-blk-pci,drive=disk"),
    ]


class Guest:
    """A running guest, as a context manager: on leaving it QEMU is dead.

    ``console`` is where the kernel's messages go; the word comes through a file beside it. With
    ``talk`` the guest can be told to go on. With ``doors``, others can look at it: ``second_qmp``
    and ``gdb`` are the sockets of a QMP server and of the gdb stub.
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
        talk: bool = False,
        doors: bool = False,
    ) -> None:
        self.console = console
        self.accelerator = accelerator
        self._scratch = Path(tempfile.mkdtemp(prefix="lab-"))
        self.second_qmp, self.gdb = self._scratch / "second-qmp", self._scratch / "gdb"
        self._word = self._scratch / "word"
        (self._scratch / "initramfs").write_bytes(initramfs)
        console.parent.mkdir(parents=True, exist_ok=True)
        console.write_bytes(b"")
        self._word.write_bytes(b"")
        control = self._scratch / "qmp"
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
            *_word_port(machine, self._word, self._scratch / "port" if talk else None),
            *_disk(disk),
            *("-qmp", f"unix:{control},server=on,wait=off"),
        ]
        if doors:
            for option, path in (("-qmp", self.second_qmp), ("-gdb", self.gdb)):
                self._arguments += [option, f"unix:{path},server=on,wait=off"]
        self._talk = talk
        self._process: subprocess.Popen[bytes] | None = None
        self._qmp: Qmp | None = None
        self._port: socket.socket | None = None

    def __enter__(self) -> Guest:
        errors = (self._scratch / "errors").open("wb")
        with errors:
            self._process = subprocess.Popen(
                self._arguments, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
            )
        try:
            self._qmp = Qmp(self._scratch / "qmp")
            if self._talk:
                self._connect()
        except GuestError as error:
            failure = self.failure(str(error))
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
        if self._port is not None:
            self._port.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def failure(self, sentence: str) -> GuestError:
        """The error to raise, with what QEMU and the guest's kernel said last."""
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
        kind = GuestError if self._booted() else BootError
        return kind("\n".join(lines))

    # kernel_init() in init/main.c, v5.10 to v7.3, says what it runs.
    def _booted(self) -> bool:
        return b" as init process" in self.console.read_bytes()

    def _ask(self, command: str, timeout: float = 10, **arguments: object) -> object:
        assert self._qmp is not None, "used outside of its 'with' block"
        try:
            return self._qmp.execute(command, timeout, **arguments)
        except GuestError as error:
            raise self.failure(str(error)) from None

    def wait(self, timeout: float, until: str = "LAB-DONE", start: int = 0) -> int:
        """Wait until the witness has said all it had to say, or the console says something else.

        :param until: A regular expression for a word of the line that is waited for.
        :param start: Where in the console's text to begin.
        :return: Where in the console's text that line ends.
        """
        deadline = time.monotonic() + timeout
        wanted = re.compile(rf"\b(LAB-FAILED|{until})\b[^\n]*\n".encode())
        while True:
            with self.console.open("rb") as file:
                file.seek(start)
                match = wanted.search(file.read())
            if match and match.group(1) == b"LAB-FAILED":
                line = match.group().decode("latin-1").strip()
                raise self.failure(f"The workload failed in the guest: {line}")
            if match:
                return start + match.end()
            self.check()
            if time.monotonic() > deadline:
                raise self.failure(f"The guest was not ready within {timeout:.0f} s.")
            time.sleep(0.02 if start else 0.2)

    # Before the guest writes to the port: what nobody listens to is lost.
    def _connect(self) -> None:
        self._port = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._port.connect(str(self._scratch / "port"))
        except OSError as error:
            raise GuestError(f"QEMU does not open the second serial port: {error}") from None
        self._port.setblocking(False)

    # What came through the port since, into the file.
    def _listen(self) -> None:
        if self._port is None:
            return
        with contextlib.suppress(BlockingIOError), self._word.open("ab") as file:
            while data := self._port.recv(65536):
                file.write(data)

    def go_on(self) -> None:
        """Tell the workload, through the second serial port, to go on."""
        self.tell(b"\n")

    def tell(self, what: bytes) -> None:
        """Write to the guest's second serial port."""
        assert self._port is not None, "this guest does not talk"
        try:
            self._port.sendall(what)
            self._listen()
        except OSError as error:
            raise self.failure(f"The guest's second serial port does not listen: {error}") from None

    def word(self, start: int = 0) -> bytes:
        """What came through the second serial port so far, from byte `start` on."""
        self._listen()
        with self._word.open("rb") as file:
            file.seek(start)
            return file.read()

    def check(self) -> None:
        """Raise a GuestError if the guest is dead."""
        assert self._process is not None, "used outside of its 'with' block"
        if self._process.poll() is not None:
            code = self._process.returncode
            raise self.failure(
                f"The guest ended by itself, by a panic perhaps (QEMU: status {code})."
            )
        status = self._ask("query-status")
        state = status.get("status") if isinstance(status, dict) else None
        if state in _DEAD:
            raise self.failure(f"The guest died ({state}).")

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
