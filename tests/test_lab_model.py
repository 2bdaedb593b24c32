"""The comparison of guests with the model, as far as it can be tested without a guest."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from anonvma_inspect.collect import collect

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from labkit.errors import LabError
from labkit.kernels import KERNELS
from labkit.model import RULES, compare, make_script, rules_of
from labkit.programs import HERE
from labkit.word import parse_event

from .model.eras import ERAS
from .model.image import Image
from .model.made_up import WEIGHTS, made_up
from .model.script import Player, play


def test_every_kernel_has_rules() -> None:
    assert set(RULES) == {name for name, kernel in KERNELS.items() if not kernel.edits}
    with pytest.raises(LabError, match="has changes of its own"):
        rules_of("7.3-forgetful", "7.3.4-1~bpo13+1")
    assert rules_of("6.12", "6.12.117-1~deb12u1") is ERAS["6.12"]
    assert rules_of("6.12-arm64", "6.12.9-1").dontunmap == "unlink"
    assert rules_of("7.3", "7.3.4-1~bpo13+1") is ERAS["7.3"]


def test_operations_of_scripts() -> None:
    """The program in the guest knows all that scripts are made of."""
    source = (HERE / "guest" / "model.c").read_text()
    operations = [operation for seed in range(20) for operation in made_up(seed)]
    assert {operation.name for operation in operations} == set(WEIGHTS)
    for name in WEIGHTS:
        assert f'name, "{name}")' in source
    assert f"0x{Player(ERAS['7.3']).base:x}000" in source
    assert str(operations[0]) == "0 map 0 12 0 0"


def compared(kernel_name: str, wrong_result: bool = False) -> tuple[int, list[str]]:
    """Take a machine of 6.12 for a guest of some kernel."""
    script = make_script(3, seed=1, length=80)
    player, results = play(ERAS["6.12"], script.operations)
    tables = collect(Image(player.machine, name="s3").target())
    if wrong_result:
        results[0] = errno.EACCES
    log = [parse_event(f"script name=s3 results={','.join(map(str, results))}")]
    told: list[str] = []
    return compare(tables, RULES[kernel_name], [script], log, told.append), told


def test_no_difference() -> None:
    assert compared("6.12") == (0, [])


def test_another_kernel_differs() -> None:
    wrong, told = compared("6.1")
    assert wrong == 1
    assert told[0] == "script s3 (seed 1): the guest differs from the model"
    assert any("anon_vma" in line for line in told[1:])


def test_another_result_differs() -> None:
    wrong, told = compared("6.12", wrong_result=True)
    assert wrong == 1
    assert told[1:] == ["    operation 0 (0 map 0 12 0 0) ends with EACCES, not 0"]
