"""An operation of the kernel's that the target caught half-way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from anonvma_inspect.in_flight.draft import Draft

__all__ = ("Lock", "Operation")


@dataclass(frozen=True)
class Lock:
    """What makes an operation's half-done states legal.

    :ivar kind: ``mmap_lock`` or ``anon_vma`` (its ``rwsem``).
    :ivar address: Of the ``mm_struct`` or root ``anon_vma`` that it is in.
    :ivar held: ``write``, ``read``, ``exit`` (nobody else can get at an mm without users), or
        ``waited for``.
    :ivar pid: Of the task that holds it, if that is known.
    :ivar comm: Its name.
    """

    kind: str
    address: int
    held: str
    pid: int | None = None
    comm: bytes | None = None


@dataclass(frozen=True)
class Operation:
    """An operation half done.

    :ivar name: The function or system call that does it, in a word or two.
    :ivar lock: What it holds.
    :ivar kinds: What its state brings: see :mod:`anonvma_inspect.in_flight.kinds`.
    :ivar vmas: Rows of the VMAs that it is at work on.
    :ivar anon_vmas: Rows of the anon_vmas.
    :ivar mms: Rows of the mms.
    :ivar settle: Completes it, or takes it back, whichever is certain.
    :ivar beside: Its VMAs may be in the middle of another operation as well, or another part of it.
    """

    name: str
    lock: Lock
    kinds: tuple[str, ...]
    settle: Callable[[Draft], None]
    vmas: frozenset[int] = field(default_factory=frozenset)
    anon_vmas: frozenset[int] = field(default_factory=frozenset)
    mms: frozenset[int] = field(default_factory=frozenset)
    beside: bool = False
