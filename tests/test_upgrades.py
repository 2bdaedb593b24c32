"""ANON_VMA_LAZY on the model: what is in the middle of an upgrade is taken for no corruption."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from anonvma_inspect.collect import collect
from anonvma_inspect.in_flight import audit

from .captures import few_or_all
from .model.eras import SCHEMES
from .model.image import Image
from .model.script import Operation, Player
from .model.tagged import Tags

_STEPS = 40
_MOST_PROCESSES = 6
_NAMES = ("write", "write", "write", "fork", "fork", "protect", "map", "unmap", "move", "exit")
#: What an operation passes through, and is seen in the middle of.
STATES = ("upgrade allocated", "upgrade published", "upgrade put", "upgrade listed")


# Operations at random, of processes that there are.
def _operations(player: Player, chance: random.Random) -> Iterator[Operation]:
    yield Operation(0, "map", 0, 16)
    for born in range(1, _STEPS):
        alive = sorted(player.machine.processes)
        name = chance.choice(_NAMES)
        if name == ("fork" if len(alive) == _MOST_PROCESSES else "exit" if len(alive) == 1 else ""):
            continue
        page, pages = chance.randrange(26), chance.randrange(1, 6)
        if name == "fork":
            to, argument = born, 0
        else:
            to = chance.randrange(26)
            argument = chance.choice((1, 3)) if name == "protect" else chance.randrange(1, 6)
        yield Operation(chance.choice(alive), name, page, pages, to, argument)


@pytest.mark.parametrize("seed", range(few_or_all(3, 40)))
def test_states_of_an_upgrade_are_explained(seed: int) -> None:
    player = Player(SCHEMES["lazy"])
    image = Image(player.machine, seed, tags=Tags(vma=1, parent=2, counted=True))
    chance = random.Random(seed)
    met: Counter[str] = Counter()
    explained: Counter[str] = Counter()
    doing = ""

    def look(state: str) -> None:
        met[state] += 1
        # Of an exit, the model's mm still has VMAs that are gone.
        if doing == "exit" or met[state] > 15:
            return
        result = audit(collect(image.target()))
        assert not result.failures
        assert [(f.code, f.message) for f in result.findings()] == [], state
        explained.update(result.in_flight_counts)

    player.machine.watch = look
    for operation in _operations(player, chance):
        doing = operation.name
        player.do(operation)
    assert all(met[state] for state in STATES)
    assert explained["upgrade"]
