"""The client of the gdb remote protocol, against stubs that are good, odd or none at all."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target import gdb_remote
from anonvma_inspect.target.connection import Connection
from anonvma_inspect.target.gdb_remote import GdbRemote

from .gdb_stub import Stub, escaped, framed
from .sockets import serve

START = 0xFFFF888000000000
DATA = bytes(range(256)) * 64


def read(address: int, size: int) -> bytes:
    if not START <= address <= address + size <= START + len(DATA):
        raise LookupError
    return DATA[address - START : address - START + size]


@contextmanager
def attached(stub: Stub, path: Path) -> Iterator[GdbRemote]:
    with serve(path / "gdb", stub.talk) as address:
        client = GdbRemote(Connection(address, "--gdb"))
        try:
            yield client
        finally:
            client.close()


@pytest.mark.parametrize("no_ack", [True, False])
@pytest.mark.parametrize(
    ("features", "most"),
    [(b"PacketSize=200;multiprocess+", 0x100), (b"", 200), (b"PacketSize=0", 32)],
)
def test_memory_comes_in_the_largest_packets_that_the_stub_takes(
    tmp_path: Path, features: bytes, most: int, no_ack: bool
) -> None:
    stub = Stub(read, features, no_ack)
    with attached(stub, tmp_path) as client:
        assert client.read(START + 100, 4096) == DATA[100:4196]
    sizes = [int(packet.split(b",")[1], 16) for packet in stub.asked if packet[:1] == b"m"]
    assert max(sizes) == most
    assert len(sizes) == -(-4096 // most)
    assert stub.asked[-1] == b"D"


def test_a_stub_may_answer_with_fewer_bytes_than_were_asked_for(tmp_path: Path) -> None:
    with attached(Stub(read, most=7), tmp_path) as client:
        assert client.read(START, 100) == DATA[:100]


def test_binary_answers_where_the_stub_offers_them(tmp_path: Path) -> None:
    stub = Stub(read, b"PacketSize=400;binary-upload+")
    with attached(stub, tmp_path) as client:
        assert client.read(START, 4096) == DATA[:4096]
    assert not [packet for packet in stub.asked if packet[:1] == b"m"]


def test_runs_and_escapes_are_undone(tmp_path: Path) -> None:
    """From the manual of gdb: ``0* `` is 0000; what is escaped is never a sign of its own."""
    answers = {b"m%x,4" % START: b"0*%a7", b"m%x,3" % (START + 4): b"" + escaped(b"414243")}
    with attached(Stub(answers=answers), tmp_path) as client:
        # '%' is 37: 8 further ones than there are, of which the line takes 29 off.
        answers[b"m%x,5" % START] = b"0*%a"
        assert client.read(START, 5) == b"\0\0\0\0\x0a"
        assert client.read(START + 4, 3) == b"ABC"


def test_what_is_not_mapped_is_not_there(tmp_path: Path) -> None:
    with attached(Stub(read), tmp_path) as client:
        with pytest.raises(LookupError):
            client.read(START - 8, 8)
        with pytest.raises(LookupError):
            client.read(START + len(DATA) - 8, 16)
        assert client.read(START, 8) == DATA[:8]


@pytest.mark.parametrize("no_ack", [True, False])
def test_damaged_answers_are_asked_for_again(tmp_path: Path, no_ack: bool) -> None:
    stub = Stub(read, no_ack=no_ack)
    with attached(stub, tmp_path) as client:
        stub.damaged = 3
        assert client.read(START, 64) == DATA[:64]
        stub.damaged = 100
        with pytest.raises(TargetError, match="4 answers in a row with wrong checksums"):
            client.read(START, 64)
        stub.damaged = 0


def test_a_packet_that_the_stub_misheard_is_sent_again(tmp_path: Path) -> None:
    stub = Stub(read, no_ack=False)
    with attached(stub, tmp_path) as client:
        stub.misheard = 2
        assert client.read(START, 64) == DATA[:64]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"", "the stub reads no memory"),
        (b"xyz", "the stub answers a request for memory with b'xyz'"),
        (b"00" * 9, "the stub answers a request for memory with b'000000000000000000'"),
        (b"000", "the stub answers a request for memory with b'000'"),
        (b"W00", "the machine has ended, the stub says"),
    ],
)
def test_nonsense_for_memory(tmp_path: Path, answer: bytes, sentence: str) -> None:
    stub = Stub(answers={b"m%x,8" % START: answer})
    with attached(stub, tmp_path) as client, pytest.raises(TargetError) as error:
        client.read(START, 8)
    assert str(error.value) == f"--gdb {tmp_path}/gdb: {sentence}"


def test_what_the_stub_says_in_between_is_no_answer(tmp_path: Path) -> None:
    """A stop reply comes when connecting stops the machine; output may come at any time."""
    stub = Stub(
        read, greeting=framed(b"T02thread:01;"), monitor={"info status": "VM status: x\r\n"}
    )
    with attached(stub, tmp_path) as client:
        assert client.stopped_by_us
        assert client.monitor("info status") == "VM status: x\r\n"
        assert client.monitor("info something") == ""
        assert client.read(START, 8) == DATA[:8]


def test_without_a_word_it_is_not_known_who_stopped_the_machine(tmp_path: Path) -> None:
    with attached(Stub(read), tmp_path) as client:
        assert not client.stopped_by_us


def test_leaving_undoes_what_was_done(tmp_path: Path) -> None:
    stub = Stub(read, answers={b"Qone": b"OK", b"Qtwo": b"OK"})
    with attached(stub, tmp_path) as client:
        client.on_leaving(b"Qone")
        client.on_leaving(b"Qtwo")
    assert stub.asked[-3:] == [b"Qtwo", b"Qone", b"D"]


def test_a_machine_found_stopped_stays_so(tmp_path: Path) -> None:
    stub = Stub(read)
    with attached(stub, tmp_path) as client:
        client.leave_stopped()
    assert b"D" not in stub.asked


def test_a_machine_runs_again_if_the_stub_is_not_understood(tmp_path: Path) -> None:
    stub = Stub(answers={b"QStartNoAckMode": b"W00"})
    ended = pytest.raises(TargetError, match="the machine has ended")
    with serve(tmp_path / "gdb", stub.talk) as address, ended:
        GdbRemote(Connection(address, "--gdb"))
    assert stub.asked[-1] == b"D"


@pytest.mark.parametrize(
    ("greeting", "sentence"),
    [
        (b"", "connected, but no answer within 0 s: no gdb stub, or another debugger has it"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "connected, but no answer within 0 s: "),
        (b"$" + b"0" * (5 << 20), "a packet without an end: this is no gdb stub"),
    ],
)
def test_something_else_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, greeting: bytes, sentence: str
) -> None:
    monkeypatch.setattr(gdb_remote, "_FIRST_SECONDS", 0.3)
    monkeypatch.setattr(gdb_remote, "_DETACH_SECONDS", 0.1)

    def talk(line: socket.socket) -> None:
        line.sendall(greeting)
        while line.recv(65536):
            pass

    with serve(tmp_path / "gdb", talk) as address:
        with pytest.raises(TargetError) as error:
            GdbRemote(Connection(address, "--gdb"))
        assert str(error.value).startswith(f"--gdb {address}: {sentence}")


def test_the_connection_breaks_off(tmp_path: Path) -> None:
    stub = Stub(read, b"PacketSize=40", breaks_after=3)
    broken = pytest.raises(TargetError, match="the connection broke off")
    with attached(stub, tmp_path) as client, broken:
        client.read(START, 4096)


def test_nobody_is_there(tmp_path: Path) -> None:
    def refusal(address: str) -> str:
        with pytest.raises(TargetError) as error:
            Connection(address, "--gdb")
        return str(error.value).removeprefix(f"--gdb {address}: ")

    assert refusal(str(tmp_path / "none")).startswith("no such socket: ")
    (tmp_path / "file").write_bytes(b"")
    assert refusal(str(tmp_path / "file")).startswith("the connection is refused: ")
    assert refusal("127.0.0.1:1").startswith("the connection is refused: ")
    assert refusal("[::1]:1").startswith(("the connection is refused: ", "cannot be connected to"))
    # No port, so it is a path.
    assert refusal(":99999").startswith("no such socket: ")
    assert refusal(str(tmp_path / ("a" * 200))).startswith("cannot be connected to: ")
    assert refusal("no.such.host.invalid:1").startswith("cannot be connected to: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may connect to anything")
def test_a_socket_of_somebody_else(tmp_path: Path) -> None:
    with serve(tmp_path / "gdb", Stub().talk) as address:
        (tmp_path / "gdb").chmod(0)
        with pytest.raises(TargetError, match="no permission to connect to it"):
            Connection(address, "--gdb")


def test_host_and_port() -> None:
    """A TCP address may leave its host out."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"localhost:{port}", f":{port}"):
            assert Connection(address, "--gdb").peer is None
