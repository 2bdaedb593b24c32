"""Wrong usage: one sentence that says what to do, and exit code 2, before any target is opened."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest

import anonvma_inspect.target
from anonvma_inspect import __version__
from anonvma_inspect.cli.app import COMMANDS, app
from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.open import open_target

from .clirun import Cli


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    def open_target(options: Any) -> Any:
        raise AssertionError("the target was opened")

    monkeypatch.setattr(anonvma_inspect.target, "open_target", open_target)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return Cli(capsys)


@pytest.fixture
def core(tmp_path: Path) -> str:
    path = tmp_path / "vmcore"
    path.write_bytes(b"\x7fELF" + bytes(12) + struct.pack("<H", 4) + bytes(40))
    return str(path)


@pytest.fixture
def vmlinux(tmp_path: Path) -> str:
    path = tmp_path / "vmlinux"
    path.write_bytes(b"\x7fELF" + bytes(12) + struct.pack("<H", 2) + bytes(40))
    return str(path)


def test_help_names_every_command(cli: Cli) -> None:
    ran = cli("--help")
    assert (ran.code, ran.err) == (0, "")
    for name, summary in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(summary)}$", ran.out, re.MULTILINE)
    assert cli("-h").out == ran.out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(cli: Cli, name: str) -> None:
    ran = cli(name, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"Usage: anonvma-inspect {name} [OPTIONS]")
    # The summary in the group's list is the first sentence of the command's own help.
    command = app.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    assert command.help is not None
    assert command.help.split("\n\n")[0].replace("\n", " ").startswith(COMMANDS[name].rstrip("."))


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_target_and_options_before_and_after_the_command(cli: Cli, name: str | None) -> None:
    text = cli(*([name] if name else []), "--help").out
    for option in ("-k", "-c", "--qemu", "--gdb", "-s", "--btf", "--vmcoreinfo", "--system-map"):
        assert re.search(rf"^  (-\w, )?{option}\b", text, re.MULTILINE), option
    for option in ("--format", "--color", "--quiet", "--verbose", "--progress"):
        assert option in text


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"anonvma-inspect {__version__}\n"


def test_no_command_is_help_and_wrong_usage(cli: Cli) -> None:
    ran = cli()
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Usage: anonvma-inspect")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["audti"], "there is no command 'audti'. Did you mean audit?"),
        (["Tree"], "there is no command 'Tree'. Did you mean tree?"),
        (["frobnicate"], f"there is no command 'frobnicate': {', '.join(COMMANDS)} are known"),
        (["audit"], "no target: name a vmcore or a snapshot with -c PATH"),
        (["-c", "x", "vma", "1x"], "'1x' is no PID"),
        (["-c", "x", "vma", "0x1f"], "0x1f is no PID: PIDs are decimal"),
        (["-c", "x", "vma", "1f"], "1f is no PID: PIDs are decimal"),
        (["-c", "x", "vma", "0"], "0 is no PID: PIDs go from 1 to 4194304"),
        (["-c", "x", "vma", "99999999999"], "99999999999 is no PID: PIDs go from 1 to 4194304"),
        (["-c", "x", "vma", "9" * 5000], f"{'9' * 5000} is no PID: PIDs go from 1 to 4194304"),
        (["-c", "x", "vma", "\u0661"], "'\u0661' is no PID"),
        (
            ["-c", "x", "vma", "1", "xyz"],
            "'xyz' is no address: addresses are hex, with or without 0x",
        ),
        (
            ["-c", "x", "vma", "1", "0x12345678123456789"],
            "0x12345678123456789 is no address: it has more than 64 bits",
        ),
        (["-c", "x", "audit", "--pid", "x"], "'x' is no PID"),
        (
            ["-c", "x", "chain", "1234"],
            "1234 is no kernel pointer: those begin at 0x8000000000000000. "
            "Did you mean chain PID ADDRESS?",
        ),
        (
            ["-c", "x", "tree", "0x7f0000000000"],
            "0x7f0000000000 is no kernel pointer: those begin at 0x8000000000000000. "
            "Did you mean tree PID ADDRESS?",
        ),
        (["-c", "x", "chain", "p", "1000"], "'p' is no PID"),
        (["-c", "x", "-k", "audit"], "-c and -k both name a target: give one of them"),
        (
            ["audit", "--gdb", "x", "--qemu", "y"],
            "--gdb and --qemu both name a target: give one of them",
        ),
        (
            ["-c", "x", "audit", "--only", "AV999"],
            "no invariant is called 'AV999': ",
        ),
        (["explain", "zzzzzzzz"], "no invariant is called 'zzzzzzzz': explain lists all of them"),
    ],
)
def test_one_sentence(cli: Cli, arguments: list[str], sentence: str) -> None:
    assert cli.fails(2, *arguments).startswith(sentence)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["audit", "--nonsense"],
        ["vma"],
        ["audit", "--format", "xml"],
        ["--color", "perhaps", "audit"],
        ["audit", "--max-findings", "-1"],
        ["-c"],
        ["vma", "1", "2", "3"],
        ["audit", "no-such-file"],
        ["snapshot"],
    ],
)
def test_what_click_refuses(cli: Cli, arguments: list[str]) -> None:
    ran = cli(*arguments)
    assert (ran.code, ran.out) == (2, "")
    first, second = ran.err.splitlines()
    assert first.startswith("anonvma-inspect: ")
    assert second.startswith("Try 'anonvma-inspect")
    assert second.endswith("--help'.")


def test_a_core_where_something_else_belongs(cli: Cli, core: str, vmlinux: str) -> None:
    mistake = f"{core} is a core dump. Did you mean -c {core}?"
    assert cli.fails(2, core, "audit") == mistake
    assert cli.fails(2, core) == mistake
    assert cli.fails(2, "-s", core, "audit") == mistake
    assert cli.fails(2, "vma", core) == mistake
    assert cli.fails(2, "chain", core) == mistake
    assert cli.fails(2, "vma", "1", core) == mistake
    assert cli.fails(2, "-c", vmlinux, "audit") == (
        f"{vmlinux} is a kernel executable, not a core dump. Did you mean -s {vmlinux}?"
    )
    assert cli.fails(2, vmlinux, "audit") == (
        f"{vmlinux} is a kernel executable. Did you mean -s {vmlinux}?"
    )


@pytest.mark.parametrize(
    "arguments", [["audit"], ["stats"], ["snapshot", "-o", "x"], ["tree", "1", "2"]]
)
def test_a_file_too_many(
    cli: Cli, core: str, vmlinux: str, tmp_path: Path, arguments: list[str]
) -> None:
    other = tmp_path / "other"
    other.write_text("hello")
    for file, guess in (
        (core, f"{core} is a core dump. Did you mean -c {core}?"),
        (vmlinux, f"{vmlinux} is a kernel executable. Did you mean -s {vmlinux}?"),
        (str(other), f"{other} is a file. Did you mean -c {other}?"),
    ):
        assert cli.fails(2, *arguments, file) == guess
        assert cli.fails(2, *arguments, "nothing", file, "-c", core) == guess


def test_a_file_that_would_be_overwritten(cli: Cli, tmp_path: Path, core: str) -> None:
    sentence = cli.fails(2, "-c", core, "snapshot", "-o", core)
    assert sentence == f"{core}: exists already; --force overwrites it"
    sentence = cli.fails(2, "-c", core, "snapshot", "-o", str(tmp_path))
    assert sentence == f"{tmp_path}: a directory; name the file to write"
    cli.fails(2, "-c", core, "snapshot", "-o", str(tmp_path / "none" / "a.core"))


@pytest.mark.parametrize("option", ["--qemu", "--gdb"])
def test_machines_that_are_looked_at_from_outside(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(anonvma_inspect.target, "open_target", open_target)
    beginning = f"{option} /no/socket: no such socket: "
    assert cli.fails(3, option, "/no/socket", "audit").startswith(beginning)
    assert cli.fails(3, "audit", option, "/no/socket").startswith(beginning)
    # After the command wins over before it.
    assert cli.fails(3, "-c", "x", "audit", option, "/no/socket").startswith(beginning)
    other = "--gdb" if option == "--qemu" else "--qemu"
    assert cli.fails(3, other, "x", "audit", option, "/no/socket").startswith(beginning)


@pytest.mark.parametrize(
    ("arguments", "user"),
    [
        (["audit"], 0),
        (["-k", "audit"], 1000),
        (["audit", "--kernel"], 1000),
        (["-c", "x", "audit", "-k"], 0),
        (["-c", "/proc/kcore", "audit"], 1000),
    ],
)
def test_the_running_kernel_is_named_or_root_names_nothing(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    user: int,
) -> None:
    opened = []

    def open_target(options: Any) -> Any:
        opened.append(options.core)
        raise TargetError("seen")

    monkeypatch.setattr(anonvma_inspect.target, "open_target", open_target)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert Cli(capsys).fails(3, *arguments) == "seen"
    assert opened == ["/proc/kcore"]


def test_nobody_but_root_looks_at_the_running_kernel_unasked(cli: Cli) -> None:
    assert "-c PATH, or be root to look at the running kernel" in cli.fails(2, "audit")


def test_control_characters_of_the_command_line_are_not_repeated(cli: Cli) -> None:
    assert "\\x1b[2J" in cli.fails(2, "\x1b[2J")
    assert "\\x1b[2J" in cli("--\x1b[2J").err
    assert "\x1b" not in cli("--\x1b[2J").err
