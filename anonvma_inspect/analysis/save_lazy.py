"""ANON_VMA_LAZY: no anon_vma before somebody else may share a VMA's pages.

As in the series posted on 2026-05-27: the first fault of a VMA allocates nothing
(``vma_prepare_anon_vma_lazy()``), fork gives the parent's VMA its anon_vma
(``vma_upgrade_anon_vma_lazy()``), and the child's VMA has none of its own until it is forked or
copied in place (``vma_link_anon_vma_lazy_parent()``); its own faults do not change that.
"""

from __future__ import annotations

import numpy as np

from anonvma_inspect.analysis.families import Families
from anonvma_inspect.analysis.saving import Saving, saving_of
from anonvma_inspect.kernel.tags import AnonVmaKind
from anonvma_inspect.tables import NO_ROW, Tables, marked

__all__ = ("save_lazy",)


def save_lazy(tables: Tables, families: Families) -> Saving:
    """Predict ANON_VMA_LAZY."""
    vmas, anon_vmas = tables.vmas, tables.anon_vmas
    count = len(anon_vmas.address)
    kinds = tables.era.tags.kinds(vmas.anon_vma_pointer, vmas.anon_vma_tag)
    held = marked(count, tables.rmap_items.anon_vma_row)
    # All VMAs of its tree have it active, and no other process ever had a part in it.
    of = families.anon_vma_family
    alone = (np.append(families.anon_vmas, 0)[of] == 1) & (np.append(families.mms, 0)[of] == 1)
    alone &= (families.anon_vma_tree > 0) & (families.anon_vma_tree == families.anon_vma_active)
    alone &= ~held
    leaf = (families.anon_vma_parent != NO_ROW) & (families.anon_vma_children == 0)
    leaf &= (families.anon_vma_tree == 1) & (families.anon_vma_active == 1) & ~held
    gone = (alone | leaf) & anon_vmas.reached
    avcs = np.append(gone, False)[tables.avcs.anon_vma_row]
    runs = tables.era.tag_scheme == "lazy" and tables.era.tags.enabled is not False
    nothing = np.zeros(count, dtype=bool)
    return saving_of(
        tables,
        families,
        slug="lazy",
        title="ANON_VMA_LAZY: anon_vmas only for VMAs that were shared",
        status="posted 2026-05-27, not in 7.3",
        figures={
            "never_shared": int(np.count_nonzero(alone & anon_vmas.reached)),
            "children_not_shared": int(np.count_nonzero(leaf & anon_vmas.reached)),
            "held_by_ksm": int(np.count_nonzero(held)),
            "vmas_lazy_already": int(
                np.count_nonzero(
                    (kinds == AnonVmaKind.LAZY_VMA) | (kinds == AnonVmaKind.LAZY_PARENT)
                )
            ),
        },
        avcs=avcs if not runs else np.zeros(len(avcs), dtype=bool),
        anon_vmas=gone if not runs else nothing,
        assumed=(
            "a VMA whose family is one anon_vma in one mm was never shared by fork",
            "a child's anon_vma that is in no chain but its own VMA's was never needed: the VMA "
            "neither forked nor was copied in place",
            "anon_vmas that KSM holds stay",
        ),
        cannot_tell=(
            "children that have exited: the fork has given their parent's VMA an anon_vma for good "
            "(less is saved)",
            "copies in place (split, mremap) that were merged or unmapped again, likewise",
            "what else processes that have exited left behind: fork would have handed on other "
            "anon_vmas, and some of those that wait need not have been made (more is saved)",
            "VMAs that are kept only as root VMAs of others (more VMAs)",
            "VMAs that were split and are not alike any more: each gets an anon_vma of its own at "
            "fork (less is saved); likewise copies of one VMA's parts in a child, which share one "
            "(more is saved)",
        ),
        not_known="this kernel has it" if runs else None,
    )
