"""Bugs that are rebuilt on the model: their names, and what it takes."""

from __future__ import annotations

from collections.abc import Callable

from .model.eras import ERAS, SCHEMES
from .model.objects import AnonVma, Avc, Vma
from .model.script import Operation, Player

__all__ = ("BUGS", "active", "bug", "forget", "link", "started", "vma_of")

Bug = Callable[[], Player]
#: What rebuilds each bug, by the name that the documentation has for it.
BUGS: dict[str, Bug] = {}


def bug(name: str) -> Callable[[Bug], Bug]:
    """Name what a function rebuilds, as the documentation does."""

    def remember(function: Bug) -> Bug:
        BUGS[name] = function
        return function

    return remember


def started(name: str) -> Player:
    """A process that wrote to a mapping of eight pages, forked, and whose child forked."""
    player = Player((ERAS | SCHEMES)[name])
    player.do(Operation(0, "map", 0, 8))
    player.do(Operation(0, "write", 0))
    player.do(Operation(0, "fork", to=1))
    player.do(Operation(1, "fork", to=2))
    return player


def vma_of(player: Player, process: int, number: int = 0) -> Vma:
    return player.machine.processes[process].mm.vmas[number]


def active(player: Player, process: int, number: int = 0) -> AnonVma:
    anon_vma = vma_of(player, process, number).anon_vma
    assert anon_vma is not None
    return anon_vma


def link(player: Player, vma: Vma, anon_vma: AnonVma) -> Avc:
    avc = player.machine.allocate(Avc(vma, anon_vma))
    vma.chain.insert(0, avc)
    anon_vma.tree.insert(avc.rb)
    return avc


def forget(vma: Vma, player: Player) -> None:
    """Free a VMA's AVCs, and leave the rest of it as it is."""
    for avc in vma.chain:
        avc.anon_vma.tree.remove(avc.rb)
        player.machine.free(avc)
    vma.chain.clear()
