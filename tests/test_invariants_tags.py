"""Tags in vma->anon_vma: what is legal is silent, and what is broken in one word is found.

The tables are made by hand: :func:`unfaulted` and :func:`lazy` have each legal state of the two
proposals, and each case breaks one word.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anonvma_inspect.invariants import tag_schemes
from anonvma_inspect.invariants.base import State
from anonvma_inspect.invariants.catalogue import CATALOGUE
from anonvma_inspect.invariants.facts import NOT_SURE
from anonvma_inspect.kernel.era import Era, Record
from anonvma_inspect.kernel.tags import TagScheme
from anonvma_inspect.report.vma_words import count_vma_words, describe_vma_words
from anonvma_inspect.tables import NO_ROW, ObjectState
from anonvma_inspect.target.layouts import Field

from .handmade import CACHES, ERA, RAM, AnonVma, Mm, Model, Vma, forest
from .test_invariants import WILD, Expected, address, found, key, own, piece, run

CASES: dict[str, Callable[[Model], list[Expected]]] = {}

UNFAULTED = TagScheme("unfaulted", "", unfaulted=1)
LAZY = TagScheme("lazy", "", vma=2, parent=1)


def with_tags(tags: TagScheme) -> Era:
    """An era whose VMAs count the words that lead to them, too, if there is ever one."""
    fields = dict(ERA.vma.fields)
    if tags.name == "lazy":
        fields["root_refs"] = Field(48, 4, "integer", "int", signed=True)
    return replace(ERA, tags=tags, vma=Record(ERA.vma.struct, ERA.vma.size, fields))


def unfaulted(model: Model | None = None) -> Model:
    """A forest with three unfaulted VMAs, one of them in a child of fork."""
    model = model or forest()
    model.era = with_tags(UNFAULTED)
    model.mms[0].vmas[12].unfaulted = True
    model.mms[1].vmas[12].unfaulted = True
    model.map(model.mms[0], 0x5000, 3, file=1).unfaulted = True
    return model.finish()


def lazy(model: Model | None = None) -> Model:
    """A forest with a process more that has each kind of lazy VMA.

    In the order of addresses: a root VMA and two parts of what it was; the rest of a mapping whose
    root VMA was unmapped; a VMA that was upgraded, and one that still has it as root VMA. A child
    of fork has the anon_vmas of its parent's VMAs.
    """
    model = model or forest()
    model.era = with_tags(LAZY)
    mm = model.mm("lazy")
    for page, rest in ((0x1000, 2), (0x2000, 1)):
        first = model.map(mm, page, 2)
        model.fault_lazily(first)
        for number in range(rest):
            model.fault_lazily(model.map(mm, page + 2 + 2 * number, 2), first)
    model.unmap(mm, first)
    upgraded = model.map(mm, 0x3000, 2)
    model.fault(upgraded)
    model.fault_lazily(model.map(mm, 0x3002, 2), upgraded)
    child = model.mm("lazy child")
    for old in (*model.mms[1].vmas[:3], model.mms[0].vmas[13]):
        model.copy_lazily(old, child)
    return model.finish()


def case(function: Callable[[Model], list[Expected]]) -> Callable[[Model], list[Expected]]:
    """As in test_invariants: breaks a sound forest, and says what that must bring."""
    CASES[function.__name__] = function
    return function


def lazy_mm(model: Model) -> Mm:
    return next(task.mm for task in model.tasks if task.comm == b"lazy")


def lazy_child(model: Model) -> Mm:
    return next(task.mm for task in model.tasks if task.comm == b"lazy child")


def lent(vma: Vma) -> AnonVma:
    assert isinstance(vma.lazy, AnonVma)
    return vma.lazy


# ---- what is legal


@pytest.mark.parametrize("make", [unfaulted, lazy])
def test_legal_states_are_silent(make: Callable[[], Model]) -> None:
    assert not found(make())


def test_root_vma_that_was_unmapped_is_met() -> None:
    vmas = lazy().tables().vmas
    unmapped = vmas.slot == NO_ROW
    assert list(vmas.anon_vma[unmapped]) == [0]
    assert (vmas.anon_vma == (vmas.address[unmapped] | np.uint64(LAZY.vma))).sum() == 1


def test_checks_are_done() -> None:
    states = {
        tags.name: {
            result.invariant.code: result
            for result in run(make()).results
            if result.invariant.code in ("AV601", "AV603", "AV604", "AV605", "AV606", "AV607")
        }
        for tags, make in ((UNFAULTED, unfaulted), (LAZY, lazy))
    }
    counts = {
        name: {code: result.objects for code, result in results.items() if result.state is State.OK}
        for name, results in states.items()
    }
    assert {code: counts["unfaulted"][code] for code in ("AV604",)} == {"AV604": 3}
    assert set(counts["unfaulted"]) == {"AV601", "AV603", "AV604"}
    assert {code: counts["lazy"][code] for code in ("AV604", "AV605", "AV606", "AV607")} == {
        # Three of one root VMA, one of an unmapped one, one of an upgraded one.
        "AV604": 5,
        "AV605": 5,
        "AV606": 4,
        "AV607": 3,
    }


def test_plain_pointers_have_no_schemes() -> None:
    codes = ("AV603", "AV604", "AV605", "AV606", "AV607", "AV608", "AV609", "AV610")
    for result in run(forest()).results:
        if result.invariant.code in codes:
            assert result.state is State.NOT_APPLICABLE


def test_figures_of_words() -> None:
    def figures(model: Model) -> dict[str, object]:
        counted = count_vma_words(model.tables())
        kinds = counted["kinds"]
        assert isinstance(kinds, dict)
        return {**counted, "kinds": {kind: count for kind, count in kinds.items() if count}}

    assert figures(unfaulted()) == {
        # Fourteen VMAs each in four processes, and one more; three flags.
        "kinds": {"none": 2, "anon_vma": 52, "unfaulted": 3},
        "root_vmas": 0,
        "unmapped_root_vmas": 0,
    }
    model = lazy()
    assert figures(model) == {
        "kinds": {"none": 4, "anon_vma": 53, "lazy_vma": 5, "lazy_parent": 4},
        "root_vmas": 3,
        "unmapped_root_vmas": 1,
    }
    assert describe_vma_words(model.tables()) == (
        "vma->anon_vma: 4 none, 53 anon_vma, 5 lazy_vma, 4 lazy_parent; 3 root VMAs, 1 of them "
        "unmapped"
    )


def test_uncertain_scheme_judges_no_tag() -> None:
    for make in (unfaulted, lazy):
        model = make()
        model.era = with_tags(replace(model.era.tags, certain=False, evidence="too little"))
        audited = run(model)
        assert not list(audited.findings())
        for result in audited.results:
            if result.invariant.code in ("AV603", "AV604"):
                assert result.state is State.NOT_CHECKED
                assert result.reason == NOT_SURE


def test_explanations_say_what_tags_change() -> None:
    by_code = {invariant.code: invariant for invariant in CATALOGUE}
    assert all(invariant.schemes for invariant in CATALOGUE)
    for code in ("AV105", "AV106", "AV401", "AV402", "AV403", "AV404", "AV601"):
        assert by_code[code].schemes != "In force under each."


def test_the_documentation_lists_what_tags_change() -> None:
    text = (Path(__file__).parent.parent / "docs" / "schemes.md").read_text()
    listed = re.findall(r"^\| (AV\d{3}) \|", text, re.M)
    changed = [each.code for each in CATALOGUE if each.schemes != "In force under each."]
    assert listed == changed


# ---- AV603


@case
def flag_with_a_pointer(model: Model) -> list[Expected]:
    vma = piece(unfaulted(model), 5)
    vma.anon_vma |= 1
    return [("AV603", vma, "the flag alone, or a pointer without it", hex(vma.anon_vma))]


@case
def flag_that_means_nothing(model: Model) -> list[Expected]:
    vma = piece(unfaulted(model), 12)
    vma.anon_vma = 4
    return [("AV603", vma, "0x0", "0x4")]


@case
def both_tags_of_a_pointer(model: Model) -> list[Expected]:
    vma = piece(lazy(model), 5)
    vma.anon_vma |= 3
    return [("AV603", vma, hex(own(vma).address), hex(vma.anon_vma))]


@case
def tag_without_a_pointer(model: Model) -> list[Expected]:
    vma = piece(lazy(model), 12)
    vma.anon_vma = LAZY.vma
    return [("AV603", vma, "a pointer with this tag, or 0x0", "0x2")]


# ---- AV604


@case
def unfaulted_vma_with_a_chain(model: Model) -> list[Expected]:
    vma = piece(unfaulted(model), 5)
    vma.anon_vma = UNFAULTED.unfaulted
    # The word contradicts its own VMA: it is not said of the anon_vma that it counts one too many.
    return [("AV604", vma, "an anon_vma of its chain", "0x1")]


@case
def vma_with_a_root_vma_and_a_chain(model: Model) -> list[Expected]:
    vma = lazy_mm(lazy(model)).vmas[1]
    root = vma.anon_vma
    anon_vma = model.fault(vma)
    model.finish()
    vma.anon_vma = root
    anon_vma.num_active_vmas = 0
    return [("AV604", vma, "an anon_vma of its chain", hex(root))]


# ---- AV605


@case
def root_vma_that_is_none(model: Model) -> list[Expected]:
    vma = lazy_mm(lazy(model)).vmas[1]
    vma.anon_vma = WILD | LAZY.vma
    return [("AV605", vma, "a VMA", hex(WILD | LAZY.vma))]


@case
def root_vma_of_another_mm(model: Model) -> list[Expected]:
    vma = lazy_mm(lazy(model)).vmas[1]
    other = piece(model, 12)
    vma.anon_vma = other.address | LAZY.vma
    # What the word was is not known, so that no root VMA has a reference too many; nor has the
    # other one a reference too few, which no word of this mm gave it.
    return [
        (
            "AV605",
            vma,
            f"a VMA of mm {vma.vm_mm:#x}",
            f"a VMA of mm {other.vm_mm:#x}",
        ),
    ]


@case
def root_vma_with_a_parent(model: Model) -> list[Expected]:
    vma = lazy_child(lazy(model)).vmas[0]
    other = model.map(lazy_child(model), 0x7000, 1)
    model.fault_lazily(other, vma)
    model.finish()
    return [("AV605", vma, "itself, an anon_vma, or 0x0", hex(vma.anon_vma))]


# ---- AV606


@case
def lent_anon_vma_of_another_chain(model: Model) -> list[Expected]:
    vma = lazy_child(lazy(model)).vmas[0]
    right, wrong = lent(vma), own(piece(model, 0, 3))
    vma.anon_vma = wrong.address | LAZY.parent
    return [
        ("AV403", wrong, f"at least {wrong.refcount + 1}", str(wrong.refcount)),
        ("AV404", right, str(right.refcount - 1), str(right.refcount)),
        ("AV606", vma, "an anon_vma of its chain", hex(vma.anon_vma)),
    ]


@case
def lent_anon_vma_that_is_none(model: Model) -> list[Expected]:
    vma = lazy_child(lazy(model)).vmas[0]
    vma.anon_vma = WILD | LAZY.parent
    # What the word was is not known, so that nothing is counted too high.
    return [("AV606", vma, "an anon_vma of its chain", hex(WILD | LAZY.parent))]


# ---- AV607


@case
def root_vma_with_another_root_vma(model: Model) -> list[Expected]:
    mm = lazy_mm(lazy(model))
    root, other = mm.vmas[0], mm.vmas[4]
    root.anon_vma = other.address | LAZY.vma
    refs = other.root_refs
    return [
        ("AV607", root, hex(root.address | LAZY.vma), hex(root.anon_vma)),
        ("AV608", other, f"at least {refs + 1}", str(refs)),
    ]


# ---- AV608


@case
def root_vma_with_a_reference_too_few(model: Model) -> list[Expected]:
    root = lazy_mm(lazy(model)).vmas[0]
    root.root_refs -= 1
    return [("AV608", root, "at least 4", "3")]


@case
def unmapped_root_vma_without_a_reference(model: Model) -> list[Expected]:
    root = lazy_mm(lazy(model)).vmas[3].lazy
    assert isinstance(root, Vma)
    root.root_refs = 0
    return [("AV608", root, "at least 1", "0")]


def test_kernel_that_counts_references_to_root_vmas_elsewhere() -> None:
    model = lazy()
    model.era = replace(ERA, tags=LAZY)
    for result in run(model).results:
        if result.invariant.code in ("AV608", "AV610"):
            assert result.state is State.NOT_APPLICABLE


# ---- AV610


@case
def root_vma_with_a_reference_too_many(model: Model) -> list[Expected]:
    root = lazy_mm(lazy(model)).vmas[0]
    root.root_refs += 1
    return [("AV610", root, "4", "5")]


@case
def vma_that_is_no_root_vma_with_a_reference_too_many(model: Model) -> list[Expected]:
    vma = piece(lazy(model), 5)
    vma.root_refs += 3
    return [("AV610", vma, "1", "4")]


@case
def unmapped_root_vma_with_a_reference_too_many(model: Model) -> list[Expected]:
    root = lazy_mm(lazy(model)).vmas[3].lazy
    assert isinstance(root, Vma)
    root.root_refs += 1
    return [("AV610", root, "1", "2")]


@case
def word_that_led_to_a_root_vma_is_gone(model: Model) -> list[Expected]:
    mm = lazy_mm(lazy(model))
    mm.vmas[1].anon_vma = 0
    return [("AV610", mm.vmas[0], "3", "4")]


@case
def root_vma_whose_own_word_is_gone(model: Model) -> list[Expected]:
    root = lazy_mm(lazy(model)).vmas[0]
    root.anon_vma = 0
    return [("AV610", root, "3", "4")]


@case
def more_references_too_many_than_words_that_may_be_anything(model: Model) -> list[Expected]:
    mm = lazy_mm(lazy(model))
    vma = mm.vmas[1]
    vma.anon_vma = WILD | LAZY.vma
    mm.vmas[0].root_refs += 1
    return [("AV605", vma, "a VMA", hex(vma.anon_vma)), ("AV610", mm.vmas[0], "3", "5")]


def test_surplus_of_an_mm_that_is_not_known_as_a_whole() -> None:
    """A VMA that leads to it may be among those that are missing."""
    for name in ("walked", "whole"):
        model = lazy()
        mm = lazy_mm(model)
        mm.vmas[0].root_refs += 1
        setattr(mm, name, False)
        assert "AV610" not in {finding.code for finding in run(model).findings()}
        for other in model.mms:
            setattr(other, name, False)
        (result,) = (each for each in run(model).results if each.invariant.code == "AV610")
        assert result.state is State.NOT_CHECKED


def test_surplus_of_what_exit_left() -> None:
    model = lazy()
    mm = lazy_mm(model)
    mm.vmas[0].root_refs += 1
    mm.mm_users = 0
    model.tasks = [task for task in model.tasks if task.mm is not mm]
    assert not found(model)


# ---- what tags change in other rules


@case
def lent_anon_vma_without_its_reference(model: Model) -> list[Expected]:
    anon_vma = lent(lazy_child(lazy(model)).vmas[3])
    anon_vma.refcount -= 1
    refcount = anon_vma.refcount
    return [("AV403", anon_vma, f"at least {refcount + 1}", str(refcount))]


@case
def reference_that_nobody_has(model: Model) -> list[Expected]:
    anon_vma = lent(lazy_child(lazy(model)).vmas[3])
    anon_vma.refcount += 1
    return [("AV404", anon_vma, str(anon_vma.refcount - 1), str(anon_vma.refcount))]


@case
def lent_anon_vma_counted_as_active(model: Model) -> list[Expected]:
    anon_vma = lent(lazy_child(lazy(model)).vmas[3])
    anon_vma.num_active_vmas += 1
    used = anon_vma.num_active_vmas
    return [("AV402", anon_vma, str(used - 1), str(used))]


@case
def lent_anon_vma_counted_as_child(model: Model) -> list[Expected]:
    anon_vma = lent(lazy_child(lazy(model)).vmas[3])
    anon_vma.num_children += 1
    children = anon_vma.num_children
    return [("AV401", anon_vma, str(children - 1), str(children))]


@case
def root_vma_that_was_freed(model: Model) -> list[Expected]:
    vma = lazy_mm(lazy(model)).vmas[3]
    assert isinstance(vma.lazy, Vma)
    assert vma.lazy not in lazy_mm(model).vmas
    model.states[vma.lazy.address] = ObjectState.FREE
    cache = f"the slab cache {CACHES[0]:#x} (vm_area_struct)"
    where = f"{vma.lazy.address:#x}, in the page at {RAM:#x}, of {cache}"
    return [("AV503", vma, f"an object of {cache}", where)]


@pytest.mark.parametrize("name", CASES)
def test_broken(name: str) -> None:
    model = forest()
    expected = sorted((code, address(o), e, a) for code, o, e, a in CASES[name](model))
    assert sorted(map(key, found(model))) == expected


def test_every_code_is_produced_by_a_case() -> None:
    produced = {code for case in CASES.values() for code, *_ in case(forest())}
    # That of folios has cases of its own: see test_lazy_folios.
    assert {each.code for each in tag_schemes.INVARIANTS} - {"AV609"} <= produced
