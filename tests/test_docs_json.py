"""docs/json.md says what the JSON answers look like: its examples have the shape of real ones."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anonvma_inspect.target
from anonvma_inspect.cli.app import COMMANDS
from anonvma_inspect.tables import NO_ROW
from anonvma_inspect.target import Target, TargetOptions, open_target
from anonvma_inspect.target.memory import OverlayMemory

from .captures import CAPTURES, FIXTURES
from .clirun import Cli

TEXT = (Path(__file__).parent.parent / "docs" / "json.md").read_text()
EXAMPLE = re.compile(r"^`anonvma-inspect ([^`]+)`[^`]*:\n\n```json\n(.*?)\n```$", re.M | re.S)
EXAMPLES = EXAMPLE.findall(TEXT)
CORE = FIXTURES / "forktree-6.12.core.xz"
NAMED = {
    "CORE": str(CORE),
    "DEEP": str(FIXTURES / "deep-pages-6.12.core.xz"),
    "LOCKED": str(FIXTURES / "locks" / "locks-6.12.core.xz"),
}


# A kernel with one pointer wrong in one bit.
def broken() -> Target:
    capture = next(capture for capture in CAPTURES if capture.core == CORE)
    tables = capture.tables
    row = int(np.flatnonzero(tables.vmas.active != NO_ROW)[0])
    address = int(tables.vmas.address[row]) + tables.era.vma.offset("anon_vma")
    memory = OverlayMemory(capture.target.memory, {address: int(tables.vmas.anon_vma[row]) | 4})
    return dataclasses.replace(capture.target, memory=memory)


def shape(value: Any) -> Any:
    """Keys and types; of a list, those of its first entry."""
    if isinstance(value, dict):
        return {key: shape(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [shape(entry) for entry in value[:1]]
    return type(value).__name__


def test_every_command_has_an_example() -> None:
    named = {name for arguments, _ in EXAMPLES for name in arguments.split() if name in COMMANDS}
    assert named == set(COMMANDS)


@pytest.mark.parametrize(("arguments", "example"), EXAMPLES, ids=[a for a, _ in EXAMPLES])
def test_examples_have_the_shape_of_real_answers(
    arguments: str,
    example: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def open_any(options: TargetOptions) -> Target:
        return broken() if options.core == "BROKEN" else open_target(options)

    monkeypatch.setattr(anonvma_inspect.target, "open_target", open_any)
    words = [NAMED.get(word, word) for word in arguments.split()]
    if "-o" in words:
        words[-1] = str(tmp_path / words[-1])
    ran = Cli(capsys)(*words)
    assert ran.code == (1 if "BROKEN" in words else 0), ran.err
    document, documented = json.loads(ran.out), json.loads(example)
    assert shape(documented) == shape(document)
    assert documented["schema"] == document["schema"]
    # As the command prints it.
    assert example == json.dumps(documented, sort_keys=True, indent=1)


@pytest.mark.parametrize(("arguments", "example"), EXAMPLES, ids=[a for a, _ in EXAMPLES])
def test_every_field_is_explained(arguments: str, example: str) -> None:
    words = set(re.findall(r"[a-z_0-9]+", re.sub(r"```json.*?```", "", TEXT, flags=re.S)))
    document = json.loads(example)

    def check(value: Any) -> None:
        for entry in value if isinstance(value, list) else []:
            check(entry)
        for key, entry in value.items() if isinstance(value, dict) else []:
            assert key in words, key
            check(entry)

    check(document)
