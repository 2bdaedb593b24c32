"""Machines that are read from outside: a guest through QMP, a machine through a gdb stub."""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from anonvma_inspect.target import qmp

from .clirun import Cli
from .dumps import make_plain_dump
from .fake_qemu import FakeQemu
from .gdb_stub import Stub, framed
from .guest_image import GuestImage, make_guest
from .sockets import serve

FIXTURES = Path(__file__).parent.parent / "fixtures"


@functools.lru_cache(maxsize=3)
def guest_of(name: str) -> GuestImage:
    return make_guest(FIXTURES / f"{name}.core.xz")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def audit(cli: Cli, *arguments: str) -> Any:
    ran = cli(*arguments, "--format", "json", "audit")
    assert ran.code == 0, ran.err
    answer = json.loads(ran.out)
    del answer["target"], answer["looked"]
    return answer


# The files that describe a fixture's kernel.
def describe(name: str, directory: Path) -> list[str]:
    return make_plain_dump(FIXTURES / f"{name}.core.xz", directory).arguments[2:]


@pytest.mark.parametrize("way", ["process", "pmemsave", "text"])
@pytest.mark.parametrize("name", ["forkchain-6.12", "forktree-7.2"])
def test_a_guest_is_audited_as_its_dump_is(cli: Cli, tmp_path: Path, name: str, way: str) -> None:
    expected = audit(cli, "-c", str(FIXTURES / f"{name}.core.xz"))
    files = describe(name, tmp_path)
    qemu = FakeQemu(guest_of(name), process=way == "process", files=way == "pmemsave")
    with serve(tmp_path / "qmp", qemu.talk) as address:
        found = audit(cli, "--qemu", address, *files)
    assert found == expected
    # Text is what the others are compared with.
    assert ("pmemsave" in qemu.asked) == (way == "pmemsave")
    assert (len([asked for asked in qemu.asked if " xp " in asked]) > 200) == (way == "text")


def test_what_is_asked_of_qemu_changes_nothing(cli: Cli, tmp_path: Path) -> None:
    """Least of all does it stop the guest."""
    qemu = FakeQemu(guest_of("forkchain-6.12"))
    with serve(tmp_path / "qmp", qemu.talk) as address:
        audit(cli, "--qemu", address, *describe("forkchain-6.12", tmp_path))
    verbs = {asked.replace("human-monitor-command ", "").split()[0] for asked in qemu.asked}
    assert verbs <= {"qmp_capabilities", "query-target", "info", "gpa2hva", "xp"}


def test_vmcoreinfo_is_found_where_no_processor_leads_to_it(cli: Cli, tmp_path: Path) -> None:
    """A processor that was not started yet has no page tables; then RAM is searched."""
    guest = guest_of("forkchain-6.12")
    blind = dataclasses.replace(guest, top_table=0)
    files = describe("forkchain-6.12", tmp_path)
    with serve(tmp_path / "qmp", FakeQemu(blind).talk) as address:
        audit(cli, "--qemu", address, *files)
    text = FakeQemu(blind, process=False, files=False)
    with serve(tmp_path / "qmp2", text.talk) as address:
        said = cli.fails(3, "--qemu", address, *files, "audit")
        assert "no processor of this guest leads to VMCOREINFO" in said
        assert "use a Unix socket of a QEMU on this host, or give VMCOREINFO with" in said
        # Who gives it needs no search.
        audit(cli, "--qemu", address, *files, "--vmcoreinfo", str(tmp_path / "plain.vmcoreinfo"))


@pytest.mark.parametrize(
    ("quirks", "sentence"),
    [
        (
            {"greeting": b'{"return": {}}\r\n'},
            "what answers there is not QMP: name the socket of QEMU's -qmp",
        ),
        ({"greeting": b"QEMU 7.2.22 monitor\r\n"}, "not JSON, so what answers there is not QMP: "),
        ({"greeting": b"[" * 100_000 + b"\n"}, "not JSON, so what answers there is not QMP: "),
        ({"greeting": b"[1]\n"}, "QEMU answered with something that is not an object"),
        ({"greeting": b"x" * (17 << 20)}, "answers without an end: this is not QMP"),
        (
            {"arch": "ppc64"},
            "a guest of ppc64; the architectures understood are x86_64 and aarch64",
        ),
        ({"monitor": False}, "QEMU refuses human-monitor-command: The command "),
        (
            {"answers": {"human-monitor-command": "?"}},
            "the monitor does not say where the guest's ",
        ),
        (
            {"answers": {"human-monitor-command": 7}},
            "the monitor's answer to 'info mtree -f' is no ",
        ),
        (
            {"breaks_after": 90, "process": False},
            "the connection broke off (the other side closed it",
        ),
        (
            {"breaks_after": 300, "process": False, "files": False},
            "the connection broke off (the other side closed it",
        ),
    ],
)
def test_a_qemu_that_answers_otherwise(
    cli: Cli, tmp_path: Path, quirks: dict[str, Any], sentence: str
) -> None:
    qemu = FakeQemu(guest_of("forkchain-6.12"), **quirks)
    files = describe("forkchain-6.12", tmp_path)
    with serve(tmp_path / "qmp", qemu.talk) as address:
        said = cli.fails(3, "--qemu", address, *files, "audit")
        assert said.startswith(f"--qemu {address}: {sentence}")


@pytest.mark.parametrize("greeting", [b"", b'{"QMP"'])
def test_a_qmp_socket_serves_one_client(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, greeting: bytes
) -> None:
    monkeypatch.setattr(qmp, "_GREETING_SECONDS", 0.2)
    qemu = FakeQemu(guest_of("forkchain-6.12"), greeting=greeting)
    with serve(tmp_path / "qmp", qemu.talk) as address:
        said = cli.fails(3, "--qemu", address, "audit")
        assert "QMP serves one client at a time" in said


@pytest.mark.parametrize("greeting", [framed(b"T02thread:01;"), b""])
def test_a_stub_where_qmp_is_expected_lets_its_machine_go_on(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, greeting: bytes
) -> None:
    """Connecting has stopped it."""
    monkeypatch.setattr(qmp, "_GREETING_SECONDS", 0.2)
    stub = Stub(greeting=greeting)
    with serve(tmp_path / "gdb", stub.talk) as address:
        said = cli.fails(3, "--qemu", address, "audit")
        assert said == (
            f"--qemu {address}: a gdb stub answers there. Did you mean --gdb? The machine goes on"
        )
    assert stub.asked == [b"D"]


def test_qmp_where_a_stub_is_expected(cli: Cli, tmp_path: Path) -> None:
    qemu = FakeQemu(guest_of("forkchain-6.12"))
    with serve(tmp_path / "qmp", qemu.talk) as address:
        said = cli.fails(3, "--gdb", address, "audit")
    assert said == f"--gdb {address}: QMP answers there. Did you mean --qemu?"


def test_qemu_hangs(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "_ANSWER_SECONDS", 0.2)

    def talk(line: socket.socket) -> None:
        line.sendall(b'{"QMP": {}}\r\n')
        while line.recv(4096):
            pass

    with serve(tmp_path / "qmp", talk) as address:
        said = cli.fails(3, "--qemu", address, "audit")
        assert "no answer within 0 s: QEMU hangs, or is stopped" in said


def test_qemu_is_killed_while_its_memory_is_read(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a process that has ended, /proc/PID/mem gives nothing any more."""
    reads = 0
    real = os.pread

    def pread(file: int, size: int, offset: int) -> bytes:
        nonlocal reads
        reads += 1
        return real(file, size, offset) if reads < 300 else b""

    monkeypatch.setattr(os, "pread", pread)
    files = describe("forkchain-6.12", tmp_path)
    with serve(tmp_path / "qmp", FakeQemu(guest_of("forkchain-6.12")).talk) as address:
        said = cli.fails(3, "--qemu", address, *files, "audit")
        assert "QEMU has ended while its guest was read" in said


def one_empty_page(address: int, size: int) -> bytes:
    if address >> 12 != 0xFFFFFFFF81000:
        raise LookupError
    return bytes(size)


def stub_of(name: str, **more: Any) -> Stub:
    guest = guest_of(name)
    return Stub(guest.read, greeting=framed(b"T02thread:01;"), **more)


@pytest.mark.parametrize("name", ["forkchain-6.12", "forktree-6.12-arm64"])
def test_a_machine_behind_a_stub_is_audited_as_its_dump_is(
    cli: Cli, tmp_path: Path, name: str
) -> None:
    expected = audit(cli, "-c", str(FIXTURES / f"{name}.core.xz"))
    answers = {b"qfThreadInfo": b"m01,02", b"qsThreadInfo": b"l", b"Hg01": b"E22", b"Hg02": b"OK"}
    if "arm64" in name:
        answers[b"qXfer:features:read:target.xml:0,3fb"] = b"l<architecture>aarch64</architecture>"
        pc = guest_of(name).image + 40
        answers[b"g"] = b"00" * 256 + pc.to_bytes(8, "little").hex().encode() + b"00" * 8
    stub = stub_of(name, answers=answers)
    with serve(tmp_path / "gdb", stub.talk) as address:
        assert audit(cli, "--gdb", address, *describe(name, tmp_path)) == expected
        gc.collect()
    assert stub.asked[-1] == b"D"
    # Nothing is written, no breakpoint set, and nothing made to run but by leaving.
    changes = (b"M", b"X", b"G", b"P", b"Z", b"c", b"C", b"s", b"S", b"v", b"k", b"R")
    assert not [asked for asked in stub.asked if asked.startswith(changes)]


def test_the_target_line_says_that_the_machine_stands_still(cli: Cli, tmp_path: Path) -> None:
    stub = stub_of("forkchain-6.12")
    with serve(tmp_path / "gdb", stub.talk) as address:
        ran = cli("--gdb", address, *describe("forkchain-6.12", tmp_path), "audit")
    assert ran.err.splitlines()[0].endswith(
        "gdb, layouts from btf, symbols from system-map, stopped while it is read"
    )


@pytest.mark.parametrize(
    ("answers", "monitor", "restored"),
    [
        ({b"qqemu.PhyMemMode": b"1", b"Qqemu.PhyMemMode:0": b"OK"}, {}, True),
        ({b"qqemu.PhyMemMode": b"0"}, {}, False),
    ],
)
def test_physical_addresses_are_switched_back_on(
    cli: Cli, tmp_path: Path, answers: dict[bytes, bytes], monitor: dict[str, str], restored: bool
) -> None:
    stub = stub_of("forkchain-6.12", answers={**answers, b"Qqemu.PhyMemMode:1": b"OK"})
    with serve(tmp_path / "gdb", stub.talk) as address:
        audit(cli, "--gdb", address, *describe("forkchain-6.12", tmp_path))
        gc.collect()
    assert (b"Qqemu.PhyMemMode:1" in stub.asked) == restored
    assert stub.asked[-1] == b"D"


@pytest.mark.parametrize(
    ("greeting", "version", "status", "resumed"),
    [
        # QEMU before 8.1 says when connecting stops the machine.
        (framed(b"T02thread:01;"), "7.2.22Debian", "paused", True),
        (b"", "7.2.22Debian", "paused", False),
        (b"", "8.0.5", "paused", False),
        # Later ones do not.
        (b"", "8.1.0", "paused", True),
        (b"", "10.0.2", "paused", True),
        # A reason of its own to be stopped.
        (b"", "10.0.2", "paused (guest-panicked)", False),
        # No QEMU.
        (b"", "", "", True),
    ],
)
def test_a_machine_is_left_as_it_was_found(
    cli: Cli, tmp_path: Path, greeting: bytes, version: str, status: str, resumed: bool
) -> None:
    stub = stub_of("forkchain-6.12")
    stub.greeting = greeting
    if version:
        stub.monitor = {"info version": f"{version}\r\n", "info status": f"VM status: {status}\r\n"}
    with serve(tmp_path / "gdb", stub.talk) as address:
        audit(cli, "--gdb", address, *describe("forkchain-6.12", tmp_path))
        gc.collect()
    assert (b"D" in stub.asked) == resumed


def test_a_machine_that_hides_its_kernel_from_processes(cli: Cli, tmp_path: Path) -> None:
    """QEMU's stub shows physical memory, in which the processor's own tables lead to the kernel."""
    name = "forkchain-6.12"
    guest = guest_of(name)
    physical = False
    # Under page-table isolation the processor's own table is the page behind the kernel's.
    registers = f"CPU#0\r\nCR2=0 CR3={guest.top_table | 0x1000:016x} CR4={0x751EF0:08x}\r\n"

    def read(address: int, size: int) -> bytes:
        if not physical:
            raise LookupError
        return guest.read_physical(address, size)

    stub = stub_of(name, answers={b"qqemu.PhyMemMode": b"0"})
    stub.read, stub.monitor = read, {"info registers": registers}
    real = stub.answer

    def answer(packet: bytes) -> bytes:
        nonlocal physical
        if packet.startswith(b"Qqemu.PhyMemMode:"):
            physical = packet.endswith(b"1")
            return b"OK"
        return real(packet)

    stub.answer = answer  # type: ignore[method-assign]
    expected = audit(cli, "-c", str(FIXTURES / f"{name}.core.xz"))
    files = describe(name, tmp_path)
    with serve(tmp_path / "gdb", stub.talk) as address:
        assert audit(cli, "--gdb", address, *files) == expected
        gc.collect()
        assert stub.asked[-2:] == [b"Qqemu.PhyMemMode:0", b"D"]
        given = str(tmp_path / "plain.vmcoreinfo")
        assert audit(cli, "--gdb", address, *files, "--vmcoreinfo", given) == expected
        gc.collect()


@pytest.mark.parametrize(
    ("quirks", "sentence"),
    [
        ({"breaks_after": 400}, "the connection broke off (the other side closed it"),
        (
            {"read": one_empty_page},
            "no VMCOREINFO is found in the kernel's image",
        ),
        (
            {"features": b"", "answers": {b"qfThreadInfo": b"mx"}},
            "no processor of it sees a kernel of Linux where",
        ),
    ],
)
def test_a_stub_that_answers_otherwise(
    cli: Cli, tmp_path: Path, quirks: dict[str, Any], sentence: str
) -> None:
    stub = stub_of("forkchain-6.12")
    for name, value in quirks.items():
        setattr(stub, name, value)
    files = describe("forkchain-6.12", tmp_path)
    with serve(tmp_path / "gdb", stub.talk) as address:
        said = cli.fails(3, "--gdb", address, *files, "audit")
        assert said.startswith(f"--gdb {address}: {sentence}")
        gc.collect()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whoever_is_interrupted_leaves_the_stub(tmp_path: Path, number: signal.Signals) -> None:
    """The process ends in the middle of an answer that does not come."""
    stub = stub_of("forkchain-6.12")
    asked = threading.Event()
    go_on = threading.Event()

    def read(address: int, size: int) -> bytes:
        asked.set()
        go_on.wait(30)
        raise LookupError

    stub.read = read
    with serve(tmp_path / "gdb", stub.talk) as address:
        command = [sys.executable, "-m", "anonvma_inspect", "--gdb", address, "audit"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert asked.wait(30)
        process.send_signal(number)
        go_on.set()
        _, complaint = process.communicate(timeout=30)
    assert process.returncode == 130
    assert complaint.strip() == b""
    assert stub.asked[-1] == b"D"
