"""The gdb remote protocol: packets, and the few of them that reading takes.

Follows "Remote Protocol" in the manual of gdb 16, and ``gdbstub/gdbstub.c`` in QEMU 7.2. Nothing is
ever written, and no breakpoint set.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
import weakref
from dataclasses import dataclass, field

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.connection import Connection

__all__ = ("GdbRemote",)

_FIRST_SECONDS = 5.0
_ANSWER_SECONDS = 15.0
_DETACH_SECONDS = 3.0
_RETRIES = 3
# What a stub takes that does not say how much: the least that gdb itself counts on.
_LEAST_PACKET = 400
_MOST_PACKET = 1 << 20
# Stop replies and what a program prints, which may come between two answers.
_UNASKED = (b"T", b"S", b"O")
_ENDED = (b"W", b"X")
_ERROR = re.compile(rb"E([0-9a-fA-F]{2}|\..*)", re.DOTALL)


@dataclass
class _Leaving:
    """How to leave the stub as it was found."""

    resume: bool = True
    before: list[bytes] = field(default_factory=list)


class GdbRemote:
    """The client of one stub.

    The stub stops the machine when we connect. When this object goes, or the interpreter ends, the
    machine runs again, unless :meth:`leave_stopped` was called.

    :param connection: To the stub.
    :raises TargetError: if something else answers there, or nothing.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._buffer = bytearray()
        self._acknowledge = True
        self._leaving = _Leaving()
        self._printed = bytearray()
        # One question at a time, whatever threads there are.
        self._lock = threading.Lock()
        #: Whether the stub said, unasked, that the machine stopped: then connecting stopped it.
        self.stopped_by_us = False
        #: Leave the stub. What was stopped by connecting must not stay so, whatever happens next.
        self.close = weakref.finalize(self, _leave, connection, self._leaving)
        try:
            answer = self._shake_hands()
        except BaseException:
            self.close()
            raise
        #: What the stub says that it can do.
        self.features = frozenset(answer.split(b";"))
        size = re.search(rb"(?:^|;)PacketSize=([0-9a-fA-F]{1,8})(?:;|$)", answer)
        packet = int(size[1], 16) if size else _LEAST_PACKET
        packet = min(max(packet, 64), _MOST_PACKET)
        self._binary = b"binary-upload+" in self.features
        self._most = packet - 16 if self._binary else packet // 2

    def _shake_hands(self) -> bytes:
        try:
            answer = self.ask(b"qSupported:xmlRegisters=i386", _FIRST_SECONDS)
        except _SilentError:
            raise TargetError(
                f"{self._connection.name}: connected, but no answer within {_FIRST_SECONDS:.0f} s: "
                "no gdb stub, or another debugger has it"
            ) from None
        if self.ask(b"QStartNoAckMode") == b"OK":
            self._acknowledge = False
        return answer

    def ask(self, question: bytes, seconds: float = _ANSWER_SECONDS) -> bytes:
        """Send a packet that changes nothing, and wait for its answer.

        :return: Empty: the stub does not know such a packet.
        :raises TargetError: if there is none, or only damaged ones.
        """
        deadline = time.monotonic() + seconds
        self._send(question)
        for _ in range(_RETRIES + 1):
            answer = self._receive(question, deadline, seconds)
            if answer is not None:
                return answer
            # Damaged: ask for the answer once more, or, where that is agreed not to be done, put
            # the question once more.
            if self._acknowledge:
                self._connection.send(b"-", seconds)
            else:
                self._send(question)
        raise self._connection.nonsense(
            f"{_RETRIES + 1} answers in a row with wrong checksums: no gdb stub, or a bad line"
        )

    def read(self, address: int, size: int) -> bytes:
        """Read memory, as the stub's current processor sees it.

        :raises LookupError: if any of it is not there.
        :raises TargetError: if the stub is gone, or answers nonsense.
        """
        data = bytearray()
        with self._lock:
            while len(data) < size:
                at, most = address + len(data), min(size - len(data), self._most)
                data += self._read_binary(at, most) if self._binary else self._read_hex(at, most)
        return bytes(data)

    def monitor(self, line: str) -> str:
        """Ask the stub's own monitor, if it has one.

        :return: The first lines of what it prints; empty if it has none.
        :raises TargetError: as for :meth:`ask`.
        """
        self._printed.clear()
        self.ask(b"qRcmd," + line.encode().hex().encode())
        with contextlib.suppress(ValueError):
            return bytes.fromhex(self._printed.decode("ascii")).decode("ascii", "replace")
        return ""

    def on_leaving(self, packet: bytes) -> None:
        """Send a packet before leaving, to undo something; what was done last is undone first."""
        self._leaving.before.insert(0, packet)

    def leave_stopped(self) -> None:
        """Let the machine stay as it is when leaving: it was found so."""
        self._leaving.resume = False

    def _read_hex(self, address: int, size: int) -> bytes:
        answer = self.ask(b"m%x,%x" % (address, size))
        if _ERROR.fullmatch(answer):
            raise LookupError("the stub cannot read it")
        try:
            data = bytes.fromhex(answer.decode("ascii"))
        except ValueError:
            data = b""
        return self._checked(data, size, answer)

    # Since gdb 16: "x" answers "b" and the bytes.
    def _read_binary(self, address: int, size: int) -> bytes:
        answer = self.ask(b"x%x,%x" % (address, size))
        if _ERROR.fullmatch(answer):
            raise LookupError("the stub cannot read it")
        return self._checked(answer[1:] if answer[:1] == b"b" else b"", size, answer)

    # There may be fewer bytes than were asked for, which then are asked for again.
    def _checked(self, data: bytes, size: int, answer: bytes) -> bytes:
        if 0 < len(data) <= size:
            return data
        raise self._connection.nonsense(
            f"the stub answers a request for memory with {answer[:20]!r}"
            if answer
            else "the stub reads no memory"
        )

    def _send(self, packet: bytes) -> None:
        self._connection.send(_framed(packet), _ANSWER_SECONDS)

    # The next answer; None if it is damaged.
    def _receive(self, question: bytes, deadline: float, seconds: float) -> bytes | None:
        while True:
            body = self._next(question, deadline, seconds)
            if body is None:
                return None
            if self._acknowledge:
                self._connection.send(b"+", seconds)
            if body.startswith(_ENDED):
                raise self._connection.nonsense("the machine has ended, the stub says")
            if body.startswith(_UNASKED) and body != b"OK":
                self.stopped_by_us |= not body.startswith(b"O")
                if body.startswith(b"O") and len(self._printed) < _MOST_PACKET:
                    self._printed += body[1:]
                continue
            return body

    def _next(self, question: bytes, deadline: float, seconds: float) -> bytes | None:
        buffer = self._buffer
        while True:
            # What stands between packets are acknowledgements.
            start = buffer.find(b"$")
            between = buffer[:start] if start >= 0 else bytes(buffer)
            if self._acknowledge and b"-" in between:
                self._send(question)
            if b'"QMP"' in between:
                raise self._connection.nonsense("QMP answers there. Did you mean --qemu?")
            del buffer[: len(between)]
            end = buffer.find(b"#")
            if end >= 0 and len(buffer) >= end + 3:
                break
            if len(buffer) > 4 * _MOST_PACKET:
                raise self._connection.nonsense("a packet without an end: this is no gdb stub")
            try:
                buffer += self._connection.receive(deadline)
            except TimeoutError:
                raise _SilentError(str(self._connection.silent(seconds))) from None
        raw, checksum = bytes(buffer[1:end]), bytes(buffer[end + 1 : end + 3])
        del buffer[: end + 3]
        return _unpacked(raw) if checksum.lower() == _checksum(raw) else None


class _SilentError(TargetError):
    """No answer in time."""


def _leave(connection: Connection, leaving: _Leaving) -> None:
    packets = [*leaving.before, *([b"D"] if leaving.resume else [])]
    # Whoever is gone has nothing left to resume.
    with contextlib.suppress(TargetError, TimeoutError):
        for packet in packets:
            connection.send(b"+" + _framed(packet), _DETACH_SECONDS)
        # Closed too early, the last packet could be lost. An answer to something asked before may
        # still be on its way.
        deadline = time.monotonic() + _DETACH_SECONDS
        answers = b""
        while packets and answers.count(_framed(b"OK")) < len(packets):
            answers = answers[-(1 << 16) :] + connection.receive(deadline)
    connection.close()


def _framed(packet: bytes) -> bytes:
    return b"$" + packet + b"#" + _checksum(packet)


def _checksum(packet: bytes) -> bytes:
    return b"%02x" % (sum(packet) % 256)


# Undoes escapes and run-length encoding.
def _unpacked(raw: bytes) -> bytes:
    if b"*" not in raw and b"}" not in raw:
        return raw
    data = bytearray()
    rest = iter(raw)
    for byte in rest:
        if byte == ord("}"):
            data.append(next(rest, 0) ^ 0x20)
        elif byte == ord("*"):
            data += data[-1:] * max(next(rest, 0) - 29, 0)
        else:
            data.append(byte)
    return bytes(data)
