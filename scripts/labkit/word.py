"""The guest's own word: what the witness wrote to its serial port, taken apart.

The format is in ``guest/witness.c``. Nothing here interprets: lines stay as the guest's kernel
wrote them, but for the padding in ``/proc/PID/maps``. Bytes that are not UTF-8 (command names
may be anything) become lone surrogates, as ``os.fsdecode`` makes them: nothing is lost in JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .errors import GuestError

__all__ = ("Event", "Process", "Word", "checksum", "parse_event", "parse_word", "records")

Event = dict[str, str | int]

_KTHREAD = 0x00200000  # PF_KTHREAD, a flag in the ninth field of /proc/PID/stat
_HEAD = re.compile(rb"@ (\w+) (\S+) (\d+)\n")
_CACHES = ("anon_vma", "anon_vma_chain", "vm_area_struct", "mm_struct", "task_struct", "maple_node")


@dataclass
class Process:
    """A thread group, as /proc shows it."""

    pid: int
    ppid: int
    comm: str
    state: str
    kernel_thread: bool
    #: Thread ids and their states; the leader's comes first. Not asked of kernel threads.
    threads: list[tuple[int, str]] = field(default_factory=list)
    maps: list[str] = field(default_factory=list)
    #: In the order of maps, if asked for: anonymous kilobytes, then the VmFlags.
    smaps: list[str] = field(default_factory=list)
    #: If asked for, the anonymous pages that are mapped, in runs: first page and page frame in hex,
    #: how many there are, how often each is mapped.
    pages: list[str] = field(default_factory=list)
    #: With these, what is in swap, in runs: first page in hex, swap area, first slot, how many.
    swapped: list[str] = field(default_factory=list)
    #: And those of the mapped pages, in hex, that are in the swap cache as well.
    cached: list[str] = field(default_factory=list)
    #: With smaps, and if there are any, the kilobytes of each mapping that are in swap.
    swap: list[int] = field(default_factory=list)
    #: Places where KSM merged a page, if the kernel counts them (since v6.1, ksm_merging_pages).
    ksm: int | None = None

    @property
    def tgid(self) -> int:
        """The thread group's id: /proc lists groups, so it is the pid."""
        return self.pid


@dataclass
class Word:
    """All that the guest said."""

    facts: dict[str, str] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    #: Lines of /proc/slabinfo: its head, and the caches that matter here.
    slabinfo: list[str] = field(default_factory=list)
    #: Cache, then figure: files of /sys/kernel/slab.
    slab: dict[str, dict[str, str]] = field(default_factory=dict)
    log: list[Event] = field(default_factory=list)
    #: Lines of /proc/kallsyms, if asked for.
    symbols: list[str] = field(default_factory=list)


def checksum(data: bytes) -> int:
    """FNV-1a, 32 bits, as the witness computes it."""
    value = 2166136261
    for byte in data:
        value = ((value ^ byte) * 16777619) & 0xFFFFFFFF
    return value


def records(data: bytes) -> Iterator[tuple[str, str, bytes]]:
    """Yield (kind, key, content) for each record; raise GuestError if the end is not right."""
    position = 0
    while True:
        head = _HEAD.match(data, position)
        if head is None:
            raise GuestError(
                f"The guest's word is cut short or damaged at byte {position} of {len(data)}."
            )
        kind, key, size = head.group(1).decode(), head.group(2).decode(), int(head.group(3))
        content = data[head.end() : head.end() + size]
        position = head.end() + size + 1
        if len(content) < size or data[position - 1 : position] != b"\n":
            raise GuestError(
                f"The guest's word is cut short in its record {kind} {key} at byte {head.start()}."
            )
        if kind == "end":
            break
        yield kind, key, content
    trailer = re.match(rb"# ([0-9a-f]{8})\n", data[position:])
    if trailer is None or int(trailer.group(1), 16) != checksum(data[:position]):
        raise GuestError(
            "The guest's word does not match its checksum: the serial port lost bytes."
        )


def parse_event(line: str) -> Event:
    """A line of a workload's log, `EVENT key=value ...`; decimal numbers become integers."""
    name, *pairs = line.split(" ")
    event: Event = {"event": name}
    for pair in pairs:
        key, _, value = pair.partition("=")
        event[key] = int(value) if re.fullmatch(r"-?\d+", value) else value
    return event


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def _process(pid: int, stat: str) -> Process:
    # The command name is in parentheses and may itself hold any character.
    after = stat[stat.rindex(")") + 2 :].split()
    return Process(
        pid=pid,
        ppid=int(after[1]),
        comm="",
        state=after[0],
        kernel_thread=bool(int(after[6]) & _KTHREAD),
    )


# The name, the last field, may hold blanks; the padding before it says nothing.
def _squeeze(line: str) -> str:
    return " ".join(line.split(None, 5))


def _smaps(text: str) -> list[str]:
    anonymous = re.findall(r"^Anonymous: +(\d+) kB$", text, re.MULTILINE)
    flags = re.findall(r"^VmFlags: (.*?) *$", text, re.MULTILINE)
    if len(anonymous) != len(flags):
        raise GuestError("The guest's smaps do not have one Anonymous and one VmFlags line each.")
    return [f"{size} {flag}" for size, flag in zip(anonymous, flags, strict=True)]


def _swap(text: str) -> list[int]:
    sizes = [int(size) for size in re.findall(r"^Swap: +(\d+) kB$", text, re.MULTILINE)]
    return sizes if any(sizes) else []


def parse_word(data: bytes) -> Word:
    """Take the whole word apart."""
    texts: dict[tuple[str, str], bytes] = {}
    for kind, key, content in records(data):
        texts[kind, key] = texts.get((kind, key), b"") + content

    word = Word()
    for (kind, key), content in texts.items():
        text = _text(content)
        if kind == "fact":
            word.facts[key] = text.rstrip("\n")
        elif kind == "slab":
            cache, _, figure = key.partition("/")
            word.slab.setdefault(cache, {})[figure] = text.rstrip("\n")
        elif kind == "slabinfo":
            word.slabinfo = [
                line
                for line in text.splitlines()
                if line.startswith(("slabinfo", "#")) or line.split()[0] in _CACHES
            ]
        elif kind == "log":
            word.log = [parse_event(line) for line in text.splitlines()]
        elif kind == "symbols":
            word.symbols = text.splitlines()
        elif kind == "stat":
            process = _process(int(key), text)
            process.comm = _text(texts.get(("comm", key), b"\n"))[:-1]
            process.threads = [
                (int(tid), state)
                for tid, state in (
                    line.split() for line in _text(texts.get(("threads", key), b"")).splitlines()
                )
            ]
            # Not splitlines(): a mapped file's name may hold what Unicode takes for a line's end.
            lines = _text(texts.get(("maps", key), b"")).split("\n")
            process.maps = [_squeeze(line) for line in lines if line]
            if ("ksm", key) in texts:
                process.ksm = int(texts["ksm", key])
            process.smaps = _smaps(_text(texts.get(("smaps", key), b"")))
            process.swap = _swap(_text(texts.get(("smaps", key), b"")))
            process.pages = _text(texts.get(("pages", key), b"")).splitlines()
            process.swapped = _text(texts.get(("swapped", key), b"")).splitlines()
            process.cached = _text(texts.get(("cached", key), b"")).splitlines()
            word.processes.append(process)
    word.processes.sort(key=lambda process: process.pid)
    return word
