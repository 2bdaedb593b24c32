"""Low bits in pointers: what they mean, and how to take them off.

Pure functions over scalars and ``uint64`` columns alike, for the words of the anonymous reverse map
that can carry a tag: ``vma->anon_vma`` under the proposals that put one there, the ``rb_node`` of
an anon_vma's tree, and the nodes of a red-black tree.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = (
    "NO_TAGS",
    "RB_BLACK",
    "ROOT_LOCK_MARK",
    "SCHEMES",
    "AnonVmaKind",
    "TagScheme",
    "decode_anon_vma",
    "has_lock_mark",
    "rb_is_black",
    "rb_parent",
    "strip_lock_mark",
)

Word = TypeVar("Word", int, "np.ndarray[tuple[int, ...], np.dtype[np.uint64]]")
U64Column = NDArray[np.uint64]
U8Column = NDArray[np.uint8]
BoolColumn = NDArray[np.bool_]

#: The names of schemes, see :class:`TagScheme`.
SCHEMES = ("none", "unfaulted", "lazy")
# Slab objects are aligned to words: the three low bits of a pointer to one are free.
_TAG_BITS = 7
RB_BLACK = 1
#: What ``mm_take_all_locks()`` sets in ``root->rb_root.rb_node`` (``vm_lock_anon_vma()``, v3.7 on).
ROOT_LOCK_MARK = 1


class AnonVmaKind(enum.IntEnum):
    """What a decoded ``vma->anon_vma`` is."""

    #: NULL: nothing anonymous was ever faulted in.
    NONE = 0
    #: A plain pointer.
    ANON_VMA = 1
    #: The lone flag of ANON_VMA_UNFAULTED: no anon_vma, but fork copies the page tables.
    UNFAULTED = 2
    #: ANON_VMA_LAZY's ANON_VMA_TREE_VMA: leads to the root VMA, which has no anon_vma yet.
    LAZY_VMA = 3
    #: ANON_VMA_LAZY's ANON_VMA_TREE_PARENT: leads to the anon_vma of the VMA that fork copied.
    LAZY_PARENT = 4
    #: Low bits that the scheme does not explain.
    TAGGED = 5

    @property
    def word(self) -> str:
        """As answers spell it: ``anon_vma``, ``lazy_vma``."""
        return self.name.lower()


@dataclass(frozen=True)
class TagScheme:
    """How ``vma->anon_vma`` is encoded.

    :ivar name: ``none`` (a plain pointer), ``unfaulted`` or ``lazy``.
    :ivar evidence: What says so, in one sentence.
    :ivar certain: Whether that is enough to judge tagged words by. If not, none is explained.
    :ivar unfaulted: The low bits of an unfaulted VMA's word; 0 if they are not known.
    :ivar vma: Those of a word that leads to a root VMA, likewise.
    :ivar parent: Those of a word that leads to the parent's anon_vma, likewise.
    :ivar strange: Values that are none of its tags', though not all of these are known.
    :ivar supported: Whether a name or a word speaks for the scheme; what is certain is.
    :ivar enabled: Whether the kernel has it switched on; ``None`` if that cannot be told.
    """

    name: str
    evidence: str
    certain: bool = True
    unfaulted: int = 0
    vma: int = 0
    parent: int = 0
    strange: tuple[int, ...] = ()
    supported: bool = True
    enabled: bool | None = None

    @property
    def _values(self) -> tuple[int, ...]:
        return {"unfaulted": (self.unfaulted,), "lazy": (self.vma, self.parent)}.get(self.name, ())

    @property
    def whole(self) -> bool:
        """Whether the values of all its tags are known."""
        return all(self._values)

    def understood(self, tag: U64Column) -> BoolColumn:
        """Which words can be judged: those whose tag is known, or is sure to be none of the scheme.

        :param tag: Low bits of words, as :func:`decode_anon_vma` splits them off.
        """
        if self.certain and self.whole:
            return np.ones(len(tag), dtype=bool)
        values = (*self._values, *self.strange) if self.certain else ()
        known: BoolColumn = np.isin(tag, np.array([0, *values], dtype=np.uint64))
        return known

    def impossible(self, pointer: U64Column, tag: U64Column) -> BoolColumn:
        """Which words with tags are wrong whatever the values of tags are.

        The flag of ANON_VMA_UNFAULTED never stands with a pointer, a tag of ANON_VMA_LAZY never
        without.
        """
        if not self.certain or self.name == "none":
            return np.zeros(len(tag), dtype=bool)
        never: BoolColumn = (tag != 0) & ((pointer != 0) == (self.name == "unfaulted"))
        return never

    def kind(self, pointer: int, tag: int) -> AnonVmaKind:
        """What a word that :func:`decode_anon_vma` has split is."""
        pointers, tags = np.array([pointer], np.uint64), np.array([tag], np.uint64)
        return AnonVmaKind(int(self.kinds(pointers, tags)[0]))

    def kinds(self, pointer: U64Column, tag: U64Column) -> U8Column:
        """What words that :func:`decode_anon_vma` has split are.

        :return: An :class:`AnonVmaKind` each.
        """
        kinds: U8Column = (pointer != 0).astype(np.uint8)
        rows = np.flatnonzero(tag)
        if len(rows):
            kinds[rows] = self._tagged_kinds(pointer[rows], tag[rows])
        return kinds

    def _tagged_kinds(self, pointer: U64Column, tag: U64Column) -> U8Column:
        kinds = np.full(len(tag), AnonVmaKind.TAGGED, dtype=np.uint8)
        if not self.certain:
            return kinds
        has_pointer = pointer != 0
        for value, kind in (
            (self.unfaulted, AnonVmaKind.UNFAULTED),
            (self.vma, AnonVmaKind.LAZY_VMA),
            (self.parent, AnonVmaKind.LAZY_PARENT),
        ):
            if value:
                fits = has_pointer == (kind != AnonVmaKind.UNFAULTED)
                kinds[fits & (tag == np.uint64(value))] = kind
        return kinds


#: What every released kernel has.
NO_TAGS = TagScheme("none", "vma->anon_vma is a pointer, which has no tags")


def decode_anon_vma(raw: Word) -> tuple[Word, Word]:
    """Split ``vma->anon_vma`` into its pointer and its low bits, under any scheme.

    :return: The pointer part, and the tag: 0 for a plain pointer.
    """
    if isinstance(raw, np.ndarray):
        tag = raw & np.uint64(_TAG_BITS)
        return raw - tag, tag
    return raw & ~_TAG_BITS, raw & _TAG_BITS


def strip_lock_mark(rb_node: Word) -> Word:
    """The pointer in ``anon_vma->rb_root.rb_node`` without ``mm_take_all_locks()``'s mark."""
    if isinstance(rb_node, np.ndarray):
        return rb_node & ~np.uint64(ROOT_LOCK_MARK)
    return rb_node & ~ROOT_LOCK_MARK


def has_lock_mark(rb_node: Word) -> Word:
    """Whether ``mm_take_all_locks()``'s mark is set, as 0 or 1."""
    if isinstance(rb_node, np.ndarray):
        return rb_node & np.uint64(ROOT_LOCK_MARK)
    return rb_node & ROOT_LOCK_MARK


def rb_parent(parent_color: Word) -> Word:
    """The parent in ``rb_node.__rb_parent_color`` (``include/linux/rbtree_augmented.h``)."""
    if isinstance(parent_color, np.ndarray):
        return parent_color & ~np.uint64(3)
    return parent_color & ~3


def rb_is_black(parent_color: Word) -> Word:
    """Whether a node is black, as 0 or 1."""
    if isinstance(parent_color, np.ndarray):
        return parent_color & np.uint64(RB_BLACK)
    return parent_color & RB_BLACK
