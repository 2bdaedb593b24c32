"""Arguments: PIDs, which are decimal, and addresses, which are hex."""

from __future__ import annotations

import re

from anonvma_inspect.cli.mistakes import describe_file
from anonvma_inspect.errors import UsageError

__all__ = ("parse_address", "parse_pid", "parse_pointer")

# include/linux/threads.h, PID_MAX_LIMIT on 64 bits.
_PID_MAX_LIMIT = 4 << 20
_KERNEL_HALF = 1 << 63


def parse_pid(text: str) -> int:
    """Read a PID.

    :raises UsageError: if it is none.
    """
    if re.fullmatch(r"[0-9]+", text, re.ASCII):
        # Python itself refuses to convert thousands of digits.
        pid = int(text.lstrip("0")[:20] or "0")
        if 0 < pid <= _PID_MAX_LIMIT:
            return pid
        raise UsageError(f"{text} is no PID: PIDs go from 1 to {_PID_MAX_LIMIT}")
    _refuse_file(text)
    if re.fullmatch(r"(0x)?[0-9a-f]+", text, re.ASCII | re.IGNORECASE):
        raise UsageError(f"{text} is no PID: PIDs are decimal")
    raise UsageError(f"{text!r} is no PID")


def parse_address(text: str) -> int:
    """Read an address of any half, in hex, with or without ``0x``.

    :raises UsageError: if it is none.
    """
    digits = re.fullmatch(r"(?:0x)?([0-9a-f]+)", text, re.ASCII | re.IGNORECASE)
    if digits is None:
        _refuse_file(text)
        raise UsageError(f"{text!r} is no address: addresses are hex, with or without 0x")
    if len(digits[1].lstrip("0")) > 16:
        raise UsageError(f"{text} is no address: it has more than 64 bits")
    return int(digits[1], 16)


def parse_pointer(text: str, usage: str) -> int:
    """Read a pointer to an object of the kernel's.

    :param usage: The other form that the command has.
    :raises UsageError: if it cannot be one.
    """
    pointer = parse_address(text)
    if pointer < _KERNEL_HALF:
        raise UsageError(
            f"{text} is no kernel pointer: those begin at {_KERNEL_HALF:#x}. Did you mean {usage}?"
        )
    return pointer


def _refuse_file(text: str) -> None:
    kind = describe_file(text)
    if kind == "core dump":
        raise UsageError(f"{text} is a core dump. Did you mean -c {text}?")
