"""How vma->anon_vma is encoded: what is decided, from what, and what is not."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from drgn import Object, Program

import anonvma_inspect.target
from anonvma_inspect.cli import options
from anonvma_inspect.collect import collect, collect_tag_scheme
from anonvma_inspect.collect.mm_store import MmStore
from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.helpers import anon_vma as helpers
from anonvma_inspect.in_flight import audit
from anonvma_inspect.invariants.base import Severity, State
from anonvma_inspect.invariants.facts import NOT_SURE
from anonvma_inspect.kernel.tag_schemes import (
    SWITCHES,
    Declared,
    SeenTags,
    choose_scheme,
    declared_scheme,
)
from anonvma_inspect.kernel.tags import (
    NO_TAGS,
    SCHEMES,
    AnonVmaKind,
    TagScheme,
    decode_anon_vma,
)
from anonvma_inspect.report.vma_words import count_vma_words
from anonvma_inspect.tables import NO_ROW, Tables
from anonvma_inspect.target import Target
from anonvma_inspect.target.layouts import Field, Layouts
from anonvma_inspect.target.memory import OverlayMemory
from anonvma_inspect.target.program import target_of
from anonvma_inspect.target.symbols import SYMBOLS

from .captures import CAPTURES, FIXTURES, Capture
from .clirun import Cli
from .programs import vma_at, with_words

POINTER = Declared(True, "struct anon_vma *", {})
WORD = Declared(False, "unsigned long", {})
TREE = Declared(False, "anon_vma_tree_t", {})


def seen(**tags: Mapping[int, int]) -> SeenTags:
    """How many words of each kind there are, by tag."""
    columns = {name: np.zeros(8, dtype=np.int64) for name in tags}
    for name, counts in tags.items():
        for tag, count in counts.items():
            columns[name][tag] = count
    return SeenTags(**columns)


# ---- deciding


@pytest.mark.parametrize(
    ("declared", "tags", "forced", "expected"),
    [
        # What is declared as a pointer has no scheme, whatever the words are.
        (POINTER, seen(lone={1: 9}), None, ("none", True, 0, 0, 0)),
        (POINTER, seen(), None, ("none", True, 0, 0, 0)),
        # The user knows better.
        (POINTER, seen(lone={1: 9}), "unfaulted", ("unfaulted", True, 1, 0, 0)),
        (POINTER, seen(vmas={2: 1}, anon_vmas={4: 1}), "lazy", ("lazy", True, 0, 2, 4)),
        (WORD, seen(lone={1: 9}), "none", ("none", True, 0, 0, 0)),
        # Several equal flags without a pointer, or several pointers to VMAs, are no accident.
        (WORD, seen(lone={4: 2}), None, ("unfaulted", True, 4, 0, 0)),
        (WORD, seen(lone={1: 9}, anon_vmas={1: 3}), None, ("unfaulted", True, 1, 0, 0)),
        (WORD, seen(vmas={2: 5}, anon_vmas={1: 3}), None, ("lazy", True, 0, 2, 1)),
        # One is, and so is what is not the most of them.
        (WORD, seen(), None, ("unfaulted", False, 0, 0, 0)),
        (WORD, seen(lone={1: 1}), None, ("unfaulted", False, 1, 0, 0)),
        (WORD, seen(lone={1: 2, 2: 2}), None, ("unfaulted", False, 0, 0, 0)),
        # Nor is a bare majority: the others may be as right.
        (WORD, seen(lone={1: 15, 2: 16}), None, ("unfaulted", False, 0, 0, 0)),
        (WORD, seen(lone={1: 4, 2: 12}), None, ("unfaulted", True, 2, 0, 0)),
        (WORD, seen(lone={1: 5, 2: 12}), None, ("unfaulted", False, 0, 0, 0)),
        (WORD, seen(vmas={1: 16, 2: 15}), None, ("lazy", False, 0, 0, 0)),
        (WORD, seen(vmas={1: 8}, lone={2: 4}), None, ("lazy", False, 0, 1, 0)),
        # What has one of its tags and is wrong otherwise, is no other scheme's.
        (WORD, seen(lone={1: 2}, lone_chained={1: 1}), None, ("unfaulted", True, 1, 0, 0)),
        (WORD, seen(lone={1: 2}, lone_chained={2: 1}), None, ("unfaulted", False, 1, 0, 0)),
        (WORD, seen(lone={1: 2}, lone_chained={1: 2}), None, ("unfaulted", False, 1, 0, 0)),
        (WORD, seen(vmas={1: 2}, others={1: 1}), None, ("lazy", True, 0, 1, 0)),
        (WORD, seen(vmas={1: 2}, others={4: 1}), None, ("lazy", False, 0, 1, 0)),
        # The scheme is then known by name, but not what its tags are.
        (TREE, seen(vmas={1: 16, 2: 15}), None, ("lazy", True, 0, 0, 0)),
        (WORD, seen(lone={1: 15, 2: 16}), "unfaulted", ("unfaulted", True, 0, 0, 0)),
        (WORD, seen(lone_chained={1: 5}), None, ("unfaulted", False, 0, 0, 0)),
        (WORD, seen(vmas={1: 1}), None, ("lazy", False, 0, 1, 0)),
        # Pointers to anon_vmas alone may be pointers with a damaged bit.
        (WORD, seen(anon_vmas={1: 9}), None, ("unfaulted", False, 0, 0, 0)),
        # A name is enough, and the value of a tag is that of its enumerator.
        (TREE, seen(), None, ("lazy", True, 0, 0, 0)),
        (TREE, seen(vmas={1: 1}), None, ("lazy", True, 0, 1, 0)),
        (replace(TREE, tags={"vma": 2, "parent": 1}), seen(), None, ("lazy", True, 0, 2, 1)),
        (replace(WORD, tags={"unfaulted": 4}), seen(), None, ("unfaulted", True, 4, 0, 0)),
        # Unless most words say otherwise, or two schemes are named.
        (replace(TREE, tags={"vma": 2}), seen(anon_vmas={2: 5}), None, ("lazy", False, 0, 2, 0)),
        (TREE, seen(lone={1: 5}), None, ("lazy", False, 0, 0, 0)),
        (replace(TREE, tags={"unfaulted": 1}), seen(), None, ("lazy", False, 0, 0, 0)),
        (
            replace(TREE, tags={"unfaulted": 1}),
            seen(lone={1: 5}),
            None,
            ("unfaulted", True, 1, 0, 0),
        ),
        # What leads nowhere contradicts nothing.
        (TREE, seen(vmas={1: 2}, others={1: 9}), None, ("lazy", True, 0, 1, 0)),
    ],
)
def test_choice(
    declared: Declared,
    tags: SeenTags,
    forced: str | None,
    expected: tuple[str, bool, int, int, int],
) -> None:
    found = choose_scheme(declared, tags, forced)
    assert (
        found.name,
        found.certain,
        *((found.unfaulted, found.vma, found.parent) if found.name != "none" else (0, 0, 0)),
    ) == expected


def test_evidence_in_words() -> None:
    assert choose_scheme(WORD, seen(lone={1: 12})).evidence == (
        "vma->anon_vma is an unsigned long; of the words with tags, 12 with 0x1 alone and an empty "
        "chain: most words with tags are so"
    )
    assert choose_scheme(WORD, seen()).evidence == (
        "vma->anon_vma is an unsigned long; no VMA has a tag: which is too little to be sure"
    )
    assert choose_scheme(replace(TREE, tags={"vma": 2}), seen(anon_vmas={2: 5})).evidence == (
        "vma->anon_vma is an anon_vma_tree_t, ANON_VMA_TREE_VMA is 2; of the words with tags, 5 "
        "with 0x2 lead to anon_vmas: named so, but most are not so"
    )
    assert choose_scheme(POINTER, seen(), "lazy").evidence == (
        "vma->anon_vma is a pointer; no VMA has a tag: --scheme says so"
    )
    # The user knows better, but is told.
    against = seen(lone={1: 1}, vmas={1: 5}, anon_vmas={2: 3})
    assert choose_scheme(WORD, against, "unfaulted").evidence.endswith(
        ": --scheme says so, but most are not so"
    )
    assert choose_scheme(WORD, against, "lazy").evidence.endswith(": --scheme says so")


@pytest.mark.parametrize(
    ("declared", "tags", "strange"),
    [
        # What leads to an anon_vma is not the tag of what leads to a VMA.
        (TREE, seen(anon_vmas={2: 9, 4: 1}), (4,)),
        (TREE, seen(anon_vmas={2: 9, 4: 1, 1: 1}), (1, 4)),
        (replace(TREE, tags={"vma": 1}), seen(vmas={1: 9, 4: 1}), (4,)),
        # Some of its words may be right, or it is not sure which of the two is strange.
        (TREE, seen(anon_vmas={2: 9, 4: 1}, vmas={4: 1}), ()),
        (TREE, seen(anon_vmas={2: 9, 4: 1}, others={4: 1}), ()),
        (TREE, seen(anon_vmas={2: 2, 4: 1}), ()),
        (TREE, seen(anon_vmas={2: 2, 4: 2}), ()),
    ],
)
def test_tags_that_are_none_of_the_schemes(
    declared: Declared, tags: SeenTags, strange: tuple[int, ...]
) -> None:
    found = choose_scheme(declared, tags)
    assert (found.name, found.certain, found.strange) == ("lazy", True, strange)


@pytest.mark.parametrize(
    ("tags", "name", "supported"),
    [
        (seen(lone={1: 1}), "unfaulted", True),
        (seen(vmas={1: 1}), "lazy", True),
        (seen(vmas={1: 16, 2: 15}), "lazy", True),
        # Both are as likely as not.
        (seen(anon_vmas={1: 9}), "unfaulted", False),
        (seen(), "unfaulted", False),
    ],
)
def test_a_guess_needs_some_support(tags: SeenTags, name: str, supported: bool) -> None:
    found = choose_scheme(WORD, tags)
    assert (found.name, found.certain, found.supported) == (name, False, supported)


def test_names_agree_everywhere() -> None:
    assert (*SCHEMES, "auto") == options._SCHEMES
    assert {name for names in SWITCHES.values() for name in names} <= set(SYMBOLS)


# ---- decoding


def test_kinds_of_scalars_and_columns_agree() -> None:
    words = np.array([0, 1, 2, 3, 0x1000, 0x1001, 0x1002, 0x1004], dtype=np.uint64)
    for scheme in (
        NO_TAGS,
        TagScheme("unfaulted", "", unfaulted=1),
        TagScheme("unfaulted", "", unfaulted=1, certain=False),
        TagScheme("lazy", "", vma=2, parent=1),
    ):
        kinds = scheme.kinds(*decode_anon_vma(words))
        assert [scheme.kind(*decode_anon_vma(int(word))) for word in words] == kinds.tolist()


def test_kinds() -> None:
    none, plain, tagged = AnonVmaKind.NONE, AnonVmaKind.ANON_VMA, AnonVmaKind.TAGGED
    words = np.array([0, 1, 2, 0x1000, 0x1001, 0x1002, 0x1003], dtype=np.uint64)

    def kinds(scheme: TagScheme) -> list[int]:
        return list(scheme.kinds(*decode_anon_vma(words)))

    assert kinds(NO_TAGS) == [none, tagged, tagged, plain, tagged, tagged, tagged]
    # A flag together with a pointer means nothing; so does a pointer's tag alone.
    assert kinds(TagScheme("unfaulted", "", unfaulted=1)) == (
        [none, AnonVmaKind.UNFAULTED, tagged, plain, tagged, tagged, tagged]
    )
    lazy = [AnonVmaKind.LAZY_VMA, AnonVmaKind.LAZY_PARENT]
    assert kinds(TagScheme("lazy", "", vma=1, parent=2)) == (
        [none, tagged, tagged, plain, *lazy, tagged]
    )


def test_understood() -> None:
    tags = np.array([0, 1, 2, 3], dtype=np.uint64)

    def understood(**values: int | bool) -> list[bool]:
        return list(TagScheme("lazy", "", **values).understood(tags))  # type: ignore[arg-type]

    assert list(NO_TAGS.understood(tags)) == [True] * 4
    assert understood(vma=1, parent=2) == [True] * 4
    # Another tag may be the one that was not met.
    assert understood(vma=1) == [True, True, False, False]
    lazy = TagScheme("lazy", "", vma=1, strange=(3,))
    assert list(lazy.understood(tags)) == [True, True, False, True]
    assert understood(vma=1, parent=2, certain=False) == [True, False, False, False]


def test_impossible() -> None:
    """Whatever the values of tags are: a flag with a pointer, and a pointer's tag without."""
    words = np.array([0, 2, 0x1000, 0x1002], dtype=np.uint64)

    def impossible(name: str, certain: bool = True) -> list[bool]:
        return list(TagScheme(name, "", certain=certain).impossible(*decode_anon_vma(words)))

    assert impossible("unfaulted") == [False, False, False, True]
    assert impossible("lazy") == [False, True, False, False]
    assert not any(impossible("none"))
    assert not any(impossible("lazy", certain=False))


# ---- finding out


@dataclass(frozen=True)
class Retyped:
    """A kernel's layouts with another type for vma->anon_vma."""

    base: Layouts
    type_name: str
    enumerators: Mapping[str, int | None] = field(default_factory=dict)
    kind: str = "integer"

    @property
    def source(self) -> str:
        return self.base.source

    def size(self, name: str) -> int | None:
        return self.base.size(name)

    def field(self, name: str, path: str) -> Field | None:
        found = self.base.field(name, path)
        if found is None or (name, path) != ("vm_area_struct", "anon_vma"):
            return found
        return replace(found, kind=self.kind, type_name=self.type_name)

    def enumerator(self, name: str) -> int | None:
        if name in self.enumerators:
            return self.enumerators[name]
        return self.base.enumerator(name)


@functools.cache
def sample() -> tuple[Target, Tables]:
    capture = next(each for each in CAPTURES if each.name == "forktree-7.2")
    return capture.target, collect(capture.target)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


Rewrite = Callable[[Tables], dict[int, int]]


def address_of_word(tables: Tables, row: int) -> int:
    return int(tables.vmas.address[row]) + tables.era.vma.offset("anon_vma")


def without_anon_vma(tables: Tables) -> list[int]:
    return np.flatnonzero(tables.vmas.anon_vma == 0).tolist()


def lone_flags(count: int, tag: int = 1) -> Rewrite:
    def rewrite(tables: Tables) -> dict[int, int]:
        rows = without_anon_vma(tables)[:count]
        assert len(rows) == count
        return {address_of_word(tables, row): tag for row in rows}

    return rewrite


def root_vmas(tables: Tables) -> dict[int, int]:
    """Three VMAs whose root VMA is the first of them, and two with their parent's anon_vma."""
    first, *others = without_anon_vma(tables)[:3]
    root = int(tables.vmas.address[first])
    words = {address_of_word(tables, row): root | 2 for row in (first, *others)}
    for row in np.flatnonzero(tables.vmas.active != NO_ROW)[:2].tolist():
        words[address_of_word(tables, row)] = int(tables.vmas.anon_vma[row]) | 1
    return words


def target_with(
    rewrite: Rewrite,
    type_name: str | None = "unsigned long",
    enumerators: Mapping[str, int] | None = None,
    forced: str | None = None,
) -> Target:
    target, tables = sample()
    layouts: Layouts = target.layouts
    if type_name is not None:
        layouts = Retyped(layouts, type_name, enumerators or {})
    return replace(
        target,
        layouts=layouts,
        memory=OverlayMemory(target.memory, rewrite(tables)),
        scheme=forced,
    )


def test_pointer_needs_no_look() -> None:
    target, tables = sample()
    assert declared_scheme(target.layouts).is_pointer
    assert tables.era.tags is NO_TAGS


def test_flag_is_found_without_any_name() -> None:
    found = collect_tag_scheme(target_with(lone_flags(5, tag=4)))
    assert (found.name, found.certain, found.unfaulted) == ("unfaulted", True, 4)
    assert "5 with 0x4 alone and an empty chain" in found.evidence


def test_flags_are_too_few() -> None:
    found = collect_tag_scheme(target_with(lone_flags(1)))
    assert (found.name, found.certain) == ("unfaulted", False)


def test_flagged_vmas_break_no_rule() -> None:
    tables = collect(target_with(lone_flags(5)))
    assert tables.era.tag_scheme == "unfaulted"
    assert not [finding.code for finding in audit(tables).findings()]


def test_low_bit_in_a_pointer_is_no_scheme() -> None:
    for tables, codes in (
        (collect(target_with(lone_flags(5), None)), ["AV601"] * 5),
        (collect(target_with(lone_flags(5), None, forced="unfaulted")), []),
        (collect(target_with(lone_flags(5), forced="none")), ["AV601"] * 5),
    ):
        assert [finding.code for finding in audit(tables).findings()] == codes


# ---- kernels that have a scheme, and whose types are taken from them

UNFAULTED = [capture for capture in CAPTURES if capture.name.endswith("-unfaulted")]


@pytest.mark.parametrize("capture", UNFAULTED, ids=[capture.name for capture in UNFAULTED])
def test_flags_of_a_kernel_that_has_them(capture: Capture) -> None:
    """The field is what the kernel declares, then an integer, then a pointer."""
    target = capture.target
    count = count_vma_words(capture.tables)["kinds"]
    assert isinstance(count, dict)
    flags = count["unfaulted"]
    assert flags > 2
    assert capture.tables.era.tags.certain

    layouts = Retyped(target.layouts, "unsigned long", NAMELESS)
    tables = collect(replace(target, layouts=layouts))
    assert tables.era.tags.evidence == (
        f"vma->anon_vma is an unsigned long; of the words with tags, {flags} with 0x1 alone and an "
        "empty chain: most words with tags are so"
    )
    assert (tables.era.tag_scheme, tables.era.tags.unfaulted) == ("unfaulted", 1)
    assert not list(audit(tables).findings())

    pointer = Retyped(target.layouts, "struct anon_vma *", NAMELESS, "pointer")
    plain = audit(collect(replace(target, layouts=pointer)))
    assert [finding.code for finding in plain.findings()] == ["AV601"] * flags
    forced = audit(collect(replace(target, layouts=pointer, scheme="unfaulted")))
    assert not list(forced.findings())


NAMELESS: Mapping[str, int | None] = {
    "ANON_VMA_UNFAULTED": None,
    "ANON_VMA_TREE_VMA": None,
    "ANON_VMA_TREE_PARENT": None,
}
# A capture of a kernel with each scheme, and how many of its words have a tag.
OF_SCHEMES = {
    "unfaulted": next(one for one in CAPTURES if one.name == "guards-7.3-unfaulted"),
    "lazy": next(one for one in CAPTURES if one.name == "forktree-7.3-lazy"),
}


def rows_of(capture: Capture, kind: AnonVmaKind) -> list[int]:
    vmas = capture.tables.vmas
    kinds = capture.tables.era.tags.kinds(vmas.anon_vma_pointer, vmas.anon_vma_tag)
    return np.flatnonzero(kinds == kind).tolist()


def nameless(capture: Capture, type_name: str, words: dict[int, int]) -> Tables:
    """A kernel of which nothing but the type of the field is known, with some words changed."""
    target = capture.target
    layouts = Retyped(target.layouts, type_name, NAMELESS)
    return collect(replace(target, layouts=layouts, memory=OverlayMemory(target.memory, words)))


@pytest.mark.parametrize(
    ("name", "forced", "message"),
    [
        ("lazy", "unfaulted", "the flag of an unfaulted VMA stands together with a pointer"),
        ("unfaulted", "lazy", "the tag of a pointer stands without one"),
    ],
)
def test_no_word_is_as_the_wrong_scheme_has_it(name: str, forced: str, message: str) -> None:
    """Though nothing tells what values that scheme's tags would have."""
    capture = OF_SCHEMES[name]
    tagged = np.count_nonzero(capture.tables.vmas.anon_vma_tag)
    assert tagged > 2
    tables = collect(replace(capture.target, scheme=forced))
    found = list(audit(tables).findings())
    assert {(one.code, one.message) for one in found} == {("AV603", message)}
    assert len(found) == tagged
    assert tables.era.tags.evidence.endswith("--scheme says so, but most are not so")


def test_flags_of_two_values_are_not_judged() -> None:
    """Nearly as many of one as of the other: neither is sure to be the flag."""
    capture = OF_SCHEMES["unfaulted"]
    rows = rows_of(capture, AnonVmaKind.UNFAULTED)
    words = {address_of_word(capture.tables, row): 2 for row in rows[: len(rows) // 2 + 1]}
    tables = nameless(capture, "unsigned long", words)
    result = audit(tables)
    assert not result.findings_total
    states = {one.invariant.code: (one.state, one.reason) for one in result.results}
    assert states["AV603"] == (State.NOT_CHECKED, NOT_SURE)
    # What no flag has anything to do with is judged, and no other scheme is said to be absent.
    assert states["AV402"][0] is State.OK
    assert states["AV605"] == (State.NOT_CHECKED, NOT_SURE)
    # Nor are they if the scheme is named: its flag may be either.
    forced = collect(
        replace(
            capture.target,
            layouts=Retyped(capture.target.layouts, "unsigned long", NAMELESS),
            memory=OverlayMemory(capture.target.memory, words),
            scheme="unfaulted",
        )
    )
    result = audit(forced)
    assert not result.findings_total
    (tag_word,) = (one for one in result.results if one.invariant.code == "AV603")
    assert (tag_word.state, tag_word.reason) == (
        State.NOT_CHECKED,
        "the values of the scheme's tags are not known",
    )


def test_a_tag_that_leads_to_an_anon_vma_is_no_root_vmas() -> None:
    """Of ANON_VMA_LAZY only one tag was met, and a plain pointer has a bit too many."""
    capture = OF_SCHEMES["lazy"]
    tables = capture.tables
    words = {address_of_word(tables, row): 0 for row in rows_of(capture, AnonVmaKind.LAZY_VMA)}
    row = rows_of(capture, AnonVmaKind.ANON_VMA)[5]
    words[address_of_word(tables, row)] = int(tables.vmas.anon_vma[row]) | 4
    made = nameless(capture, "anon_vma_tree_t", words)
    assert (made.era.tags.vma, made.era.tags.parent, made.era.tags.strange) == (0, 2, (4,))
    (found,) = (one for one in audit(made).findings() if one.severity is Severity.ERROR)
    assert (found.code, found.word) == ("AV603", address_of_word(tables, row))


def test_words_that_are_left_out_are_not_counted() -> None:
    """A tag that may be a root VMA's, and leads to no object."""
    capture = OF_SCHEMES["lazy"]
    tables = capture.tables
    words = {address_of_word(tables, row): 0 for row in rows_of(capture, AnonVmaKind.LAZY_VMA)}
    row = rows_of(capture, AnonVmaKind.ANON_VMA)[5]
    words[address_of_word(tables, row)] = 0xDEAD_0000 | 4
    made = nameless(capture, "anon_vma_tree_t", words)
    (tag_word,) = (one for one in audit(made).results if one.invariant.code == "AV603")
    assert (tag_word.state, tag_word.objects) == (State.OK, len(made.vmas.address) - 1)


def test_answer_that_is_not_sure(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """It guesses only where something speaks for it, and says what to do."""
    capture = OF_SCHEMES["lazy"]
    tables = capture.tables
    words = {address_of_word(tables, row): 0 for row in rows_of(capture, AnonVmaKind.LAZY_VMA)}
    count = len(rows_of(capture, AnonVmaKind.LAZY_PARENT))
    target = replace(
        capture.target,
        layouts=Retyped(capture.target.layouts, "unsigned long", NAMELESS),
        memory=OverlayMemory(capture.target.memory, words),
    )
    monkeypatch.setattr(anonvma_inspect.target, "open_target", lambda options: target)
    core = str(capture.core)
    lines = cli("-c", core, "audit").out.splitlines()
    assert lines[1] == (
        "tags in vma->anon_vma: not sure (vma->anon_vma is an unsigned long; of the words with "
        f"tags, {count} with 0x2 lead to anon_vmas: which is too little to be sure; --scheme "
        "settles it)"
    )
    assert lines[-1].startswith("clean: ")
    # The evidence stands there once; each rule says only that it is not sure.
    assert sum("lead to anon_vmas" in line for line in lines) == 1
    assert sum(line.endswith(NOT_SURE) for line in lines) == 9
    facts = json.loads(cli("-c", core, "--format", "json", "audit").out)["target"]
    assert facts["tag_scheme_certain"] is False
    # A rule that is asked for by name and cannot be checked is incomplete.
    assert cli("-c", core, "audit", "--only", "AV603").code == 4


@pytest.mark.parametrize("slabs", [True, False], ids=["slabs", "content"])
@pytest.mark.parametrize("type_name", ["unsigned long", "anon_vma_tree_t"])
def test_lazy_tags_are_learnt(type_name: str, slabs: bool) -> None:
    target = target_with(root_vmas, type_name)
    if not slabs:
        # Nothing tells where the structs of pages are.
        target = replace(target, vmcoreinfo=b"")
    found = collect_tag_scheme(target)
    assert (found.name, found.certain, found.vma, found.parent) == ("lazy", True, 2, 1)
    assert "3 with 0x2 lead to VMAs, 2 with 0x1 lead to anon_vmas" in found.evidence


def test_enumerators_are_asked() -> None:
    names = {"ANON_VMA_TREE_VMA": 1, "ANON_VMA_TREE_PARENT": 2}
    found = collect_tag_scheme(target_with(lone_flags(0), enumerators=names))
    assert (found.name, found.certain, found.vma, found.parent) == ("lazy", True, 1, 2)
    assert "ANON_VMA_TREE_VMA is 1" in found.evidence
    # The words have it the other way round.
    assert not collect_tag_scheme(target_with(root_vmas, enumerators=names)).certain


@pytest.mark.parametrize(("byte", "enabled"), [(0, False), (1, True), (2, True), (0xFF, None)])
def test_switch(byte: int, enabled: bool | None) -> None:
    target = target_with(root_vmas, "anon_vma_tree_t")
    assert collect_tag_scheme(target).enabled is None
    at = target.symbols["page_offset_base"]
    memory = OverlayMemory(target.memory, {at: byte})
    symbols = {**target.symbols, "anon_vma_lazy_key": at}
    assert collect_tag_scheme(replace(target, memory=memory, symbols=symbols)).enabled is enabled


def test_lazy_words_lead_where_they_say() -> None:
    tables = collect(target_with(root_vmas, "anon_vma_tree_t"))
    kinds = tables.era.tags.kinds(tables.vmas.anon_vma_pointer, tables.vmas.anon_vma_tag)
    assert np.count_nonzero(kinds == AnonVmaKind.LAZY_VMA) == 3
    assert np.count_nonzero(kinds == AnonVmaKind.LAZY_PARENT) == 2
    lazy = (kinds == AnonVmaKind.LAZY_VMA) | (kinds == AnonVmaKind.LAZY_PARENT)
    assert (tables.vmas.active[lazy] == NO_ROW).all()
    assert len(tables.vmas.address) == len(sample()[1].vmas.address)


def without_slot(tables: Tables, row: int) -> dict[int, int]:
    """Takes a VMA out of the tree of its mm."""
    target, _ = sample()
    mm = tables.vmas.mm[row : row + 1]
    reader = Reader(target)
    slots = MmStore(reader, tables.era).add(tables.mms.address[mm], np.ones(1, dtype=bool))
    holder = slots.holder[slots.pointer == tables.vmas.address[row]]
    node, _ = target.memory.gather(holder, 256)
    place = np.flatnonzero(node.view("<u8")[0] == tables.vmas.address[row])
    assert len(place) == 1
    count = int(tables.mms.map_count[mm[0]]) - 1
    at = int(tables.mms.address[mm[0]]) + tables.era.mm.offset("map_count")
    return {int(holder[0]) + 8 * int(place[0]): 0, at: count}


def unmapped_root(tables: Tables) -> dict[int, int]:
    """Two VMAs of an mm lead to a third one that is in its tree no more, and says so."""
    vmas = tables.vmas
    rows = np.array(without_anon_vma(tables))
    rows = rows[vmas.mm[rows] == vmas.mm[rows[0]]][:3]
    root, *others = rows.tolist()
    offset = tables.era.vma.offset("vm_refcnt")
    words = {address_of_word(tables, row): int(vmas.address[root]) | 2 for row in others}
    return {**words, **without_slot(tables, root), int(vmas.address[root]) + offset: 0}


def test_root_vma_in_no_tree_is_read() -> None:
    before = sample()[1]
    tables = collect(target_with(unmapped_root, "anon_vma_tree_t"))
    assert len(tables.slots.pointer) == len(before.slots.pointer) - 1
    assert list(tables.vmas.address) == list(before.vmas.address)
    assert not audit(tables).findings_total
    # With the root VMA's word not followed, nothing leads to it.
    plain = collect(target_with(unmapped_root, forced="unfaulted"))
    assert len(plain.vmas.address) == len(before.vmas.address) - 1


@pytest.mark.parametrize("command", [["audit"], ["stats"], ["vma", "PID"]])
def test_answers_say_what_was_found(cli: Cli, command: list[str]) -> None:
    core = str(FIXTURES / "forktree-7.2.core.xz")
    pid = str(sample()[1].tasks.tgid[0])
    command = [word.replace("PID", pid) for word in command]
    said = (
        "tags in vma->anon_vma: lazy (vma->anon_vma is a pointer; no VMA has a tag: --scheme says "
        "so)\n"
    )
    assert said in cli("-c", core, "--scheme", "lazy", *command).out
    for auto in ([], ["--scheme", "auto"]):
        assert "tags in vma->anon_vma" not in cli("-c", core, *auto, *command).out
    facts = json.loads(cli("-c", core, "--scheme", "lazy", "--format", "json", *command).out)
    assert facts["target"]["tag_scheme"] == "lazy"
    assert facts["target"]["tag_scheme_evidence"] in said
    assert facts["target"]["tag_scheme_enabled"] is None
    assert facts["target"]["tag_scheme_certain"] is True


def test_helpers_decode_what_the_words_of_all_vmas_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = next(each for each in CAPTURES if each.name == "forktree-7.2")
    words = root_vmas(sample()[1])
    prog = with_words(capture, dict(words))

    def retyped(of: Program) -> Target:
        target = target_of(of)
        return replace(target, layouts=Retyped(target.layouts, "unsigned long"))

    monkeypatch.setattr(helpers, "declared_scheme", lambda layouts: WORD)
    monkeypatch.setattr(helpers, "target_of", retyped)
    offset = sample()[1].era.vma.offset("anon_vma")
    for at, word in words.items():
        vma = vma_at(prog, at - offset)
        decoded = helpers.decode_vma_anon_vma(vma)
        tag = word & 7
        kind, type_ = {2: ("lazy_vma", "vm_area_struct"), 1: ("lazy_parent", "anon_vma")}[tag]
        assert (decoded.raw, decoded.tag, decoded.kind) == (word, tag, kind)
        assert decoded.pointer == Object(prog, f"struct {type_} *", word & ~7)
        assert not helpers.vma_anon_vma(vma)
