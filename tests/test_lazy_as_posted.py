"""What the audit finds in ANON_VMA_LAZY as it was posted: ``docs/anon-vma-lazy-review.md``.

Each flaw by itself, by nothing but operations; and the same operations on the corrected model,
where nothing is found.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest

from anonvma_inspect.collect import collect
from anonvma_inspect.invariants.base import Finding
from anonvma_inspect.invariants.catalogue import audit

from .model import lazy
from .model.eras import SCHEMES
from .model.image import Image
from .model.lazy_rules import AS_POSTED, LazyRules
from .model.objects import AnonVma, Parent, RootVma, Vma
from .model.script import Operation, Player, must
from .model.soundness import assert_counts, assert_nothing_leaks, assert_sound

READ, WRITE = 1, 3
DOCS = Path(__file__).parent.parent / "docs" / "anon-vma-lazy-review.md"


def vma(player: Player, process: int = 0, number: int = 0) -> Vma:
    return player.machine.processes[process].mm.vmas[number]


def meanwhile(player: Player, where: str, target: Vma) -> None:
    """Have somebody else upgrade a VMA in the middle of the next operation."""

    def watch(state: str) -> None:
        if state == where:
            player.machine.watch = None
            lazy.upgrade(target)

    player.machine.watch = watch


Scenario = Callable[[Player], None]


@dataclass(frozen=True)
class Flaw:
    """Something wrong, and operations that show it.

    :ivar codes: What the audit finds when it alone is wrong.
    """

    scenario: Scenario
    codes: frozenset[str]


FLAWS: dict[str, list[Flaw]] = {}


def flaw(name: str, *codes: str) -> Callable[[Scenario], Scenario]:
    """Name what operations show, as :class:`LazyRules` does."""

    def remember(function: Scenario) -> Scenario:
        FLAWS.setdefault(name, []).append(Flaw(function, frozenset(codes)))
        return function

    return remember


@flaw("reference_for_shared", "AV404")
def mapping_of_two_protections(player: Player) -> None:
    # A process, its child and its grandchild. The child's second VMA shares what the first one got.
    must(player, (0, "map", 0, 8), (0, "write", 0), (0, "protect", 0, 4, 0, READ))
    must(player, (0, "fork", 0, 0, 1), (1, "fork", 0, 0, 2))


@flaw("share_unlike_chains", "AV104")
def new_mapping_beside_an_inherited_one(player: Player) -> None:
    # As a heap that grows after two forks. The second has a longer chain, and no merge.
    must(player, (0, "map", 0, 4), (0, "write", 0), (0, "fork", 0, 0, 1), (1, "fork", 0, 0, 2))
    must(player, (2, "protect", 0, 4, 0, READ), (2, "map", 4, 4), (2, "write", 4))
    must(player, (2, "fork", 0, 0, 3))


@flaw("share_unlike_chains", "AV104", "AV106")
def neighbours_with_one_root(player: Player) -> None:
    # Two halves of a child's mapping come to have two anon_vmas: one was elsewhere when it got its.
    must(player, (0, "map", 0, 8), (0, "write", 0), (0, "protect", 0, 4, 0, READ))
    must(player, (0, "fork", 0, 0, 1), (1, "move", 4, 4, 16, 4), (1, "protect", 0, 2, 0, WRITE))
    must(player, (1, "move", 16, 4, 4, 4), (1, "fork", 0, 0, 2), (2, "fork", 0, 0, 3))


@flaw("late_upgrade_puts_root", "AV403")
def upgrade_that_comes_too_late(player: Player) -> None:
    must(player, (0, "map", 0, 4), (0, "write", 0), (0, "fork", 0, 0, 1))
    meanwhile(player, "upgrade allocated", vma(player, 1))
    must(player, (1, "fork", 0, 0, 2))


@flaw("clone_of_upgraded_has_none", "AV105")
def split_of_what_is_being_upgraded(player: Player) -> None:
    must(player, (0, "map", 0, 8), (0, "write", 0))
    meanwhile(player, "link root", vma(player))
    must(player, (0, "protect", 0, 4, 0, READ))


@flaw("off_ignores_lazy", "AV605")
def fork_when_switched_off(player: Player) -> None:
    must(player, (0, "map", 0, 4), (0, "write", 0), (0, "switch"), (0, "fork", 0, 0, 1))


@flaw("off_ignores_lazy", "AV107", "AV402")
def fork_of_a_child_when_switched_off(player: Player) -> None:
    must(player, (0, "map", 0, 4), (0, "write", 0), (0, "fork", 0, 0, 1), (0, "switch"))
    must(player, (1, "fork", 0, 0, 2))


@flaw("failed_clone_leaves_word", "AV403", "AV606")
def merge_that_runs_out_of_memory(player: Player) -> None:
    must(player, (0, "map", 0, 8), (0, "protect", 0, 4, 0, READ), (0, "write", 4))
    must(player, (0, "fork", 0, 0, 1))
    player.machine.allocations_left = 0
    assert player.do(Operation(1, "protect", 4, 4, 0, READ)) == errno.ENOMEM


def played(scenario: Scenario, rules: LazyRules) -> Player:
    player = Player(replace(SCHEMES["lazy"], lazy=rules))
    scenario(player)
    return player


def findings(player: Player, image: Image | None = None) -> list[Finding]:
    result = audit(collect((image or Image(player.machine)).target()))
    assert not result.failures
    return list(result.findings())


_EACH = [(name, each) for name, flaws in FLAWS.items() for each in flaws]
every = pytest.mark.parametrize(
    ("name", "each"), _EACH, ids=[f"{name}-{each.scenario.__name__}" for name, each in _EACH]
)


@every
def test_found(name: str, each: Flaw) -> None:
    player = played(each.scenario, LazyRules(**{name: True}))
    assert {finding.code for finding in findings(player)} == each.codes


@every
def test_nothing_is_found_where_it_is_corrected(name: str, each: Flaw) -> None:
    player = played(each.scenario, LazyRules())
    assert_nothing_leaks(player)
    assert_counts(player)
    assert_sound(player, Image(player.machine))


def test_every_flaw_is_shown() -> None:
    assert set(FLAWS) == {field.name for field in fields(LazyRules)}


@every
def test_all_flaws_at_once(name: str, each: Flaw) -> None:
    """As posted, what one flaw leaves is not hidden by the others."""
    player = played(each.scenario, AS_POSTED)
    assert each.codes <= {finding.code for finding in findings(player)}


def test_documented() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", DOCS.read_text(), re.MULTILINE)
    codes = {name: set(re.findall(r"AV\d{3}", found)) for name, found in rows}
    assert codes == {
        name: set().union(*(each.codes for each in flaws)) for name, flaws in FLAWS.items()
    }


# ---- what comes of it


def test_the_surplus_is_in_the_family_concerned() -> None:
    player = played(mapping_of_two_protections, AS_POSTED)
    image = Image(player.machine)
    root = vma(player).anon_vma
    assert root is not None
    # Its tree, its one child, and the reference that nobody will give back.
    assert (root.refcount, root.num_children) == (3, 2)
    (finding,) = findings(player, image)
    assert finding.object_address == finding.root == image.at("anon_vma", root)
    assert (finding.expected, finding.actual) == ("2", "3")


def test_the_surplus_keeps_the_root_for_ever() -> None:
    player = played(mapping_of_two_protections, AS_POSTED)
    must(player, (2, "exit"), (1, "exit"), (0, "unmap", 0, 8))
    assert not list(player.machine.live(Vma))
    assert [(left.refcount, left.tree.root) for left in player.machine.live(AnonVma)] == [(1, None)]


def test_each_pair_of_mappings_adds_to_the_surplus() -> None:
    """A program's relocated and its other data are such a pair, and those of each library."""
    player = Player(replace(SCHEMES["lazy"], lazy=AS_POSTED))
    must(player, (0, "map", 0, 12), (0, "write", 0))
    must(player, (0, "protect", 2, 2, 0, READ), (0, "protect", 6, 2, 0, READ))
    must(player, (0, "fork", 0, 0, 1), (1, "fork", 0, 0, 2))
    (finding,) = findings(player)
    assert (finding.code, finding.expected, finding.actual) == ("AV404", "2", "6")


def test_a_merge_throws_the_inherited_chain_away() -> None:
    """Pages that came with the forks are no longer found through their anon_vma."""
    player = played(new_mapping_beside_an_inherited_one, AS_POSTED)
    root = vma(player).anon_vma
    assert root in {avc.anon_vma for avc in vma(player, 2).chain}
    must(player, (2, "protect", 0, 4, 0, WRITE))
    (merged,) = player.machine.processes[2].mm.vmas
    assert (merged.start, merged.end) == (player.base, player.base + 8)
    assert root not in {avc.anon_vma for avc in merged.chain}
    assert "AV104" in {finding.code for finding in findings(player)}


def test_a_count_that_is_too_low_reaches_zero_too_early() -> None:
    player = played(fork_of_a_child_when_switched_off, AS_POSTED)
    must(player, (2, "exit"))
    shared = vma(player, 1).anon_vma
    assert shared is not None
    assert shared.num_active_vmas == 0
    assert {finding.code for finding in findings(player)} == {"AV402"}


def test_an_upgrade_frees_an_unmapped_root_vma() -> None:
    """What becomes of the pages that name it is not told by this patch."""
    player = Player(replace(SCHEMES["lazy"], lazy=AS_POSTED))
    must(player, (0, "map", 0, 8), (0, "write", 0))
    root = vma(player)
    must(player, (0, "unmap", 0, 2))
    assert vma(player).word == RootVma(root)
    must(player, (0, "fork", 0, 0, 1))
    assert isinstance(vma(player, 1).word, Parent)
    assert root not in set(player.machine.live(Vma))
    assert not findings(player)
