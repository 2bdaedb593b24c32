"""Words to change in a dump or a guest, and whether an audit says of a change that it is wrong."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fuzzkit.words import changed, read

from anonvma_inspect.collect import collect_audit
from anonvma_inspect.in_flight import Audit, audit
from anonvma_inspect.invariants.base import Finding, Severity
from anonvma_inspect.kernel.era import Record
from anonvma_inspect.tables import NO_ROW, RowColumn, Tables, marked
from anonvma_inspect.target import Target, TargetOptions, open_target

__all__ = ("Change", "Scene", "open_scene", "poke")

#: Where ``storm.c`` puts the pages of its quiet family.
_QUIET = (0x20000000, 0x20080000)


@dataclass(frozen=True)
class Change:
    """One word of one object, and what it shall be instead.

    :ivar family: ``quiet`` (no operation touches it) or ``locked`` (an operation holds its lock).
    :ivar what: Struct and field.
    :ivar related: The object, and the family's root.
    """

    family: str
    what: str
    object: int
    address: int
    size: int
    old: int
    new: int
    related: frozenset[int]

    def __str__(self) -> str:
        return f"{self.family} {self.what} of {self.object:#x}: {self.old:#x} became {self.new:#x}"


@dataclass(frozen=True)
class Scene:
    """A dump, read and audited as it is."""

    target: Target
    tables: Tables
    audit: Audit

    def quiet(self) -> RowColumn:
        """The roots of the quiet family: each of its mappings has one."""
        vmas = self.tables.vmas
        inside = (vmas.vm_start >= _QUIET[0]) & (vmas.vm_end <= _QUIET[1])
        active = vmas.active[inside & (vmas.active != NO_ROW)]
        return _distinct(self.tables.anon_vmas.root_row[active])

    def locked(self) -> RowColumn:
        """The roots of families in which an operation is half done, or whose lock is held."""
        tables, avcs = self.tables, self.tables.avcs
        anon_vmas = set(np.flatnonzero(tables.anon_vmas.write_locked).tolist())
        for _, operations in self.audit.explained:
            for operation in operations:
                anon_vmas |= operation.anon_vmas
                if operation.vmas:
                    of_vmas = marked(len(tables.vmas.address), np.array(sorted(operation.vmas)))
                    theirs = (avcs.vma_row != NO_ROW) & of_vmas[avcs.vma_row]
                    anon_vmas |= set(avcs.anon_vma_row[theirs].tolist())
        rows = np.array(sorted(anon_vmas - {NO_ROW}), dtype=np.int64)
        return _distinct(tables.anon_vmas.root_row[rows])

    def changes(self, family: str, roots: RowColumn, source: random.Random) -> Iterator[Change]:
        """A change of each kind, each to an object of one of these families taken at random."""
        tables, era = self.tables, self.tables.era
        in_family = marked(len(tables.anon_vmas.address), roots)[tables.anon_vmas.root_row]
        in_family &= tables.anon_vmas.root_row != NO_ROW
        avc = tables.avcs.anon_vma_row
        # What is in no tree, or has none, may hold words that mean nothing any more.
        linked = (avc != NO_ROW) & in_family[avc] & (tables.avcs.vma_row != NO_ROW)
        linked &= marked(len(linked), tables.nodes.avc)
        active = tables.vmas.active
        using = (active != NO_ROW) & in_family[active] & tables.vmas.attached
        strangers = np.flatnonzero(~in_family & tables.anon_vmas.reached)
        owners = {
            "avc": (era.avc, tables.avcs.address, linked, avc),
            "vma": (era.vma, tables.vmas.address, using, active),
            "anon_vma": (
                *(era.anon_vma, tables.anon_vmas.address),
                in_family & tables.anon_vmas.reached & (tables.anon_vmas.rb_root != 0),
                np.arange(len(in_family)),
            ),
        }
        other = int(tables.anon_vmas.address[source.choice(strangers.tolist())])
        count = "degree" if era.has_degree else "num_active_vmas"
        for kind, name, value, addend in (
            # One too high is what a node leaves behind that is taken out of the tree.
            ("avc", "rb_subtree_last", None, -1),
            ("avc", "anon_vma", other, 0),
            ("vma", "anon_vma", other, 0),
            ("anon_vma", "parent", other, 0),
            ("anon_vma", count, None, 5),
        ):
            record, addresses, mask, of = owners[kind]
            rows = np.flatnonzero(mask)
            if not len(rows):
                continue
            row = source.choice(rows.tolist())
            root = int(tables.anon_vmas.root_row[of[row]])
            yield self._change(
                family, record, name, int(addresses[row]), root, value=value, addend=addend
            )

    def _change(
        self,
        family: str,
        record: Record,
        name: str,
        at: int,
        root: int,
        *,
        value: int | None,
        addend: int,
    ) -> Change:
        field = record.fields[name]
        address = at + field.offset
        old = read(self.target.memory, address, field.size)
        new = (old + addend if value is None else value) % (1 << 8 * field.size)
        related = frozenset((at, int(self.tables.anon_vmas.address[root])))
        what = f"{record.struct}.{name}"
        return Change(family, what, at, address, field.size, old, new, related)

    def found(self, change: Change) -> list[Finding]:
        """The errors about a change that an audit of the changed dump finds."""
        target = changed(self.target, change.address, change.size, change.new)
        made = audit(collect_audit(target))
        return [one for one in made.findings() if _is_about(one, change)]

    def physical(self, change: Change) -> int:
        """Where the word is in the guest's memory."""
        return (change.address - self.target.space.direct_map) % (1 << 64)


def _distinct(rows: RowColumn) -> RowColumn:
    found: RowColumn = np.unique(rows[rows != NO_ROW])
    return found


def _is_about(finding: Finding, change: Change) -> bool:
    named = {finding.object_address, finding.root, finding.word}
    return finding.severity is Severity.ERROR and bool(named & {*change.related, change.address})


def open_scene(core: Path) -> Scene:
    """Read a dump and audit it."""
    target = open_target(TargetOptions(core=str(core)))
    tables = collect_audit(target)
    return Scene(target, tables, audit(tables))


def poke(scene: Scene, seed: int) -> Iterable[tuple[Change, list[Finding]]]:
    """Change one word at a time in a dump: in the quiet family, and in one that is locked."""
    source = random.Random(seed)
    for family, roots in (("quiet", scene.quiet()), ("locked", scene.locked())):
        if len(roots):
            for change in scene.changes(family, roots, source):
                yield change, scene.found(change)
