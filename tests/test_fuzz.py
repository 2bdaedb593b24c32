"""A sample of the matrix that ``scripts/fuzz`` prints: one wrong word at a time in real kernels."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from fuzzkit.cells import Outcome, judge
from fuzzkit.harmless import harmless, needs_pages
from fuzzkit.kernels import Kernel, kernels
from fuzzkit.subjects import BARE, ROLES, TAGGED, UNMAPPED, Subject
from fuzzkit.verbs import VERBS, Change

from .captures import few_or_all
from .model.eras import SCHEMES, Rules

ALL = kernels()
every = pytest.mark.parametrize("kernel", ALL.values(), ids=lambda kernel: kernel.name)
#: Changes of each field.
SAMPLE = 1


def changes(kernel: Kernel) -> list[Change]:
    """Some of each field, by default of every second; with each kernel others, verbs in turn."""
    rows = list(kernel.rows())
    turn = sorted(ALL).index(kernel.name)
    verb = itertools.count(turn)
    chosen = []
    step = few_or_all(2, 1)
    for subject in list(kernel.subjects)[turn % step :: step]:
        roles = [role for of, role in rows if of == subject]
        for _ in range(SAMPLE):
            number = next(verb)
            made = kernel.changes(subject, roles[number % len(roles)], seed=number)
            chosen.append(next(itertools.islice(made, number % len(VERBS), None)))
    return chosen


@every
def test_no_change_is_missed(kernel: Kernel) -> None:
    cells = [judge(change) for change in changes(kernel)]
    assert not [str(cell) for cell in cells if cell.outcome is Outcome.MISSED]
    assert {cell.change.verb for cell in cells} == set(VERBS)
    assert all(cell.first_is_right for cell in cells)
    # One wrong word is no landslide.
    assert max(cell.findings for cell in cells) <= 12
    assert sum(cell.outcome is Outcome.ERROR for cell in cells) > len(cells) / 2


def test_all_roles_are_there() -> None:
    roles = {role for kernel in ALL.values() for _, role in kernel.rows()}
    assert roles == {*ROLES, BARE, *itertools.chain(*TAGGED.values()), UNMAPPED}


@pytest.mark.parametrize("rules", SCHEMES.values(), ids=SCHEMES)
def test_models_have_all_roles(rules: Rules) -> None:
    assert not ALL[rules.name].missing()


def made(kernel: str, kind: str, name: str, role: str, verb: str) -> Change:
    changes = ALL[kernel].changes(Subject(kind, name), role, seed=1)
    return next(change for change in changes if change.verb == verb)


# Next to each kind of harmless change, one that is not.
@pytest.mark.parametrize(
    ("is_harmless", "kernel", "kind", "name", "role", "verb"),
    [
        (True, "6.12", "avc", "rb_left", "leaf", "zero"),
        (False, "6.12", "avc", "rb_parent_color", "leaf", "zero"),
        (True, "6.12", "vma", "vm_pgoff", BARE, "plus"),
        (False, "6.12", "vma", "vm_pgoff", "leaf", "plus"),
        (True, "7.3", "vma", "vm_pgoff", "leaf", "plus"),
        (False, "7.3", "vma", "anon_pgoff_lo", "leaf", "plus"),
        (True, "6.12", "vma", "vm_flags", "leaf", "high"),
        (False, "6.12", "vma", "vm_flags", "leaf", "zero"),
        (True, "6.12", "vma", "vm_flags", BARE, "zero"),
        (True, "6.12", "vma", "vm_file", "leaf", "ones"),
        (True, "7.2", "vma", "vm_refcnt", "leaf", "plus"),
        (False, "7.2", "vma", "vm_refcnt", "leaf", "high"),
        (False, "7.2", "vma", "vm_refcnt", "leaf", "zero"),
        (True, "6.12", "anon_vma", "rwsem_count", "root", "plus"),
        (False, "6.12", "anon_vma", "rwsem_count", "leaf", "plus"),
        (False, "6.12", "anon_vma", "rwsem_count", "root", "high"),
        (True, "6.12-rt", "anon_vma", "rwsem_readers", "leaf", "plus"),
        (False, "6.12-rt", "anon_vma", "rwsem_readers", "leaf", "zero"),
        (False, "5.10", "vma", "vm_rb_parent_color", "leaf", "low"),
        (False, "5.10", "vma", "vm_start", "leaf", "zero"),
        (True, "7.3", "vma", "vma_flags", "leaf", "high"),
        (False, "7.3", "vma", "vma_flags", "leaf", "zero"),
        (True, "7.3-unfaulted", "vma", "anon_vma", "unfaulted", "zero"),
        (False, "7.3-unfaulted", "vma", "anon_vma", "unfaulted", "plus"),
        (True, "7.3-unfaulted", "vma", "anon_vma", BARE, "low"),
        (False, "7.3-unfaulted", "vma", "anon_vma", "leaf", "low"),
        (True, "7.3-unfaulted", "vma", "vm_flags", "unfaulted", "zero"),
        (True, "7.0-lazy", "vma", "anon_vma", "lazy_vma", "zero"),
        (False, "7.0-lazy", "vma", "anon_vma", "lazy_vma", "low"),
        (False, "7.0-lazy", "vma", "anon_vma", "lazy_vma", "freed"),
        (False, "7.0-lazy", "vma", "anon_vma", "lazy_parent", "zero"),
        (False, "7.0-lazy", "vma", "anon_vma", "lazy_parent", "freed"),
        (True, "7.0-lazy", "vma", "vm_end", UNMAPPED, "middle"),
        (False, "7.0-lazy", "vma", "vm_end", UNMAPPED, "zero"),
        (False, "7.0-lazy", "vma", "vm_mm", UNMAPPED, "sibling"),
        (True, "7.0-lazy", "vma", "vm_refcnt", UNMAPPED, "high"),
    ],
)
def test_harmless(
    is_harmless: bool, kernel: str, kind: str, name: str, role: str, verb: str
) -> None:
    cell = judge(made(kernel, kind, name, role, verb))
    assert (harmless(cell.change) is not None) == is_harmless
    expected = {Outcome.HARMLESS} if is_harmless else {Outcome.ERROR, Outcome.WARNING}
    assert cell.outcome in expected, str(cell)


@pytest.mark.parametrize(("kernel", "key"), [("6.1", "vm_pgoff"), ("7.3", "anon_pgoff_lo")])
def test_offsets_that_only_pages_tell(kernel: str, key: str) -> None:
    """An order that is worked out here agrees with the audit about which changes leave it whole."""
    outcomes = set()
    for seed in range(5):
        for change in ALL[kernel].changes(Subject("vma", key), "root", seed):
            if change.verb in ("low", "plus", "minus", "middle"):
                cell = judge(change)
                unseen = cell.outcome is Outcome.NEEDS_PAGES
                assert unseen == (needs_pages(change) is not None), str(cell)
                outcomes.add(cell.outcome)
    assert outcomes == {Outcome.ERROR, Outcome.NEEDS_PAGES}
