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

    What declarations name, counts; where they name nothing, what most of the words with tags are,
    if that is more than one. Values of tags are those of enumerators, else those that are seen.

    :param forced: What the user says it is; ``None``: find out.
    """
    if forced is None and declared.is_pointer:
        return NO_TAGS
    if forced == "none":
        return TagScheme("none", f"--scheme says so; {declared.sentence}")
    support = {"unfaulted": _lone_flag(seen)[1], "lazy": _lazy_support(seen)}
    schemes = declared.schemes
    if forced is not None:
        name, certain, why = forced, True, "--scheme says so"
    elif len(schemes) == 1:
        name, certain, why = schemes[0], True, "named so"
    else:
        name = max(schemes or ("unfaulted", "lazy"), key=lambda scheme: support[scheme])
        certain = support[name] >= _SEVERAL and 2 * support[name] > seen.total
        why = "most words with tags are so" if certain else "which is too little to be sure"
        if len(schemes) > 1:
            why = f"named are {' and '.join(schemes)}; {why}"
    tags = _learn(name, declared.tags, seen)
    explained = _explained(tags, seen)
    contrary = seen.total - explained - int(seen.others.sum())
    if forced is None and certain and 2 * contrary > seen.total:
        certain, why = False, f"{why}, but most are not so"
    return replace(tags, evidence=f"{declared.sentence}; {seen.sentence}: {why}", certain=certain)


# The most frequent flag without a pointer, and how many VMAs have it.
def _lone_flag(seen: SeenTags) -> tuple[int, int]:
    tag = int(np.argmax(seen.lone))
    return tag, int(seen.lone[tag])


# Without a word that leads to a VMA, a pointer to an anon_vma may as well be damaged in one bit.
def _lazy_support(seen: SeenTags) -> int:
    vmas = int(seen.vmas.max())
    return int((seen.vmas + seen.anon_vmas).sum()) if vmas >= _SEVERAL else vmas


# The scheme with the values of its tags.
def _learn(name: str, declared: Mapping[str, int], seen: SeenTags) -> TagScheme:
    if name == "unfaulted":
        return TagScheme(name, "", unfaulted=declared.get("unfaulted", _lone_flag(seen)[0]))

    def likeliest(votes: NDArray[np.int64], taken: int) -> int:
        votes = votes.copy()
        votes[taken] = 0
        return int(np.argmax(votes))

    vma = declared.get("vma", 0)
    vma = vma or likeliest(
        np.where(seen.vmas >= seen.anon_vmas, seen.vmas, 0), declared.get("parent", 0)
    )
    parent = declared.get("parent", 0) or likeliest(seen.anon_vmas, vma)
    return TagScheme(name, "", vma=vma, parent=parent)


def _explained(tags: TagScheme, seen: SeenTags) -> int:
    lone = int(seen.lone[tags.unfaulted]) if tags.unfaulted else 0
    return lone + int(seen.vmas[tags.vma] + seen.anon_vmas[tags.parent])
