"""What must be true of a state of the model, and of what is read from its image; and all of them.

The number of examples is bounded and always the same; ``ANONVMA_MODEL_EXAMPLES=500`` runs so many
others for each era.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from anonvma_inspect import in_flight
from anonvma_inspect.collect import collect
from anonvma_inspect.invariants.catalogue import audit
from anonvma_inspect.target import Target

from .eras import Rules
from .image import Image
from .objects import AnonVma, Avc, Parent, RootVma, Vma
from .picture import Picture, draw_machine, draw_tables
from .script import ADVICE, ARENA_PAGES, PROTECTIONS, Operation, Player
from .tagged import Tags

__all__ = (
    "SETTINGS",
    "Kernel",
    "Proposal",
    "assert_counts",
    "assert_explained",
    "assert_nothing_leaks",
    "assert_sound",
    "drawn",
    "has_unequal_chains",
)

_EXAMPLES = os.environ.get("ANONVMA_MODEL_EXAMPLES")
#: Of every run.
SETTINGS = settings(
    max_examples=int(_EXAMPLES or 4),
    stateful_step_count=25,
    derandomize=_EXAMPLES is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
_MOST_PROCESSES = 6
#: What kernels with ``degree`` do wrong by themselves (CVE-2022-42703).
_OF_DOUBLE_REUSE = "AV106"


def name_of(process: int) -> str:
    return f"model-{process}"


def drawn(player: Player) -> Picture:
    processes = player.machine.processes
    return draw_machine(player.machine, {index: name_of(index) for index in processes}, player.base)


def assert_nothing_leaks(player: Player) -> None:
    """Whatever is allocated can be reached: from a process, or from what pins it."""
    machine = player.machine
    vmas = {vma for process in machine.processes.values() for vma in process.mm.vmas}
    roots = {vma.lazy.vma for vma in vmas if isinstance(vma.lazy, RootVma)}
    avcs = {avc for vma in vmas for avc in vma.chain}
    held = {avc.anon_vma for avc in avcs} | set(machine.pins)
    held |= {anon_vma.root for anon_vma in held}
    assert set(machine.live(Vma)) == vmas | roots
    assert set(machine.live(Avc)) == avcs
    assert set(machine.live(AnonVma)) == held


def assert_counts(player: Player) -> None:
    """The counters are what they are said to be, of all families."""
    vmas = list(player.machine.live(Vma))
    for root in vmas:
        shared = sum(vma.lazy == RootVma(root) for vma in vmas)
        assert root.holders == (root in root.mm.vmas) + shared
    for family in player.machine.families():
        assert family.root in family.members
        for anon_vma in family.members:
            used = anon_vma.tree.root is not None
            pins = player.machine.pins.count(anon_vma)
            held = len(family.members) - 1 if anon_vma is family.root else 0
            waiting = sum(vma.lazy == Parent(anon_vma) for vma in vmas)
            assert anon_vma.refcount == used + pins + held + waiting
            assert anon_vma.num_active_vmas == sum(vma.anon_vma is anon_vma for vma in vmas)
            assert anon_vma.num_children == sum(
                other.parent is anon_vma for other in family.members if other.tree.root is not None
            )


def surplus(player: Player) -> set[AnonVma]:
    """What something holds that no VMA tells of: AV404's warnings."""
    pinned = set(player.machine.pins)
    roots = {anon_vma.root for anon_vma in pinned if anon_vma.tree.root is None}
    return {anon_vma for anon_vma in pinned | roots if anon_vma.tree.root is not None}


def roots_of_two(player: Player) -> set[Vma]:
    """Root VMAs that have another: unlinked, and then merged with a lazy VMA. AV607's warnings."""
    roots = {vma.lazy.vma for vma in player.machine.live(Vma) if isinstance(vma.lazy, RootVma)}
    return {root for root in roots if isinstance(root.lazy, RootVma) and root.lazy.vma is not root}


def assert_explained(player: Player, image: Image) -> set[str]:
    """What the audit of an operation half done has to say, that operation explains.

    :return: The codes of what it explains.
    """
    result = in_flight.audit(collect(image.target()))
    assert not result.failures
    findings = list(result.findings())
    # An anon_vma that is about to be put refers to its root, though nothing may lead to it; what is
    # pinned may have lost its tree a moment ago.
    lasting = surplus(player) | set(player.machine.pins)
    lasting |= {
        anon_vma.root for anon_vma in player.machine.live(AnonVma) if anon_vma.tree.root is None
    }
    legal = {("AV404", image.at("anon_vma", each)) for each in lasting}
    legal |= {("AV607", image.at("vm_area_struct", each)) for each in roots_of_two(player)}
    assert {(finding.code, finding.object_address) for finding in findings} <= legal
    return {each.finding.code for each in result.in_flight()}


def has_unequal_chains(player: Player) -> bool:
    """Some anon_vma is active in two VMAs that do not have the same anon_vmas."""
    chains: dict[AnonVma, set[frozenset[AnonVma]]] = {}
    for vma in player.machine.live(Vma):
        if vma.anon_vma is not None:
            chain = frozenset(avc.anon_vma for avc in vma.chain)
            chains.setdefault(vma.anon_vma, set()).add(chain)
    return any(len(each) > 1 for each in chains.values())


def assert_sound(player: Player, image: Image, target: Target | None = None) -> None:
    """The audit of the image has nothing to say, and the tables are the model."""
    tables = collect(target or image.target())
    result = audit(tables)
    assert not result.failures
    assert result.complete
    findings = list(result.findings())
    # Where too few have tags to tell what these are, they are not followed, and not judged.
    certain = tables.era.tags.certain
    for code, struct, odd in (
        ("AV404", "anon_vma", surplus(player)),
        ("AV607", "vm_area_struct", roots_of_two(player)),
    ):
        warned = {finding.object_address for finding in findings if finding.code == code}
        expected = {image.at(struct, each) for each in odd}
        assert warned == expected if certain else warned <= expected
    others = {finding.code for finding in findings} - {"AV404", "AV607"}
    assert others == ({_OF_DOUBLE_REUSE} if has_unequal_chains(player) else set())
    processes = sorted(player.machine.processes)
    assert not drawn(player).differences(
        draw_tables(tables, [name_of(index) for index in processes], player.base)
    )
    words = zip(tables.vmas.address.tolist(), tables.vmas.anon_vma.tolist(), strict=True)
    assert dict(words) == {
        image.at("vm_area_struct", vma): image.word(vma)
        for vma in player.machine.live(Vma)
        if certain or vma in vma.mm.vmas
    }


# ---- every state that can be reached

_PAGE = st.integers(0, ARENA_PAGES - 6)
_FEW = st.integers(1, 6)


def _operations(name: str, **more: Any) -> st.SearchStrategy[Operation]:
    parts = {"page": _PAGE, "pages": _FEW, **more}
    return st.builds(Operation, process=st.integers(0, 5), name=st.just(name), **parts)


_ANY = st.one_of(
    _operations("write"),
    _operations("fork"),
    _operations("write", pages=st.integers(6, 16)),
    _operations("protect", argument=st.sampled_from(PROTECTIONS).map(int)),
    _operations("map"),
    _operations("map-file", to=st.integers(0, 3)),
    _operations("unmap"),
    _operations("move", to=_PAGE, argument=_FEW),
    _operations("leave", to=_PAGE),
    _operations("resize", to=st.integers(1, 6)),
    _operations("advise", argument=st.sampled_from(ADVICE)),
    _operations("share"),
    _operations("exit"),
    _operations("pin"),
    _operations("unpin", argument=st.integers(0, 3)),
)


_OF_PROPOSALS = st.one_of(
    _operations("guard"),
    _operations("unguard", pages=st.integers(1, ARENA_PAGES)),
    _operations("switch", argument=st.integers(0, 1)),
)
_FAILS = st.none() | st.none() | st.integers(0, 8)


class Kernel(RuleBasedStateMachine):
    """A machine of one era, and what becomes of it.

    :cvar tags: See :class:`.image.Image`.
    """

    era: Rules
    tags: Tags | None = None

    @initialize(seed=st.integers(0, 99))
    def boot(self, seed: int) -> None:
        self.player = Player(self.era)
        self.image = Image(self.player.machine, seed, tags=self.tags)
        self.born = 1
        self.player.do(Operation(0, "map", 0, ARENA_PAGES // 2))

    @rule(operation=_ANY, fails=_FAILS)
    def any(self, operation: Operation, fails: int | None) -> None:
        self.do(operation, fails)

    def do(self, operation: Operation, fails: int | None) -> None:
        """Do an operation, if there is somebody who can.

        :param fails: Allocations that succeed before one fails.
        """
        alive = sorted(self.player.machine.processes)
        operation = replace(operation, process=alive[operation.process % len(alive)])
        if operation.name in ("fork", "share"):
            if len(alive) == _MOST_PROCESSES:
                return
            operation = replace(operation, to=self.born)
            self.born += 1
        if operation.name == "exit" and len(alive) == 1:
            return
        self.player.machine.allocations_left = fails
        self.player.do(operation)

    @rule(operation=_ANY, number=st.integers(0, 8))
    def interrupted(self, operation: Operation, number: int) -> None:
        """Look at it in the middle, in one of the states that it passes."""
        passed = itertools.count()

        def watch(state: str) -> None:
            # Of words whose tags are not sure, not all that is half done can be told.
            sure = self.tags is None or self.tags.typed
            if sure and next(passed) == number:
                assert_explained(self.player, self.image)

        self.player.machine.watch = watch
        self.do(operation, None)
        self.player.machine.watch = None

    @invariant()
    def is_sound(self) -> None:
        assert_nothing_leaks(self.player)
        assert_counts(self.player)
        assert_sound(self.player, self.image)


class Proposal(Kernel):
    """Likewise, of a kernel with a proposal."""

    @rule(operation=_OF_PROPOSALS)
    def proposed(self, operation: Operation) -> None:
        self.do(operation, None)
