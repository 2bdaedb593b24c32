"""The same scripts in a guest and on the model of its kernel: is there any difference?"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from anonvma_inspect.collect import collect
from anonvma_inspect.in_flight import audit
from anonvma_inspect.tables import Tables
from anonvma_inspect.target import TargetOptions, open_target
from tests.model.eras import ERAS, Rules
from tests.model.made_up import made_up
from tests.model.picture import draw_machine, draw_tables
from tests.model.script import ARENA_PAGES, Operation, Player, play

from .capture import Lab
from .errors import LabError
from .specs import Plan
from .versions import compare_versions
from .word import Event

__all__ = ("RULES", "Script", "compare", "make_script", "rules_of", "run_scripts")

#: The era of each kernel of the lab that has no changes of ours.
RULES: dict[str, Rules] = {
    "5.10": ERAS["5.10"],
    "6.1": ERAS["6.1"],
    "6.1-arm64": ERAS["6.1"],
    "6.12": ERAS["6.12"],
    "6.12-rt": ERAS["6.12"],
    "6.12-arm64": ERAS["6.12"],
    "6.12-faults": ERAS["6.12"],
    "7.2": ERAS["7.0"],
    "7.3": ERAS["7.3"],
    "7.3-plain": ERAS["7.3"],
}

# Stable kernels whose MREMAP_DONTUNMAP does not reset an offset yet: 6.1.176 and 6.12.107 were seen
# to be so, 6.1.192 and 6.12.117 not to be.
_RESETS_OFFSETS = {"6.1": "6.1.177", "6.12": "6.12.108"}

_PROCESSES = 8
# What a guest needs, and what so many processes of it do, in MiB.
_MEMORY, _SCRIPTS_A_STEP, _STEP = 256, 50, 128


@dataclass(frozen=True)
class Script:
    """A script with the name that its processes go by."""

    name: str
    seed: int
    operations: list[Operation]

    def text(self) -> str:
        """As the program in the guest reads it."""
        return "\n".join([f"script {self.name}", *map(str, self.operations), ""])


def make_script(number: int, seed: int, length: int) -> Script:
    """Make up one of so many operations."""
    return Script(f"s{number}", seed, made_up(seed, length, _PROCESSES))


def rules_of(kernel: str, version: str) -> Rules:
    """The rules of a kernel, by the version of its package.

    :raises LabError: if it has changes of ours.
    """
    try:
        rules = RULES[kernel]
    except KeyError:
        raise LabError(f"{kernel} has changes of its own, which the model does not do") from None
    since = _RESETS_OFFSETS.get(rules.name)
    if since is not None and compare_versions(version, since) < 0:
        return replace(rules, dontunmap="unlink")
    return rules


def run_scripts(
    lab: Lab, kernel: str, count: int, seed: int, length: int, command: str, keep: Path | None
) -> int:
    """Do scripts in one guest, dump it, audit the dump, and compare it with the model.

    :param count: How many scripts.
    :param seed: Of the first; each further one has the next.
    :param length: Operations of each.
    :param keep: A directory to keep the dump in.
    :return: How many came out differently.
    :raises LabError: if the audit has a finding, or cannot be complete.
    """
    scripts = [make_script(number, seed + number, length) for number in range(count)]
    plan = Plan(
        name=f"model-{kernel}",
        kernel=kernel,
        workload="model",
        seed=seed,
        maps=False,
        memory=_MEMORY + -(-count // _SCRIPTS_A_STEP) * _STEP,
    )
    files = {"lab/scripts": "".join(script.text() for script in scripts).encode()}
    with tempfile.TemporaryDirectory(prefix="lab-", dir=lab.cache) as scratch:
        core = (keep or Path(scratch)) / f"{plan.name}.core"
        made = lab.dump(plan, core, command, files)
        system_map = core.with_suffix(".map")
        beside = str(system_map) if system_map.exists() else None
        tables = collect(open_target(TargetOptions(core=str(core), system_map=beside)))
        result = audit(tables)
        told = [f"{finding.code} {finding.message}" for finding in result.findings(5)]
        if told or not result.complete:
            raise LabError(f"{kernel}: the audit is not clean: {'; '.join(told) or 'incomplete'}")
        rules = rules_of(kernel, made["kernel"]["version"])
        return compare(tables, rules, scripts, made["word"]["log"], lab.say)


def compare(
    tables: Tables,
    rules: Rules,
    scripts: Sequence[Script],
    log: Sequence[Event],
    say: Callable[[str], None],
) -> int:
    """Compare what became of scripts in a guest with what becomes of them on the model.

    :param log: What the guest logged.
    :param say: Told of the first differences of each script.
    :return: How many scripts differ.
    """
    results = {event["name"]: str(event["results"]) for event in log if event["event"] == "script"}
    wrong = 0
    for script in scripts:
        player, expected = play(rules, script.operations)
        told = _differing_results(script, expected, results.get(script.name, ""))
        told += _differing_tables(tables, player, script.name)
        if told:
            wrong += 1
            say(f"script {script.name} (seed {script.seed}): the guest differs from the model")
            for line in told[:8]:
                say(f"    {line}")
    return wrong


def _differing_results(script: Script, expected: list[int], results: str) -> list[str]:
    got = [int(word) for word in results.split(",") if word]
    if len(got) != len(expected):
        return [f"{len(got)} results of {len(expected)} operations"]
    return [
        f"operation {number} ({operation}) ends with {_name(is_)}, not {_name(should)}"
        for number, (operation, is_, should) in enumerate(
            zip(script.operations, got, expected, strict=True)
        )
        if is_ != should
    ]


def _name(number: int) -> str:
    return errno.errorcode.get(number, str(number))


def _differing_tables(tables: Tables, player: Player, script: str) -> list[str]:
    processes = sorted(player.machine.processes)
    names = {index: f"{script}-{index}" for index in processes}
    comms = set(np.char.decode(tables.tasks.comm).tolist())
    missing = sorted(set(names.values()) - comms)
    if missing:
        return [f"no process {', '.join(missing)}"]
    arena = range(player.base, player.base + ARENA_PAGES)
    should = draw_machine(player.machine, names, player.base)
    return should.differences(
        draw_tables(tables, [names[index] for index in processes], player.base, arena)
    )
