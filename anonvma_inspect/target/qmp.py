"""QEMU's machine protocol (QMP): one JSON object a line.

Follows ``docs/interop/qmp-spec.rst`` in QEMU 7.2.
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.connection import Connection

__all__ = ("Qmp", "QmpError")

_GREETING_SECONDS = 5.0
_LEAVING_SECONDS = 1.0
# QEMU answers between other things that it does, some of which take their time.
_ANSWER_SECONDS = 30.0
# An answer of the monitor is a few pages of text.
_MOST = 16 << 20


class QmpError(TargetError):
    """QEMU refused a command."""


class Qmp:
    """The client of one QEMU.

    :param connection: To its QMP socket.
    :raises TargetError: if something else answers there, or nothing.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._buffer = bytearray()
        try:
            greeting = self._receive(time.monotonic() + _GREETING_SECONDS)
        except TimeoutError:
            if _leave_stub(connection, bytes(self._buffer)):
                raise connection.nonsense(
                    "a gdb stub answers there. Did you mean --gdb? The machine goes on"
                ) from None
            raise TargetError(
                f"{connection.name}: connected, but no greeting within {_GREETING_SECONDS:.0f} s: "
                "QMP serves one client at a time, and another one (libvirt, a monitor, a second "
                "run of this) has it: end that, or give QEMU one more -qmp; or this is no QMP "
                "socket"
            ) from None
        if "QMP" not in greeting:
            raise connection.nonsense(
                "what answers there is not QMP: name the socket of QEMU's -qmp"
            )
        self.execute("qmp_capabilities")

    def execute(self, command: str, *, files: list[int] | None = None, **arguments: object) -> Any:
        """Run a command.

        :param files: Descriptors to pass along with it.
        :param arguments: Of the command, with ``_`` for each ``-`` in their names.
        :return: What it answers.
        :raises QmpError: if QEMU refuses it.
        :raises TargetError: if there is no answer.
        """
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        request = json.dumps({"execute": command, "arguments": named}).encode() + b"\n"
        self.connection.send(request, _ANSWER_SECONDS, files)
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            try:
                message = self._receive(deadline)
            except TimeoutError:
                raise self.connection.silent(_ANSWER_SECONDS) from None
            if "error" in message:
                error = message["error"]
                reason = error.get("desc") if isinstance(error, dict) else None
                raise QmpError(f"{self.connection.name}: QEMU refuses {command}: {reason}")
            if "return" in message:
                return message["return"]
            # What is left are events.

    def monitor(self, line: str) -> str:
        """Run a command of the human monitor, as QMP passes it on.

        :raises TargetError: as for :meth:`execute`.
        """
        answer = self.execute("human-monitor-command", command_line=line)
        if not isinstance(answer, str):
            raise self.connection.nonsense(f"the monitor's answer to {line!r} is no text")
        return answer

    def _receive(self, deadline: float) -> dict[str, Any]:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > _MOST:
                raise self.connection.nonsense("answers without an end: this is not QMP")
            self._buffer += self.connection.receive(deadline)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise self.connection.nonsense(
                f"not JSON, so what answers there is not QMP: {line[:40]!r}"
            ) from None
        if not isinstance(message, dict):
            raise self.connection.nonsense("QEMU answered with something that is not an object")
        return message


# Connecting to a gdb stub has stopped its machine, and what is no QMP may be one. (QEMU before 8.1
# says so; one that says nothing is told as well.)
def _leave_stub(connection: Connection, said: bytes) -> bool:
    with contextlib.suppress(TargetError, TimeoutError):
        connection.send(b"+$D#44", _LEAVING_SECONDS)
        said += connection.receive(time.monotonic() + _LEAVING_SECONDS)
    return said.lstrip(b"+").startswith(b"$")
