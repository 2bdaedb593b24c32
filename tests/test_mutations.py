"""The tests of the invariants are worth something: without any one invariant, one of them fails."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from anonvma_inspect.invariants.base import Invariant, Verdict
from anonvma_inspect.invariants.catalogue import CATALOGUE, audit
from anonvma_inspect.invariants.facts import Facts

from .handmade import Model, forest
from .test_invariants import CASES as PLAIN_CASES
from .test_invariants import address, key
from .test_invariants_tags import CASES as TAG_CASES
from .test_lazy_folios import CODES as LAZY_FOLIOS
from .test_pages import CASES as PAGE_CASES
from .test_swap import CODES as SWAP_CODES

CASES = {**PLAIN_CASES, **TAG_CASES}
#: Rules about pages, which handmade tables do not have: of these, a case asks for the code alone.
OF_PAGES = {code for code, _ in PAGE_CASES.values()} | {*LAZY_FOLIOS, *SWAP_CODES}


def silenced(invariant: Invariant) -> Invariant:
    """The invariant without what it finds."""

    def check(facts: Facts) -> Verdict:
        return dataclasses.replace(invariant.check(facts), violations=())

    return dataclasses.replace(invariant, check=check)


def fails(name: str, catalogue: tuple[Invariant, ...]) -> bool:
    """Whether a case of test_invariants fails with such a catalogue."""
    model: Model = forest()
    expected = sorted((code, address(o), e, a) for code, o, e, a in CASES[name](model))
    return sorted(map(key, audit(model.tables(), catalogue).findings())) != expected


@functools.cache
def codes_of(name: str) -> set[str]:
    return {found[0] for found in CASES[name](forest())}


def cases_of(code: str) -> list[str]:
    return [name for name in CASES if code in codes_of(name)]


@pytest.mark.parametrize(
    "disabled",
    [each for each in CATALOGUE if each.code not in OF_PAGES],
    ids=lambda invariant: invariant.code,
)
def test_without_one_invariant_a_case_fails(disabled: Invariant) -> None:
    mutant = tuple(silenced(one) if one is disabled else one for one in CATALOGUE)
    cases = cases_of(disabled.code)
    assert cases
    for name in cases[:3]:
        assert not fails(name, CATALOGUE)
        assert fails(name, mutant)
