"""Low bits in pointers: what they mean, and how to take them off.

Pure functions over scalars and ``uint64`` columns alike, for the three words of the anonymous
reverse map that can carry a tag: ``vma->anon_vma`` under the proposals that put one there, the
``rb_node`` of an anon_vma's tree, and the nodes of a red-black tree.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

__all__ = (
    "RB_BLACK",
    "ROOT_LOCK_MARK",
    "anon_vma_kind",
    "decode_anon_vma",
    "has_lock_mark",
    "rb_is_black",
    "rb_parent",
    "strip_lock_mark",
)

Word = TypeVar("Word", int, "np.ndarray[tuple[int, ...], np.dtype[np.uint64]]")

# Slab objects are aligned to words: the three low bits of a pointer to one are free.
_TAG_BITS = 7
RB_BLACK = 1
#: What ``mm_take_all_locks()`` sets in ``root->rb_root.rb_node`` (``vm_lock_anon_vma()``, v3.7 on).
ROOT_LOCK_MARK = 1


def decode_anon_vma(raw: Word) -> tuple[Word, Word]:
    """Split ``vma->anon_vma`` into its pointer and its low bits, under any scheme.

    :return: The pointer part, and the tag: 0 for a plain pointer.
    """
    if isinstance(raw, np.ndarray):
        tag = raw & np.uint64(_TAG_BITS)
        return raw - tag, tag
    return raw & ~_TAG_BITS, raw & _TAG_BITS


def anon_vma_kind(pointer: int, tag: int, scheme: str) -> str:
    """What a decoded ``vma->anon_vma`` is, in one word.

    :param scheme: See :attr:`anonvma_inspect.kernel.era.Era.tag_scheme`.
    :return: "none", "anon_vma", "unfaulted" (the flag of that proposal), or "tagged" for low bits
        that the scheme does not explain.
    """
    if tag == 0:
        return "anon_vma" if pointer else "none"
    if scheme == "unfaulted" and not pointer:
        return "unfaulted"
    return "tagged"


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
