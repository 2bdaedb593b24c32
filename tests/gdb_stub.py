"""A gdb remote stub for tests, good or bad."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ("Stub", "escaped", "framed")


def framed(packet: bytes) -> bytes:
    """A packet as it goes over the line."""
    return b"$" + packet + b"#%02x" % (sum(packet) % 256)


def escaped(data: bytes) -> bytes:
    """Binary data as it stands in a packet."""
    return re.sub(rb"[#$}*]", lambda found: b"}" + bytes([found[0][0] ^ 0x20]), data)


@dataclass
class Stub:
    """What a stub knows and how it behaves."""

    #: Reads ``(address, size)``; raises LookupError where there is nothing.
    read: Callable[[int, int], bytes] = lambda address, size: bytes(size)
    features: bytes = b"PacketSize=1000"
    #: Whether acknowledgements can be switched off.
    no_ack: bool = True
    #: Answers to further packets, or instead of its own.
    answers: dict[bytes, bytes] = field(default_factory=dict)
    #: What it prints for a line to its monitor.
    monitor: dict[str, str] = field(default_factory=dict)
    #: Sent to whoever connects.
    greeting: bytes = b""
    #: So many answers get a wrong checksum.
    damaged: int = 0
    #: So many packets are answered with a request to send them again.
    misheard: int = 0
    #: At most so many bytes of memory an answer.
    most: int = 1 << 20
    #: Closes the connection after so many requests for memory.
    breaks_after: int = 1 << 40
    #: What was asked, so far.
    asked: list[bytes] = field(default_factory=list)

    def answer(self, packet: bytes) -> bytes:
        if packet in self.answers:
            return self.answers[packet]
        if packet.startswith(b"qSupported"):
            return self.features
        if packet == b"QStartNoAckMode":
            return b"OK" if self.no_ack else b""
        if packet == b"D":
            return b"OK"
        if packet.startswith((b"m", b"x")):
            address, size = (int(word, 16) for word in packet[1:].split(b","))
            try:
                data = self.read(address, min(size, self.most))
            except LookupError:
                return b"E14"
            if packet.startswith(b"m"):
                return data.hex().encode()
            return b"b" + escaped(data) if b"binary-upload+" in self.features else b""
        return b""

    def disturbed(self, answer: bytes) -> bytes:
        if not self.damaged:
            return answer
        self.damaged -= 1
        return answer[:-2] + b"zz"

    def talk(self, line: socket.socket) -> None:
        line.sendall(self.greeting)
        acknowledge, buffer, last, left = True, b"", b"", self.breaks_after
        while data := line.recv(65536):
            buffer += data
            while True:
                if acknowledge and buffer[:1] == b"-":
                    line.sendall(self.disturbed(last))
                start, end = buffer.find(b"$"), buffer.find(b"#")
                if start > 0 or buffer[:1] in (b"+", b"-"):
                    buffer = buffer[max(start, 1) if start > 0 else 1 :]
                    continue
                if start < 0 or end < 0 or len(buffer) < end + 3:
                    break
                packet, buffer = buffer[1:end], buffer[end + 3 :]
                if acknowledge and self.misheard:
                    self.misheard -= 1
                    line.sendall(b"-")
                    continue
                self.asked.append(packet)
                if packet.startswith(b"m"):
                    left -= 1
                    if left < 0:
                        return
                if acknowledge:
                    line.sendall(b"+")
                text = self.monitor.get(_monitor_line(packet), "")
                if text:
                    line.sendall(framed(b"O" + text.encode().hex().encode()))
                last = framed(b"OK" if text else self.answer(packet))
                line.sendall(self.disturbed(last))
                if packet == b"QStartNoAckMode" and self.no_ack:
                    acknowledge = False


def _monitor_line(packet: bytes) -> str:
    if not packet.startswith(b"qRcmd,"):
        return ""
    return bytes.fromhex(packet.removeprefix(b"qRcmd,").decode()).decode()
