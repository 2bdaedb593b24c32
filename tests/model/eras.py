"""What differs from one kernel to another.

Read in Debian's sources of 5.10.223, 6.1.192, 6.12.117, 7.2.13 and 7.3.4 and, for what was before,
in the commits named; the names of the eras are those of the first releases that are so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .lazy_rules import LazyRules

__all__ = ("ERAS", "SCHEMES", "Rules")


@dataclass(frozen=True)
class Rules:
    """The behaviour of one era; the defaults are that of 7.3."""

    name: str
    #: Fork takes over an anon_vma of degree 1, which need not mean that no VMA has it active
    #: (CVE-2022-42703), instead of one with no active VMA and at most one child. To v5.19, see
    #: 2555283eb40d ("mm/rmap: Fix anon_vma->degree ambiguity leading to double-reuse").
    reuse_by_degree: bool = False
    #: ``anon_vma_clone()`` walks the chain forwards and so turns it round. Since v7.0.
    clone_reverses: bool = True
    #: anon_vmas' trees are sorted by a page offset of their own, not by ``vm_pgoff``. Since v7.3.
    anon_pgoff_is_key: bool = True
    #: VMAs are in a maple tree, whose nodes are allocated beforehand. Since v6.1.
    maple: bool = True
    #: A VMA without an anon_vma takes in one that has one. Since v6.16, see 879bca0a2c4f
    #: ("mm/vma: fix incorrectly disallowed anonymous VMA merges").
    unfaulted_takes_in: bool = True
    #: A merge that fails for lack of memory fails ``mprotect()``; before v6.12 it is just not done.
    merge_failure_is_fatal: bool = True
    #: A VMA that swallows two grows twice, which shows in the shape of trees only. To v6.0.
    swallows_one_by_one: bool = False
    #: ``mmap()`` looks for its successor first, and prefers it where the two do not fit each other.
    #: v6.1 to v6.11.
    mmap_prefers_next: bool = False
    #: Of a VMA that ``munmap()`` splits, the part that goes is the old object, and the part that
    #: stays a new one. Since v6.5 or so; before, the other way round.
    unmaps_old_object: bool = True
    #: MREMAP_DONTUNMAP: not there (before v5.7); "leave" what stays as it is, and only of anonymous
    #: memory (to v5.12); "unlink" it if it is a whole VMA; and then also "unfault" it, so that its
    #: offset is that of its address again (since 2026, in stable kernels, too).
    dontunmap: str | None = "unfault"
    #: A VMA that MREMAP_DONTUNMAP keeps may be "merged" with its own copy, is "not beside" it
    #: merged with anything, or not with "itself".
    keeping_source: str = "itself"
    #: Growing in place merges with what it then touches. Not in 5.10.
    growing_merges: bool = True
    #: ``mremap()`` looks for its source before it unmaps the destination. Not in 5.10.
    mremap_looks_first: bool = True
    #: It also checks the source's range before that. Since v6.17.
    mremap_checks_first: bool = True
    #: It moves all VMAs of a range. Since v6.17.
    mremap_moves_many: bool = True
    #: Proposals for fork and for merging, see :mod:`.sharing`: a child's VMA has the same anon_vma
    #: as its "parent's" (v5.5), or as the VMA "before" it, where the parent's has that of its own.
    fork_shares: str | None = None
    #: VMAs are merged whose anon_vmas are not the same, if they have no children.
    merges_unlike: bool = False
    #: ANON_VMA_LAZY, a proposal.
    lazy: LazyRules | None = None
    #: ANON_VMA_UNFAULTED, another: a guard makes no anon_vma, but sets a flag in its place.
    unfaulted: bool = False


_V7_3 = Rules("7.3")
_V7_0 = replace(_V7_3, name="7.0", anon_pgoff_is_key=False)
_V6_12 = replace(
    _V7_0,
    name="6.12",
    clone_reverses=False,
    unfaulted_takes_in=False,
    mremap_checks_first=False,
    mremap_moves_many=False,
)
_V6_1 = replace(
    _V6_12,
    name="6.1",
    merge_failure_is_fatal=False,
    mmap_prefers_next=True,
    unmaps_old_object=False,
    keeping_source="not beside",
)
#: Debian's, with the two counters that mainline has since v6.0.
_V5_10 = replace(
    _V6_1,
    name="5.10",
    maple=False,
    swallows_one_by_one=True,
    mmap_prefers_next=False,
    dontunmap="leave",
    keeping_source="merged",
    growing_merges=False,
    mremap_looks_first=False,
)
_V4_14 = replace(_V5_10, name="4.14", reuse_by_degree=True, dontunmap=None)
#: As the next, but for the layout: trees without a cached first node.
_V3_19 = replace(_V4_14, name="3.19")

ERAS = {rules.name: rules for rules in (_V3_19, _V4_14, _V5_10, _V6_1, _V6_12, _V7_0, _V7_3)}

#: Proposals that put tags into ``vma->anon_vma``: neither is in a release. They are modelled on the
#: kernels that they were, or might be, made for.
SCHEMES = {
    "lazy": replace(_V7_0, name="7.0-lazy", lazy=LazyRules()),
    "unfaulted": replace(_V7_3, name="7.3-unfaulted", unfaulted=True),
}
