"""The helpers over drgn objects: what they find, and that they end on anything."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
from collections.abc import Callable, Iterable, Iterator

import drgn
import numpy as np
import pytest
from drgn import Object, Program
from drgn.helpers import ValidationError

from anonvma_inspect.helpers import (
    AnonVmaValidationError,
    decode_vma_anon_vma,
    for_each_anon_vma_avc,
    for_each_anon_vma_child,
    for_each_vma_avc,
    validate_anon_vma,
    validate_vma_anon,
    vma_anon_vma,
    vma_last_anon_pgoff,
    vma_start_anon_pgoff,
)
from anonvma_inspect.tables import NO_ROW

from .captures import CAPTURES, KERNELS, SOME, Capture, few_or_all, pairs_with
from .programs import forked_vma, program, vma_at, with_words

on_some = pytest.mark.parametrize("capture", SOME, ids=lambda capture: capture.name)
# What is broken on purpose: one of each kernel, and one with long chains.
BROKEN = [*KERNELS, next(one for one in CAPTURES if one.name == "forkchain-7.3")]
to_break = pytest.mark.parametrize("capture", BROKEN, ids=lambda capture: capture.name)

# More than any walk here takes: what yields more never ends.
TOO_MANY = 100_000
# Random corruptions a capture; thousands were tried by hand.
ROUNDS = int(os.environ.get("ANONVMA_ROUNDS", few_or_all(2, 8)))


def addresses(objects: Iterable[Object]) -> list[int]:
    found = [int(each.value_()) for each in itertools.islice(objects, TOO_MANY)]
    assert len(found) < TOO_MANY
    return found


def anon_vma_at(prog: Program, address: int) -> Object:
    return Object(prog, "struct anon_vma *", address)


def offset(prog: Program, struct: str, member: str) -> int:
    return int(drgn.offsetof(prog.type(struct), member))


def some(rows: np.ndarray[tuple[int], np.dtype[np.int64]], count: int = 25) -> Iterator[int]:
    """A few rows, spread over all."""
    for index in np.linspace(0, len(rows) - 1, count).astype(int):
        yield int(rows[index])


# The tags of kernels of our own (scripts/labkit/kernel-edits), by their releases' last words.
_LAZY = {1: "lazy_vma", 2: "lazy_parent"}
TAGS = {"unfaulted": {1: "unfaulted"}, "lazy": _LAZY, "lazy-posted": _LAZY}

# What the tables say is compared with the guest's own word elsewhere.


@on_some
def test_decode(capture: Capture) -> None:
    prog, vmas = program(capture), capture.tables.vmas
    kinds = TAGS.get(capture.manifest["kernel"]["release"].partition("-")[2], {})
    for row in some(np.arange(len(vmas.address))):
        decoded = decode_vma_anon_vma(vma_at(prog, int(vmas.address[row])))
        tag = int(vmas.anon_vma[row]) % 8
        assert decoded.raw == int(vmas.anon_vma[row])
        assert (decoded.pointer.value_(), decoded.tag) == (decoded.raw - tag, tag)
        assert decoded.kind == (kinds[tag] if tag else "anon_vma" if decoded.raw else "none")
        to_vma = decoded.kind == "lazy_vma"
        assert decoded.pointer.type_.type_name() == (
            "struct vm_area_struct *" if to_vma else "struct anon_vma *"
        )


@on_some
def test_low_bits_are_told(capture: Capture) -> None:
    vma = forked_vma(capture)
    prog = program(capture)
    raw = decode_vma_anon_vma(vma_at(prog, vma)).raw
    word = vma + offset(prog, "struct vm_area_struct", "anon_vma")
    decoded = decode_vma_anon_vma(vma_at(with_words(capture, {word: raw | 1}), vma))
    assert (decoded.raw, decoded.pointer.value_(), decoded.tag) == (raw | 1, raw, 1)
    # With ANON_VMA_LAZY it is that of another tag; what the pointer leads to is not asked.
    lazy = "-lazy" in capture.manifest["kernel"]["release"]
    assert decoded.kind == ("lazy_vma" if lazy else "tagged")


@on_some
def test_chains(capture: Capture) -> None:
    prog, tables = program(capture), capture.tables
    for row in some(np.arange(len(tables.vmas.address))):
        vma = vma_at(prog, int(tables.vmas.address[row]))
        expected = tables.avcs.address[tables.links.avc[tables.links.vma == row]]
        assert addresses(for_each_vma_avc(vma)) == expected.tolist()


@on_some
def test_trees(capture: Capture) -> None:
    prog, tables = program(capture), capture.tables
    for row in some(np.arange(len(tables.anon_vmas.address))):
        anon_vma = anon_vma_at(prog, int(tables.anon_vmas.address[row]))
        nodes = tables.nodes.avc[tables.nodes.anon_vma == row]
        assert addresses(for_each_anon_vma_avc(anon_vma)) == tables.avcs.address[nodes].tolist()


@on_some
def test_page_offsets(capture: Capture) -> None:
    prog, vmas = program(capture), capture.tables.vmas
    for row in some(np.arange(len(vmas.address))):
        vma = vma_at(prog, int(vmas.address[row]))
        assert vma_start_anon_pgoff(vma).value_() == vmas.key_first[row]
        assert vma_last_anon_pgoff(vma).value_() == vmas.key_last[row]


@on_some
def test_queries(capture: Capture) -> None:
    prog, tables = program(capture), capture.tables
    vmas = tables.vmas
    # The trees with the most nodes: those where pruning has something to do.
    largest = np.argsort(np.bincount(tables.nodes.anon_vma))[-8:]
    rng = random.Random(1)
    found = 0
    for row in largest:
        anon_vma = anon_vma_at(prog, int(tables.anon_vmas.address[row]))
        avcs = tables.nodes.avc[tables.nodes.anon_vma == row]
        mapped = tables.avcs.vma_row[avcs]
        low, high = vmas.key_first[mapped], vmas.key_last[mapped]
        edges = [int(edge) for edge in (*low, *high)]
        for first, last in (
            *(sorted(rng.choices(edges, k=2)) for _ in range(3)),
            (rng.choice(edges),) * 2,
            (max(edges) + 1, 2**64 - 1),
            (0, max(min(edges) - 1, 0)),
        ):
            hit = (low <= np.uint64(last)) & (high >= np.uint64(first))
            expected = tables.avcs.address[avcs[hit]].tolist()
            assert addresses(for_each_anon_vma_avc(anon_vma, first, last)) == expected
            found += len(expected)
        first = rng.choice(edges)
        assert addresses(for_each_anon_vma_avc(anon_vma, first)) == (
            tables.avcs.address[avcs[high >= np.uint64(first)]].tolist()
        )
        assert addresses(for_each_anon_vma_avc(anon_vma, last=first)) == (
            tables.avcs.address[avcs[low <= np.uint64(first)]].tolist()
        )
    assert found


@on_some
def test_children(capture: Capture) -> None:
    prog, anon_vmas = program(capture), capture.tables.anon_vmas
    rows = np.arange(len(anon_vmas.address))
    parents = np.unique(anon_vmas.parent_row[anon_vmas.parent_row != NO_ROW])
    seen = 0
    for row in some(parents):
        children = rows[(anon_vmas.parent_row == row) & (rows != row)]
        anon_vma = anon_vma_at(prog, int(anon_vmas.address[row]))
        found = addresses(for_each_anon_vma_child(anon_vma))
        assert sorted(found) == anon_vmas.address[children].tolist()
        seen += len(found)
    assert seen


@on_some
def test_clean_families_are_valid(capture: Capture) -> None:
    prog, tables = program(capture), capture.tables
    for row in some(np.flatnonzero(tables.vmas.active != NO_ROW), 2):
        validate_vma_anon(vma_at(prog, int(tables.vmas.address[row])))
    roots = np.unique(tables.anon_vmas.root_row)
    for row in some(roots, 1):
        validate_anon_vma(anon_vma_at(prog, int(tables.anon_vmas.address[row])))
    unfaulted = np.flatnonzero(tables.vmas.anon_vma == 0)
    validate_vma_anon(vma_at(prog, int(tables.vmas.address[unfaulted[0]])))


# Broken structures. Chain: the VMA's list; its AVCs are named in its order.


class Chain:
    """The longest chain of a capture, with the addresses of its words."""

    def __init__(self, capture: Capture) -> None:
        prog = program(capture)
        self.capture = capture
        self.vma = forked_vma(capture)
        self.avcs = addresses(for_each_vma_avc(vma_at(prog, self.vma)))
        assert len(self.avcs) >= 2
        self.head = self.vma + offset(prog, "struct vm_area_struct", "anon_vma_chain")
        self.same_vma = offset(prog, "struct anon_vma_chain", "same_vma")
        self.vma_field = offset(prog, "struct anon_vma_chain", "vma")
        self.anon_vma = int(vma_anon_vma(vma_at(prog, self.vma)).root.value_())

    def entry(self, position: int) -> int:
        return self.avcs[position] + self.same_vma

    def walk(self, words: dict[int, int | None]) -> list[int]:
        """Walk the chain with words changed, up to where it is refused."""
        found: list[int] = []
        prog = with_words(self.capture, words)
        for avc in itertools.islice(for_each_vma_avc(vma_at(prog, self.vma)), TOO_MANY):
            found.append(avc.value_())
        return found


@to_break
def test_chain_that_loops(capture: Capture) -> None:
    chain = Chain(capture)
    for last in range(len(chain.avcs)):
        for first in range(last + 1):
            with pytest.raises(ValidationError, match="a second time"):
                chain.walk({chain.entry(last): chain.entry(first)})


@to_break
@pytest.mark.parametrize("value", [0, 1, 0xDEAD000000000100, 2**64 - 8, 1 << 63])
def test_chain_that_leads_nowhere(capture: Capture, value: int) -> None:
    chain = Chain(capture)
    for word in (chain.head, chain.entry(0), chain.entry(len(chain.avcs) - 1)):
        with pytest.raises(drgn.FaultError):
            chain.walk({word: value})


@to_break
def test_chain_that_leads_into_another(capture: Capture) -> None:
    chain = Chain(capture)
    tables = capture.tables
    row = np.flatnonzero(tables.vmas.address[tables.links.vma] != chain.vma)[0]
    stranger = int(tables.avcs.address[tables.links.avc[row]]) + chain.same_vma
    with pytest.raises(ValidationError, match="which is of vm_area_struct"):
        chain.walk({chain.entry(0): stranger})


@to_break
def test_one_wrong_word_does_not_hide_the_rest(capture: Capture) -> None:
    chain = Chain(capture)
    for position in range(len(chain.avcs)):
        assert chain.walk({chain.entry(position) + 8: 0}) == chain.avcs
        assert chain.walk({chain.avcs[position] + chain.vma_field: 0}) == chain.avcs


class Tree:
    """The interval tree of the root that most VMAs are in."""

    def __init__(self, capture: Capture) -> None:
        prog, tables = program(capture), capture.tables
        row = int(np.argmax(np.bincount(tables.nodes.anon_vma)))
        nodes = np.flatnonzero(tables.nodes.anon_vma == row)
        assert len(nodes) >= 3
        self.capture = capture
        self.anon_vma = int(tables.anon_vmas.address[row])
        self.rb = offset(prog, "struct anon_vma_chain", "rb")
        self.left = self.rb + offset(prog, "struct rb_node", "rb_left")
        self.right = self.rb + offset(prog, "struct rb_node", "rb_right")
        self.root_word = self.anon_vma + offset(prog, "struct anon_vma", "rb_root.rb_root.rb_node")
        self.avcs = tables.avcs.address[tables.nodes.avc[nodes]].tolist()
        self.top = int(
            tables.avcs.address[tables.nodes.avc[nodes[tables.nodes.depth[nodes] == 0]]][0]
        )
        other = np.flatnonzero((tables.nodes.anon_vma != row) & (tables.nodes.depth > 0))
        other = other if len(other) else np.flatnonzero(tables.nodes.anon_vma != row)
        self.stranger = int(tables.avcs.address[tables.nodes.avc[other[0]]])

    def walk(self, words: dict[int, int | None]) -> list[int]:
        prog = with_words(self.capture, words)
        return addresses(for_each_anon_vma_avc(anon_vma_at(prog, self.anon_vma)))


@to_break
def test_tree_that_loops(capture: Capture) -> None:
    tree = Tree(capture)
    for avc in {tree.avcs[0], tree.avcs[-1], tree.top}:
        for word in (avc + tree.left, avc + tree.right):
            for target in {avc, tree.top}:
                with pytest.raises(ValidationError, match="a second time"):
                    tree.walk({word: target + tree.rb})


@to_break
@pytest.mark.parametrize("value", [8, 0xDEAD000000000100, 2**64 - 16, 1 << 63])
def test_tree_that_leads_nowhere(capture: Capture, value: int) -> None:
    tree = Tree(capture)
    for word in (tree.root_word, tree.top + tree.left, tree.top + tree.right):
        with pytest.raises(drgn.FaultError):
            tree.walk({word: value})


@to_break
def test_tree_that_leads_into_another(capture: Capture) -> None:
    tree = Tree(capture)
    with pytest.raises(ValidationError, match="which is of anon_vma"):
        tree.walk({tree.top + tree.right: tree.stranger + tree.rb})


@to_break
def test_lock_mark_is_no_part_of_the_tree(capture: Capture) -> None:
    tree = Tree(capture)
    assert tree.walk({tree.root_word: tree.top + tree.rb + 1}) == tree.avcs
    assert tree.walk({tree.root_word: 0}) == []


WRONG: dict[str, Callable[[Chain, Callable[[str, str], int]], dict[int, int | None]]] = {
    "AV403": lambda chain, at: {chain.anon_vma + at("struct anon_vma", "refcount"): 0},
    "AV401": lambda chain, at: {chain.anon_vma + at("struct anon_vma", "num_children"): 77},
    "AV101 back": lambda chain, at: {chain.entry(0) + 8: 0},
    "AV101 loop": lambda chain, at: {chain.entry(0): chain.entry(0)},
}


@pytest.mark.parametrize(
    ("capture", "wrong"),
    pairs_with(list(WRONG), BROKEN),
    ids=lambda one: one if isinstance(one, str) else one.name,
)
def test_validators_find_what_is_wrong(capture: Capture, wrong: str) -> None:
    chain = Chain(capture)
    broken = with_words(capture, WRONG[wrong](chain, functools.partial(offset, program(capture))))
    for validate, subject in (
        (validate_vma_anon, vma_at(broken, chain.vma)),
        (validate_anon_vma, anon_vma_at(broken, chain.anon_vma)),
    ):
        with pytest.raises(AnonVmaValidationError) as caught:
            validate(subject)
        assert wrong.split()[0] in {finding.code for finding in caught.value.findings}
        assert str(caught.value).startswith(caught.value.findings[0].code)


@to_break
def test_validators_put_their_object_first(capture: Capture) -> None:
    chain = Chain(capture)
    prog = program(capture)
    children = chain.anon_vma + offset(prog, "struct anon_vma", "num_children")
    broken = with_words(capture, {children: 77, chain.entry(0) + 8: 0})
    with pytest.raises(AnonVmaValidationError) as caught:
        validate_anon_vma(anon_vma_at(broken, chain.anon_vma))
    assert caught.value.findings[0].object_address == chain.anon_vma
    assert len(caught.value.findings) > 1


@to_break
def test_validators_tell_what_cannot_be_read(capture: Capture) -> None:
    chain = Chain(capture)
    broken = with_words(capture, {chain.entry(0): None})
    with pytest.raises(drgn.FaultError):
        validate_vma_anon(vma_at(broken, chain.vma))


@to_break
def test_validators_of_what_is_no_such_object(capture: Capture) -> None:
    prog = program(capture)
    for address in (0, 1, 0xDEAD000000000100, 2**64 - 8, 1 << 63, prog["init_task"].address_):
        with pytest.raises(ValidationError):
            validate_vma_anon(vma_at(prog, address))
        with pytest.raises(ValidationError):
            validate_anon_vma(anon_vma_at(prog, address))
    # The bytes of another object: no VMA, and no anon_vma.
    avc = int(capture.tables.avcs.address[0])
    with pytest.raises((ValidationError, drgn.FaultError)):
        validate_vma_anon(vma_at(prog, avc))
    with pytest.raises((ValidationError, drgn.FaultError)):
        validate_anon_vma(anon_vma_at(prog, avc))


@to_break
def test_nothing_runs_for_ever(capture: Capture) -> None:
    """Any word of a family replaced by anything: each helper ends, and says what it cannot do."""
    chain, tree = Chain(capture), Tree(capture)
    prog = program(capture)
    sizes = {name: prog.type(f"struct {name}").size for name in ("anon_vma", "anon_vma_chain")}
    places = [
        start + at
        for start, size in (
            *((avc, sizes["anon_vma_chain"]) for avc in (*chain.avcs[:3], *tree.avcs[:8])),
            (chain.anon_vma, sizes["anon_vma"]),
            (tree.anon_vma, sizes["anon_vma"]),
            (chain.head, 16),
        )
        for at in range(0, size, 8)
    ]
    rng = random.Random(capture.name)
    helpers: tuple[Callable[[Program], object], ...] = (
        lambda prog: decode_vma_anon_vma(vma_at(prog, chain.vma)),
        lambda prog: addresses(for_each_vma_avc(vma_at(prog, chain.vma))),
        lambda prog: addresses(for_each_anon_vma_avc(anon_vma_at(prog, tree.anon_vma))),
        lambda prog: addresses(for_each_anon_vma_avc(anon_vma_at(prog, tree.anon_vma), 5, 500)),
        lambda prog: addresses(for_each_anon_vma_child(anon_vma_at(prog, chain.anon_vma))),
        lambda prog: validate_vma_anon(vma_at(prog, chain.vma)),
        lambda prog: validate_anon_vma(anon_vma_at(prog, tree.anon_vma)),
    )
    values = [
        0, 1, 2**64 - 1, 1 << 63, 0xDEAD000000000122, chain.head, chain.vma, chain.anon_vma,
        tree.anon_vma, tree.stranger, tree.stranger + tree.rb, *chain.avcs[:3],
        *(avc + chain.same_vma for avc in chain.avcs[:3]),
        *(avc + tree.rb for avc in tree.avcs[:4]), *(avc + tree.rb + 1 for avc in tree.avcs[:4]),
    ]  # fmt: skip
    for _ in range(ROUNDS):
        words: dict[int, int | None] = {
            rng.choice(places): rng.choice(values) for _ in range(rng.randint(1, 3))
        }
        broken = with_words(capture, words)
        for helper in helpers:
            with contextlib.suppress(ValidationError, drgn.FaultError):
                helper(broken)
