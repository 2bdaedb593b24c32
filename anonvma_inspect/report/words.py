"""Numbers and names as reports spell them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = (
    "counted",
    "describe_calls",
    "hex_or_null",
    "hexadecimal",
    "permissions",
    "span",
    "table",
)

# What is further out is seldom more than how a task came into the kernel.
_MAX_CALLS = 6

# include/linux/mm.h; the same bits in every release.
_VM_READ, _VM_WRITE, _VM_EXEC, _VM_MAYSHARE = 0x1, 0x2, 0x4, 0x80


def hexadecimal(word: int) -> str:
    """A word of the target: an address, a pointer, flags or a page offset."""
    return f"{int(word):#x}"


def hex_or_null(word: int | None) -> str | None:
    """Likewise, where it may be absent."""
    return None if word is None else hexadecimal(word)


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: ``1 hole``, ``12,345 holes``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def span(start: int, end: int) -> str:
    """A range of user addresses as ``/proc/PID/maps`` writes it."""
    return f"{start:08x}-{end:08x}"


def permissions(vm_flags: int) -> str:
    """``vm_flags`` as ``/proc/PID/maps`` shows them (``show_vma_header_prefix()``)."""
    return (
        ("r" if vm_flags & _VM_READ else "-")
        + ("w" if vm_flags & _VM_WRITE else "-")
        + ("x" if vm_flags & _VM_EXEC else "-")
        + ("s" if vm_flags & _VM_MAYSHARE else "p")
    )


def table(
    rows: Sequence[Sequence[str]], headers: Sequence[str] = (), align: Sequence[str] | None = None
) -> Iterator[str]:
    """Lines of a table with aligned columns, two spaces apart.

    :param align: ``left`` or ``right`` for each column.
    """
    # Takes 50 ms to load, and not every answer has a table.
    from tabulate import tabulate

    text = tabulate(
        [list(row) for row in rows],
        headers=list(headers),
        tablefmt="plain",
        disable_numparse=True,
        colalign=align if rows else None,
    )
    return (line.rstrip() for line in text.split("\n") if line)


def describe_calls(functions: Sequence[str]) -> str:
    """What a task is doing: the functions on its stack, those further in.

    :param functions: The innermost first.
    """
    return " < ".join(functions[:_MAX_CALLS])
