"""A guest that somebody has booted and that does nothing: all ways to read it show the same.

The environment variable ``ANONVMA_QEMU`` names its QMP socket, a path, and ``ANONVMA_GDB`` its gdb
stub: QEMU's ``-qmp unix:PATH,server=on,wait=off`` and ``-gdb tcp::PORT``.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from anonvma_inspect.target.qemu_memory import QemuMemory

from .clirun import Cli

QEMU, GDB = os.environ.get("ANONVMA_QEMU"), os.environ.get("ANONVMA_GDB")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def audit(cli: Cli, *arguments: str) -> Any:
    ran = cli(*arguments, "--format", "json", "audit")
    assert ran.code == 0, ran.err
    answer = json.loads(ran.out)
    assert answer["counts"]["anon_vmas"] > 0
    del answer["looked"], answer["target"]["kind"]
    return answer


@pytest.mark.skipif(QEMU is None, reason="ANONVMA_QEMU names no guest")
def test_all_ways_show_the_same(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert QEMU is not None
    expected = audit(cli, "--qemu", QEMU)
    for way in ("_use_process", "_use_file"):
        monkeypatch.setattr(QemuMemory, way, lambda memory: False)
        assert audit(cli, "--qemu", QEMU) == expected
    if GDB is not None:
        assert audit(cli, "--gdb", GDB) == expected
        # It runs on.
        assert audit(cli, "--qemu", QEMU) == expected
