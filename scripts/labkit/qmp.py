"""QEMU's machine protocol: one JSON object a line over a socket, with time-outs everywhere."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from .errors import GuestError

__all__ = ("Qmp",)


class Qmp:
    """One client of one QEMU. (A second client would wait for ever: QEMU serves one.)"""

    def __init__(self, path: Path, timeout: float = 10) -> None:
        deadline = time.monotonic() + timeout
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        while True:
            try:
                self._socket.connect(str(path))
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    self._socket.close()
                    raise GuestError(f"QEMU does not open its control socket: {error}") from None
                time.sleep(0.05)
        greeting = self._receive(timeout)
        if "QMP" not in greeting:
            raise GuestError("What answers on QEMU's control socket is not QEMU.")
        self.execute("qmp_capabilities")

    def _receive(self, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise GuestError(f"QEMU did not answer within {timeout:.0f} s.") from None
            except OSError as error:
                raise GuestError(f"The connection to QEMU broke: {error}") from None
            if not data:
                raise GuestError("QEMU closed its control socket: it has ended.")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError:
            raise GuestError("QEMU answered with something that is not JSON.") from None
        if not isinstance(message, dict):
            raise GuestError("QEMU answered with something that is not an object.")
        return message

    def execute(self, command: str, timeout: float = 10, **arguments: object) -> Any:
        """Run a command and return its answer; events in between are passed over."""
        request = {"execute": command, "arguments": arguments}
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise GuestError(f"The connection to QEMU broke: {error}") from None
        deadline = time.monotonic() + timeout
        while True:
            message = self._receive(max(0.01, deadline - time.monotonic()))
            if "error" in message:
                raise GuestError(f"QEMU refused {command}: {message['error'].get('desc')}")
            if "return" in message:
                return message["return"]

    def close(self) -> None:
        self._socket.close()
