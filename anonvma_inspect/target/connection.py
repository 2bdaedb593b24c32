"""A socket to something that answers questions, with a time-out for every answer."""

from __future__ import annotations

import re
import socket
import struct
import time
import weakref

from anonvma_inspect.errors import TargetError

__all__ = ("Connection",)

# As drgn reads such an address: a path with a colon in it can be written with ./ before it.
_HOST_AND_PORT = re.compile(r"(?P<host>[^/.][^/]*|):(?P<port>[0-9]{1,5})")
_CONNECT_SECONDS = 10.0
_MOST_AT_ONCE = 1 << 20


class Connection:
    """A stream socket, and what to say when it breaks.

    :param address: Path of a Unix socket, or ``host:port``.
    :param option: The option that named it, for messages.
    :raises TargetError: if nothing accepts a connection there.
    """

    def __init__(self, address: str, option: str) -> None:
        #: What it is called in messages.
        self.name = f"{option} {address}"
        try:
            self.socket = _connect(address)
        except FileNotFoundError:
            raise TargetError(
                f"{self.name}: no such socket: name that of a running QEMU, as a path or host:port"
            ) from None
        except ConnectionRefusedError:
            raise TargetError(
                f"{self.name}: the connection is refused: nothing listens there (any more)"
            ) from None
        except PermissionError:
            raise TargetError(
                f"{self.name}: no permission to connect to it: as root, or as the user that QEMU "
                "runs as"
            ) from None
        except BlockingIOError:
            raise TargetError(
                f"{self.name}: busy: others wait for it as well, and it serves one at a time; end "
                "them"
            ) from None
        except OSError as error:
            raise TargetError(
                f"{self.name}: cannot be connected to: {error.strerror or error}"
            ) from None

        #: Close it.
        self.close = weakref.finalize(self, self.socket.close)

    def send(self, data: bytes, seconds: float, files: list[int] | None = None) -> None:
        """Send bytes.

        :param files: Descriptors to pass along (Unix sockets only).
        :raises TargetError: if they are not taken within that time.
        """
        self.socket.settimeout(seconds)
        try:
            if files:
                sent = socket.send_fds(self.socket, [data], files)
                data = data[sent:]
            self.socket.sendall(data)
        except TimeoutError:
            raise self.silent(seconds) from None
        except OSError as error:
            raise self._broken(error.strerror or str(error)) from None

    def receive(self, deadline: float) -> bytes:
        """Wait for bytes.

        :param deadline: As of :func:`time.monotonic`.
        :return: At least one.
        :raises TimeoutError: if none come until then.
        :raises TargetError: if the connection ends.
        """
        self.socket.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data = self.socket.recv(_MOST_AT_ONCE)
        except TimeoutError:
            raise
        except OSError as error:
            raise self._broken(error.strerror or str(error)) from None
        if not data:
            raise self._broken("the other side closed it")
        return data

    @property
    def peer(self) -> int | None:
        """PID of the process that listens at a Unix socket, if it can be seen from here."""
        if self.socket.family != socket.AF_UNIX:
            return None
        size = struct.calcsize("3i")
        credentials = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        pid: int = struct.unpack("3i", credentials)[0]
        return pid or None

    def silent(self, seconds: float) -> TargetError:
        """The error for an answer that does not come."""
        return TargetError(
            f"{self.name}: no answer within {seconds:.0f} s: QEMU hangs, or is stopped"
        )

    def nonsense(self, what: str) -> TargetError:
        """The error for an answer that makes no sense."""
        return TargetError(f"{self.name}: {what}")

    def _broken(self, reason: str) -> TargetError:
        return TargetError(
            f"{self.name}: the connection broke off ({reason}): has QEMU ended? What was read so "
            "far says nothing"
        )


def _connect(address: str) -> socket.socket:
    tcp = _HOST_AND_PORT.fullmatch(address)
    if tcp is not None and int(tcp["port"]) < 1 << 16:
        host = tcp["host"].removeprefix("[").removesuffix("]") or "localhost"
        connected = socket.create_connection((host, int(tcp["port"])), _CONNECT_SECONDS)
        # Questions are small, and each waits for its answer.
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.settimeout(_CONNECT_SECONDS)
        made.connect(address)
    except BaseException:
        made.close()
        raise
    return made
