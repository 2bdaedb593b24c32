"""How ``vma->anon_vma`` is encoded: decided from what the layouts say and what the words are.

Released kernels have a plain pointer there. Two proposals put tags into its low bits, and neither
is merged, so that nothing is settled but the shape of each: ANON_VMA_UNFAULTED is one flag without
a pointer; ANON_VMA_LAZY tags a pointer to a VMA, or to an anon_vma. The values of tags are learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.kernel.tags import NO_TAGS, TagScheme
from anonvma_inspect.target.layouts import Layouts

__all__ = ("SWITCHES", "Declared", "SeenTags", "choose_scheme", "declared_scheme")

#: What the variable or static key of ``anon_vma_lazy_enabled()`` can be called. (An unfaulted VMA
#: needs no switch.)
SWITCHES = {
    "lazy": ("anon_vma_lazy_enabled", "anon_vma_lazy_key", "anon_vma_lazy_enabled_key"),
}

# The typedef of the proposal, and what either calls its tags, by the name in TagScheme.
_LAZY_TYPE = "anon_vma_tree_t"
_ENUMERATORS = {
    "unfaulted": "ANON_VMA_UNFAULTED",
    "vma": "ANON_VMA_TREE_VMA",
    "parent": "ANON_VMA_TREE_PARENT",
}
# Low bits are three.
_TAGS = 8
# So many words of one kind are no accident.
_SEVERAL = 2


def _no_tags() -> NDArray[np.int64]:
    return np.zeros(_TAGS, dtype=np.int64)


@dataclass(frozen=True)
class Declared:
    """What the layouts say of ``vma->anon_vma``.

    :ivar is_pointer: It is a pointer: there are no tags.
    :ivar type_name: As C writes it.
    :ivar tags: Values of the enumerators of tags, by their names in :class:`TagScheme`.
    """

    is_pointer: bool
    type_name: str
    tags: Mapping[str, int]

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes that are named by the type or by enumerators."""
        lazy = self.type_name == _LAZY_TYPE or "vma" in self.tags or "parent" in self.tags
        return (*(("lazy",) if lazy else ()), *(("unfaulted",) if "unfaulted" in self.tags else ()))

    @property
    def sentence(self) -> str:
        """For people."""
        type_ = "pointer" if self.is_pointer else self.type_name
        article = "an" if type_.startswith(("anon", "unsigned")) else "a"
        named = [f"{_ENUMERATORS[tag]} is {value}" for tag, value in sorted(self.tags.items())]
        return ", ".join([f"vma->anon_vma is {article} {type_}", *named])


@dataclass(frozen=True)
class SeenTags:
    """How many words with a tag there are, by the tag's value.

    :ivar lone: Without a pointer, of VMAs with empty chains.
    :ivar lone_chained: Without a pointer, of other VMAs.
    :ivar vmas: With a pointer that leads to a VMA.
    :ivar anon_vmas: With a pointer that leads to an anon_vma.
    :ivar others: With a pointer that leads to neither.
    """

    lone: NDArray[np.int64] = field(default_factory=_no_tags)
    lone_chained: NDArray[np.int64] = field(default_factory=_no_tags)
    vmas: NDArray[np.int64] = field(default_factory=_no_tags)
    anon_vmas: NDArray[np.int64] = field(default_factory=_no_tags)
    others: NDArray[np.int64] = field(default_factory=_no_tags)

    @property
    def total(self) -> int:
        """How many there are."""
        columns = (self.lone, self.lone_chained, self.vmas, self.anon_vmas, self.others)
        return int(sum(column.sum() for column in columns))

    @property
    def sentence(self) -> str:
        """For people."""
        said = [
            f"{int(column[tag]):,} with {tag:#x} {what}"
            for column, what in (
                (self.lone, "alone and an empty chain"),
                (self.lone_chained, "alone and a chain"),
                (self.vmas, "lead to VMAs"),
                (self.anon_vmas, "lead to anon_vmas"),
                (self.others, "lead to neither"),
            )
            for tag in np.flatnonzero(column)
        ]
        return f"of the words with tags, {', '.join(said)}" if said else "no VMA has a tag"


def declared_scheme(layouts: Layouts) -> Declared:
    """Ask the layouts about ``vma->anon_vma``."""
    found = layouts.field("vm_area_struct", "anon_vma")
    if found is None or found.kind == "pointer":
        return Declared(True, "" if found is None else found.type_name, {})
    tags = {}
    for tag, name in _ENUMERATORS.items():
        value = layouts.enumerator(name)
        if value is not None and 0 < value < _TAGS:
            tags[tag] = value
    return Declared(False, found.type_name, tags)


def choose_scheme(declared: Declared, seen: SeenTags, forced: str | None = None) -> TagScheme:
    """Decide how ``vma->anon_vma`` is encoded.

    What declarations name, counts; where they name nothing, what nearly all words with tags are, if
    that is more than one. Values of tags are those of enumerators, else those that are seen.

    :param forced: What the user says it is; ``None``: find out.
    """
    if forced is None and declared.is_pointer:
        return NO_TAGS
    if forced == "none":
        return TagScheme("none", f"--scheme says so; {declared.sentence}")
    schemes = declared.schemes
    votes = {"unfaulted": _for_unfaulted(seen), "lazy": _for_lazy(seen)}
    support = {scheme: found for scheme, (found, _) in votes.items()}
    if forced is not None:
        name, certain, why = forced, True, "--scheme says so"
    elif len(schemes) == 1:
        name, certain, why = schemes[0], True, "named so"
    else:
        name = max(schemes or ("unfaulted", "lazy"), key=lambda scheme: support[scheme])
        certain = support[name] >= _SEVERAL and _nearly_all(*votes[name])
        why = "most words with tags are so" if certain else "which is too little to be sure"
        if len(schemes) > 1:
            why = f"named are {' and '.join(schemes)}; {why}"
    tags = _learn(name, declared.tags, seen)
    if certain and 2 * _contrary(tags, seen) > seen.total:
        certain, why = forced is not None, f"{why}, but most are not so"
    return replace(
        tags,
        evidence=f"{declared.sentence}; {seen.sentence}: {why}",
        certain=certain,
        strange=_strange(tags, declared.tags, seen),
        supported=certain or name in schemes or support[name] > 0,
    )


# What is not is so little that it may be words that are damaged.
def _nearly_all(count: int, total: int) -> bool:
    return count > 0 and 4 * (total - count) <= total


# The value that nearly all words of a kind have, but for one that is another tag's; 0: none has.
def _likeliest(votes: NDArray[np.int64], taken: int = 0) -> int:
    votes = _without(votes, taken)
    tag = int(np.argmax(votes))
    return tag if _nearly_all(int(votes[tag]), int(votes.sum())) else 0


def _without(votes: NDArray[np.int64], taken: int) -> NDArray[np.int64]:
    votes = votes.copy()
    votes[taken] = 0
    return votes


# How many words with tags speak for a scheme, and out of how many. Words with its tags that are
# wrong otherwise, and not most, speak neither for nor against it.
def _for_unfaulted(seen: SeenTags) -> tuple[int, int]:
    tag = int(np.argmax(seen.lone))
    found = int(seen.lone[tag])
    return found, _rest(seen, found, int(seen.lone_chained[tag]))


# Without a word that leads to a VMA, a pointer to an anon_vma may as well be damaged in one bit.
def _for_lazy(seen: SeenTags) -> tuple[int, int]:
    vma = int(np.argmax(seen.vmas))
    found, astray = int(seen.vmas[vma]), int(seen.others[vma])
    if found >= _SEVERAL:
        lent = _without(seen.anon_vmas, vma)
        parent = int(np.argmax(lent))
        found += int(lent[parent])
        astray += int(seen.others[parent]) if parent != vma else 0
    return found, _rest(seen, found, astray)


def _rest(seen: SeenTags, found: int, neither: int) -> int:
    return seen.total - (neither if neither < found else 0)


# The scheme with the values of its tags.
def _learn(name: str, declared: Mapping[str, int], seen: SeenTags) -> TagScheme:
    if name == "unfaulted":
        return TagScheme(name, "", unfaulted=declared.get("unfaulted") or _likeliest(seen.lone))
    to_vmas = np.where(seen.vmas >= seen.anon_vmas, seen.vmas, 0)
    vma = declared.get("vma") or _likeliest(to_vmas, declared.get("parent", 0))
    parent = declared.get("parent") or _likeliest(seen.anon_vmas, vma)
    return TagScheme(name, "", vma=vma, parent=parent)


# How many words with tags are not as the scheme has them. Of a tag whose value is not known, any
# may be; what leads nowhere says nothing.
def _contrary(tags: TagScheme, seen: SeenTags) -> int:
    def fitting(votes: NDArray[np.int64], value: int, taken: int = 0) -> int:
        return int(votes[value] if value else _without(votes, taken).sum())

    if tags.name == "unfaulted":
        fit = fitting(seen.lone, tags.unfaulted)
    else:
        fit = fitting(seen.vmas, tags.vma, tags.parent)
        fit += fitting(seen.anon_vmas, tags.parent, tags.vma)
    return seen.total - fit - int(seen.others.sum())


# Where one tag of ANON_VMA_LAZY's is not known, values that are not that one: all of their words
# lead to what the other tag's words lead to, and are few beside those.
def _strange(tags: TagScheme, declared: Mapping[str, int], seen: SeenTags) -> tuple[int, ...]:
    if tags.name != "lazy" or bool(tags.vma) == bool(tags.parent):
        return ()
    known = "parent" if tags.parent else "vma"
    own, other = (seen.anon_vmas, seen.vmas) if tags.parent else (seen.vmas, seen.anon_vmas)
    value = tags.parent or tags.vma
    sure = known in declared or (
        int(own[value]) >= _SEVERAL and _nearly_all(int(own[value]), int(own.sum()))
    )
    alike = (own > 0) & (other == 0) & (seen.others == 0)
    alike[value] = False
    return tuple(np.flatnonzero(alike & sure).tolist())
