"""The usual mistakes, recognised."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence

__all__ = ("describe_file", "suggest_command", "suggest_option")

# ELF header: e_type at byte 16.
_ET_CORE = 4
_CORE_MAGICS = (b"KDUMP   ", b"DISKDUMP", b"makedumpfile", b"\xfd7zXZ\0")


def describe_file(path: str) -> str | None:
    """What a file looks like from its first bytes.

    :return: ``core dump`` (or snapshot), ``vmlinux`` (any other ELF file), ``file`` for one that is
        neither; ``None`` if there is no such file.
    """
    # Opening a pipe would wait for a writer, and eat what it writes.
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            head = file.read(18)
    except OSError:
        return "file"
    if head.startswith(_CORE_MAGICS):
        return "core dump"
    if head.startswith(b"\x7fELF") and len(head) == 18:
        return "core dump" if head[16] == _ET_CORE else "vmlinux"
    return "file"


def suggest_option(word: str) -> str | None:
    """Say which option a file goes with.

    :return: ``None`` if there is no such file.
    """
    kind = describe_file(word)
    if kind == "vmlinux":
        return f"{word} is a kernel executable. Did you mean -s {word}?"
    return None if kind is None else f"{word} is a {kind}. Did you mean -c {word}?"


def suggest_command(name: str, commands: Sequence[str]) -> str:
    """Say what is wrong with a word that stands where a command should."""
    suggestion = suggest_option(name)
    if suggestion is not None:
        return suggestion
    close = difflib.get_close_matches(name.lower(), commands)
    if close:
        return f"there is no command {name!r}. Did you mean {' or '.join(close)}?"
    return f"there is no command {name!r}: {', '.join(commands)} are known"
