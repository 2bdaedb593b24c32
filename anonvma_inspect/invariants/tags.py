"""Low bits in pointers."""

from __future__ import annotations

import numpy as np

from anonvma_inspect.invariants.base import Invariant, Severity, Verdict, Violations, address_text
from anonvma_inspect.invariants.facts import TAG_BITS, Facts
from anonvma_inspect.tables import RowColumn
from anonvma_inspect.target.memory import U64Column

__all__ = ("INVARIANTS",)

_MESSAGE = "a pointer to a slab object has low bits set"


def _tagged(words: U64Column) -> RowColumn:
    return np.flatnonzero((words & TAG_BITS) != 0)


def _check_tag_bits(facts: Facts) -> Verdict:
    # vma->anon_vma only where it is a pointer: with a scheme of tags, AV603 tells of those that
    # mean nothing.
    # avc->vma and ->anon_vma of AVCs that a list or a tree vouches for; anon_vma->root and ->parent
    # of anon_vmas that are believed to be ones. parent is not looked at once the tree is empty.
    tables, era = facts.tables, facts.era
    avcs, anon_vmas = tables.avcs, tables.anon_vmas
    groups: list[Violations] = []
    objects = 0

    if era.tags.name == "none":
        raw = tables.vmas.anon_vma
        objects += len(raw)
        rows = _tagged(raw)
        groups.append(
            facts.of_vmas(
                _MESSAGE,
                rows,
                "anon_vma",
                address_text(raw[rows] & ~TAG_BITS),
                address_text(raw[rows]),
            )
        )
    known = facts.avc_known
    objects += 2 * int(np.count_nonzero(known))
    for name, words in (("vma", avcs.vma), ("anon_vma", avcs.anon_vma)):
        rows = _tagged(words)
        rows = rows[known[rows]]
        groups.append(
            facts.of_avcs(
                _MESSAGE,
                rows,
                name,
                address_text(words[rows] & ~TAG_BITS),
                address_text(words[rows]),
            )
        )
    judged = {"root": facts.believed}
    if era.has_parent:
        judged["parent"] = facts.believed & (facts.tree_pointer != 0)
    for name, believed in judged.items():
        words = anon_vmas.root if name == "root" else anon_vmas.parent
        objects += int(np.count_nonzero(believed))
        rows = _tagged(words)
        rows = rows[believed[rows]]
        groups.append(
            facts.of_anon_vmas(
                _MESSAGE,
                rows,
                name,
                address_text(words[rows] & ~TAG_BITS),
                address_text(words[rows]),
            )
        )
    return Verdict(objects, groups)


INVARIANTS = (
    Invariant(
        code="AV601",
        slug="tag-bits",
        severity=Severity.ERROR,
        statement="A word that is a pointer to a slab object has no low bits set.",
        why=(
            "Slab objects are aligned to words at least, so the three low bits of a pointer to one "
            "are 0, and code that follows it takes nothing off. Looked at are vma->anon_vma, "
            "avc->vma, avc->anon_vma, anon_vma->root and anon_vma->parent. Proposals to keep "
            "tags in vma->anon_vma make that field an integer; where the layouts say so, its low "
            "bits are decoded."
        ),
        consequence=(
            "Whoever follows the pointer reads and writes a few bytes beside the object: a wrong "
            "lock, a wrong counter, or an oops on a misaligned or non-canonical word."
        ),
        lock="Whatever protects the field: the mmap_lock, and the root's rwsem.",
        source=(
            "__anon_vma_prepare(), anon_vma_fork(), anon_vma_chain_link() (v6.1) or "
            "anon_vma_chain_assign() (v6.12) in mm/rmap.c store plain pointers; "
            "include/linux/mm_types.h and include/linux/rmap.h declare them as such."
        ),
        eras="All released kernels.",
        schemes="Weakened: in force for all but vma->anon_vma, of which AV603 tells.",
        objects="pointers",
        check=_check_tag_bits,
    ),
)
