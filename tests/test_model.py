"""States that no fixture has: a model of the kernel's operations, laid out and audited."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
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
from .model.objects import AnonVma
from .model.script import Operation, Player, play
from .model.soundness import (
    SETTINGS,
    Kernel,
    assert_nothing_leaks,
    assert_sound,
    drawn,
    has_unequal_chains,
)

_eras = pytest.mark.parametrize("rules", ERAS.values(), ids=ERAS)


@_eras
def test_every_state_is_sound(rules: Rules) -> None:
    run_state_machine(type("Kernel", (Kernel,), {"era": rules}), settings=SETTINGS)


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
