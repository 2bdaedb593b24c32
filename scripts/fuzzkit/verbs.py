"""How a word is changed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from anonvma_inspect.target import Target

from .freed import freed_object
from .subjects import Population, Subject
from .words import read, with_object

__all__ = ("VERBS", "Change", "change")

# What an address is without, in the word that also holds a node's colour.
_COLOUR = 1


@dataclass(frozen=True)
class Change:
    """One word with another value.

    :ivar target: Has what the new value leads to; the word itself is as it was.
    :ivar address: Of the object, and of the word in it.
    """

    population: Population
    target: Target
    subject: Subject
    role: str
    verb: str
    address: int
    place: int
    size: int
    old: int
    new: int


@dataclass(frozen=True)
class _Word:
    population: Population
    subject: Subject
    role: str
    address: int
    size: int
    old: int
    rng: random.Random

    @property
    def bits(self) -> int:
        return 8 * self.size

    # A pointer to an object, as this field has pointers: to a member, with the colour.
    def pointer(self, address: int) -> int:
        kind, member = self.subject.leads_to
        if member is not None:
            address += self.population.record(kind).offset(member)
        if self.subject.name.endswith("parent_color"):
            address |= self.old & _COLOUR
        return address

    # What another object of this role has there, if there is one that has something else.
    def sibling(self) -> int:
        population = self.population
        field = population.record(self.subject.kind).fields[self.subject.name]
        members = population.members(self.subject, self.role).tolist()
        self.rng.shuffle(members)
        for address in members[:50]:
            value = read(population.target.memory, address + field.offset, field.size)
            if value != self.old:
                return value
        return self.old

    def itself(self) -> int:
        kind, member = self.subject.leads_to
        own = member is not None and kind != self.subject.kind
        if self.subject.name.startswith("anon_vma_chain"):
            record = self.population.record("vma")
            return self.address + record.offset("anon_vma_chain")
        return self.address if own else self.pointer(self.address)


_Verb = Callable[[_Word], int]


def _flip(bit: Callable[[int], int]) -> _Verb:
    return lambda word: word.old ^ 1 << bit(word.bits)


_SIMPLE: dict[str, _Verb] = {
    "zero": lambda word: 0,
    "ones": lambda word: -1,
    "low": _flip(lambda bits: 0),
    "middle": _flip(lambda bits: bits // 2),
    "high": _flip(lambda bits: bits - 1),
    "plus": lambda word: word.old + 1,
    "minus": lambda word: word.old - 1,
    "random": lambda word: word.rng.getrandbits(word.bits),
    "sibling": _Word.sibling,
    "itself": _Word.itself,
}

#: All verbs: bits flipped, one more or less, random, what a sibling has, a pointer to a freed
#: object, a pointer to the object itself.
VERBS = (*(verb for verb in _SIMPLE if verb != "itself"), "freed", "itself")


def change(
    population: Population, subject: Subject, role: str, verb: str, address: int, seed: str
) -> Change:
    """Work out one change of a word.

    :param address: Of the object.
    :param seed: What chance goes by.
    """
    rng = random.Random(seed)
    field = population.record(subject.kind).fields[subject.name]
    target, place = population.target, address + field.offset
    old = read(target.memory, place, field.size)
    word = _Word(population, subject, role, address, field.size, old, rng)
    if verb == "freed":
        kind, _ = subject.leads_to
        like = population.live(kind, rng)
        freed = freed_object(population, kind, like, rng)
        target = with_object(target, freed.address, freed.content)
        new = word.pointer(freed.address)
    else:
        new = _SIMPLE[verb](word)
    new %= 1 << word.bits
    return Change(population, target, subject, role, verb, address, place, field.size, old, new)
