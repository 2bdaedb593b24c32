"""Kinds of findings that operations half done bring: their messages, or how these begin."""

from __future__ import annotations

__all__ = (
    "ACTIVE_AWAY",
    "ACTIVE_NULL",
    "COUNTS",
    "DETACHED",
    "EMPTY_LIST",
    "FREED",
    "GONE",
    "LINKS",
    "MAP_COUNT",
    "NOT_IN_MM",
    "OUT_OF_TREE",
    "PINNED",
    "RANGES",
    "ROOT_PINNED",
    "ROOT_SHORT",
    "SHORT_LIST",
    "TREE_SHAPE",
)

Kinds = tuple[str, ...]

#: AV002
RANGES: Kinds = (
    "a VMA starts elsewhere than its entry in the mm's tree",
    "a VMA ends elsewhere than its entry in the mm's tree",
    "the tree of an mm divides two VMAs elsewhere than they do",
    "a VMA begins before the one below it ends",
)
MAP_COUNT: Kinds = ("map_count is not the number of VMAs in the mm's tree",)
#: AV003
DETACHED: Kinds = ("a VMA in its mm's tree is marked as detached from it",)
#: AV101
LINKS: Kinds = (
    "prev in avc->same_vma disagrees with the other entries",
    "prev of a list head, vma->anon_vma_chain, disagrees with the other entries",
)
#: AV104, AV106: a list that some AVCs are missing from.
SHORT_LIST: Kinds = (
    "the root of the anon_vmas in a chain is not in that chain",
    "the parent of an anon_vma in a chain is not in that chain",
    "the parent of an anon_vma is not in the chains that the anon_vma is in",
    "VMAs with the same anon_vma have different chains",
)
#: AV105
ACTIVE_NULL: Kinds = ("vma->anon_vma is NULL, but its chain is not empty",)
EMPTY_LIST: Kinds = ("vma->anon_vma is set, but its chain is empty",)
ACTIVE_AWAY: Kinds = ("vma->anon_vma is not in the VMA's chain",)
#: AV201
OUT_OF_TREE: Kinds = (
    "the tree of an anon_vma is empty, but AVCs on lists belong in it",
    "an AVC on a list is not in the tree of its anon_vma",
)
#: AV202
NOT_IN_MM: Kinds = ("a VMA in an anon_vma's tree is not in the tree of its mm",)
#: AV203, AV205, AV206
TREE_SHAPE: Kinds = (
    "the parent pointer of a node does not lead to the node above it",
    "rb_left of a node does not lead to a node below it",
    "rb_right of a node does not lead to a node below it",
    "rb_root of an anon_vma does not lead to a tree of its AVCs",
    "a node has the wrong colour for its tree to be balanced",
    "a tree breaks the rules of colours",
    "the root of a tree is red",
    "a red node has a red child",
    "the sides of a node differ in their number of black nodes",
    "rb_subtree_last is not the largest last page of the node and those below it",
    "rb_leftmost is",
)
#: AV401, AV402
COUNTS: Kinds = (
    "num_children is not the number of anon_vmas that have this one as parent",
    "degree is not the number of children and of VMAs that have this one active",
    "num_active_vmas is not the number of VMAs that have this one active",
)
#: AV403
GONE: Kinds = (
    "an anon_vma that is in use has no references",
    "an anon_vma has fewer references than are known",
)
#: AV404
PINNED: Kinds = ("an anon_vma has more references than are known",)
#: AV608
ROOT_SHORT: Kinds = ("a VMA has fewer references than there are words that lead to it as root VMA",)
#: AV610
ROOT_PINNED: Kinds = ("a VMA has more references than there are words that lead to it as root VMA",)
#: AV503
FREED: Kinds = ("a anon_vma that is in use is free", "anon_vma points to a free object")
