"""States that no fixture has: a model of the kernel's operations, laid out in memory and audited.

The number of examples is bounded and always the same; ``ANONVMA_MODEL_EXAMPLES=500`` runs so many
others for each era.
"""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run_state_machine

from anonvma_inspect.collect import collect
from anonvma_inspect.invariants.catalogue import audit
from anonvma_inspect.target import Target
from anonvma_inspect.target.memory import OverlayMemory, U64Column
from anonvma_inspect.target.snapshot import SnapshotHeader, pack

from .clirun import Cli
from .model.eras import ERAS, Rules
from .model.image import Image
from .model.made_up import made_up
from .model.objects import AnonVma, Avc, Vma
from .model.picture import Picture, draw_machine, draw_tables
from .model.script import ADVICE, ARENA_PAGES, PROTECTIONS, Operation, Player, play

_EXAMPLES = os.environ.get("ANONVMA_MODEL_EXAMPLES")
_SETTINGS = settings(
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

_eras = pytest.mark.parametrize("rules", ERAS.values(), ids=ERAS)


def name_of(process: int) -> str:
    return f"model-{process}"


def drawn(player: Player) -> Picture:
    processes = player.machine.processes
    return draw_machine(player.machine, {index: name_of(index) for index in processes}, player.base)


def assert_nothing_leaks(player: Player) -> None:
    """Whatever is allocated can be reached: from a process, or from what pins it."""
    machine = player.machine
    vmas = {vma for process in machine.processes.values() for vma in process.mm.vmas}
    avcs = {avc for vma in vmas for avc in vma.chain}
    held = {avc.anon_vma for avc in avcs} | set(machine.pins)
    held |= {anon_vma.root for anon_vma in held}
    assert set(machine.live(Vma)) == vmas
    assert set(machine.live(Avc)) == avcs
    assert set(machine.live(AnonVma)) == held


def assert_counts(player: Player) -> None:
    """The counters are what they are said to be, of all families."""
    vmas = list(player.machine.live(Vma))
    for family in player.machine.families():
        assert family.root in family.members
        for anon_vma in family.members:
            used = anon_vma.tree.root is not None
            pins = player.machine.pins.count(anon_vma)
            held = len(family.members) - 1 if anon_vma is family.root else 0
            assert anon_vma.refcount == used + pins + held
            assert anon_vma.num_active_vmas == sum(vma.anon_vma is anon_vma for vma in vmas)
            assert anon_vma.num_children == sum(
                other.parent is anon_vma for other in family.members if other.tree.root is not None
            )


def surplus(player: Player) -> set[AnonVma]:
    """What something holds that no VMA tells of: AV404's warnings."""
    pinned = set(player.machine.pins)
    roots = {anon_vma.root for anon_vma in pinned if anon_vma.tree.root is None}
    return {anon_vma for anon_vma in pinned | roots if anon_vma.tree.root is not None}


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
    warned = {finding.object_address for finding in findings if finding.code == "AV404"}
    assert warned == {image.at("anon_vma", anon_vma) for anon_vma in surplus(player)}
    others = {finding.code for finding in findings if finding.code != "AV404"}
    assert others == ({_OF_DOUBLE_REUSE} if has_unequal_chains(player) else set())
    processes = sorted(player.machine.processes)
    assert not drawn(player).differences(
        draw_tables(tables, [name_of(index) for index in processes], player.base)
    )
    assert set(tables.vmas.address.tolist()) == {
        image.at("vm_area_struct", vma) for vma in player.machine.live(Vma)
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


class Kernel(RuleBasedStateMachine):
    """A machine of one era, and what becomes of it."""

    era: Rules

    @initialize(seed=st.integers(0, 99))
    def boot(self, seed: int) -> None:
        self.player = Player(self.era)
        self.image = Image(self.player.machine, seed)
        self.born = 1
        self.player.do(Operation(0, "map", 0, ARENA_PAGES // 2))

    @rule(operation=_ANY, fails=st.none() | st.none() | st.integers(0, 8))
    def do(self, operation: Operation, fails: int | None) -> None:
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

    @invariant()
    def is_sound(self) -> None:
        assert_nothing_leaks(self.player)
        assert_counts(self.player)
        assert_sound(self.player, self.image)


@_eras
def test_every_state_is_sound(rules: Rules) -> None:
    run_state_machine(type("Kernel", (Kernel,), {"era": rules}), settings=_SETTINGS)


@_eras
@pytest.mark.parametrize("seed", range(3))
def test_scripts_end_in_sound_states(rules: Rules, seed: int) -> None:
    player, _ = play(rules, made_up(seed, operations=150, processes=12))
    assert_nothing_leaks(player)
    assert_sound(player, Image(player.machine, seed))


# ---- what the eras are there for


def family(name: str, *steps: tuple[int, int] | int) -> Player:
    """A process with one mapping that it wrote to, and what becomes of it.

    :param steps: Parent and child of a fork; or who exits.
    """
    player = Player(ERAS[name])
    player.do(Operation(0, "map", 0, 2))
    player.do(Operation(0, "write", 0))
    for step in steps:
        if isinstance(step, int):
            assert player.do(Operation(step, "exit")) == 0
        else:
            assert player.do(Operation(step[0], "fork", to=step[1])) == 0
    return player


def active(player: Player, process: int) -> AnonVma:
    (vma,) = player.machine.processes[process].mm.vmas
    assert vma.anon_vma is not None
    return vma.anon_vma


@pytest.mark.parametrize("name", ["4.14", "5.10", "7.3"])
def test_double_reuse(name: str) -> None:
    """CVE-2022-42703: an anon_vma goes to a second process while the first still has it."""
    # Process 3 reuses the one that process 1 had. So process 2's has no child, and a degree of 1
    # for its VMA.
    player = family(name, (0, 1), (1, 2), 1, (2, 3), (3, 4))
    assert active(player, 3) is active(player, 2).parent
    assert (active(player, 4) is active(player, 2)) == (name == "4.14")
    assert_sound(player, Image(player.machine))


@pytest.mark.parametrize("name", ["3.19", "4.14", "5.10", "6.12"])
def test_unequal_chains(name: str) -> None:
    """The same bug, and what makes it dangerous: merging would throw one of two chains away."""
    player = family(name, (0, 1), (1, 2), 1, (2, 3), (2, 4), (3, 5), 4, (5, 6))
    assert has_unequal_chains(player) == (name in ("3.19", "4.14"))
    assert_sound(player, Image(player.machine))


@pytest.mark.parametrize(("name", "newest_first"), [("6.12", True), ("7.0", False)])
def test_order_of_a_chain(name: str, newest_first: bool) -> None:
    player = family(name, (0, 1), (1, 2), (2, 3))
    (vma,) = player.machine.processes[3].mm.vmas
    ages = [int(avc.anon_vma.root is avc.anon_vma) for avc in vma.chain]
    assert ages[-1] == int(newest_first)
    assert vma.chain[0].anon_vma is vma.anon_vma
    assert_sound(player, Image(player.machine))


@_eras
def test_a_fork_that_fails_leaves_nothing_behind(rules: Rules) -> None:
    player, _ = play(rules, made_up(5, operations=90))
    before = drawn(player)
    process = max(player.machine.processes)
    failures = 0
    while True:
        player.machine.allocations_left = failures
        if player.do(Operation(process, "fork", to=99)) == 0:
            break
        # The shape of a tree may change when a node comes and goes, nothing else.
        assert [each["refcount"] for each in drawn(player).anon_vmas] == [
            each["refcount"] for each in before.anon_vmas
        ]
        assert_nothing_leaks(player)
        failures += 1
    assert failures > 5
    assert_sound(player, Image(player.machine))


def test_memory_that_runs_out_is_told() -> None:
    player = Player(ERAS["7.3"])
    player.machine.allocations_left = 0
    assert player.do(Operation(0, "map", 0, 4)) == errno.ENOMEM


# ---- the pipeline


@pytest.mark.parametrize("name", ["3.19", "4.14"])
@pytest.mark.parametrize("change", [1, -1])
def test_degree_is_checked(name: str, change: int) -> None:
    player, _ = play(ERAS[name], made_up(1))
    image = Image(player.machine)
    target = image.target()
    anon_vma = next(player.machine.live(AnonVma))
    field = image.layouts.field("anon_vma", "degree")
    assert field is not None
    assert (field.offset % 8, field.size) == (4, 4)
    word = image.at("anon_vma", anon_vma) + field.offset - 4
    (row,), _ = target.memory.gather(np.array([word], dtype=np.uint64), 8)
    value = int.from_bytes(row.tobytes(), "little") + (change << 32)
    overlay = OverlayMemory(target.memory, {word: value})
    findings = list(audit(collect(replace(target, memory=overlay))).findings())
    assert [(finding.code, finding.word) for finding in findings] == [("AV401", word + 4)]
    assert findings[0].expected.endswith(str(anon_vma.degree))


def write_snapshot(core: Path, target: Target, ranges: U64Column) -> None:
    """Write what an era with BTF has in some ranges as a file."""
    header = SnapshotHeader(
        release=target.release,
        machine=target.architecture,
        page_size=target.page_size,
        ram=target.space.ram.tolist(),
        direct_map=target.space.direct_map,
        symbols=dict(target.symbols),
        walks=["audit"],
        anonymized=False,
    )
    types = ("task_struct", "signal_struct", "mm_struct", "maple_node", "vm_area_struct")
    btf = target.load_btf().reduce((*types, "anon_vma_chain", "anon_vma"))
    vmcoreinfo = f"OSRELEASE={target.release}\n".encode()
    core.write_bytes(pack(header, btf, vmcoreinfo, target.memory, ranges))


@pytest.mark.parametrize("name", ["5.10", "6.1", "6.12", "7.0", "7.3"])
def test_exit_code(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the bytes of a file to what the command line says."""
    player, _ = play(ERAS[name], made_up(2))
    image = Image(player.machine, 2)
    core = tmp_path / "model.core"
    write_snapshot(core, image.target(), image.ram.ranges())
    ran = Cli(capsys)("-c", str(core), "audit")
    assert ran.code == 0
    assert "0 findings" in ran.out
