"""Text of the target is shown so that it can be turned back into its bytes, and does nothing."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anonvma_inspect.report.escape import escape, printable


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"sleep", "sleep"),
        (b"two words", "two words"),
        ("caf\u00e9".encode(), "caf\u00e9"),
        (b"a\\b", r"a\\b"),
        (b"a\nb\tc\rd", r"a\nb\tc\rd"),
        (b"\x1b[31mred", r"\x1b[31mred"),
        (b"\x7f\x00", r"\x7f\x00"),
        # No UTF-8.
        (b"\xff\xfe", r"\xff\xfe"),
        # U+009B, which some terminals take for the start of an escape code.
        (b"\xc2\x9b", r"\xc2\x9b"),
        # U+202E turns the direction of what follows.
        ("\u202egnp.exe".encode(), r"\xe2\x80\xaegnp.exe"),
        # U+2028 ends a line for some.
        ("a\u2028b".encode(), r"a\xe2\x80\xa8b"),
        (b"<b>", "<b>"),
    ],
)
def test_examples(raw: bytes, shown: str) -> None:
    assert escape(raw) == shown


_NAMED = {"n": b"\n", "r": b"\r", "t": b"\t", "\\": b"\\"}


def unescape(text: str) -> bytes:
    parts = re.split(r"(\\x[0-9a-f]{2}|\\.)", text)
    return b"".join(
        part.encode()
        if index % 2 == 0
        else bytes([int(part[2:], 16)])
        if part[1] == "x"
        else _NAMED[part[1]]
        for index, part in enumerate(parts)
    )


@given(st.binary(max_size=40) | st.text(max_size=20).map(lambda text: text.encode("utf-8")))
def test_nothing_is_lost_and_nothing_acts(raw: bytes) -> None:
    shown = escape(raw)
    assert shown.isprintable()
    assert unescape(shown) == raw


@given(st.text(st.characters(), max_size=40))
def test_messages_keep_their_lines_and_nothing_else(text: str) -> None:
    assert printable(text).replace("\n", "").isprintable()


def test_messages_are_not_escaped_twice() -> None:
    assert printable(f"PID 1 ({escape(bytes([27, 92]))})") == r"PID 1 (\x1b\\)"
    assert printable("one\ntwo\udcff") == "one\ntwo\\xff"
