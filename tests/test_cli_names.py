"""No command and no file can name itself something that acts on a terminal, in any format."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Iterator
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import anonvma_inspect.cli.vma
import anonvma_inspect.collect
import anonvma_inspect.target
from anonvma_inspect.cli import main
from anonvma_inspect.tables import Tables

from .captures import few_or_all
from .handmade import ERA
from .small_tables import FILE, LEAF, VMA_B, flags, make_tables, numbers, words

_OURS = re.compile(r"\x1b\[[0-9;]*m")

COMMANDS = (
    ("audit",),
    ("vma", "100"),
    ("chain", f"{VMA_B:x}"),
    ("tree", f"{LEAF:x}"),
    ("family",),
    ("family", f"{LEAF:x}"),
    ("stats",),
    ("savings",),
    # Refused, in sentences that name the process.
    ("vma", "100", "9000"),
    ("tree", "100", "3000"),
    ("tree", f"{VMA_B:x}"),
)


@dataclasses.dataclass
class FakeTarget:
    release: str
    scheme: str | None = None

    kind = "elf-core"
    architecture = "x86_64"
    layouts_source = "btf"
    symbols_source = "kallsyms"
    live = False
    walks = None
    meter = None
    left_out = None


# Runs a command; standard output and error, together.
def run(arguments: tuple[str, ...]) -> str:
    out = io.StringIO()
    with (
        mock.patch.object(sys, "stdout", out),
        mock.patch.object(sys, "stderr", out),
        pytest.raises(SystemExit),
    ):
        main(arguments)
    return out.getvalue()


# Lets the command line work on these tables.
@contextlib.contextmanager
def served(tables: Tables, release: str, path: bytes) -> Iterator[None]:
    target = FakeTarget(release)
    with (
        mock.patch.object(anonvma_inspect.target, "open_target", return_value=target),
        mock.patch.object(anonvma_inspect.collect, "collect", return_value=tables),
        mock.patch.object(anonvma_inspect.collect, "collect_audit", return_value=tables),
        mock.patch.object(anonvma_inspect.cli.vma, "file_paths", return_value={FILE: path}),
    ):
        yield


NASTY = st.one_of(
    st.binary(min_size=1, max_size=15),
    st.sampled_from(
        [b"\x1b]0;title\x07", b"a\nAV402 ok", b"\xc2\x9b31m", b"\x1b[2J\x1b[H", b"\r\r\x08\x7f"]
    ),
)


@settings(
    max_examples=few_or_all(12, 40), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(comm=NASTY, path=NASTY, release=st.text(max_size=20))
def test_nothing_of_the_target_reaches_an_output_raw(
    comm: bytes, path: bytes, release: str
) -> None:
    tables = make_tables(comm_a=comm, comm_b=comm, era=ERA)
    # A counter that makes a finding which names the process, once there are such checks; and one
    # of low bits, which there is in any case.
    tables = dataclasses.replace(
        tables,
        vmas=dataclasses.replace(tables.vmas, anon_vma=words(0x3, 0, LEAF | 1)),
        mms=dataclasses.replace(tables.mms, map_count=numbers(7, 7)),
        anon_vmas=dataclasses.replace(tables.anon_vmas, tree_whole=flags(False, False)),
    )
    release = release.encode("utf-8", "replace").decode()
    with served(tables, release, path):
        for command in COMMANDS:
            for format in ("table", "json", "jsonl"):
                for color in ("never", "always"):
                    text = run(("-c", "x", "--format", format, "--color", color, *command))
                    assert text
                    assert "a bug" not in text
                    if color == "always":
                        text = _OURS.sub("", text)
                    assert all(line.isprintable() for line in text.split("\n")), text


def test_lines_cannot_be_forged() -> None:
    honest = make_tables(comm_a=b"sleep")
    forged = make_tables(comm_a=b"a\nclean: 1")
    for tables in (honest, forged):
        with served(tables, "6.1", b""):
            text = run(("-c", "x", "vma", "100"))
            assert len(text.splitlines()) == 5
    assert "PID 100 (a\\nclean: 1): 2 VMAs" in text
