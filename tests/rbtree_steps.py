"""Insertion into an anon_vma's tree and removal from it, one word at a time.

The order in which words are written is that of ``lib/rbtree.c``, under
``include/linux/rbtree_augmented.h`` and ``include/linux/interval_tree_generic.h`` (v6.12; the
functions are the same from v5.10 to v7.3). Each generator yields after each word, so that whoever
iterates sees all states that a paused kernel can show.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

from .handmade import AnonVma, Avc

__all__ = ("insert", "remove")

Steps = Iterator[None]

_CHILD = ("rb_left", "rb_right")
_LEFT, _RIGHT = 0, 1
_RED, _BLACK = 0, 1


def insert(tree: AnonVma, avc: Avc) -> Steps:
    """Put an AVC into a tree: ``anon_vma_interval_tree_insert()``, mm/interval_tree.c."""
    yield from _Repair(tree, avc).insert(avc)


def remove(tree: AnonVma, avc: Avc) -> Steps:
    """Take an AVC out of a tree: ``anon_vma_interval_tree_remove()``, mm/interval_tree.c."""
    yield from _Repair(tree).remove(avc)


class _Repair:
    def __init__(self, tree: AnonVma, *others: Avc) -> None:
        self._tree = tree
        self._avcs = {avc.rb: avc for avc in (*tree.tree, *others)}

    # ---- words

    def _child(self, avc: Avc, side: int) -> Avc | None:
        return self._avcs.get(getattr(avc, _CHILD[side]))

    def _parent(self, avc: Avc) -> Avc | None:
        return self._avcs.get(avc.rb_parent_color & ~3)

    def _is_red(self, avc: Avc | None) -> bool:
        return avc is not None and avc.rb_parent_color & 1 == _RED

    def _set_child(self, avc: Avc, side: int, child: Avc | None) -> Steps:
        setattr(avc, _CHILD[side], child.rb if child else 0)
        yield

    def _set_parent(self, avc: Avc, parent: Avc | None, color: int | None = None) -> Steps:
        kept = avc.rb_parent_color & 1 if color is None else color
        avc.rb_parent_color = (parent.rb if parent else 0) | kept
        yield

    def _change_child(self, old: Avc, new: Avc | None, parent: Avc | None) -> Steps:
        if parent is None:
            self._tree.rb_root = new.rb if new else 0
            yield
        else:
            yield from self._set_child(parent, self._side(old, parent), new)

    def _side(self, child: Avc, parent: Avc) -> int:
        return _LEFT if self._child(parent, _LEFT) is child else _RIGHT

    # ---- rb_subtree_last

    def _largest(self, avc: Avc) -> int:
        below = [self._child(avc, _LEFT), self._child(avc, _RIGHT)]
        return max([avc.of_vma.key_last, *(each.rb_subtree_last for each in below if each)])

    def _set_last(self, avc: Avc, last: int) -> Steps:
        avc.rb_subtree_last = last
        yield

    def _propagate(self, avc: Avc | None, stop: Avc | None) -> Steps:
        while avc is not stop:
            assert avc is not None
            largest = self._largest(avc)
            if avc.rb_subtree_last == largest:
                return
            yield from self._set_last(avc, largest)
            avc = self._parent(avc)

    def _augment_rotation(self, down: Avc, up: Avc) -> Steps:
        yield from self._set_last(up, down.rb_subtree_last)
        yield from self._set_last(down, self._largest(down))

    # What is above an AVC that goes down is now above the one that goes up.
    def _exchange_parents(self, down: Avc, up: Avc, color: int) -> Steps:
        parent = self._parent(down)
        up.rb_parent_color = down.rb_parent_color
        yield
        yield from self._set_parent(down, up, color)
        yield from self._change_child(down, up, parent)

    # ---- insertion

    def insert(self, new: Avc) -> Steps:
        last, parent, side, leftmost = new.of_vma.key_last, None, _LEFT, True
        below = self._avcs.get(self._tree.rb_root)
        while below is not None:
            parent = below
            if parent.rb_subtree_last < last:
                yield from self._set_last(parent, last)
            side = _LEFT if new.of_vma.key_first < parent.of_vma.key_first else _RIGHT
            leftmost &= side == _LEFT
            below = self._child(parent, side)
        yield from self._set_last(new, last)
        yield from self._set_parent(new, parent, _RED)
        for each in (_LEFT, _RIGHT):
            yield from self._set_child(new, each, None)
        if parent is None:
            self._tree.rb_root = new.rb
            yield
        else:
            yield from self._set_child(parent, side, new)
        if leftmost:
            self._tree.rb_leftmost = new.rb
            yield
        yield from self._balance_insertion(new)

    def _balance_insertion(self, avc: Avc) -> Steps:
        while self._is_red(parent := self._parent(avc)):
            assert parent is not None
            above = self._parent(parent)
            assert above is not None
            side = self._side(parent, above)
            uncle = self._child(above, 1 - side)
            if uncle is not None and self._is_red(uncle):
                yield from self._set_parent(uncle, above, _BLACK)
                yield from self._set_parent(parent, above, _BLACK)
                yield from self._set_parent(above, self._parent(above), _RED)
                avc = above
                continue
            inner = self._child(parent, 1 - side)
            if inner is avc:
                inner = self._child(avc, side)
                yield from self._set_child(parent, 1 - side, inner)
                yield from self._set_child(avc, side, parent)
                if inner is not None:
                    yield from self._set_parent(inner, parent, _BLACK)
                yield from self._set_parent(parent, avc, _RED)
                yield from self._augment_rotation(parent, avc)
                parent = avc
                inner = self._child(parent, 1 - side)
            yield from self._set_child(above, side, inner)
            yield from self._set_child(parent, 1 - side, above)
            if inner is not None:
                yield from self._set_parent(inner, above, _BLACK)
            yield from self._exchange_parents(above, parent, _RED)
            yield from self._augment_rotation(above, parent)
            return
        if parent is None:
            yield from self._set_parent(avc, None, _BLACK)

    # ---- removal

    def remove(self, old: Avc) -> Steps:
        if self._tree.rb_leftmost == old.rb:
            following = self._following(old)
            self._tree.rb_leftmost = following.rb if following else 0
            yield
        short = yield from self._unlink(old)
        if short is not None:
            yield from self._balance_removal(short)

    def _following(self, avc: Avc) -> Avc | None:
        below = self._child(avc, _RIGHT)
        if below is None:
            # It is the first of its tree.
            return self._parent(avc)
        while (left := self._child(below, _LEFT)) is not None:
            below = left
        return below

    def _unlink(self, old: Avc) -> Generator[None, None, Avc | None]:
        left, right = self._child(old, _LEFT), self._child(old, _RIGHT)
        parent = self._parent(old)
        short: Avc | None = None
        changed: Avc | None
        if left is None:
            short = parent if right is None and not self._is_red(old) else None
            yield from self._change_child(old, right, parent)
            if right is not None:
                right.rb_parent_color = old.rb_parent_color
                yield
            changed = parent
        elif right is None:
            left.rb_parent_color = old.rb_parent_color
            yield
            yield from self._change_child(old, left, parent)
            changed = parent
        else:
            heir, above = right, right
            while (lower := self._child(heir, _LEFT)) is not None:
                above, heir = heir, lower
            orphan = self._child(heir, _RIGHT)
            if heir is right:
                above = heir
                yield from self._set_last(heir, old.rb_subtree_last)
            else:
                yield from self._set_child(above, _LEFT, orphan)
                yield from self._set_child(heir, _RIGHT, right)
                yield from self._set_parent(right, heir)
                yield from self._set_last(heir, old.rb_subtree_last)
                yield from self._propagate(above, heir)
            yield from self._set_child(heir, _LEFT, left)
            yield from self._set_parent(left, heir)
            yield from self._change_child(old, heir, parent)
            if orphan is not None:
                yield from self._set_parent(orphan, above, _BLACK)
            elif not self._is_red(heir):
                short = above
            heir.rb_parent_color = old.rb_parent_color
            yield
            changed = heir
        yield from self._propagate(changed, None)
        return short

    def _balance_removal(self, parent: Avc) -> Steps:
        avc: Avc | None = None
        while True:
            side = _LEFT if self._child(parent, _RIGHT) is not avc else _RIGHT
            sibling = self._child(parent, 1 - side)
            assert sibling is not None
            if self._is_red(sibling):
                near = self._child(sibling, side)
                assert near is not None
                yield from self._set_child(parent, 1 - side, near)
                yield from self._set_child(sibling, side, parent)
                yield from self._set_parent(near, parent, _BLACK)
                yield from self._exchange_parents(parent, sibling, _RED)
                yield from self._augment_rotation(parent, sibling)
                sibling = near
            far = self._child(sibling, 1 - side)
            if not self._is_red(far):
                near = self._child(sibling, side)
                if near is None or not self._is_red(near):
                    yield from self._set_parent(sibling, parent, _RED)
                    if self._is_red(parent):
                        yield from self._set_parent(parent, self._parent(parent), _BLACK)
                        return
                    avc, above = parent, self._parent(parent)
                    if above is None:
                        return
                    parent = above
                    continue
                inner = self._child(near, 1 - side)
                yield from self._set_child(sibling, side, inner)
                yield from self._set_child(near, 1 - side, sibling)
                yield from self._set_child(parent, 1 - side, near)
                if inner is not None:
                    yield from self._set_parent(inner, sibling, _BLACK)
                yield from self._augment_rotation(sibling, near)
                far, sibling = sibling, near
            inner = self._child(sibling, side)
            assert far is not None
            yield from self._set_child(parent, 1 - side, inner)
            yield from self._set_child(sibling, side, parent)
            yield from self._set_parent(far, sibling, _BLACK)
            if inner is not None:
                yield from self._set_parent(inner, parent)
            yield from self._exchange_parents(parent, sibling, _BLACK)
            yield from self._augment_rotation(parent, sibling)
            return
