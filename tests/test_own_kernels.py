"""Kernels of our own, with tags in ``vma->anon_vma``, against what they count themselves.

``/sys/kernel/debug/anon_vma`` of such a kernel (scripts/labkit/kernel-edits) has how many VMAs are
in which state, counted as their words changed; the guest read it before it was dumped.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest

from anonvma_inspect.collect import collect, collect_audit
from anonvma_inspect.in_flight import audit
from anonvma_inspect.invariants.base import Finding, State
from anonvma_inspect.kernel.tags import AnonVmaKind
from anonvma_inspect.tables import NO_ROW
from anonvma_inspect.target.memory import OverlayMemory

from .captures import CAPTURES, FIXTURES, Capture, few_or_all

OWN = [one for one in CAPTURES if "anon_vma" in one.manifest["word"]["facts"]]
GUARDS = [one for one in OWN if one.manifest["workload"] == "guards"]
POSTED = [
    Capture(path.with_suffix(".core.xz"), path) for path in (FIXTURES / "wrong").glob("*.json")
]

# As scripts/labkit/kernel-edits calls the states.
STATES = {
    AnonVmaKind.NONE: "none",
    AnonVmaKind.ANON_VMA: "regular",
    AnonVmaKind.UNFAULTED: "unfaulted",
    AnonVmaKind.LAZY_VMA: "vma",
    AnonVmaKind.LAZY_PARENT: "parent",
}

#: ``vma->anon_vma`` in the tables, whole and taken apart.
WORD = ("anon_vma", "anon_vma_pointer", "anon_vma_tag")

own = pytest.mark.parametrize("capture", [*OWN, *POSTED], ids=lambda capture: capture.name)


@dataclass
class Census:
    """The kernel's file, taken apart."""

    states: dict[str, int] = field(default_factory=dict)
    #: Why, from, to.
    moves: dict[tuple[str, str, str], int] = field(default_factory=dict)

    @classmethod
    def of(cls, capture: Capture) -> Census:
        census = cls()
        for line in capture.manifest["word"]["facts"]["anon_vma"].splitlines():
            kind, *names, number = line.split()
            if kind == "state":
                census.states[names[0]] = int(number)
            else:
                why, before, after = names
                census.moves[why, before, after] = int(number)
        return census


def kinds(capture: Capture) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    vmas = capture.tables.vmas
    return capture.tables.era.tags.kinds(vmas.anon_vma_pointer, vmas.anon_vma_tag)


def mapped(capture: Capture) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    tables = capture.tables
    inside = np.zeros(len(tables.vmas.address), dtype=np.bool_)
    inside[tables.slots.vma] = True
    return inside


def test_there_are_some() -> None:
    assert GUARDS


@own
def test_the_guest_had_no_complaint(capture: Capture) -> None:
    """The workloads ran to their end, and no WARN or BUG was on the console."""
    assert capture.manifest["complaints"] == []


@own
def test_scheme_is_found(capture: Capture) -> None:
    tags = capture.tables.era.tags
    scheme = capture.manifest["kernel"]["release"].split("-")[1]
    assert (tags.name, tags.certain) == (scheme, True)
    if scheme == "unfaulted":
        assert tags.unfaulted == 1
    else:
        assert (tags.vma, tags.parent, tags.enabled) == (1, 2, True)


@own
def test_states_are_as_many_as_the_kernel_counts(capture: Capture) -> None:
    census, inside, kind = Census.of(capture), mapped(capture), kinds(capture)
    ours = Counter(STATES[AnonVmaKind(int(value))] for value in kind[inside])
    theirs = {name: number for name, number in census.states.items() if name != "unmapped"}
    assert dict(ours) == {name: number for name, number in theirs.items() if number}
    # Root VMAs that are in no mm's tree any longer.
    assert int((~inside).sum()) == census.states["unmapped"]


@own
def test_what_the_kernel_counts_adds_up(capture: Capture) -> None:
    """What came into a state and did not leave it is in it: no transition is left uncounted."""
    census = Census.of(capture)
    for state, number in census.states.items():
        into = sum(count for (_, _, after), count in census.moves.items() if after == state)
        out = sum(count for (_, before, _), count in census.moves.items() if before == state)
        assert into - out == number, state


@pytest.mark.parametrize("capture", GUARDS, ids=lambda capture: capture.name)
def test_guards(capture: Capture) -> None:
    """Each mapping is in the state that its history must have led to, and forks keep the guards."""
    tables, kind = capture.tables, kinds(capture)
    cases = {}
    for event in capture.manifest["word"]["log"]:
        if event["event"] == "case":
            # Of several at one address, the last.
            cases[event["pid"], int(str(event["at"]), 16)] = (event["name"], event["state"])
        else:
            assert event["event"] == "guard"
            assert event["kept"] == (event["name"] != "wiped"), event
    assert {state for _, state in cases.values()} == {"none", "unfaulted", "regular"}
    for (pid, at), (name, state) in cases.items():
        (task,) = np.flatnonzero(tables.tasks.pid == pid)
        rows = tables.slots.vma[tables.slots.mm == tables.tasks.mm[task]]
        (row,) = rows[(tables.vmas.vm_start[rows] <= at) & (at < tables.vmas.vm_end[rows])]
        assert STATES[AnonVmaKind(int(kind[row]))] == state, name


@pytest.mark.parametrize("capture", POSTED, ids=lambda capture: capture.name)
def test_as_posted_a_shared_anon_vma_costs_its_root_a_reference(capture: Capture) -> None:
    """Each upgrade that shared an anon_vma that is no root left one more; nothing else is wrong."""
    made = audit(capture.tables)
    findings = list(made.findings(1000))
    assert findings
    assert {one.code for one in findings} == {"AV404"}
    surplus = sum(int(one.actual) - int(one.expected) for one in findings)
    # Of roots that nobody has any more, there is no finding; and those that share a root need none.
    assert 0 < surplus <= Census.of(capture).moves["upgrade-shared", "parent", "regular"]


@pytest.mark.parametrize(
    "capture",
    [one for one in OWN if one.manifest["kernel"]["release"].endswith("-lazy")],
    ids=lambda capture: capture.name,
)
def test_a_word_that_is_lost_leaves_a_reference(capture: Capture) -> None:
    """Without the word of a lazy VMA, its root VMA has a reference too many.

    (But of one that is not mapped, and that no other word leads to: nobody finds it any more.)
    """
    tables, vmas = capture.tables, capture.tables.vmas
    rows = np.flatnonzero((kinds(capture) == AnonVmaKind.LAZY_VMA) & mapped(capture))
    assert len(rows)
    for row in rows[:: few_or_all(7, 1)].tolist():
        root = int(vmas.anon_vma_pointer[row])
        lost = {name: getattr(vmas, name).copy() for name in WORD}
        for column in lost.values():
            column[row] = 0
        made = audit(dataclasses.replace(tables, vmas=dataclasses.replace(vmas, **lost)))
        (at,) = np.flatnonzero(vmas.address == root)
        others = np.count_nonzero(vmas.anon_vma_pointer == root) - 1
        if not others and vmas.slot[at] == NO_ROW:
            assert not made.findings_total
            continue
        (finding,) = made.findings()
        assert (finding.code, finding.object_address) == ("AV610", root)
        assert int(finding.actual) == int(finding.expected) + 1


LAZY = next(one for one in OWN if one.name == "vmaops-7.3-lazy")


def findings_with(capture: Capture, row: int, word: int) -> list[Finding]:
    """What is found where ``vma->anon_vma`` of one VMA is something else."""
    memory = OverlayMemory(capture.target.memory, {word_of(capture, row): word})
    return list(audit(collect(dataclasses.replace(capture.target, memory=memory))).findings())


def word_of(capture: Capture, row: int) -> int:
    """Address of ``vma->anon_vma``."""
    tables = capture.tables
    return int(tables.vmas.address[row]) + tables.era.vma.offset("anon_vma")


@pytest.mark.parametrize(
    ("kind", "bit", "codes"),
    [
        # Low bits that mean nothing.
        (AnonVmaKind.LAZY_PARENT, 4, {"AV603"}),
        (AnonVmaKind.LAZY_PARENT, 1, {"AV603"}),
        (AnonVmaKind.LAZY_VMA, 4, {"AV105", "AV603"}),
        (AnonVmaKind.ANON_VMA, 4, {"AV603"}),
        # A root VMA's tag on a pointer to an anon_vma.
        (AnonVmaKind.ANON_VMA, 1, {"AV604"}),
    ],
)
def test_only_the_wrong_word_is_blamed(kind: AnonVmaKind, bit: int, codes: set[str]) -> None:
    """What the word was is not known: no count is wrong for it, nor who shares the anon_vma."""
    rows = np.flatnonzero((kinds(LAZY) == kind) & mapped(LAZY))
    for row in rows[:: len(rows) // few_or_all(7, 1)].tolist():
        found = findings_with(LAZY, row, int(LAZY.tables.vmas.anon_vma[row]) ^ bit)
        assert {one.code for one in found} == codes
        assert {one.word for one in found} == {word_of(LAZY, row)}


def test_a_tag_without_pointer_is_not_called_null() -> None:
    (row, *_) = np.flatnonzero(kinds(LAZY) == AnonVmaKind.LAZY_PARENT).tolist()
    found = {one.code: one for one in findings_with(LAZY, row, 2)}
    assert found["AV105"].message == "vma->anon_vma has no pointer, but its chain is not empty"
    assert found["AV105"].actual == "0x2"
    assert "AV603" in found


def test_a_foreign_word_is_not_held_against_the_vma_that_it_leads_to() -> None:
    """Which has no reference for it, and may have another root VMA."""
    vmas = LAZY.tables.vmas
    rows = np.flatnonzero((kinds(LAZY) == AnonVmaKind.LAZY_VMA) & mapped(LAZY))
    (first, *_) = rows.tolist()
    foreign = rows[vmas.vm_mm[rows] != vmas.vm_mm[first]]
    own = vmas.anon_vma_pointer[foreign] == vmas.address[foreign]
    for other in (int(foreign[own][0]), int(foreign[~own][0])):
        (found,) = findings_with(LAZY, first, int(vmas.address[other]) | 1)
        assert (found.code, found.object_address) == ("AV605", int(vmas.address[first]))


@pytest.mark.parametrize(
    "capture",
    [one for one in OWN if one.name.startswith("folios-")],
    ids=lambda capture: capture.name,
)
def test_folios_of_lazy_vmas(capture: Capture) -> None:
    """Without CONFIG_MEMCG a large folio has its order only; and of lazy VMAs all are marked."""
    tables = collect_audit(capture.target, leaks=True, deep=1)
    made = audit(tables)
    assert made.findings_total == 0
    states = {one.invariant.code: (one.state, one.objects) for one in made.results}
    assert tables.pages is not None
    lazy = kinds(capture)[tables.pages.mappings.vma] == AnonVmaKind.LAZY_VMA
    assert states["AV609"] == (State.OK, int(lazy.sum()))
    assert lazy.any()
    assert states["AV702"][0] is State.OK
