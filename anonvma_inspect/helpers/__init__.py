"""
Helpers for drgn
----------------

The ``anonvma_inspect.helpers`` package provides helpers for the anonymous
reverse map, over drgn objects, for whoever works in drgn's shell or writes a
script. :func:`open_core()` opens a dump without debugging information; the
others work with any :class:`drgn.Program` on a Linux kernel.
"""

from __future__ import annotations

from anonvma_inspect.helpers.anon_vma import (
    VmaAnonVma,
    decode_vma_anon_vma,
    for_each_anon_vma_avc,
    for_each_anon_vma_child,
    for_each_vma_avc,
    vma_anon_vma,
    vma_last_anon_pgoff,
    vma_start_anon_pgoff,
)
from anonvma_inspect.helpers.core import open_core
from anonvma_inspect.helpers.rmap import PageMapping, for_each_page_mapping
from anonvma_inspect.helpers.validate import (
    AnonVmaValidationError,
    validate_anon_vma,
    validate_vma_anon,
)

__all__ = (
    "AnonVmaValidationError",
    "PageMapping",
    "VmaAnonVma",
    "decode_vma_anon_vma",
    "for_each_anon_vma_avc",
    "for_each_anon_vma_child",
    "for_each_page_mapping",
    "for_each_vma_avc",
    "open_core",
    "validate_anon_vma",
    "validate_vma_anon",
    "vma_anon_vma",
    "vma_last_anon_pgoff",
    "vma_start_anon_pgoff",
)
