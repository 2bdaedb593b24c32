"""As much of QEMU's machine protocol as reading a guest takes."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .guest_image import GuestImage

__all__ = ("FakeQemu",)

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}}, "capabilities": []}}


class RefusedError(Exception):
    """A command is answered with an error."""


@dataclass
class FakeQemu:
    """What it is, and how it behaves.

    :ivar process: Whether the guest's memory lies in this process where ``gpa2hva`` says; else
        something else lies there.
    :ivar monitor: Whether the human monitor may be used.
    :ivar files: Whether files can be passed.
    :ivar breaks_after: Closes the connection after so many reads of memory.
    :ivar asked: What was asked, so far.
    """

    guest: GuestImage
    arch: str = "x86_64"
    greeting: bytes = json.dumps(GREETING).encode() + b"\r\n"
    process: bool = True
    monitor: bool = True
    files: bool = True
    breaks_after: int = 1 << 40
    asked: list[str] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._host = [np.zeros(end - start, np.uint8) for start, end in self.guest.ranges]
        for page, content in self.guest.physical.items() if self.process else ():
            for (start, end), memory in zip(self.guest.ranges, self._host, strict=True):
                if start <= page < end:
                    memory[page - start : page - start + len(content)] = np.frombuffer(
                        content, np.uint8
                    )
        self._passed: list[int] = []

    def talk(self, line: socket.socket) -> None:
        line.sendall(self.greeting)
        buffer, left = b"", self.breaks_after
        while True:
            data, self._passed, _, _ = socket.recv_fds(line, 65536, 1)
            if not data:
                return
            buffer += data
            while b"\n" in buffer:
                request, _, buffer = buffer.partition(b"\n")
                message = json.loads(request)
                command, arguments = message["execute"], message.get("arguments", {})
                words = arguments.get("command-line", "").split()
                left -= command == "pmemsave" or words[:1] == ["xp"]
                if left < 0:
                    return
                self.asked.append(" ".join([command, *words]))
                try:
                    answer = {"return": self._answer(command, arguments)}
                except RefusedError as error:
                    answer = {"error": {"class": "GenericError", "desc": str(error)}}
                # Events come in between.
                event = {"event": "RTC_CHANGE", "data": {"offset": 1}}
                line.sendall(
                    b"".join(json.dumps(one).encode() + b"\r\n" for one in (event, answer))
                )

    def _answer(self, command: str, arguments: dict[str, Any]) -> Any:
        if command in self.answers:
            return self.answers[command]
        if command == "qmp_capabilities":
            return {}
        if command == "query-target":
            return {"arch": self.arch}
        if command == "human-monitor-command" and self.monitor:
            return self._monitor(*arguments["command-line"].split())
        if command == "add-fd" and self.files and self._passed:
            return {"fdset-id": 0, "fd": self._passed[0]}
        if command == "pmemsave":
            with open(arguments["filename"], "wb") as file:
                file.write(self.guest.read_physical(arguments["val"], arguments["size"]))
            return {}
        raise RefusedError(f"The command {command} has not been found")

    def _monitor(self, command: str, *words: str) -> str:
        guest = self.guest
        if command == "info" and words[0] == "mtree":
            ranges = [
                f"  {start:016x}-{end - 1:016x} (prio 0, ram): pc.ram\r\n"
                for start, end in guest.ranges
            ]
            return (
                'FlatView #0\r\n AS "I/O", root: io\r\n Root memory region: io\r\n'
                "  0000000000000000-0000000000000007 (prio 0, ram): none\r\n\r\n"
                'FlatView #1\r\n AS "memory", root: system\r\n Root memory region: system\r\n'
                + "".join(ranges)
                + "  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic\r\n"
                "  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios\r\n\r\n"
            )
        if command == "info" and words[0] == "registers":
            cr4 = 0x751EF0 & ~0x1000 | (0x1000 if guest.levels == 5 else 0)
            return (
                f"\r\nCPU#0\r\nCR0=80050033 CR2=0 CR3={0:016x} CR4={0:08x}\r\n"
                f"\r\nCPU#1\r\nCR0=80050033 CR2=0 CR3={guest.top_table:016x} CR4={cr4:08x}\r\n"
            )
        if command == "gpa2hva":
            address = int(words[0], 16)
            for (start, end), memory in zip(guest.ranges, self._host, strict=True):
                if start <= address < end:
                    at = memory.ctypes.data + address - start
                    return f"Host virtual address for {address:#x} (pc.ram) is {at:#x}\r\n"
            return f"No memory is mapped at address {address:#x}\r\n"
        if command == "xp":
            count, address = int(words[0][1:-2]), int(words[1], 16)
            assert words[0][-2:] == "xg"
            try:
                data = np.frombuffer(guest.read_physical(address, 8 * count), "<u8").tolist()
            except LookupError:
                return f"{address:016x}: Cannot access memory\r\n"
            return "".join(
                f"{address + 8 * at:016x}:"
                + "".join(f" 0x{word:016x}" for word in data[at : at + 2])
                + "\r\n"
                for at in range(0, count, 2)
            )
        return f"unknown command: '{command}'\r\n"
