"""
Anonymous Reverse Map
---------------------

The ``anonvma_inspect.helpers.anon_vma`` module provides helpers for the
anonymous reverse map: :linux:`mm/rmap.c` and :linux:`include/linux/rmap.h`.

These helpers do not assume that what they walk is sound. Each ends, whatever it
is given: a list or a tree that leads in a circle, or to something that does not
belong to it, raises :class:`drgn.helpers.ValidationError`, and a pointer to
nowhere :class:`drgn.FaultError`, after everything before it was returned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import drgn
from drgn import IntegerLike, Object, Program, Type, container_of
from drgn.helpers import ValidationError

from anonvma_inspect.collect import collect_tag_scheme
from anonvma_inspect.kernel.tag_schemes import declared_scheme
from anonvma_inspect.kernel.tags import (
    NO_TAGS,
    AnonVmaKind,
    TagScheme,
    decode_anon_vma,
    rb_parent,
    strip_lock_mark,
)
from anonvma_inspect.target.dwarf import DwarfLayouts
from anonvma_inspect.target.program import target_of

__all__ = (
    "VmaAnonVma",
    "decode_vma_anon_vma",
    "for_each_anon_vma_avc",
    "for_each_anon_vma_child",
    "for_each_vma_avc",
    "vma_anon_vma",
    "vma_last_anon_pgoff",
    "vma_start_anon_pgoff",
)

_SCHEME_KEY = "anonvma_inspect.tag_scheme"


class VmaAnonVma(NamedTuple):
    """``vma->anon_vma``, decoded."""

    raw: int
    """The word as it is in memory."""

    pointer: Object
    """
    The word without the low bits: ``struct anon_vma *``, ``NULL`` if there is
    none; of kind ``"lazy_vma"``, ``struct vm_area_struct *``.
    """

    tag: int
    """The low bits."""

    kind: str
    """
    ``"none"`` (never faulted), ``"anon_vma"``, ``"unfaulted"`` (the flag of
    ANON_VMA_UNFAULTED), ``"lazy_vma"`` (ANON_VMA_LAZY: the root VMA),
    ``"lazy_parent"`` (likewise: the parent's anon_vma), or ``"tagged"`` (low
    bits that mean nothing in this kernel).
    """


def decode_vma_anon_vma(vma: Object) -> VmaAnonVma:
    """
    Decode ``vma->anon_vma`` of a virtual memory area.

    The word is a plain pointer in all released kernels. Low bits in it are
    either those of a proposal that uses them or a corruption. Where the type of
    the field leaves that open, the VMAs of all processes are looked at, once.

    >>> decode_vma_anon_vma(vma)
    VmaAnonVma(raw=..., pointer=Object(prog, ...), tag=0, kind='anon_vma')

    :param vma: ``struct vm_area_struct *``
    """
    prog = vma.prog_
    field = vma.anon_vma
    type_: Type = field.type_.unaliased()
    if type_.kind in (drgn.TypeKind.POINTER, drgn.TypeKind.INT):
        raw = int(field.value_())
    else:
        raw = int(prog.read_u64(field.address_))
    pointer, tag = decode_anon_vma(raw)
    kind = _tag_scheme(prog).kind(pointer, tag)
    to_vma = kind is AnonVmaKind.LAZY_VMA
    type_ = prog.type("struct vm_area_struct *" if to_vma else "struct anon_vma *")
    return VmaAnonVma(raw=raw, pointer=Object(prog, type_, pointer), tag=tag, kind=kind.word)


def vma_anon_vma(vma: Object) -> Object:
    """
    Return the ``struct anon_vma`` that new anonymous pages of a virtual memory
    area belong to, without any low bits of ``vma->anon_vma``. (A lazy VMA has
    none: of its pages, the root VMA or the parent's ``anon_vma`` is known.)

    >>> anon_vma = vma_anon_vma(vma)
    >>> anon_vma.root == anon_vma.root.root
    True

    :param vma: ``struct vm_area_struct *``
    :return: ``struct anon_vma *``, ``NULL`` if it has none.
    """
    decoded = decode_vma_anon_vma(vma)
    if decoded.kind in (AnonVmaKind.LAZY_VMA.word, AnonVmaKind.LAZY_PARENT.word):
        return Object(vma.prog_, "struct anon_vma *", 0)
    return decoded.pointer


def vma_start_anon_pgoff(vma: Object) -> Object:
    """
    Return the page offset of the first page of a virtual memory area, as the
    interval trees of its anon_vmas are sorted by and as its anonymous pages
    have it in ``page->index``.

    This is the kernel's function of that name (``include/linux/mm.h`` in v7.3).
    Up to v7.2 the page offset is ``vma->vm_pgoff`` for all areas, from v7.3 on a
    private mapping of a file has another one for its anonymous pages.

    >>> address = vma.vm_end - 1
    >>> page_shift = vma.prog_["PAGE_SHIFT"]
    >>> pgoff = vma_start_anon_pgoff(vma) + ((address - vma.vm_start) >> page_shift)
    >>> pgoff == vma_last_anon_pgoff(vma)
    True

    :param vma: ``struct vm_area_struct *``
    :return: ``unsigned long``
    """
    try:
        low = vma.member_("__vm_anon_pgoff_lo").value_()
        high = vma.member_("__vm_anon_pgoff_hi").value_()
    except LookupError:
        return vma.vm_pgoff.read_()
    return Object(vma.prog_, "unsigned long", low | high << 32)


def vma_last_anon_pgoff(vma: Object) -> Object:
    """
    Return the page offset of the last page of a virtual memory area, likewise
    (see :func:`vma_start_anon_pgoff()`).

    >>> vma_last_anon_pgoff(vma) >= vma_start_anon_pgoff(vma)
    True

    :param vma: ``struct vm_area_struct *``
    :return: ``unsigned long``
    """
    pages = (vma.vm_end - vma.vm_start) >> vma.prog_["PAGE_SHIFT"]
    return vma_start_anon_pgoff(vma) + pages - 1


def for_each_vma_avc(vma: Object) -> Iterator[Object]:
    """
    Iterate over the ``anon_vma_chain`` list of a virtual memory area, i.e., the
    links to all ``struct anon_vma`` that its pages can belong to.

    >>> for avc in for_each_vma_avc(vma):
    ...     print(hex(avc.anon_vma.value_()), avc.anon_vma.refcount.counter.value_())
    ...
    0x... ...

    :param vma: ``struct vm_area_struct *``
    :return: Iterator of ``struct anon_vma_chain *`` objects.
    :raises ValidationError: if the list leads to an entry twice, or to one that
        names neither this VMA nor the entry before it
    :raises FaultError: if an entry cannot be read
    """
    type_ = vma.prog_.type("struct anon_vma_chain")
    head = vma.anon_vma_chain.address_of_()
    prev, pos = head, head.next.read_()
    met = {int(head.value_())}
    while pos.value_() != head.value_():
        avc = container_of(pos, type_, "same_vma")
        if pos.value_() in met:
            raise ValidationError(
                f"anon_vma_chain of {_name(vma)}: {_name(avc)} is met a second time"
            )
        met.add(pos.value_())
        # One word that agrees is enough, so that one that is wrong does not hide the rest.
        if avc.vma.value_() != vma.value_() and pos.prev.value_() != prev.value_():
            raise ValidationError(
                f"anon_vma_chain of {_name(vma)}: list_head {prev.value_():#x} leads to "
                f"{_name(avc)}, which is of vm_area_struct {avc.vma.value_():#x}"
            )
        yield avc
        prev, pos = pos, pos.next.read_()


def for_each_anon_vma_avc(
    anon_vma: Object, first: IntegerLike | None = None, last: IntegerLike | None = None
) -> Iterator[Object]:
    """
    Iterate over the links in the interval tree of an ``anon_vma``, i.e., over
    all virtual memory areas that may map its pages, in order of their first
    page.

    This is ``anon_vma_interval_tree_foreach()``: given the page offset of a
    page (``page->index``) as *first* and *last*, it is how reverse mapping
    finds the VMAs to look into.

    >>> for avc in for_each_anon_vma_avc(anon_vma):
    ...     print(hex(avc.vma.vm_start), hex(avc.vma.vm_end))
    ...
    0x... 0x...
    >>> pgoff = vma_start_anon_pgoff(vma)
    >>> vma in [avc.vma for avc in for_each_anon_vma_avc(anon_vma, pgoff, pgoff)]
    True

    :param anon_vma: ``struct anon_vma *``
    :param first: First page offset of interest, as of
        :func:`vma_start_anon_pgoff()`. Defaults to the lowest.
    :param last: Last page offset of interest, inclusive. Defaults to the highest.
    :return: Iterator of ``struct anon_vma_chain *`` objects.
    :raises ValidationError: if the tree leads to a node twice, or to one that
        names neither this ``anon_vma`` nor its parent node
    :raises FaultError: if a node, or the VMA of one, cannot be read
    """
    prog = anon_vma.prog_
    node_type = prog.type("struct rb_node *")
    avc_type = prog.type("struct anon_vma_chain")
    query = None
    if first is not None or last is not None:
        query = (
            0 if first is None else int(first.__index__()),
            2**64 - 1 if last is None else int(last.__index__()),
        )
    met: set[int] = set()

    def enter(parent: int, node: Object) -> Object:
        address = int(node.value_())
        avc = container_of(node, avc_type, "rb")
        if address in met:
            raise ValidationError(
                f"interval tree of {_name(anon_vma)}: {_name(avc)} is met a second time"
            )
        met.add(address)
        color = int(node.member_("__rb_parent_color").value_())
        if avc.anon_vma.value_() != anon_vma.value_() and rb_parent(color) != parent:
            raise ValidationError(
                f"interval tree of {_name(anon_vma)}: rb_node {parent:#x} leads to {_name(avc)}, "
                f"which is of anon_vma {avc.anon_vma.value_():#x}"
            )
        return avc

    # What is still to do, the next on top: a subtree to enter (node and its parent), or a link to
    # return, with its right subtree behind it.
    node = Object(prog, node_type, strip_lock_mark(int(_rb_root(anon_vma).rb_node.value_())))
    todo: list[tuple[Object, int, bool]] = [(node, 0, False)]
    while todo:
        node, parent, entered = todo.pop()
        if not entered:
            if not node:
                continue
            avc = enter(parent, node)
            if query is None or avc.rb_subtree_last.value_() >= query[0]:
                todo.append((node, parent, True))
                todo.append((node.rb_left.read_(), node.value_(), False))
            continue
        avc = container_of(node, avc_type, "rb")
        if query is not None:
            if vma_start_anon_pgoff(avc.vma).value_() > query[1]:
                continue  # and so does all to the right of it
            if vma_last_anon_pgoff(avc.vma).value_() >= query[0]:
                yield avc
        else:
            yield avc
        todo.append((node.rb_right.read_(), node.value_(), False))


def for_each_anon_vma_child(anon_vma: Object) -> Iterator[Object]:
    """
    Iterate over the children of an ``anon_vma``: those whose ``parent`` it is,
    but not itself.

    Nothing points from a parent to its children, so they are looked for in the
    chains of all VMAs in the parent's tree: whoever is in the tree of a child is
    there as well.

    >>> def depth(anon_vma):
    ...     return 1 + max(map(depth, for_each_anon_vma_child(anon_vma)), default=0)
    ...
    >>> depth(anon_vma.root) > 1
    True

    :param anon_vma: ``struct anon_vma *``
    :return: Iterator of ``struct anon_vma *`` objects, in the order of the tree,
        each once.
    :raises ValidationError: see :func:`for_each_anon_vma_avc()` and
        :func:`for_each_vma_avc()`
    :raises FaultError: likewise
    :raises AttributeError: if this kernel's ``struct anon_vma`` has no ``parent``
        (before v3.19)
    """
    met = {int(anon_vma.value_())}
    for tree_avc in for_each_anon_vma_avc(anon_vma):
        for avc in for_each_vma_avc(tree_avc.vma.read_()):
            other = avc.anon_vma.read_()
            address = int(other.value_())
            if address not in met:
                met.add(address)
                if other.parent.value_() == anon_vma.value_():
                    yield other


def _tag_scheme(prog: Program) -> TagScheme:
    scheme = prog.cache.get(_SCHEME_KEY)
    if not isinstance(scheme, TagScheme):
        pointer = declared_scheme(DwarfLayouts(prog)).is_pointer
        scheme = NO_TAGS if pointer else collect_tag_scheme(target_of(prog))
        prog.cache[_SCHEME_KEY] = scheme
    return scheme


def _rb_root(anon_vma: Object) -> Object:
    root = anon_vma.rb_root
    try:
        # Since Linux kernel commit f808c13fd373 ("lib/interval_tree: fast overlap detection") (in
        # v4.14), the leftmost node is cached.
        return root.rb_root
    except AttributeError:
        return root


def _name(pointer: Object) -> str:
    return str(pointer.format_(dereference=False, symbolize=False))
