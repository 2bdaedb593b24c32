"""One word of a guest's memory read or changed from outside, through QEMU's gdb stub.

The guest stands still while somebody is attached, and runs on after. Addresses are physical: which
process runs, and what its page tables show, does not matter.
"""

from __future__ import annotations

import socket
from pathlib import Path

from .errors import GuestError

__all__ = ("Stub", "packet")


def packet(content: str) -> bytes:
    """A packet of the remote protocol: the content with its checksum, two hexadecimal digits."""
    return f"${content}#{sum(content.encode()) % 256:02x}".encode()


class Stub:
    """A client, as a context manager: the guest is stopped inside."""

    def __init__(self, path: Path, timeout: float = 20) -> None:
        self._path = path
        self._timeout = timeout
        self._buffer = b""

    def __enter__(self) -> Stub:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(self._timeout)
        try:
            self._socket.connect(str(self._path))
        except OSError as error:
            raise GuestError(f"QEMU's gdb stub does not listen: {error}") from None
        if self.ask("Qqemu.PhyMemMode:1") != "OK":
            raise GuestError("QEMU's gdb stub does not read physical memory.")
        return self

    def __exit__(self, *ignored: object) -> None:
        try:
            self.ask("Qqemu.PhyMemMode:0")
            self.ask("D")
        finally:
            self._socket.close()

    def ask(self, content: str) -> str:
        """Send a packet and return the answer to it."""
        try:
            self._socket.sendall(packet(content))
            # That the guest has stopped, it says unasked.
            while (answer := self._receive()).startswith("T"):
                pass
        except OSError as error:
            raise GuestError(f"QEMU's gdb stub does not answer: {error}") from None
        return answer

    def _receive(self) -> str:
        while True:
            start, end = self._buffer.find(b"$"), self._buffer.find(b"#")
            if 0 <= start < end and len(self._buffer) >= end + 3:
                break
            got = self._socket.recv(65536)
            if not got:
                raise GuestError("QEMU's gdb stub hung up.")
            self._buffer += got
        self._socket.sendall(b"+")
        answer = self._buffer[start + 1 : end].decode("latin-1")
        self._buffer = self._buffer[end + 3 :]
        return answer

    def read(self, address: int, size: int) -> int:
        """A little-endian number."""
        answer = self.ask(f"m{address:x},{size:x}")
        if len(answer) != 2 * size:
            raise GuestError(f"QEMU's gdb stub does not read {address:#x}: {answer}")
        return int.from_bytes(bytes.fromhex(answer), "little")

    def write(self, address: int, size: int, value: int) -> None:
        """Replace it."""
        data = value.to_bytes(size, "little").hex()
        if self.ask(f"M{address:x},{size:x}:{data}") != "OK":
            raise GuestError(f"QEMU's gdb stub does not write to {address:#x}.")
