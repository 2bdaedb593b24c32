"""The interval tree of an anon_vma: a red-black tree, node for node as the kernel's.

The kernel's is ``lib/rbtree.c`` under ``include/linux/interval_tree_generic.h``, v6.12. Equal keys
go to the right of those that are there. The last page of each subtree, which the kernel keeps in
the nodes, follows from the shape: whoever needs it works it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

__all__ = ("LEFT", "RIGHT", "Node", "Tree")

LEFT, RIGHT = 0, 1


class Node:
    """What a member of a tree has for it."""

    def __init__(self, owner: Any) -> None:
        #: The object whose node this is.
        self.owner = owner
        self.child: list[Node | None] = [None, None]
        self.parent: Node | None = None
        self.red = False


def _is_red(node: Node | None) -> bool:
    return node is not None and node.red


class Tree:
    """A tree of nodes.

    :param key: The key of a node's owner, which must not change while the node is in the tree.
    """

    def __init__(self, key: Callable[[Any], int]) -> None:
        self.root: Node | None = None
        self._key = key

    def __iter__(self) -> Iterator[Node]:
        """All nodes, in order."""
        path: list[Node] = []
        node = self.root
        while path or node is not None:
            while node is not None:
                path.append(node)
                node = node.child[LEFT]
            node = path.pop()
            yield node
            node = node.child[RIGHT]

    def insert(self, new: Node) -> None:
        """Put a node in."""
        new.child, new.parent, new.red = [None, None], None, True
        node, side = self.root, LEFT
        while node is not None:
            new.parent = node
            side = LEFT if self._key(new.owner) < self._key(node.owner) else RIGHT
            node = node.child[side]
        self._hang(new, new.parent, side)
        self._balance_insertion(new)

    def remove(self, old: Node) -> None:
        """Take a node out."""
        left, right = old.child
        # Where a black node is missing below, if one is.
        short: Node | None
        if left is None or right is None:
            only = left or right
            short = old.parent if only is None and not old.red else None
            self._replace(old, only)
            if only is not None:
                only.red = old.red
        else:
            # The next one in order takes its place.
            heir = right
            while (left_of_heir := heir.child[LEFT]) is not None:
                heir = left_of_heir
            orphan = heir.child[RIGHT]
            short = heir.parent if heir.parent is not old else heir
            if orphan is not None or heir.red:
                short = None
            if heir is not right:
                self._replace(heir, orphan)
                self._hang(right, heir, RIGHT)
            self._replace(old, heir)
            self._hang(left, heir, LEFT)
            if orphan is not None:
                orphan.red = False
            heir.red = old.red
        if short is not None:
            self._balance_removal(short)

    def _hang(self, node: Node | None, parent: Node | None, side: int) -> None:
        if parent is None:
            self.root = node
        else:
            parent.child[side] = node
        if node is not None:
            node.parent = parent

    def _replace(self, old: Node, new: Node | None) -> None:
        parent = old.parent
        side = RIGHT if parent is not None and parent.child[RIGHT] is old else LEFT
        self._hang(new, parent, side)

    # The child on the other side moves up, the node down to this side.
    def _rotate(self, node: Node, side: int) -> None:
        up = node.child[1 - side]
        assert up is not None
        inner = up.child[side]
        self._replace(node, up)
        self._hang(inner, node, 1 - side)
        self._hang(node, up, side)

    def _balance_insertion(self, node: Node) -> None:
        while _is_red(parent := node.parent):
            assert parent is not None
            above = parent.parent
            assert above is not None  # a root is black
            side = RIGHT if above.child[RIGHT] is parent else LEFT
            uncle = above.child[1 - side]
            above.red = True
            if uncle is not None and uncle.red:
                parent.red = uncle.red = False
                node = above
                continue
            if parent.child[1 - side] is node:
                self._rotate(parent, side)
                parent = node
            self._rotate(above, 1 - side)
            parent.red = False
            break
        if node.parent is None:
            node.red = False

    def _balance_removal(self, parent: Node) -> None:
        node: Node | None = None
        while True:
            side = RIGHT if parent.child[RIGHT] is node else LEFT
            sibling = parent.child[1 - side]
            assert sibling is not None  # it makes up for the black node that was here
            if sibling.red:
                self._rotate(parent, side)
                sibling.red, parent.red = False, True
                sibling = parent.child[1 - side]
                assert sibling is not None
            near, far = sibling.child[side], sibling.child[1 - side]
            if far is None or not far.red:
                if near is None or not near.red:
                    sibling.red = True
                    if parent.red or parent.parent is None:
                        parent.red = False
                        return
                    node, parent = parent, parent.parent
                    continue
                self._rotate(sibling, 1 - side)
                sibling, far = near, sibling
            self._rotate(parent, side)
            sibling.red, parent.red, far.red = parent.red, False, False
            return
