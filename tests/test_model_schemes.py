"""Proposals that put tags into ``vma->anon_vma``, on the model: what each operation leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis.stateful import run_state_machine_as_test as run_state_machine

from .model import lazy
from .model.eras import SCHEMES
from .model.image import Image
from .model.lazy_rules import LazyRules
from .model.objects import AnonVma, Lazy, Mm, Parent, RootVma, Vma
from .model.script import Player, must
from .model.soundness import (
    SETTINGS,
    Proposal,
    assert_counts,
    assert_explained,
    assert_nothing_leaks,
    assert_sound,
)
from .model.tagged import Tags

READ, WRITE = 1, 3
_TAGS = (
    ("lazy", Tags(vma=1, parent=2)),
    ("lazy", Tags(vma=2, parent=1, named=True)),
    ("lazy", Tags(vma=4, parent=3)),
    ("lazy", Tags(vma=1, parent=2, typed=False)),
    ("lazy", Tags(vma=1, parent=2, counted=True)),
    ("unfaulted", Tags(unfaulted=1)),
    ("unfaulted", Tags(unfaulted=2, named=True)),
)


def started(name: str = "lazy", pages: int = 8, posted: LazyRules | None = None) -> Player:
    """A process with one mapping that it wrote to."""
    rules = SCHEMES[name]
    player = Player(rules if posted is None else replace(rules, lazy=posted))
    return must(player, (0, "map", 0, pages), (0, "write", 0))


def vma(player: Player, process: int = 0, number: int = 0) -> Vma:
    return player.machine.processes[process].mm.vmas[number]


def words(player: Player, process: int = 0) -> list[AnonVma | Lazy | None]:
    return [each.word for each in player.machine.processes[process].mm.vmas]


def anon_vma(player: Player, process: int = 0, number: int = 0) -> AnonVma:
    found = vma(player, process, number).anon_vma
    assert found is not None
    return found


def assert_whole(player: Player) -> None:
    assert_nothing_leaks(player)
    assert_counts(player)
    assert_sound(player, Image(player.machine))


@pytest.mark.parametrize(("name", "tags"), _TAGS, ids=str)
def test_every_state_is_sound(name: str, tags: Tags) -> None:
    machine = type("Proposed", (Proposal,), {"era": SCHEMES[name], "tags": tags})
    run_state_machine(machine, settings=SETTINGS)


# ---- ANON_VMA_LAZY


def test_first_fault() -> None:
    """It allocates nothing."""
    player = started()
    assert words(player) == [RootVma(vma(player))]
    assert vma(player).holders == 2
    assert not list(player.machine.live(AnonVma))
    assert_whole(player)


def test_split_and_merge_share_the_root_vma() -> None:
    player = must(started(), (0, "protect", 2, 2, 0, READ))
    root = vma(player, number=2) if isinstance(words(player)[2], RootVma) else vma(player)
    assert len(set(words(player))) == 1
    assert_whole(player)
    must(player, (0, "protect", 2, 2, 0, WRITE))
    (word,) = words(player)
    assert isinstance(word, RootVma)
    assert word.vma.holders == (2 if word.vma is vma(player) else 1)
    assert root.mm is vma(player).mm
    assert_whole(player)


def test_an_unfaulted_neighbour_joins_the_root_vma() -> None:
    player = must(started(), (0, "map", 8, 4))
    assert len(words(player)) == 1
    must(player, (0, "map", 20, 2), (0, "move", 20, 2, 12, 2))
    assert len(words(player)) == 1
    assert_whole(player)


def test_mremap_shares_the_root_vma() -> None:
    player = must(started(), (0, "move", 4, 2, 16, 2))
    assert [type(word) for word in words(player)] == [RootVma] * 3
    assert len(set(words(player))) == 1
    assert_whole(player)


def test_a_root_vma_outlives_its_mapping() -> None:
    player = started()
    root = vma(player)
    # The part that goes is the old object.
    must(player, (0, "unmap", 0, 2))
    assert root not in root.mm.vmas
    assert words(player) == [RootVma(root)]
    assert (root.holders, root.word) == (1, None)
    assert root in set(player.machine.live(Vma))
    assert_whole(player)
    must(player, (0, "unmap", 0, 8))
    assert not list(player.machine.live(Vma))


def test_a_root_vma_can_come_by_another_one() -> None:
    """What MREMAP_DONTUNMAP left of it takes in a neighbour: AV607 warns of it."""
    player = must(started(), (0, "protect", 4, 4, 0, READ))
    root = vma(player, number=1)
    assert words(player) == [RootVma(root)] * 2
    must(player, (0, "leave", 4, 4, 16))
    must(player, (0, "map", 8, 2), (0, "write", 8), (0, "protect", 8, 2, 0, READ))
    assert words(player)[0] == RootVma(root)
    assert root.word not in (None, RootVma(root))
    assert root in root.mm.vmas
    assert_whole(player)


def test_fork_upgrades_the_parent() -> None:
    player = must(started(), (0, "fork", 0, 0, 1))
    shared = anon_vma(player)
    assert words(player, 1) == [Parent(shared)]
    assert [avc.anon_vma for avc in vma(player, 1).chain] == [shared]
    # Its tree, and the child that waits; only the parent's VMA counts.
    assert (shared.refcount, shared.num_children, shared.num_active_vmas) == (2, 1, 1)
    assert_whole(player)


def test_an_upgrade_shares_a_neighbours_anon_vma() -> None:
    player = must(started(), (0, "protect", 0, 4, 0, READ), (0, "fork", 0, 0, 1))
    assert len(set(words(player))) == 1
    assert anon_vma(player).num_active_vmas == 2
    assert_whole(player)


def test_an_upgrade_shares_none_of_a_neighbour_that_is_not_alike() -> None:
    """Another file's mapping, and one that is not beside it."""
    player = must(started(), (0, "map-file", 8, 2), (0, "write", 8), (0, "map", 12, 2))
    must(player, (0, "write", 12), (0, "fork", 0, 0, 1))
    assert len(set(words(player))) == 3
    assert_whole(player)


def test_a_child_stays_lazy_through_its_faults() -> None:
    player = must(started(), (0, "fork", 0, 0, 1), (1, "write", 0, 8))
    assert words(player, 1) == [Parent(anon_vma(player))]
    must(player, (1, "fork", 0, 0, 2))
    own = anon_vma(player, 1)
    assert (own.parent, own.root) == (anon_vma(player), anon_vma(player))
    assert words(player, 2) == [Parent(own)]
    assert anon_vma(player).num_children == 2
    assert_whole(player)


def test_a_child_that_is_split_gets_its_own() -> None:
    player = must(started(), (0, "fork", 0, 0, 1), (1, "protect", 2, 2, 0, READ))
    own = anon_vma(player, 1)
    assert words(player, 1) == [own] * 3
    assert (own.parent, own.num_active_vmas) == (anon_vma(player), 3)
    assert_whole(player)


def test_children_that_are_upgraded_share_what_has_the_same_chain() -> None:
    """Both halves of the parent's had one anon_vma, so both of the child's may have one."""
    player = must(started(), (0, "protect", 0, 4, 0, READ), (0, "fork", 0, 0, 1))
    must(player, (1, "fork", 0, 0, 2))
    assert len(set(words(player, 1))) == 1
    assert anon_vma(player, 1).parent is anon_vma(player)
    assert_whole(player)


def test_a_child_reuses_an_anon_vma() -> None:
    player = must(started(), (0, "fork", 0, 0, 1), (1, "fork", 0, 0, 2), (2, "fork", 0, 0, 3))
    free = anon_vma(player, 1)
    must(player, (1, "exit"), (2, "fork", 0, 0, 4))
    assert words(player, 4) == [free]
    assert free.num_active_vmas == 1
    assert_whole(player)


@pytest.mark.parametrize("where", ["upgrade allocated", "link root"])
def test_an_upgrade_comes_too_late(where: str) -> None:
    """Somebody else has upgraded the VMA meanwhile, and what is left of that is whole."""
    player = started()
    target = vma(player)

    def meanwhile(state: str) -> None:
        if state == where:
            player.machine.watch = None
            lazy.upgrade(target)

    player.machine.watch = meanwhile
    operation = (0, "fork", 0, 0, 1) if where != "link root" else (0, "protect", 2, 2, 0, READ)
    must(player, operation)
    assert player.machine.watch is None
    assert target.anon_vma is not None
    assert_whole(player)


def test_upgrade_of_a_child_comes_too_late() -> None:
    player = must(started(), (0, "fork", 0, 0, 1))
    target = vma(player, 1)

    def meanwhile(state: str) -> None:
        if state == "upgrade allocated":
            player.machine.watch = None
            lazy.upgrade(target)

    player.machine.watch = meanwhile
    must(player, (1, "fork", 0, 0, 2))
    assert words(player, 2) == [Parent(anon_vma(player, 1))]
    assert_whole(player)


def test_unlinking_drops_the_parents_reference_first() -> None:
    """Else the last of its tree could go while somebody waits for it."""
    player = must(started(), (0, "fork", 0, 0, 1), (0, "exit"))
    (shared,) = player.machine.live(AnonVma)
    assert (shared.refcount, shared.num_active_vmas) == (2, 0)
    must(player, (1, "unmap", 0, 8))
    assert not list(player.machine.live(AnonVma))


def test_switched_off_while_there_are_lazy_vmas() -> None:
    player = must(started(), (0, "fork", 0, 0, 1), (0, "map", 12, 2), (0, "write", 12))
    must(player, (0, "switch"), (0, "map", 18, 2), (0, "write", 18))
    assert [type(word) for word in words(player)] == [AnonVma, RootVma, AnonVma]
    # Both that are lazy are upgraded, and the children are as ever.
    must(player, (1, "fork", 0, 0, 2), (0, "fork", 0, 0, 3))
    for process in player.machine.processes:
        assert {type(word) for word in words(player, process)} == {AnonVma}
    assert_whole(player)


# ---- ANON_VMA_LAZY, half done

# What is left of a VMA of which the last AVC is off its list.
_UNSEEN = {"AV401", "AV402", "AV404"}
_WRITTEN = ((0, "map", 0, 8), (0, "write", 0))
_FORKED = (*_WRITTEN, (0, "fork", 0, 0, 1))
_HALVES = (*_WRITTEN, (0, "protect", 0, 4, 0, READ))
_IN_FLIGHT = {
    "fork": (_WRITTEN, (0, "fork", 0, 0, 1)),
    "fork of a mapping of two protections": (_HALVES, (0, "fork", 0, 0, 1)),
    "fork of an unmapped root VMA": ((*_WRITTEN, (0, "unmap", 0, 2)), (0, "fork", 0, 0, 1)),
    "fork of a child": (_FORKED, (1, "fork", 0, 0, 2)),
    "fork of a child of two": ((*_HALVES, (0, "fork", 0, 0, 1)), (1, "fork", 0, 0, 2)),
    "split of a child": (_FORKED, (1, "protect", 2, 2, 0, READ)),
    "move of a child": (_FORKED, (1, "move", 0, 8, 12, 8)),
    "unmapping of a child": (_FORKED, (1, "unmap", 0, 8)),
}


_Operations = tuple[tuple[int | str, ...], ...]


def half_done(before: _Operations, operation: tuple[int | str, ...]) -> dict[str, set[str]]:
    """Codes of what the audit finds in the states of an operation, each of which the locks that are
    held explain, and only these.
    """
    player = must(Player(SCHEMES["lazy"]), *before)
    image = Image(player.machine, tags=Tags(vma=1, parent=2, counted=True))
    explained: dict[str, set[str]] = {}

    def watch(state: str) -> None:
        codes = assert_explained(player, image)
        explained.setdefault(state, set()).update(codes)
        # (Of references too many, that is always said to be legal here.)
        if codes - {"AV404"}:
            locked: list[Mm | AnonVma] = list(player.machine.live(Mm))
            if codes <= _UNSEEN:
                # Nothing leads to the VMA any more, so nothing tells whose it is.
                locked = list(player.machine.live(AnonVma))
            writers = [(each, each.writer) for each in locked]
            for each, _ in writers:
                each.writer = None
            with pytest.raises(AssertionError):
                assert_explained(player, image)
            for each, writer in writers:
                each.writer = writer

    player.machine.watch = watch
    must(player, operation)
    return explained


@pytest.mark.parametrize("name", _IN_FLIGHT)
def test_half_done(name: str) -> None:
    """Each state that others can see is explained."""
    before, operation = _IN_FLIGHT[name]
    explained = half_done(before, operation)
    # The pointer is there, and the AVC is not; then it is listed, and in no tree. Of the rest, that
    # it is explained is enough.
    expected = {
        "upgrade allocated": set(),
        "upgrade published": {"AV105"},
        "upgrade put": {"AV105"},
        "upgrade listed": {"AV201", "AV402"},
    }
    if operation[1] == "unmap":
        expected = {"unlink dropped": {"AV105", "AV202"}}
    assert all(codes <= explained[state] for state, codes in expected.items())


# Somebody holds anon_vmas that nobody knows of: a child's that has a child, or is split, or both.
_GRANDCHILD = (*_FORKED, (1, "fork", 0, 0, 2))
_PINNED = {
    "that has a child": (*_GRANDCHILD, (1, "pin", 0)),
    "that has a child and was split": (*_GRANDCHILD, (1, "protect", 4, 4, 0, READ), (1, "pin", 0)),
    "that is alone": (*_GRANDCHILD, (2, "exit"), (1, "protect", 4, 4, 0, READ), (1, "pin", 0)),
    "and its parent's": (*_FORKED, (0, "pin", 0), (1, "fork", 0, 0, 2), (1, "pin", 0)),
}
_MEANWHILE: dict[str, tuple[int | str, ...]] = {
    "split": (1, "protect", 2, 2, 0, READ),
    "hole": (1, "unmap", 2, 2),
    "unmapping": (1, "unmap", 0, 8),
    "move": (1, "move", 0, 2, 12, 2),
    "unlinking by mremap": (1, "leave", 0, 4, 12),
}


@pytest.mark.parametrize("operation", _MEANWHILE)
@pytest.mark.parametrize("pinned", _PINNED)
def test_half_done_where_references_are_not_known(pinned: str, operation: str) -> None:
    """Of these AV404 tells, and they hide no operation, nor does one excuse them."""
    before = must(Player(SCHEMES["lazy"]), *_PINNED[pinned])
    assert before.machine.pins
    assert any(half_done(_PINNED[pinned], _MEANWHILE[operation]).values())


def test_half_done_in_a_kernel_whose_scheme_is_not_sure() -> None:
    player = must(Player(SCHEMES["lazy"]), *_FORKED, (0, "fork", 0, 0, 2), (0, "exit"))
    image = Image(player.machine, tags=Tags(vma=1, parent=2, typed=False))
    explained: list[set[str]] = []
    player.machine.watch = lambda state: explained.append(assert_explained(player, image))
    must(player, (1, "exit"))
    assert explained[0] == {"AV105"}


# ---- ANON_VMA_UNFAULTED


def guarded(*operations: tuple[int | str, ...]) -> Player:
    return must(Player(SCHEMES["unfaulted"]), (0, "map", 0, 8), (0, "guard", 2, 2), *operations)


def flags(player: Player, process: int = 0) -> list[bool]:
    return [each.unfaulted for each in player.machine.processes[process].mm.vmas]


def test_a_guard_sets_the_flag() -> None:
    player = guarded()
    assert (flags(player), words(player)) == ([True], [None])


def test_a_guard_of_a_file_and_of_what_is_faulted() -> None:
    player = guarded((0, "map-file", 10, 2), (0, "guard", 10, 2), (0, "write", 0), (0, "guard", 0))
    assert flags(player) == [False, True]
    assert words(player)[0] is not None


def test_the_flag_is_kept_through_fork_and_split() -> None:
    player = guarded((0, "fork", 0, 0, 1), (1, "protect", 4, 2, 0, READ))
    assert flags(player, 1) == [True] * 3
    assert not list(player.machine.live(AnonVma))


def test_the_flag_goes_with_the_first_fault() -> None:
    player = guarded((0, "fork", 0, 0, 1), (1, "write", 0))
    assert (flags(player, 0), flags(player, 1)) == ([True], [False])
    assert_whole(player)


def test_only_guards_of_a_whole_vma_take_the_flag_away() -> None:
    player = guarded((0, "unguard", 0, 4))
    assert flags(player) == [True]
    assert flags(must(player, (0, "unguard", 0, 8))) == [False]


def test_a_merge_keeps_the_flag() -> None:
    assert flags(guarded((0, "map", 8, 2))) == [True]
    assert flags(guarded((0, "map", 16, 4), (0, "move", 0, 8, 8, 8))) == [True]


def test_a_merge_with_what_is_faulted_replaces_the_flag() -> None:
    player = guarded((0, "protect", 4, 4, 0, READ), (0, "write", 0))
    assert flags(player) == [False, True]
    must(player, (0, "protect", 4, 4, 0, WRITE))
    assert flags(player) == [False]
    assert words(player) == list(player.machine.live(AnonVma))
    assert_whole(player)
