"""What of ANON_VMA_LAZY may be wrong as it was posted."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ("AS_POSTED", "LazyRules")


@dataclass(frozen=True)
class LazyRules:
    """ANON_VMA_LAZY: what the series as posted does (2026-05-27), and what may be wrong with it.

    All false: corrected, in the way that is said with each.
    """

    #: An upgrade that shares a neighbour's anon_vma takes a reference on the root, as if it were a
    #: new one. Corrected: only for a new one.
    reference_for_shared: bool = False
    #: An upgrade shares a neighbour's anon_vma whatever else that neighbour's chain has; that of a
    #: fork's child only if the roots are the same. Corrected: only if the chains come out the same.
    share_unlike_chains: bool = False
    #: An upgrade that comes too late gives back the root's reference with its new anon_vma, though
    #: it has not taken one yet. Corrected: it does not.
    late_upgrade_puts_root: bool = False
    #: A clone finds that its source has been upgraded meanwhile, and links the copy to the source's
    #: anon_vmas without making one of them its own. Corrected: that of the source.
    clone_of_upgraded_has_none: bool = False
    #: A clone that cannot upgrade its source leaves the source's word in the copy. Corrected: NULL.
    failed_clone_leaves_word: bool = False
    #: Switched off, fork treats lazy VMAs as regular ones. Corrected: it upgrades them, as before.
    off_ignores_lazy: bool = False


AS_POSTED = LazyRules(*[True] * len(fields(LazyRules)))
