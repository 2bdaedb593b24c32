"""Something that answers at a Unix socket, in this process."""

from __future__ import annotations

import contextlib
import gc
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ("serve",)


@contextlib.contextmanager
def serve(path: Path, talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """Listen at a path, and talk to one client after the other.

    :return: The path.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()

    def work() -> None:
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            with line, contextlib.suppress(OSError):
                talk(line)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield str(path)
    finally:
        # Whoever still holds a connection closes it.
        gc.collect()
        # close() alone does not wake up who waits in accept().
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        listener.close()
        assert not thread.is_alive()
