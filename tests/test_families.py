"""Families, on reverse maps made by hand, and on some that cannot be."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from anonvma_inspect.analysis.families import Families, find_families
from anonvma_inspect.tables import NO_ROW, Tables, find_rows

from .handmade import AnonVma, Model

MOTHER, CHILD, GRANDCHILD = "mother", "child", "grandchild"


@pytest.fixture
def model() -> Model:
    """A mother with two mappings that were split off one, a child, a grandchild, and a loner."""
    model = Model()
    mother = model.mm(MOTHER)
    vma = model.map(mother, 16, 4)
    model.fault(vma)
    model.split(vma, 18)
    child = model.fork(mother, CHILD)
    model.fork(child, GRANDCHILD)
    loner = model.mm("loner")
    model.fault(model.map(loner, 32, 1))
    return model


def row_of(tables: Tables, anon_vma: AnonVma | None) -> int:
    assert anon_vma is not None
    address = np.array([anon_vma.address], dtype=np.uint64)
    return int(find_rows(tables.anon_vmas.address, address)[0])


def only(families: Families, tables: Tables, anon_vma: AnonVma | None) -> int:
    """The family of an anon_vma."""
    return int(families.anon_vma_family[row_of(tables, anon_vma)])


def test_figures(model: Model) -> None:
    tables = model.finish().tables()
    families = find_families(tables)
    family = only(families, tables, model.mms[0].vmas[0].active)
    # A root; two anon_vmas for the child's two VMAs; two for the grandchild's.
    # Chains: two of one AVC, two of two, two of three.
    figures = {"anon_vmas": 5, "vmas": 6, "avcs": 12, "mms": 3, "generations": 3}
    assert {name: int(getattr(families, name)[family]) for name in figures} == figures
    assert families.bytes[family] == 5 * 96 + 12 * 64
    loner = only(families, tables, model.mms[3].vmas[0].active)
    assert [int(getattr(families, name)[loner]) for name in figures] == [1, 1, 1, 1, 1]
    assert not families.waiting.any()
    assert not families.zombies.any()
    assert not families.reused.any()
    assert len(families.vmas_of(family)) == 6
    assert len(families.root) == 2


def test_lineage(model: Model) -> None:
    tables = model.finish().tables()
    families = find_families(tables)
    mother, child, grandchild = (mm.vmas[0].active for mm in model.mms[:3])
    rows = [row_of(tables, anon_vma) for anon_vma in (mother, child, grandchild)]
    assert families.anon_vma_parent[rows].tolist() == [NO_ROW, *rows[:2]]
    assert families.anon_vma_depth[rows].tolist() == [0, 1, 2]
    assert families.anon_vma_children[rows].tolist() == [2, 1, 0]
    assert families.anon_vma_active[rows].tolist() == [2, 1, 1]
    assert families.anon_vma_tree[rows].tolist() == [6, 2, 1]


def test_waiting(model: Model) -> None:
    """The child is gone, and the grandchild still has its pages."""
    child = model.mms[1].vmas[0].active
    model.leave(model.mms[1])
    tables = model.finish().tables()
    families = find_families(tables)
    row = row_of(tables, child)
    assert families.anon_vma_waiting[row]
    assert families.waiting[families.anon_vma_family[row]] == 2


def test_zombie_that_ksm_holds(model: Model) -> None:
    vma = model.mms[3].vmas[0]
    anon_vma = vma.active
    model.merge((vma, 0))
    model.leave(model.mms[3])
    tables = model.finish().tables()
    families = find_families(tables)
    family = only(families, tables, anon_vma)
    assert families.zombies[family] == 1
    assert families.waiting[family] == 0
    assert families.mm[family] == NO_ROW


@pytest.mark.parametrize("by", ["descendant", "place"])
def test_handed_on(model: Model, by: str) -> None:
    """The child's is handed on to a second grandchild, as anon_vma_clone() does."""
    mother, child, grandchild = model.mms[:3]
    anon_vma = child.vmas[0].active
    heir = model.mm("heir")
    new = model.map(heir, 16, 2)
    for avc in reversed(grandchild.vmas[0].chain):
        model.link(new, avc.of_anon_vma)
    new.active = anon_vma
    model.leave(child)
    if by == "place":
        # That what is below it does not show.
        model.leave(grandchild)
    tables = model.finish().tables()
    families = find_families(tables)
    assert np.flatnonzero(families.anon_vma_reused).tolist() == [row_of(tables, anon_vma)]
    assert families.reused.sum() == 1
    assert mother.vmas[0].active is not None


def test_split_of_a_child_turned_round_is_not_handed_on(model: Model) -> None:
    """Since v7.0 a copy of a chain is turned round: its own anon_vma is the last, not handed on."""
    child = model.mms[1]
    model.split(child.vmas[0], 17).chain.reverse()
    families = find_families(model.finish().tables())
    assert not families.reused.any()


def test_circle_of_parents(model: Model) -> None:
    child, grandchild = (mm.vmas[0].active for mm in model.mms[1:3])
    assert child is not None
    assert grandchild is not None
    model.finish()
    child.parent = grandchild.address
    tables = model.tables()
    families = find_families(tables)
    rows = [row_of(tables, child), row_of(tables, grandchild)]
    root = row_of(tables, model.mms[0].vmas[0].active)
    assert families.anon_vma_parent[rows].tolist() == [root, root]
    assert families.anon_vma_depth.max() == 2


def test_circle_of_roots(model: Model) -> None:
    mother, loner = model.mms[0].vmas[0].active, model.mms[3].vmas[0].active
    assert mother is not None
    assert loner is not None
    model.finish()
    mother.root, loner.root = loner.address, mother.address
    tables = model.tables()
    families = find_families(tables)
    assert sorted(families.anon_vmas.tolist()) == [1, 5]
    assert np.count_nonzero(families.anon_vma_parent == NO_ROW) == 2


def test_root_that_leads_nowhere(model: Model) -> None:
    child = model.mms[1].vmas[0].active
    assert child is not None
    model.finish()
    child.root = 0
    tables = model.tables()
    families = find_families(tables)
    assert families.root[only(families, tables, child)] == row_of(tables, child)
    assert len(families.root) == 3


def test_vma_in_two_families_is_in_that_of_its_active(model: Model) -> None:
    loner = model.mms[3].vmas[0]
    model.link(loner, next(iter(model.anon_vmas)))
    tables = model.finish().tables()
    families = find_families(tables)
    row = int(find_rows(tables.vmas.address, np.array([loner.address], dtype=np.uint64))[0])
    assert families.vma_family[row] == only(families, tables, loner.active)
    assert np.count_nonzero(families.member_vma == row) == 2


def test_nothing() -> None:
    families = find_families(Model().finish().tables())
    assert len(families.root) == 0
    assert len(families.member_vma) == 0


def test_what_no_mm_has(model: Model) -> None:
    """Tasks are gone, as in a fork that is under way."""
    tables = model.finish().tables()
    nobody = dataclasses.replace(
        tables.vmas, mm=np.full(len(tables.vmas.address), NO_ROW, dtype=np.int64)
    )
    families = find_families(dataclasses.replace(tables, vmas=nobody))
    assert families.mm.tolist() == [NO_ROW, NO_ROW]
    assert families.mms.tolist() == [0, 0]
