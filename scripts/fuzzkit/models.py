"""Kernels with a proposal that nobody has captured: states of the model."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

from anonvma_inspect.collect import collect_audit
from anonvma_inspect.tables import Tables
from anonvma_inspect.target import Target
from tests.model.eras import SCHEMES, Rules
from tests.model.image import Image
from tests.model.made_up import made_up
from tests.model.script import Operation, Player

__all__ = ("Made", "made_kernels")

# So many operations of these scripts make objects of all roles.
_OPERATIONS, _SEEDS = 150, (5, 9, 33)


@dataclass(frozen=True)
class Made:
    """A state of the model, as if it had been captured."""

    rules: Rules
    seed: int

    @property
    def name(self) -> str:
        return f"model-{self.rules.name}-{self.seed}"

    @cached_property
    def target(self) -> Target:
        player = Player(self.rules)
        dice = random.Random(self.seed)
        for operation in made_up(self.seed, _OPERATIONS, processes=12):
            if self.rules.unfaulted and dice.random() < 0.2:
                page = dice.randrange(20)
                player.do(Operation(operation.process, "guard", page, dice.randint(1, 4)))
            player.do(operation)
        return Image(player.machine, self.seed).target()

    @cached_property
    def tables(self) -> Tables:
        return collect_audit(self.target, leaks=True)


def made_kernels() -> dict[str, tuple[Made, ...]]:
    """By name."""
    return {rules.name: tuple(Made(rules, seed) for seed in _SEEDS) for rules in SCHEMES.values()}
