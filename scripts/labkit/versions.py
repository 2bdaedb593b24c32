"""Debian's order of version numbers, in which 6.12.9 comes before 6.12.117."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

__all__ = ("compare_versions", "version_key")

_PARTS = re.compile(r"(\D*)(\d*)")


# A tilde sorts before everything, even the end; letters before other signs.
def _weights(text: str) -> list[int]:
    return [-1 if c == "~" else ord(c) if c.isalpha() else ord(c) + 256 for c in text] + [0]


def _compare_part(left: str, right: str) -> int:
    pairs_left = [(_weights(text), int(number or 0)) for text, number in _PARTS.findall(left)]
    pairs_right = [(_weights(text), int(number or 0)) for text, number in _PARTS.findall(right)]
    # findall() ends with an empty match, so the shorter side is filled up with that.
    nothing = ([0], 0)
    for index in range(max(len(pairs_left), len(pairs_right))):
        one = pairs_left[index] if index < len(pairs_left) else nothing
        two = pairs_right[index] if index < len(pairs_right) else nothing
        if one != two:
            return -1 if one < two else 1
    return 0


def _split(version: str) -> tuple[int, str, str]:
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, dash, revision = rest.rpartition("-")
    return (int(epoch), upstream, revision) if dash else (int(epoch), rest, "")


def compare_versions(left: str, right: str) -> int:
    """Return -1, 0 or 1, as ``dpkg --compare-versions`` orders the two."""
    epoch_left, upstream_left, revision_left = _split(left)
    epoch_right, upstream_right, revision_right = _split(right)
    if epoch_left != epoch_right:
        return -1 if epoch_left < epoch_right else 1
    return _compare_part(upstream_left, upstream_right) or _compare_part(
        revision_left, revision_right
    )


#: A key for sort() and max().
version_key: Callable[[str], object] = functools.cmp_to_key(compare_versions)
