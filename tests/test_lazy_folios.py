"""Folios of lazy VMAs (ANON_VMA_LAZY): what they name, where page tables are read.

A mapping of a captured kernel is made to look as one whose anon_vma was put off.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from anonvma_inspect.collect import collect_audit
from anonvma_inspect.in_flight import Audit, audit
from anonvma_inspect.invariants.base import State
from anonvma_inspect.kernel.folio import MappingKind
from anonvma_inspect.tables import NO_ROW, RowColumn, Tables
from anonvma_inspect.target.memory import OverlayMemory

from .test_pages import CAPTURE, Change, deep_tables, pages_of
from .test_tag_schemes import Retyped

#: What is found here.
CODES = ("AV609",)
_TAGS = {"ANON_VMA_TREE_VMA": 1, "ANON_VMA_TREE_PARENT": 2}
_LAZY_MAPPING = 2


def audit_with(change: Change) -> Audit:
    target = replace(
        CAPTURE.target,
        layouts=Retyped(CAPTURE.target.layouts, "anon_vma_tree_t", _TAGS),
        memory=OverlayMemory(CAPTURE.target.memory, change),
    )
    audited = audit(collect_audit(target, deep=1))
    assert not audited.failures
    return audited


def mapped_in(tables: Tables, vma: int) -> RowColumn:
    """Rows of the folios that a VMA maps."""
    mappings = pages_of(tables).mappings
    return np.unique(mappings.folio[mappings.vma == vma])


def make_lazy(tables: Tables) -> tuple[int, Change]:
    """A VMA that alone is in the tree of its root becomes its own root VMA, and all that it maps
    names it.
    """
    vmas, anon_vmas, folios = tables.vmas, tables.anon_vmas, pages_of(tables).folios
    trees = np.bincount(tables.nodes.anon_vma, minlength=len(anon_vmas.address))
    alone = (vmas.chain_length == 1) & (vmas.active != NO_ROW) & (trees[vmas.active] == 1)
    alone &= np.isin(np.arange(len(alone)), pages_of(tables).mappings.vma)
    vma = next(
        row
        for row in np.flatnonzero(alone).tolist()
        if (folios.kind[mapped_in(tables, row)] == MappingKind.ANON).all()
    )
    head, address = int(vmas.chain_head[vma]), int(vmas.address[vma])
    record, anon_vma = tables.era.anon_vma, int(anon_vmas.address[vmas.active[vma]])
    return vma, {
        address + tables.era.vma.offset("anon_vma"): address | _TAGS["ANON_VMA_TREE_VMA"],
        head: head,
        head + 8: head,
        anon_vma + record.offset("rb_node"): 0,
        anon_vma + record.offset("rb_leftmost"): 0,
        **{
            word_of(tables, folio): address | _LAZY_MAPPING
            for folio in mapped_in(tables, vma).tolist()
        },
    }


def word_of(tables: Tables, folio: int) -> int:
    """Address of the word ``mapping``."""
    pages = pages_of(tables)
    return int(pages.folios.address[folio]) + pages.mapping_offset


def test_folios_of_a_lazy_vma_name_it() -> None:
    tables = deep_tables(CAPTURE)
    vma, change = make_lazy(tables)
    audited = audit_with(change)
    assert list(audited.findings()) == []
    (result,) = (each for each in audited.results if each.invariant.code == "AV609")
    mapped = int(np.count_nonzero(pages_of(tables).mappings.vma == vma))
    assert (result.state, result.objects) == (State.OK, mapped)


def test_folio_that_names_another_vma() -> None:
    tables = deep_tables(CAPTURE)
    vma, change = make_lazy(tables)
    folio = int(mapped_in(tables, vma)[0])
    other = int(tables.vmas.address[vma - 1])
    change[word_of(tables, folio)] = other | _LAZY_MAPPING
    (finding,) = audit_with(change).findings()
    assert (finding.code, finding.word) == ("AV609", word_of(tables, folio))
    assert finding.object_address == pages_of(tables).folios.address[folio]
    own = int(tables.vmas.address[vma])
    assert (finding.expected, finding.actual) == (hex(own), hex(other))


def test_folio_of_another_vma_that_names_a_vma() -> None:
    """Which one it may be is not settled; but it must be one."""
    tables = deep_tables(CAPTURE)
    vma, change = make_lazy(tables)
    folios = pages_of(tables).folios
    plain = next(
        row
        for row in np.flatnonzero(tables.vmas.active != NO_ROW).tolist()
        if row != vma and (folios.kind[mapped_in(tables, row)] == MappingKind.ANON).any()
    )
    mapped = mapped_in(tables, plain)
    folio = int(mapped[folios.kind[mapped] == MappingKind.ANON][0])
    word = word_of(tables, folio)
    for named, codes in (
        (int(tables.vmas.address[vma]), set()),
        (int(tables.vmas.address[vma]) + 8, {"AV609"}),
        (int(tables.anon_vmas.address[0]), {"AV609"}),
    ):
        found = list(audit_with({**change, word: named | _LAZY_MAPPING}).findings())
        assert {one.code for one in found} == codes
        assert {one.word for one in found} <= {word}
        assert {(one.expected, one.actual) for one in found} <= {("a VMA", hex(named))}


def test_without_page_tables_it_is_not_checked() -> None:
    _, change = make_lazy(deep_tables(CAPTURE))
    target = replace(
        CAPTURE.target,
        layouts=Retyped(CAPTURE.target.layouts, "anon_vma_tree_t", _TAGS),
        memory=OverlayMemory(CAPTURE.target.memory, change),
    )
    results = audit(collect_audit(target)).results
    (result,) = (each for each in results if each.invariant.code == "AV609")
    assert (result.state, result.reason) == (State.NOT_CHECKED, "only looked at with --deep")
