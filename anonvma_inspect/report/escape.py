"""Text from the target, made safe to show: the one place where that is done.

A command can name itself, and a file can be named, anything at all: escape codes that repaint the
terminal, newlines that forge lines of a report, bytes that are no text. None of that reaches an
output as it is, in any format.
"""

from __future__ import annotations

__all__ = ("escape", "printable", "quote_dot")

_NAMED = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escape(raw: bytes) -> str:
    r"""Show bytes of the target as text that can be turned back into them.

    Printable UTF-8 stands for itself; a backslash is ``\\``; newline, carriage return and tab are
    ``\n``, ``\r``, ``\t``; every other byte is ``\xNN``. What Unicode calls a format character is
    not printable: it could turn the direction of a line.
    """
    text = raw.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_NAMED.get(character) or _visible(character) for character in text)


def printable(text: str) -> str:
    """Make a message of this tool's safe that may quote the target or a file's name.

    A backslash stays as it is, so that what was escaped before is not escaped again. Lines stay
    lines.
    """
    if text.isprintable():
        return text
    return "\n".join(
        "".join(_visible(character) for character in line) for line in text.split("\n")
    )


def quote_dot(text: str) -> str:
    r"""A string in the language of Graphviz, that shows just this text.

    Of a label, Graphviz takes a backslash for the start of an escape sequence, and ``&`` for that
    of an HTML entity. What would be an HTML label is none inside quotes.

    :param text: Printable, as :func:`escape` and :func:`printable` return it; newlines break lines.
    """
    for character, instead in (("\\", "\\\\"), ('"', '\\"'), ("&", "&amp;"), ("\n", "\\n")):
        text = text.replace(character, instead)
    return f'"{text}"'


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    # A lone surrogate stands for a byte that is no UTF-8 (U+DC80 and up), or came from elsewhere.
    data = character.encode(
        "utf-8", "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
    )
    return "".join(f"\\x{byte:02x}" for byte in data)
