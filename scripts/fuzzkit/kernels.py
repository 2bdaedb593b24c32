"""The kernels whose words are changed, and all cells of the matrix of each."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from tests.captures import CAPTURES, Capture

from .models import Made, made_kernels
from .subjects import Population, Subject, roles_of, subjects_of
from .verbs import VERBS, Change, change

__all__ = ("Kernel", "kernels")


@dataclass(frozen=True)
class Kernel:
    """All captures of one kernel, the smallest first; or states of a model of it."""

    name: str
    captures: tuple[Capture | Made, ...]

    @cached_property
    def populations(self) -> list[Population]:
        return [Population(capture.target, capture.tables) for capture in self.captures]

    @cached_property
    def subjects(self) -> list[Subject]:
        return list(subjects_of(self.populations[0].tables.era))

    def _roles_of(self, subject: Subject) -> tuple[str, ...]:
        return roles_of(subject, self.populations[0].tables.era)

    def rows(self) -> Iterator[tuple[Subject, str]]:
        """Fields, each with every role that an object of this kernel has."""
        for subject in self.subjects:
            for role in self._roles_of(subject):
                if any(len(one.members(subject, role)) for one in self.populations):
                    yield subject, role

    def missing(self) -> list[str]:
        """Roles that no object of any capture has."""
        rows = set(self.rows())
        roles = {role for subject in self.subjects for role in self._roles_of(subject)}
        have = {role for _, role in rows}
        return sorted(roles - have)

    def changes(self, subject: Subject, role: str, seed: int) -> Iterator[Change]:
        """What each verb makes of one object, a seeded one of the smallest capture that has any."""
        rng = random.Random(f"{seed} {subject} {role}")
        for population in self.populations:
            address = population.pick(subject, role, rng)
            if address is not None:
                for verb in VERBS:
                    chance = f"{seed} {subject} {role} {verb}"
                    yield change(population, subject, role, verb, address, chance)
                return


def kernels() -> dict[str, Kernel]:
    """All kernels by name: those captured, ``6.12``, ``6.12-rt``, ``6.12-arm64``, and models.

    Captured ones of our own are ``lab-unfaulted`` and ``lab-lazy``.
    """
    found: dict[str, list[Capture]] = {}
    for capture in sorted(CAPTURES, key=lambda capture: capture.core.stat().st_size):
        release = capture.manifest["kernel"]["release"]
        match = re.match(r"[0-9]+\.[0-9]+", release)
        assert match is not None, release
        flavours = (word for word in ("rt", "arm64") if f"-{word}" in release)
        name = "-".join([match[0], *flavours])
        if "anon_vma" in capture.manifest["word"]["facts"]:
            name = f"lab-{release.partition('-')[2]}"
        found.setdefault(name, []).append(capture)
    captured = {name: Kernel(name, tuple(captures)) for name, captures in sorted(found.items())}
    return captured | {name: Kernel(name, made) for name, made in made_kernels().items()}
