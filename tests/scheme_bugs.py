"""Bugs that kernels with tags in ``vma->anon_vma`` could have: past ones in a new dress, mostly."""

from __future__ import annotations

from .known_bugs import BUGS, active, bug, forget, link, started, vma_of
from .model.eras import SCHEMES
from .model.links import get_anon_vma, put_anon_vma
from .model.objects import Parent, RootVma
from .model.script import Operation, Player

__all__ = ("BUGS",)


# Process 2 has process 1's anon_vma, which is below process 0's; another family has tags as well.
def _lazy() -> Player:
    player = started("lazy")
    player.do(Operation(0, "map", 12, 2))
    player.do(Operation(0, "write", 12))
    player.do(Operation(0, "fork", to=3))
    assert vma_of(player, 2).lazy == Parent(active(player, 1))
    return player


# A process with mappings that have root VMAs; the parts of the first one share theirs.
def _shares_root() -> Player:
    player = Player(SCHEMES["lazy"])
    for page in (12, 0):
        player.do(Operation(0, "map", page, 8))
        player.do(Operation(0, "write", page))
    player.do(Operation(0, "protect", 4, 4, argument=1))
    return player


def _guarded() -> Player:
    player = Player(SCHEMES["unfaulted"])
    for page in (0, 6, 12):
        player.do(Operation(0, "map", page, 4))
        player.do(Operation(0, "guard", page))
    return player


@bug("parent's anon_vma without its chain")
def dead_word() -> Player:
    # MREMAP_DONTUNMAP cut the links of what it left behind, but not the word.
    player = _lazy()
    forget(vma_of(player, 2), player)
    put_anon_vma(active(player, 1))
    return player


@bug("parent's anon_vma, freed")
def freed_parent() -> Player:
    player = _lazy()
    freed, vma = active(player, 1), vma_of(player, 2)
    player.do(Operation(1, "exit"))
    forget(vma, player)
    freed.parent.num_children -= 1
    put_anon_vma(freed)
    put_anon_vma(freed)
    return player


@bug("upgrade keeps its reference")
def kept_reference() -> Player:
    player = _lazy()
    lender = active(player, 1)
    player.do(Operation(2, "fork", to=4))
    get_anon_vma(lender)
    return player


@bug("waiting child is counted as a child")
def counted_child() -> Player:
    player = _lazy()
    active(player, 1).num_children += 1
    return player


@bug("waiting child is counted as a user")
def counted_user() -> Player:
    player = _lazy()
    active(player, 1).num_active_vmas += 1
    return player


@bug("waiting child has no reference")
def no_reference() -> Player:
    player = _lazy()
    put_anon_vma(active(player, 1))
    return player


@bug("AVCs of a freed VMA that waits")
def split_failure() -> Player:
    player = _lazy()
    vma = vma_of(player, 2)
    new = player.machine.allocate(vma.dup())
    for avc in reversed(vma.chain):
        link(player, new, avc.anon_vma)
    get_anon_vma(active(player, 1))
    return player


@bug("root VMA, freed")
def freed_root() -> Player:
    # The last reference but one was given back twice.
    player = _shares_root()
    root = vma_of(player, 0, 1).lazy
    assert isinstance(root, RootVma)
    player.do(Operation(0, "unmap", *_place(player, root)))
    player.machine.free(root.vma)
    return player


def _place(player: Player, root: RootVma) -> tuple[int, int]:
    return root.vma.start - player.base, root.vma.end - root.vma.start


@bug("root VMA of another process")
def strange_root() -> Player:
    # Fork copied the word of a VMA that it should have upgraded.
    player = _shares_root()
    root = vma_of(player, 0).lazy
    assert isinstance(root, RootVma)
    player.do(Operation(0, "fork", to=1))
    vma = vma_of(player, 1)
    forget(vma, player)
    assert isinstance(vma.lazy, Parent)
    put_anon_vma(vma.lazy.anon_vma)
    vma.lazy = RootVma(vma_of(player, 0))
    return player


@bug("root VMA with a chain")
def chained_root() -> Player:
    # An upgrade linked the VMA and left its word.
    player = _shares_root()
    player.do(Operation(0, "fork", to=1))
    vma, anon_vma = vma_of(player, 0), active(player, 0)
    vma.anon_vma, vma.lazy = None, RootVma(vma)
    anon_vma.num_active_vmas -= 1
    return player


@bug("unfaulted VMA with a chain")
def chained_flag() -> Player:
    # A clone linked the VMA and left the flag; the anon_vma's pointer is lost.
    player = _guarded()
    player.do(Operation(0, "map", 20, 2))
    player.do(Operation(0, "write", 20))
    link(player, vma_of(player, 0), active(player, 0, 3))
    return player


@bug("flag that fork forgets")
def forgotten_flag() -> Player:
    # Nothing of the reverse map tells what page tables have.
    player = _guarded()
    player.do(Operation(0, "fork", to=1))
    vma_of(player, 1).unfaulted = False
    return player
