"""Layouts of kernels: those of the fixtures' BTF, and those made of them for older kernels."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from anonvma_inspect.target.btf import Btf, BtfLayouts
from anonvma_inspect.target.layouts import Field, Layouts

from ..captures import CAPTURES, Capture
from .eras import Rules
from .tagged import Tags, tagged_btf

__all__ = ("TYPES", "btf_of", "layouts_of")

_CAPTURE = {
    "5.10": "special-5.10",
    "6.1": "mixed-6.1",
    "6.12": "mixed-6.12",
    "7.0": "forktree-7.2",
    "7.3": "mixed-7.3",
    "7.0-lazy": "forktree-7.2",
    "7.3-unfaulted": "mixed-7.3",
}

#: What an image has objects of, and what an audit asks of others.
TYPES = (
    *("task_struct", "signal_struct", "mm_struct", "maple_node", "vm_area_struct"),
    *("anon_vma_chain", "anon_vma", "file"),
)


@dataclass(frozen=True)
class _WithDegree:
    """5.10's layouts with the ``anon_vma`` of v3.19 to v5.19: one count, and so less padding.

    :ivar cached: Whether the tree caches its first node, as since v4.14.
    """

    base: Layouts
    cached: bool

    @property
    def source(self) -> str:
        return self.base.source

    def size(self, name: str) -> int | None:
        if name == "anon_vma":
            return 80 if self.cached else 72
        return self.base.size(name)

    def field(self, name: str, path: str) -> Field | None:
        if name != "anon_vma":
            return self.base.field(name, path)
        first, _, rest = path.partition(".")
        if first == "degree":
            return Field(52, 4, "integer", "unsigned int")
        if first in ("num_children", "num_active_vmas"):
            return None
        if first == "rb_root" and not self.cached:
            # An rb_root, not an rb_root_cached: the same pointer under a shorter name.
            path = f"rb_root.{path}" if rest == "rb_node" else "none"
        found = self.base.field(name, path)
        moved = {"parent": 56, "rb_root": 64}
        if found is None or first not in moved:
            return found
        shift = 72 - moved["parent"]
        return replace(found, offset=found.offset - shift)

    def enumerator(self, name: str) -> int | None:
        return self.base.enumerator(name)


@dataclass(frozen=True)
class _WithRootRefs:
    """Layouts with one more field behind VMAs: the count of references to root VMAs."""

    base: Layouts

    @property
    def source(self) -> str:
        return self.base.source

    def size(self, name: str) -> int | None:
        found = self.base.size(name)
        return found + 8 if found is not None and name == "vm_area_struct" else found

    def field(self, name: str, path: str) -> Field | None:
        if (name, path) == ("vm_area_struct", "anon_root_refs.counter"):
            offset = self.base.size(name)
            assert offset is not None
            return Field(offset, 4, "integer", "int", signed=True)
        return self.base.field(name, path)

    def enumerator(self, name: str) -> int | None:
        return self.base.enumerator(name)


def _capture_of(rules: Rules) -> Capture | None:
    # The fixture of the kernel that an era is modelled on.
    wanted = _CAPTURE.get(rules.name)
    return next((capture for capture in CAPTURES if capture.name == wanted), None)


@functools.cache
def btf_of(rules: Rules, tags: Tags | None) -> Btf | None:
    """The types of an era; ``None`` if it has none but those that are made up.

    :param tags: What ``vma->anon_vma`` has, where it is no pointer.
    """
    capture = _capture_of(rules)
    if capture is None:
        return None
    btf = capture.target.load_btf()
    return btf if tags is None else tagged_btf(btf, TYPES, tags)


@functools.cache
def layouts_of(rules: Rules, tags: Tags | None = None) -> Layouts:
    """The layouts of an era."""
    btf = btf_of(rules, tags)
    if btf is not None:
        layouts = BtfLayouts(btf)
        return _WithRootRefs(layouts) if tags is not None and tags.counted else layouts
    old = next(capture for capture in CAPTURES if capture.name == _CAPTURE["5.10"])
    return _WithDegree(old.target.layouts, cached=rules.name != "3.19")
