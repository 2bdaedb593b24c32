"""The kernel's image in its own memory, to search for what no symbol names."""

from __future__ import annotations

from collections.abc import Callable, Iterator

__all__ = ("KernelImage",)

# A kernel's text, data and what lies between are smaller; debugging aids such as KASAN double them.
_SIZE = 128 << 20
_CHUNK = 1 << 20
_ABSENT = bytes(_CHUNK)
# What the kernel frees after booting leaves gaps of some MiB; behind a longer one there is no more.
_END = 16


class KernelImage:
    """Text, read-only data and data of a kernel, from ``_stext`` on.

    It is looked at through the kernel's own page tables, so that what a process wrote into its
    pages, a second kernel that waits for a crash, or the page cache of a vmlinux are no part of it.
    Whatever lies behind the image in that range (nothing on x86-64, vmalloc on arm64) is searched
    as well: what is found must be checked by the one who knows what it should be.

    What was read is kept, at most 128 MiB, until :meth:`forget()`.

    :param read: Reads ``(address, size)``; raises :class:`LookupError` where there is nothing.
    :param stext: Address of ``_stext``.
    :param page_size: Bytes.
    """

    def __init__(self, read: Callable[[int, int], bytes], stext: int, page_size: int) -> None:
        #: Reads ``(address, size)``; raises :class:`LookupError` if any of it is not there.
        self.read = read
        #: Address of ``_stext``.
        self.stext = stext
        self._start = stext & -page_size
        self._page_size = page_size
        self._chunks: dict[int, bytes] = {}

    def find(self, pattern: bytes) -> Iterator[int]:
        """Search for bytes (at most a page of them, not all zero).

        :return: Address of each place, ascending.
        """
        empty = 0
        for index in range(_SIZE // _CHUNK):
            chunk, next_chunk = self._chunk(index), self._chunk(index + 1)
            if chunk is _ABSENT and next_chunk is _ABSENT:
                empty += 1
                if empty == _END:
                    break
                continue
            empty = 0
            data = chunk + next_chunk[: len(pattern) - 1]
            at = data.find(pattern)
            while at >= 0:
                yield self._start + index * _CHUNK + at
                at = data.find(pattern, at + 1)

    def view(self, start: int, end: int) -> bytes:
        """What lies in a range, with zeros where there is nothing."""
        start, end = start - self._start, end - self._start
        assert start >= 0
        return b"".join(
            self._chunk(index)[max(start - index * _CHUNK, 0) : end - index * _CHUNK]
            for index in range(start // _CHUNK, -(-end // _CHUNK))
        )

    def forget(self) -> None:
        """Keep nothing of what was read: the next search reads it again."""
        self._chunks.clear()

    def _chunk(self, index: int) -> bytes:
        if index not in self._chunks:
            address = self._start + index * _CHUNK
            inside = index < _SIZE // _CHUNK and address + _CHUNK <= 2**64
            data = self._present(address, _CHUNK) if inside else _ABSENT
            self._chunks[index] = data if data != _ABSENT else _ABSENT
        return self._chunks[index]

    def _present(self, address: int, size: int) -> bytes:
        try:
            return self.read(address, size)
        except LookupError:
            if size <= self._page_size:
                return bytes(size)
        half = size // 2
        return self._present(address, half) + self._present(address + half, half)
