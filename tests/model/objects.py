"""The kernel's objects, as far as the anonymous reverse map goes.

Addresses and lengths are in pages; names are the kernel's, without its prefixes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, TypeVar

from .eras import Rules
from .rbtree import Node, Tree

__all__ = (
    "AnonVma",
    "Avc",
    "Family",
    "Flag",
    "Lazy",
    "Machine",
    "Mm",
    "OutOfMemory",
    "Parent",
    "Process",
    "RootVma",
    "Stretch",
    "Vma",
    "Word",
    "continues",
)

T = TypeVar("T")


class OutOfMemory(Exception):  # noqa: N818  # a condition of the machine, no error of the model
    """An allocation failed."""


class Flag(enum.IntFlag):
    """Of ``vm_flags``, those that the model changes."""

    READ = 0x1
    WRITE = 0x2
    EXEC = 0x4
    DONTCOPY = 0x20000
    WIPEONFORK = 0x2000000

    ACCESS = READ | WRITE | EXEC


class Stretch(Protocol):
    """A range of addresses, and what it maps."""

    start: int
    end: int
    pgoff: int
    anon_pgoff: int


def continues(low: Stretch, high: Stretch, *, anon: bool) -> bool:
    """Whether one stretch goes on, without a seam, where another ends.

    :param anon: Also by the offset that anonymous pages have.
    """
    pages = low.end - low.start
    return (
        low.end == high.start
        and low.pgoff + pages == high.pgoff
        and (not anon or low.anon_pgoff + pages == high.anon_pgoff)
    )


@dataclass(eq=False)
class AnonVma:
    """``struct anon_vma``; a root is its own root and its own parent."""

    machine: Machine
    root: AnonVma = field(init=False)
    parent: AnonVma = field(init=False)
    refcount: int = 1
    num_children: int = 0
    num_active_vmas: int = 0
    #: Who has it locked; of a root only.
    writer: Process | None = None
    #: The nodes of AVCs.
    tree: Tree = field(init=False)

    def __post_init__(self) -> None:
        self.root = self.parent = self
        self.tree = Tree(lambda avc: self.machine.key(avc.vma))

    @property
    def degree(self) -> int:
        """What was there instead of the two counts, their sum."""
        return self.num_children + self.num_active_vmas


@dataclass(eq=False)
class Avc:
    """``struct anon_vma_chain``: ties one VMA to one anon_vma."""

    vma: Vma
    anon_vma: AnonVma
    rb: Node = field(init=False)

    def __post_init__(self) -> None:
        self.rb = Node(self)


@dataclass(frozen=True)
class RootVma:
    """``vma->anon_vma`` tagged ANON_VMA_TREE_VMA: nothing but VMAs of one mm ever shared pages."""

    vma: Vma


@dataclass(frozen=True)
class Parent:
    """``vma->anon_vma`` tagged ANON_VMA_TREE_PARENT: a fork's child that uses its parent's."""

    anon_vma: AnonVma


Lazy: TypeAlias = RootVma | Parent
#: What decides whether two VMAs are alike.
Word: TypeAlias = AnonVma | Lazy | None


@dataclass(eq=False)
class Vma:
    """``struct vm_area_struct``, of a private mapping.

    The kernel has one word for ``anon_vma``, ``lazy`` and ``unfaulted``: at most one is set.

    :ivar file: Which file; ``None`` for anonymous memory.
    :ivar pgoff: ``vm_pgoff``.
    :ivar anon_pgoff: The page offset that the anonymous pages of a mapping have, whatever it maps.
        In the kernel only since v7.3.
    :ivar chain: ``anon_vma_chain``, the first entry first.
    :ivar lazy: What it has instead of an anon_vma under ANON_VMA_LAZY.
    :ivar unfaulted: The flag ANON_VMA_UNFAULTED.
    :ivar holders: Who keeps the object: its mm, and the VMAs whose root VMA it is.
    """

    mm: Mm
    start: int
    end: int
    flags: Flag
    file: int | None
    pgoff: int
    anon_pgoff: int
    anon_vma: AnonVma | None = None
    chain: list[Avc] = field(default_factory=list)
    lazy: Lazy | None = None
    unfaulted: bool = False
    holders: int = 1

    @property
    def word(self) -> Word:
        """``vma->anon_vma``, without the flag."""
        return self.anon_vma or self.lazy

    def dup(self) -> Vma:
        """``vm_area_dup()``: all the same, but for the chain, which is empty."""
        return replace(self, chain=[], holders=1)

    def move_start(self, start: int) -> None:
        """Move the lower end, and with it the offsets."""
        delta = start - self.start
        self.start += delta
        self.pgoff += delta
        self.anon_pgoff += delta

    def is_fork_child(self) -> bool:
        """It has anon_vmas of another process: it came with a fork."""
        if isinstance(self.lazy, RootVma):
            return False
        return self.word is not None and len(self.chain) != 1


@dataclass(eq=False)
class Mm:
    """``struct mm_struct``.

    :ivar vmas: In order of address.
    :ivar writer: Who has it locked.
    """

    machine: Machine
    users: int = 1
    writer: Process | None = None
    vmas: list[Vma] = field(default_factory=list)

    def find(self, page: int) -> Vma | None:
        """``find_vma()``: the first that ends above a page."""
        return next((vma for vma in self.vmas if vma.end > page), None)

    def before(self, page: int) -> Vma | None:
        """The last that ends at a page or below it."""
        return next((vma for vma in reversed(self.vmas) if vma.end <= page), None)

    def add(self, vma: Vma) -> None:
        """Put a VMA in its place."""
        self.vmas.append(vma)
        self.vmas.sort(key=lambda other: other.start)


@dataclass(eq=False)
class Process:
    """A thread group."""

    index: int
    mm: Mm


@dataclass(frozen=True)
class Family:
    """All anon_vmas with one root."""

    root: AnonVma
    members: tuple[AnonVma, ...]


class Machine:
    """The whole state.

    :ivar processes: Those that live, by their number.
    :ivar pins: anon_vmas that something holds beside VMAs, as KSM does.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.processes: dict[int, Process] = {}
        self.pins: list[AnonVma] = []
        self._live: dict[Any, None] = {}
        #: The runtime switch of ANON_VMA_LAZY.
        self.lazy_enabled = rules.lazy is not None
        #: Who is about to exit, and has no address space any more.
        self.leaving: Process | None = None
        #: Called in the middle of operations that others can see the middle of, with its name.
        self.watch: Callable[[str], None] | None = None
        #: So many allocations succeed, then one fails; ``None``: all succeed.
        self.allocations_left: int | None = None

    def key(self, vma: Vma) -> int:
        """What anon_vmas' trees are sorted by (``avc_start_pgoff()``, ``mm/interval_tree.c``)."""
        return vma.anon_pgoff if self.rules.anon_pgoff_is_key else vma.pgoff

    def passes(self, state: str) -> None:
        """Tell whoever watches that a state has been reached that others can see."""
        if self.watch is not None:
            self.watch(state)

    def _may_fail(self) -> None:
        if self.allocations_left is not None:
            self.allocations_left -= 1
            if self.allocations_left < 0:
                self.allocations_left = None
                raise OutOfMemory

    def allocate(self, new: T) -> T:
        """Take an object into the machine.

        :raises OutOfMemory: if it is this one's turn to fail.
        """
        self._may_fail()
        self._live[new] = None
        return new

    def allocate_nodes(self) -> None:
        """``vma_iter_prealloc()``: the maple tree's nodes for a change to come.

        :raises OutOfMemory: likewise.
        """
        if self.rules.maple:
            self._may_fail()

    def free(self, old: object) -> None:
        """Give an object back."""
        del self._live[old]

    def live(self, kind: type[T]) -> Iterator[T]:
        """All allocated objects of one kind."""
        return (one for one in self._live if isinstance(one, kind))

    def families(self) -> Iterator[Family]:
        """All anon_vmas, by root."""
        members: dict[AnonVma, list[AnonVma]] = {}
        for anon_vma in self.live(AnonVma):
            members.setdefault(anon_vma.root, []).append(anon_vma)
        return (Family(root, tuple(each)) for root, each in members.items())
