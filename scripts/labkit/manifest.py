"""The manifest beside a dump or a fixture: where it comes from, and the guest's own word for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .word import Process, Word

__all__ = ("SCHEMA", "describe_word", "encode", "sha256", "write")

SCHEMA = "anonvma-inspect/fixture/1"

# A list or object of plain values goes on one line if it is not longer than this.
_LINE = 160


def _describe_process(process: Process) -> dict[str, Any]:
    described: dict[str, Any] = {
        "pid": process.pid,
        "tgid": process.tgid,
        "ppid": process.ppid,
        "comm": process.comm,
        "state": process.state,
        "kernel_thread": process.kernel_thread,
        "threads": [f"{tid} {state}" for tid, state in process.threads],
        "maps": process.maps,
    }
    if process.ksm:
        described["ksm"] = process.ksm
    if process.smaps:
        described["smaps"] = process.smaps
    for name in ("swap", "pages", "swapped", "cached"):
        if getattr(process, name):
            described[name] = getattr(process, name)
    return described


def describe_word(word: Word) -> dict[str, Any]:
    """The word as the manifest holds it."""
    described: dict[str, Any] = {
        "facts": dict(sorted(word.facts.items())),
        "slabinfo": word.slabinfo,
        "slab": {cache: dict(sorted(word.slab[cache].items())) for cache in sorted(word.slab)},
        "log": word.log,
        "processes": [_describe_process(process) for process in word.processes],
    }
    if word.symbols:
        described["symbols"] = word.symbols
    return described


def sha256(path: Path) -> str:
    """The digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def encode(value: Any, depth: int = 0) -> str:
    """JSON with an indent of 1, but short lists and objects of plain values on one line.

    So a process's mapping or a log's event is one line, which reads well and keeps diffs small.
    """
    if isinstance(value, Mapping):
        items = [
            f"{json.dumps(str(key))}: {encode(item, depth + 1)}" for key, item in value.items()
        ]
        plain = all(not isinstance(item, (Mapping, list)) for item in value.values())
        opening, closing = "{", "}"
    elif isinstance(value, list):
        items = [encode(item, depth + 1) for item in value]
        plain = all(not isinstance(item, (Mapping, list)) for item in value)
        opening, closing = "[", "]"
    else:
        return json.dumps(value)
    line = opening + ", ".join(items) + closing
    if not items or (plain and len(line) <= _LINE):
        return line
    indent = " " * (depth + 1)
    return (
        opening + "\n" + ",\n".join(indent + item for item in items) + "\n" + " " * depth + closing
    )


def write(manifest: Mapping[str, Any], path: Path) -> None:
    """Write a manifest, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(encode(manifest) + "\n", encoding="ascii")
    partial.replace(path)
