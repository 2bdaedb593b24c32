"""What of a state can be compared with another: everything but the addresses.

A picture is plain data: the processes by name, their VMAs in order of address, and the anon_vmas
under numbers that they get in the order in which the VMAs lead to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anonvma_inspect.kernel.tags import rb_is_black
from anonvma_inspect.tables import NO_ROW, Tables

from .objects import AnonVma, Flag, Machine, Vma
from .rbtree import Node

__all__ = ("Picture", "draw_machine", "draw_tables")

_FLAGS = int(Flag.ACCESS | Flag.DONTCOPY | Flag.WIPEONFORK)


@dataclass(frozen=True)
class Picture:
    """A state without its addresses.

    :ivar vmas: Process and first page, to what the VMA is.
    :ivar anon_vmas: What each is, by number.
    """

    vmas: Mapping[tuple[str, int], Mapping[str, Any]]
    anon_vmas: tuple[Mapping[str, Any], ...]

    def differences(self, other: Picture) -> list[str]:
        """Sentences that tell how another picture differs, with what it has second."""
        told = []
        for place in sorted({*self.vmas, *other.vmas}):
            told += _compare(f"VMA {place}", self.vmas.get(place), other.vmas.get(place))
        for number in range(max(len(self.anon_vmas), len(other.anon_vmas))):
            pair = [
                each.anon_vmas[number] if number < len(each.anon_vmas) else None
                for each in (self, other)
            ]
            told += _compare(f"anon_vma {number}", *pair)
        return told


def _compare(what: str, a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> list[str]:
    if a is None or b is None:
        return (
            [] if a is b else [f"{what}: {'not there' if a is None else 'there'}, {b and dict(b)}"]
        )
    return [f"{what}: {name} {a[name]}, {b[name]}" for name in a if a[name] != b[name]]


@dataclass
class _Numbers:
    """Numbers for anon_vmas, in the order in which they are asked for."""

    of: dict[Any, int] = field(default_factory=dict)

    def __call__(self, anon_vma: Any) -> int | None:
        return None if anon_vma is None else self.of.setdefault(anon_vma, len(self.of))

    def describe(self, what: Callable[[Any], Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
        # Describing one may lead to another.
        described: list[Mapping[str, Any]] = []
        while len(described) < len(self.of):
            described.append(what(list(self.of)[len(described)]))
        return tuple(described)


def draw_machine(machine: Machine, names: Mapping[int, str], base: int) -> Picture:
    """Draw a state of the model.

    :param names: What to call each process; of those that share an address space the first counts.
    :param base: Page that addresses are told from.
    """
    owner: dict[Any, str] = {}
    for index, process in sorted(machine.processes.items()):
        owner.setdefault(process.mm, names[index])
    number = _Numbers()

    def of_vma(vma: Vma) -> Mapping[str, Any]:
        return {
            "pages": vma.end - vma.start,
            "flags": int(vma.flags),
            "pgoff": vma.pgoff,
            "key": machine.key(vma),
            "anon_vma": number(vma.anon_vma),
            "chain": [number(avc.anon_vma) for avc in vma.chain],
        }

    def counts(anon_vma: AnonVma) -> dict[str, int]:
        if machine.rules.reuse_by_degree:
            return {"degree": anon_vma.degree}
        return {name: getattr(anon_vma, name) for name in ("num_children", "num_active_vmas")}

    def of_anon_vma(anon_vma: AnonVma) -> Mapping[str, Any]:
        return {
            "root": number(anon_vma.root),
            "parent": number(anon_vma.parent),
            "refcount": anon_vma.refcount,
            **counts(anon_vma),
            "tree": [
                (owner[node.owner.vma.mm], node.owner.vma.start - base, _depth(node), node.red)
                for node in anon_vma.tree
            ],
        }

    vmas = {(name, vma.start - base): of_vma(vma) for mm, name in owner.items() for vma in mm.vmas}
    return Picture(vmas, number.describe(of_anon_vma))


def _depth(node: Node) -> int:
    return 0 if node.parent is None else 1 + _depth(node.parent)


def draw_tables(
    tables: Tables, names: Sequence[str], base: int, within: range | None = None
) -> Picture:
    """Draw what was collected.

    :param names: The processes, by their command names, in the order of the other picture.
    :param base: Page that addresses are told from.
    :param within: The pages that VMAs are taken from; ``None``: all.
    """
    vmas, links, avcs = tables.vmas, tables.links, tables.avcs
    anon_vmas, nodes = tables.anon_vmas, tables.nodes
    comm = [name.decode() for name in tables.tasks.comm.tolist()]
    mm_of = {name: int(mm) for name, mm in zip(comm, tables.tasks.mm.tolist(), strict=True)}
    owner: dict[int, str] = {}
    for name in names:
        if name in mm_of:
            owner.setdefault(mm_of[name], name)
    start = vmas.vm_start // np.uint64(tables.era.page_size)
    end = vmas.vm_end // np.uint64(tables.era.page_size)
    number = _Numbers()

    def numbered(row: int) -> int | None:
        return None if row == NO_ROW else number(row)

    def of_vma(row: int) -> Mapping[str, Any]:
        entries = links.avc[np.searchsorted(links.vma, row) : np.searchsorted(links.vma, row + 1)]
        return {
            "pages": int(end[row] - start[row]),
            "flags": int(vmas.vm_flags[row]) & _FLAGS,
            "pgoff": int(vmas.vm_pgoff[row]),
            "key": int(vmas.key_first[row]),
            "anon_vma": None if vmas.anon_vma_tag[row] else numbered(int(vmas.active[row])),
            "chain": [numbered(int(avcs.anon_vma_row[entry])) for entry in entries],
        }

    def of_node(row: int) -> tuple[Any, ...]:
        avc = int(nodes.avc[row])
        vma = int(avcs.vma_row[avc])
        red = not rb_is_black(int(avcs.rb_parent_color[avc]))
        place = owner.get(int(vmas.mm[vma]), "?"), int(start[vma]) - base
        return (*place, int(nodes.depth[row]), red)

    def of_anon_vma(row: int) -> Mapping[str, Any]:
        first, last = np.searchsorted(nodes.anon_vma, [row, row + 1])
        counts = {"degree": int(anon_vmas.degree[row])}
        if tables.era.has_separate_counts:
            counts = {
                name: int(getattr(anon_vmas, name)[row])
                for name in ("num_children", "num_active_vmas")
            }
        return {
            "root": numbered(int(anon_vmas.root_row[row])),
            "parent": numbered(int(anon_vmas.parent_row[row])),
            "refcount": int(anon_vmas.refcount[row]),
            **counts,
            "tree": [of_node(place) for place in range(first, last)],
        }

    drawn = {}
    for mm, name in owner.items():
        rows = np.flatnonzero((vmas.mm == mm) & (vmas.slot != NO_ROW))
        for row in rows[np.argsort(start[rows])].tolist():
            if within is None or int(start[row]) in within:
                drawn[name, int(start[row]) - base] = of_vma(row)
    return Picture(drawn, number.describe(of_anon_vma))
