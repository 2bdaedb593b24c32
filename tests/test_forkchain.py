"""Chains of forks whose parents exit: what is read equals what the kernel's rules make of the log.

The ``forkchain`` workload logs each map, first write, fork and exit in order. A model of the rules,
written from their description and knowing nothing of the package, plays the log and says which
anon_vmas there are at the end, who their parents are, which ones were taken over by a fork, and in
which order each VMA's chain holds them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from anonvma_inspect.analysis.families import find_families
from anonvma_inspect.tables import NO_ROW

from .captures import CAPTURES, Capture

PAGE = 4096


@dataclass(eq=False)
class AnonVma:
    """An anon_vma of the model; it is gone when no chain holds it."""

    parent: AnonVma | None  # None: itself
    children: int = 0
    active: int = 0
    members: int = 0
    reused: bool = False

    @property
    def root(self) -> AnonVma:
        return self if self.parent is None else self.parent.root


@dataclass
class Vma:
    """A slot of the arena in one process."""

    active: AnonVma | None = None
    # In the order of the kernel's list: what was added last comes first.
    chain: list[AnonVma] = field(default_factory=list)


class Model:
    """The rules of reuse and of parents, in force since the counts were split (6.0).

    :param clones_forwards: From 7.0 on a chain is cloned from its first entry on; before, from its
        last.
    """

    def __init__(self, log: list[Any], *, clones_forwards: bool) -> None:
        self.clones_forwards = clones_forwards
        self.pid: dict[int, int] = {}
        self.base: dict[int, tuple[int, int]] = {}
        self.vmas: dict[int, dict[int, Vma]] = {}
        self.leaving: set[int] = set()
        for event in log:
            getattr(self, "_" + event["event"])(event)

    def _arena(self, event: Any) -> None:
        index = event["index"]
        self.pid[index] = event["pid"]
        self.base[index] = (int(event["base"], 16), event["stride"])
        self.vmas[index] = {}

    def _map(self, event: Any) -> None:
        self.vmas[event["index"]][event["slot"]] = Vma()

    def _touch(self, event: Any) -> None:
        for touched in filter(None, event["pages"].split(",")):
            vma = self.vmas[event["index"]][int(touched.split(":")[0])]
            if vma.active is None:
                # A root counts as its own child.
                vma.active = AnonVma(parent=None, children=1, active=1, members=1)
                vma.chain = [vma.active]

    def _exit(self, event: Any) -> None:
        # Logged before the fork of the next link, done after it.
        self.leaving.add(event["index"])

    def _stay(self, event: Any) -> None:
        pass

    def _branch(self, event: Any) -> None:
        self._fork(event)

    def _link(self, event: Any) -> None:
        self._fork(event)
        if event["parent"] in self.leaving:
            for vma in self.vmas.pop(event["parent"]).values():
                self._unlink(vma)

    def _unlink(self, vma: Vma) -> None:
        if vma.active is not None:
            vma.active.active -= 1
        for anon_vma in vma.chain:
            anon_vma.members -= 1
            if not anon_vma.members and anon_vma.parent is not None:
                anon_vma.parent.children -= 1

    def _fork(self, event: Any) -> None:
        index, parent = event["index"], event["parent"]
        self.pid[index] = event["pid"]
        self.base[index] = self.base[parent]
        self.vmas[index] = {slot: self._copy(vma) for slot, vma in self.vmas[parent].items()}

    def _copy(self, source: Vma) -> Vma:
        if source.active is None:
            return Vma()
        copy = Vma()
        # The first one met without VMAs of its own and with at most one child is used again.
        for anon_vma in source.chain if self.clones_forwards else reversed(source.chain):
            copy.chain.insert(0, anon_vma)
            anon_vma.members += 1
            if copy.active is None and anon_vma.children < 2 and anon_vma.active == 0:
                anon_vma.reused = True
                copy.active = anon_vma
        if copy.active is None:
            copy.active = AnonVma(parent=source.active, members=1)
            source.active.children += 1
            copy.chain.insert(0, copy.active)
        copy.active.active += 1
        return copy


# ANON_VMA_LAZY makes anon_vmas later than the log tells.
FORKCHAINS = [
    capture
    for capture in CAPTURES
    if capture.manifest["workload"] == "forkchain"
    and "-lazy" not in capture.manifest["kernel"]["release"]
]


@pytest.mark.parametrize("capture", FORKCHAINS, ids=lambda capture: capture.name)
def test_forkchain_is_what_the_rules_make_of_the_log(capture: Capture) -> None:
    tables = capture.tables
    forwards = int(capture.target.release.split(".")[0]) >= 7
    model = Model(capture.manifest["word"]["log"], clones_forwards=forwards)
    row_of: dict[AnonVma, int] = {}

    # Each VMA's chain, in order, is the model's, through one map from model to rows.
    for index, vmas in model.vmas.items():
        task = np.flatnonzero(tables.tasks.pid == model.pid[index])[0]
        rows = tables.slots.vma[tables.slots.mm == tables.tasks.mm[task]]
        by_start = {int(tables.vmas.vm_start[row]): int(row) for row in rows}
        base, stride = model.base[index]
        for slot, vma in vmas.items():
            row = by_start[base + slot * stride * PAGE]
            links = np.flatnonzero(tables.links.vma == row)
            links = links[np.argsort(tables.links.position[links])]
            chain = tables.avcs.anon_vma_row[tables.links.avc[links]].tolist()
            assert len(chain) == len(vma.chain)
            for anon_vma, ours in zip(vma.chain, chain, strict=True):
                assert row_of.setdefault(anon_vma, ours) == ours
            active = int(tables.vmas.active[row])
            assert active == (NO_ROW if vma.active is None else row_of[vma.active])

    assert len(set(row_of.values())) == len(row_of), "one object for each of the model's"
    for anon_vma, row in row_of.items():
        assert tables.anon_vmas.num_children[row] == anon_vma.children
        assert tables.anon_vmas.num_active_vmas[row] == anon_vma.active
        assert tables.anon_vmas.root_row[row] == row_of[anon_vma.root]
        parent = anon_vma if anon_vma.parent is None else anon_vma.parent
        assert tables.anon_vmas.parent_row[row] == row_of[parent]

    # The workload does what it is there for.
    assert sum(anon_vma.reused for anon_vma in row_of) > 10
    assert sum(anon_vma.parent is None and not anon_vma.active for anon_vma in row_of) > 5

    # Families: parents, who waits, and who was handed on (never one that was not).
    families = find_families(tables)
    for anon_vma, row in row_of.items():
        parent_row = NO_ROW if anon_vma.parent is None else row_of[anon_vma.parent]
        assert families.anon_vma_parent[row] == parent_row
        assert families.anon_vma_waiting[row] == (anon_vma.active == 0)
        assert families.anon_vma_active[row] == anon_vma.active
        assert families.anon_vma_tree[row] == anon_vma.members
        assert anon_vma.reused or not families.anon_vma_reused[row]
    assert sum(families.anon_vma_reused[list(row_of.values())]) > 10
