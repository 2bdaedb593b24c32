"""What is changed: the fields that a walk reads, of objects of each role."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from anonvma_inspect.kernel.era import Era, Record
from anonvma_inspect.kernel.tags import AnonVmaKind
from anonvma_inspect.tables import NO_ROW, RowColumn, Tables
from anonvma_inspect.target import Target
from anonvma_inspect.target.memory import BoolColumn, U64Column

__all__ = (
    "BARE",
    "ROLES",
    "TAGGED",
    "UNMAPPED",
    "Population",
    "Subject",
    "roles_of",
    "subjects_of",
)

#: Of an anon_vma: the root of others, one that has a parent and children, one without children, one
#: that fork gave to a second VMA, a root without others. Of a VMA, its list and its AVCs: that of
#: its active anon_vma. Of a node: its place in its tree (reused: any in such an anon_vma's).
ROLES = ("root", "inner", "leaf", "reused", "single")
#: Of a VMA that has no anon_vma; of a node, none.
BARE = "bare"
#: Of a VMA with a tag in ``anon_vma``, what that is, by the name of the scheme.
TAGGED = {
    "unfaulted": (AnonVmaKind.UNFAULTED.word,),
    "lazy": (AnonVmaKind.LAZY_VMA.word, AnonVmaKind.LAZY_PARENT.word),
}
#: Of a VMA that others have as their root VMA, and that is in no mm's tree.
UNMAPPED = "unmapped"

# Members that are structs; their own members are fields themselves.
_CONTAINERS = frozenset(("anon_vma_chain", "same_vma", "rb", "vm_rb"))
# Only asked for to know how the word beside it is to be read.
_UNREAD = frozenset(("rwsem_owner", "rwsem_rt_owner"))
# What the pointers among the fields lead to: a struct's start, or a member of it.
_LEADS_TO = {
    "vm_mm": ("mm", None),
    "anon_vma": ("anon_vma", None),
    "root": ("anon_vma", None),
    "parent": ("anon_vma", None),
    "vma": ("vma", None),
    "vm_next": ("vma", None),
    "vm_prev": ("vma", None),
    "vm_rb_parent_color": ("vma", "vm_rb"),
    "vm_rb_left": ("vma", "vm_rb"),
    "vm_rb_right": ("vma", "vm_rb"),
    "anon_vma_chain_next": ("avc", "same_vma"),
    "anon_vma_chain_prev": ("avc", "same_vma"),
    "same_vma_next": ("avc", "same_vma"),
    "same_vma_prev": ("avc", "same_vma"),
    "rb_parent_color": ("avc", "rb"),
    "rb_left": ("avc", "rb"),
    "rb_right": ("avc", "rb"),
    "rb_node": ("avc", "rb"),
    "rb_leftmost": ("avc", "rb"),
}


@dataclass(frozen=True)
class Subject:
    """A field of a struct.

    :ivar kind: ``vma``, ``avc``, ``anon_vma`` or ``mm``.
    :ivar name: As the era's records call it.
    """

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}.{self.name}"

    @property
    def in_tree(self) -> bool:
        """It is part of an AVC's place in an interval tree."""
        return self.kind == "avc" and self.name.startswith("rb_")

    @property
    def is_pointer(self) -> bool:
        """It leads to another object."""
        return self.name in _LEADS_TO

    @property
    def leads_to(self) -> tuple[str, str | None]:
        """The kind of struct that it leads to, and the member; for a number, its own struct."""
        return _LEADS_TO.get(self.name, (self.kind, None))


def record_of(era: Era, kind: str) -> Record:
    """The layout of a kind of object."""
    return {"vma": era.vma, "avc": era.avc, "anon_vma": era.anon_vma, "mm": era.mm}[kind]


def subjects_of(era: Era) -> Iterator[Subject]:
    """Every field of VMAs, AVCs and anon_vmas that a walk of this era reads, and map_count."""
    for kind in ("vma", "avc", "anon_vma"):
        for name in record_of(era, kind).fields:
            if name not in _CONTAINERS | _UNREAD:
                yield Subject(kind, name)
    yield Subject("mm", "map_count")


class Population:
    """The objects of one captured kernel, by their roles.

    :param target: The kernel.
    :param tables: What is in it.
    """

    def __init__(self, target: Target, tables: Tables) -> None:
        self.target, self.tables = target, tables

    def record(self, kind: str) -> Record:
        """The layout of a kind of object."""
        return record_of(self.tables.era, kind)

    def members(self, subject: Subject, role: str) -> U64Column:
        """Addresses of all objects that have this field and role."""
        tables = self.tables
        if subject.kind == "vma":
            chosen: U64Column = tables.vmas.address[self._vma_roles == role]
            return chosen
        if subject.kind == "mm":
            mm = tables.vmas.mm[(self._vma_roles == role) & (tables.vmas.mm != NO_ROW)]
            return np.unique(tables.mms.address[mm])
        if subject.kind == "anon_vma":
            chosen = tables.anon_vmas.address[self._roles == role]
            return chosen
        roles = self._node_roles
        if not subject.in_tree:
            roles = self._of_anon_vma(tables.avcs.anon_vma_row)
        chosen = tables.avcs.address[roles == role]
        return chosen

    def pick(self, subject: Subject, role: str, rng: random.Random) -> int | None:
        """One of them, or ``None`` if there is none."""
        members = self.members(subject, role)
        return int(rng.choice(members)) if len(members) else None

    def live(self, kind: str, rng: random.Random) -> int:
        """Any object of a kind."""
        tables = self.tables
        columns = {
            "vma": tables.vmas.address,
            "avc": tables.avcs.address,
            "anon_vma": tables.anon_vmas.address,
            "mm": tables.mms.address,
        }
        return int(rng.choice(columns[kind]))

    @cached_property
    def _roles(self) -> np.ndarray[tuple[int], np.dtype[np.str_]]:
        anon_vmas = self.tables.anon_vmas
        itself = np.arange(len(anon_vmas.address))
        is_root = anon_vmas.root_row == itself
        others = np.flatnonzero(~is_root & (anon_vmas.root_row != NO_ROW))
        children = np.flatnonzero((anon_vmas.parent_row != itself) & (anon_vmas.parent_row >= 0))

        def named_by(rows: RowColumn) -> BoolColumn:
            return np.isin(itself, rows)

        has_family = named_by(anon_vmas.root_row[others])
        has_child = named_by(anon_vmas.parent_row[children])
        return np.select(
            [
                ~anon_vmas.reached | (anon_vmas.rb_root == 0),
                is_root & has_family,
                is_root,
                named_by(self._reused),
                has_child,
            ],
            ["", "root", "single", "reused", "inner"],
            "leaf",
        )

    # anon_vmas that are active in a VMA whose chain has more than their ancestors: fork gave them
    # to it instead of a new one, whose parent would be the youngest of the chain.
    @cached_property
    def _reused(self) -> RowColumn:
        tables = self.tables
        active, parent = tables.vmas.active, tables.anon_vmas.parent_row
        ancestors = np.zeros(len(active), dtype=np.int64)
        row = active.copy()
        for _ in range(int(tables.vmas.chain_length.max(initial=0))):
            ancestors += row != NO_ROW
            above = np.where(row == NO_ROW, NO_ROW, parent[row])
            row = np.where(above == row, NO_ROW, above)
        reused: RowColumn = active[(active != NO_ROW) & (tables.vmas.chain_length > ancestors)]
        return reused

    def _of_anon_vma(self, rows: RowColumn) -> np.ndarray[tuple[int], np.dtype[np.str_]]:
        return np.where(rows == NO_ROW, "", self._roles[rows])

    @cached_property
    def _vma_roles(self) -> np.ndarray[tuple[int], np.dtype[np.str_]]:
        vmas, tags = self.tables.vmas, self.tables.era.tags
        bare = (vmas.anon_vma == 0) & (vmas.slot != NO_ROW)
        roles = np.where(bare, BARE, self._of_anon_vma(vmas.active)).astype("<U16")
        kinds = tags.kinds(vmas.anon_vma_pointer, vmas.anon_vma_tag)
        for kind in (AnonVmaKind.UNFAULTED, AnonVmaKind.LAZY_VMA, AnonVmaKind.LAZY_PARENT):
            roles[kinds == kind] = kind.word
        roots = vmas.anon_vma_pointer[kinds == AnonVmaKind.LAZY_VMA]
        roles[(vmas.slot == NO_ROW) & np.isin(vmas.address, roots)] = UNMAPPED
        return roles

    @cached_property
    def _node_roles(self) -> np.ndarray[tuple[int], np.dtype[np.str_]]:
        tables = self.tables
        nodes = tables.nodes
        has_child = (nodes.left != NO_ROW) | (nodes.right != NO_ROW)
        top = nodes.parent == NO_ROW
        place = np.select(
            [self._of_anon_vma(nodes.anon_vma) == "reused", top & has_child, top, has_child],
            ["reused", "root", "single", "inner"],
            "leaf",
        )
        roles = np.full(len(tables.avcs.address), "", dtype=place.dtype)
        roles[nodes.avc] = place
        return roles


def roles_of(subject: Subject, era: Era) -> tuple[str, ...]:
    """The roles that the objects with this field can have."""
    if subject.kind not in ("vma", "mm"):
        return ROLES
    unmapped = (UNMAPPED,) if subject.kind == "vma" and era.tag_scheme == "lazy" else ()
    return (*ROLES, BARE, *TAGGED.get(era.tag_scheme, ()), *unmapped)
