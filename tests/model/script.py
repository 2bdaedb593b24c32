"""Operations as processes ask for them, one after the other: what a script is made of.

A script is text, a line an operation, so that a program in a guest can do the same
(``scripts/labkit/guest/model.c``)::

    PROCESS OPERATION PAGE PAGES TO ARGUMENT
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import astuple, dataclass

from .eras import Rules
from .guards import guard_install, guard_remove
from .links import get_anon_vma, put_anon_vma
from .mremap import mremap_move, mremap_resize
from .objects import Flag, Machine, Mm, OutOfMemory, Process, Vma
from .process import exit_process, fork, new_process, share
from .rmap import anon_vma_prepare
from .vma import Refused, change, mmap, munmap

__all__ = ("ADVICE", "ARENA_PAGES", "PROTECTIONS", "Operation", "Player", "must", "play")

#: Pages that the operations of a script have to do with.
ARENA_PAGES = 24
PROTECTIONS = (Flag(0), Flag.READ, Flag.READ | Flag.WRITE, Flag.ACCESS)
#: ``MADV_DONTFORK``, ``MADV_DOFORK``, ``MADV_WIPEONFORK``, ``MADV_KEEPONFORK``.
ADVICE = (10, 11, 18, 19)


@dataclass(frozen=True)
class Operation:
    """One operation.

    :ivar process: Who does it.
    :ivar page: The first page that it is about.
    :ivar pages: How many.
    :ivar to: Where to (``move``, ``leave``), how many instead (``resize``, ``stretch``), which page
        of the file (``map-file``), or the number of the new process.
    :ivar argument: A protection, an advice; of ``stretch`` the new number of pages.
    """

    process: int
    name: str
    page: int = 0
    pages: int = 1
    to: int = 0
    argument: int = 0

    def __str__(self) -> str:
        return " ".join(map(str, astuple(self)))


class Player:
    """A machine, and somebody who does the operations of scripts on it.

    :ivar base: Page that page 0 of the operations stands for.
    """

    def __init__(self, rules: Rules, base: int = 0x10000) -> None:
        self.machine = Machine(rules)
        self.base = base
        new_process(self.machine, 0)

    def do(self, operation: Operation) -> int:
        """Do an operation.

        :return: 0, or the error that it ends with.
        """
        process = self.machine.processes[operation.process]
        process.mm.writer = process
        try:
            _OPERATIONS[operation.name](self, process, operation)
        except Refused as refused:
            return refused.errno
        except OutOfMemory:
            return errno.ENOMEM
        finally:
            process.mm.writer = None
            self.machine.allocations_left = None
        return 0


def must(player: Player, *operations: tuple[int | str, ...]) -> Player:
    """Do operations that succeed.

    :param operations: Each as :class:`Operation` has it.
    """
    for operation in operations:
        assert player.do(Operation(*operation)) == 0, operation  # type: ignore[arg-type]
    return player


def _write(mm: Mm, page: int, pages: int) -> None:
    for at in range(page, page + pages):
        vma = mm.find(at)
        if vma is None or vma.start > at or not vma.flags & Flag.WRITE:
            raise Refused(errno.EFAULT)
        anon_vma_prepare(vma)


def _protect(protection: Flag) -> Callable[[Vma], Flag]:
    return lambda vma: vma.flags & ~Flag.ACCESS | protection


def _advise(advice: int) -> Callable[[Vma], Flag]:
    # madvise_vma_behavior(): only anonymous memory is wiped.
    flag = Flag.DONTCOPY if advice in (10, 11) else Flag.WIPEONFORK
    sets = advice in (10, 18)

    def new_flags(vma: Vma) -> Flag:
        if advice == 18 and vma.file is not None:
            raise Refused(errno.EINVAL)
        return vma.flags | flag if sets else vma.flags & ~flag

    return new_flags


def _pin(player: Player, process: Process, page: int) -> None:
    # try_to_merge_with_ksm_page(), mm/ksm.c: a page of KSM's holds what its VMA has active.
    vma = process.mm.find(page)
    if vma is None or vma.anon_vma is None:
        raise Refused(errno.EINVAL)
    get_anon_vma(vma.anon_vma)
    player.machine.pins.append(vma.anon_vma)


def _unpin(player: Player, number: int) -> None:
    pins = player.machine.pins
    if not pins:
        raise Refused(errno.EINVAL)
    put_anon_vma(pins.pop(number % len(pins)))


def _switch(player: Player, enabled: bool) -> None:
    player.machine.lazy_enabled = enabled and player.machine.rules.lazy is not None


def _at(player: Player, operation: Operation) -> tuple[int, int]:
    start = player.base + operation.page
    return start, start + operation.pages


_RW = Flag.READ | Flag.WRITE
_OPERATIONS: dict[str, Callable[[Player, Process, Operation], object]] = {
    "map": lambda p, who, op: mmap(who.mm, *_at(p, op), _RW, None, 0),
    "map-file": lambda p, who, op: mmap(who.mm, *_at(p, op), _RW, 1, op.to),
    "unmap": lambda p, who, op: munmap(who.mm, *_at(p, op)),
    "write": lambda p, who, op: _write(who.mm, p.base + op.page, op.pages),
    "protect": lambda p, who, op: change(who.mm, *_at(p, op), _protect(Flag(op.argument))),
    "advise": lambda p, who, op: change(who.mm, *_at(p, op), _advise(op.argument), over_gaps=True),
    "move": lambda p, who, op: mremap_move(
        who.mm, p.base + op.page, op.pages, p.base + op.to, op.argument
    ),
    "leave": lambda p, who, op: mremap_move(
        who.mm, p.base + op.page, op.pages, p.base + op.to, op.pages, keep=True
    ),
    "resize": lambda p, who, op: mremap_resize(who.mm, p.base + op.page, op.pages, op.to),
    "fork": lambda p, who, op: fork(who, op.to),
    "exit": lambda p, who, op: exit_process(who),
    # Not in a guest: what scripts there cannot have at will.
    "share": lambda p, who, op: share(who, op.to),
    "pin": lambda p, who, op: _pin(p, who, p.base + op.page),
    "unpin": lambda p, who, op: _unpin(p, op.argument),
    # Of proposals.
    "guard": lambda p, who, op: guard_install(who.mm, *_at(p, op)),
    "unguard": lambda p, who, op: guard_remove(who.mm, *_at(p, op)),
    "switch": lambda p, who, op: _switch(p, bool(op.argument)),
}


def play(rules: Rules, script: list[Operation]) -> tuple[Player, list[int]]:
    """Do a whole script.

    :return: Who has the machine, and how each operation ended.
    """
    player = Player(rules)
    return player, [player.do(operation) for operation in script]
