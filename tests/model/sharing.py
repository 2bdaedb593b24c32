"""Two proposals for sharing anon_vmas within one mm, at fork and when VMAs are merged.

"mm/rmap.c: reuse mergeable anon_vma as parent when fork" (4e4a9eb92133, v5.5, gone before v5.10),
and "mm: enable merging of VMAs with different anon_vmas" (an RFC of 2022, not merged), of which it
is taken for granted that both anon_vmas must be roots without children.
"""

from __future__ import annotations

from .objects import AnonVma, Mm, Vma, Word

__all__ = ("may_merge", "shared_at_fork")


def shared_at_fork(child: Mm, old: Vma) -> AnonVma | None:
    """What the copy of a VMA has active, if it is to have none of its own."""
    before = old.mm.before(old.start)
    if before is None or old.anon_vma is None or before.anon_vma is not old.anon_vma:
        return None
    shares = old.mm.machine.rules.fork_shares
    if shares == "parent's":
        return old.anon_vma
    copy = child.before(old.start)
    return copy.anon_vma if shares == "before" and copy is not None else None


def may_merge(one: Word, other: Word) -> bool:
    """Whether pages of one anon_vma may go to another."""
    return all(
        isinstance(word, AnonVma) and word.parent is word and word.num_children == 1
        for word in (one, other)
    )
