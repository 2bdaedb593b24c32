"""What a kernel said on its console."""

from __future__ import annotations

import re

__all__ = ("complaints",)

_COMPLAINT = re.compile(
    r"^.*(?:WARNING: |BUG: |kernel BUG|Oops|general protection|KASAN|UBSAN|INFO: |refcount_t:"
    r"|Bad rss-counter|Bad page|list_(?:add|del) corruption|VM_BUG|Call Trace leak).*$",
    re.M,
)


def complaints(console: str) -> list[str]:
    """What the kernel itself found wrong."""
    return [match.group().strip() for match in _COMPLAINT.finditer(console)]
