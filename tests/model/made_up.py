"""Scripts made up at random, the same ones for the same seed."""

from __future__ import annotations

import random

from .objects import Flag
from .script import ADVICE, ARENA_PAGES, PROTECTIONS, Operation

__all__ = ("WEIGHTS", "made_up")

#: How often each operation is done. Writes and forks make the structure, the rest cuts it up.
WEIGHTS = {
    "map": 10,
    "map-file": 6,
    "unmap": 4,
    "write": 26,
    "protect": 16,
    "advise": 3,
    "move": 10,
    "leave": 5,
    "resize": 4,
    "fork": 12,
    "exit": 4,
}
# How many of the last operations may be undone: what was cut up is merged again.
_RECENT = 12


def made_up(seed: int, operations: int = 60, processes: int = 8) -> list[Operation]:
    """Make up a script.

    :param operations: How many; a shorter one is the beginning of a longer one.
    :param processes: How many processes there are at most, dead ones counted.
    """
    dice = random.Random(seed)
    script = [
        Operation(0, "map", 0, ARENA_PAGES // 2),
        Operation(0, "map-file", ARENA_PAGES * 3 // 4, ARENA_PAGES // 4, 3),
        Operation(0, "write", 1, 2),
    ]
    alive, born = [0], 1
    while len(script) < operations:
        who = dice.choice(alive)
        name = dice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        new: Operation | None
        if dice.random() < 0.2:
            new = _undo(dice, who, dice.choice(script[-_RECENT:]))
        elif name == "fork":
            new = Operation(who, "fork", to=born) if born < processes else None
        elif name == "exit":
            new = Operation(who, "exit") if len(alive) > 1 else None
        else:
            new = _change(dice, who, name)
        if new is None:
            continue
        if new.name == "fork":
            alive.append(born)
            born += 1
        elif new.name == "exit":
            alive.remove(who)
        script.append(new)
    return script


def _change(dice: random.Random, who: int, name: str) -> Operation:
    pages = min(dice.randint(1, 6), dice.randint(1, 12))
    page = dice.randrange(ARENA_PAGES - pages + 1)
    to, argument = 0, 0
    if name == "map-file":
        # Mostly so that mappings of neighbouring pages are of neighbouring pages of the file.
        to = page + 3 if dice.random() < 0.8 else dice.randrange(8)
    elif name == "protect":
        argument = int(dice.choices(PROTECTIONS, (2, 3, 6, 1))[0])
    elif name == "advise":
        argument = dice.choice(ADVICE)
    elif name == "move":
        argument = pages if dice.random() < 0.8 else dice.randint(1, 6)
        to = dice.randrange(ARENA_PAGES - argument + 1)
    elif name == "leave":
        to = dice.randrange(ARENA_PAGES - pages + 1)
    elif name == "resize":
        to = dice.randint(1, min(12, ARENA_PAGES - page))
    return Operation(who, name, page, pages, to, argument)


def _undo(dice: random.Random, who: int, done: Operation) -> Operation | None:
    page, pages = done.page, done.pages
    if done.name == "unmap":
        if page and dice.random() < 0.5:
            return Operation(who, "resize", page - 1, 1, pages + 1)
        return Operation(who, "map", page, pages)
    if done.name in ("move", "leave"):
        moved = done.argument or pages
        return Operation(who, "move", done.to, moved, page, pages)
    if done.name == "protect":
        return Operation(who, "protect", page, pages, 0, int(Flag.READ | Flag.WRITE))
    if done.name == "advise":
        # Each advice stands beside its opposite.
        return Operation(who, "advise", page, pages, 0, ADVICE[ADVICE.index(done.argument) ^ 1])
    return None
