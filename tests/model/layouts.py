"""Layouts of kernels: those of the fixtures' BTF, and those made of them for older kernels."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from anonvma_inspect.target.layouts import Field, Layouts

from ..captures import CAPTURES, Capture
from .eras import Rules

__all__ = ("capture_of", "layouts_of")

_CAPTURE = {
    "5.10": "special-5.10",
    "6.1": "mixed-6.1",
    "6.12": "mixed-6.12",
    "7.0": "forktree-7.2",
    "7.3": "mixed-7.3",
}


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


def capture_of(rules: Rules) -> Capture | None:
    """The fixture whose layouts an era has as they are."""
    wanted = _CAPTURE.get(rules.name)
    return next((capture for capture in CAPTURES if capture.name == wanted), None)


@functools.cache
def layouts_of(rules: Rules) -> Layouts:
    """The layouts of an era."""
    capture = capture_of(rules)
    if capture is not None:
        return capture.target.layouts
    old = next(capture for capture in CAPTURES if capture.name == _CAPTURE["5.10"])
    return _WithDegree(old.target.layouts, cached=rules.name != "3.19")
