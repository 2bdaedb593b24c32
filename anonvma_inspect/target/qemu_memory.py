"""A running guest's physical memory, read from outside while it goes on running.

There are three ways, the quickest that works is taken:

- from the memory of the QEMU process, if it runs on this host and may be looked at as by a debugger
  (``/proc/PID/mem``);
- through ``pmemsave``, which makes QEMU copy a range into a file: one in memory that only we have,
  passed over the Unix socket. Nothing is written to any disk;
- as text, through the monitor's ``xp``, which any QMP connection has.
"""

from __future__ import annotations

import bisect
import os
import re
import threading
import weakref
from collections.abc import Callable

import numpy as np

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.qmp import Qmp, QmpError

__all__ = ("QemuMemory",)

# A line of `info mtree -f`: memory_region_to_type in softmmu/memory.c, QEMU 7.2.
_REGION = re.compile(r"\s+([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (?:nv-)?ram\)")
_HVA = re.compile(r"Host virtual address for 0x[0-9a-f]+ \(.*\) is 0x([0-9a-f]+)\s*")
_WORD = re.compile(r"0x([0-9a-f]{16})\b")
# Of text, 16 KiB a command came quickest: 12 MB/s; 4 KiB 5 MB/s, 256 KiB 4 MB/s.
_TEXT_BYTES = 16 << 10
# QEMU serves nothing else while it copies: a millisecond or two of this.
_SAVE_BYTES = 1 << 20
_PROBES, _PROBE_BYTES = 64, 256


class QemuMemory:
    """The RAM of a guest, by physical address.

    :param qmp: The guest's QEMU.
    :raises TargetError: if QEMU does not tell where the RAM is.
    """

    def __init__(self, qmp: Qmp) -> None:
        self._qmp = qmp
        #: Half-open ranges of RAM, ascending.
        self.ranges = _ranges(qmp)
        self._starts = [start for start, _ in self.ranges]
        # QEMU is asked one thing at a time.
        self._lock = threading.Lock()
        self._host: list[int] = []
        self._process: int | None = None
        self._file: tuple[int, int] | None = None
        #: How it is read: ``process``, ``pmemsave`` or ``text``.
        self.way = "text"
        if self._use_process():
            self.way = "process"
        elif self._use_file():
            self.way = "pmemsave"

    def look_again(self) -> None:
        """See whether RAM was plugged in or out.

        :raises TargetError: if QEMU is gone, or does not answer.
        """
        ranges = _ranges(self._qmp)
        if ranges != self.ranges:
            self.ranges, self._starts = ranges, [start for start, _ in ranges]
            if self._process is not None:
                self._host = self._find_host()

    def read(self, address: int, size: int) -> bytes:
        """Read physical memory.

        :raises LookupError: if any of it is not in one range of RAM.
        :raises TargetError: if QEMU is gone, or does not answer.
        """
        index = bisect.bisect_right(self._starts, address) - 1
        if index < 0 or address + size > self.ranges[index][1]:
            raise LookupError("not in RAM")
        if self._process is not None:
            return self._read_process(index, address, size)
        with self._lock:
            return self._ask(address, size)

    def _ask(self, address: int, size: int) -> bytes:
        if self._file is not None:
            return _in_pieces(self._read_file, address, size, _SAVE_BYTES)
        return _in_pieces(self._read_text, address, size, _TEXT_BYTES)

    # The process that listens at the socket need not be QEMU: libvirt opens it and hands it over.
    # So what is read there must be what QEMU itself says.
    def _use_process(self) -> bool:
        pid = self._qmp.connection.peer
        if pid is None:
            return False
        try:
            process = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            self._host = self._find_host()
            same = self._compare(process)
        except (OSError, LookupError, QmpError):
            same = False
        if not same:
            os.close(process)
            return False
        self._process = process
        weakref.finalize(self, os.close, process)
        return True

    def _find_host(self) -> list[int]:
        return [_host_address(self._qmp, start) for start, _ in self.ranges]

    # The guest runs on meanwhile: some of the pages may change between two looks.
    def _compare(self, process: int) -> bool:
        same = different = 0
        for start, end in self.ranges:
            step = max((end - start) // _PROBES & -4096, 4096)
            for address in range(start, end - _PROBE_BYTES + 1, step):
                here = self._host[self._starts.index(start)] + address - start
                found = os.pread(process, _PROBE_BYTES, here)
                if not any(found):
                    continue
                if found == self._read_text(address, _PROBE_BYTES):
                    same += 1
                else:
                    different += 1
                if same + different == _PROBES:
                    break
        return same > 4 * different

    def _use_file(self) -> bool:
        if self._qmp.connection.peer is None:
            return False
        ours = os.memfd_create("guest", os.MFD_CLOEXEC)
        try:
            answer = self._qmp.execute("add-fd", files=[ours])
            self._file = (ours, int(answer["fd"]))
            start = self._starts[-1]
            self._read_file(start, 4096)
        except (OSError, LookupError, TypeError, ValueError, QmpError):
            self._file = None
            os.close(ours)
            return False
        weakref.finalize(self, os.close, ours)
        return True

    def _read_process(self, index: int, address: int, size: int) -> bytes:
        assert self._process is not None
        here = self._host[index] + address - self._starts[index]
        pieces = []
        while size:
            try:
                piece = os.pread(self._process, size, here)
            except OSError as error:
                raise LookupError(f"QEMU has not mapped it: {error.strerror}") from None
            if not piece:
                raise self._qmp.connection.nonsense(
                    "QEMU has ended while its guest was read: what was read so far says nothing"
                )
            pieces.append(piece)
            here, size = here + len(piece), size - len(piece)
        return b"".join(pieces)

    def _read_file(self, address: int, size: int) -> bytes:
        assert self._file is not None
        ours, theirs = self._file
        name = f"/proc/self/fd/{theirs}"
        self._qmp.execute("pmemsave", val=address, size=size, filename=name)
        data = os.pread(ours, size, 0)
        if len(data) != size:
            raise LookupError("QEMU saved only a part of it")
        return data

    def _read_text(self, address: int, size: int) -> bytes:
        first, last = address & -8, (address + size + 7) & -8
        text = self._qmp.monitor(f"xp /{(last - first) // 8}xg {first:#x}")
        if "Cannot access memory" in text:
            raise LookupError("QEMU cannot read it")
        lines = (line.partition(":")[2] for line in text.splitlines())
        words = [word for line in lines for word in _WORD.findall(line)]
        if len(words) != (last - first) // 8:
            raise self._qmp.connection.nonsense(
                f"the monitor's answer to xp is not understood: {text[:40]!r}"
            )
        data = np.frombuffer(bytes.fromhex("".join(words)), ">u8").astype("<u8").tobytes()
        return data[address - first : address - first + size]


def _ranges(qmp: Qmp) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    seen = False
    for line in qmp.monitor("info mtree -f").splitlines():
        if line.startswith("FlatView"):
            if found:
                break
            seen = False
        # What the processors see: "memory", or one of each processor's own.
        seen |= line.lstrip().startswith(('AS "memory"', 'AS "cpu-memory-0"'))
        match = _REGION.match(line) if seen else None
        if match is not None:
            found.append((int(match[1], 16), int(match[2], 16) + 1))
    if not found:
        raise TargetError(
            f"{qmp.connection.name}: the monitor does not say where the guest's RAM is (info mtree)"
        )
    return sorted(found)


def _host_address(qmp: Qmp, address: int) -> int:
    match = _HVA.fullmatch(qmp.monitor(f"gpa2hva {address:#x}"))
    if match is None:
        raise LookupError("not mapped by QEMU")
    return int(match[1], 16)


def _in_pieces(read: Callable[[int, int], bytes], address: int, size: int, most: int) -> bytes:
    end = address + size
    return b"".join(read(at, min(most, end - at)) for at in range(address, end, most))
