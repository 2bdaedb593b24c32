"""One change, put to an audit, and what its answer is worth."""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass

import numpy as np

from anonvma_inspect.collect import collect_audit
from anonvma_inspect.in_flight import audit
from anonvma_inspect.invariants.base import Finding, Severity

from .harmless import harmless, needs_pages
from .subjects import UNMAPPED
from .verbs import Change
from .words import changed, read

__all__ = ("Cell", "Outcome", "judge")

#: An audit of a fixture takes a twentieth of a second.
_SECONDS = 10


class Outcome(str, enum.Enum):
    """What became of a change; the values are the matrix' letters."""

    ERROR = "E"
    WARNING = "w"
    HARMLESS = "."
    NEEDS_PAGES = "p"
    MISSED = "!"


@dataclass(frozen=True)
class Cell:
    """A change, and what became of it.

    :ivar codes: Of the findings that are about the word.
    :ivar reason: Of one that is harmless, why; of others, what was answered.
    :ivar first_is_right: The first finding names an object that the word has to do with.
    :ivar findings: How many there were.
    """

    change: Change
    outcome: Outcome
    codes: tuple[str, ...] = ()
    reason: str = ""
    first_is_right: bool = True
    findings: int = 0

    def __str__(self) -> str:
        change = self.change
        return (
            f"{change.subject} {change.role} {change.verb}: {change.address:#x} "
            f"{change.old:#x} -> {change.new:#x}: {self.reason}"
        )


# Which families of invariants are about a word.
_FAMILIES = {
    "vma.vm_start": "AV0 AV2",
    "vma.vm_end": "AV0 AV2",
    "vma.vm_pgoff": "AV2",
    "vma.anon_pgoff_lo": "AV2",
    "vma.anon_pgoff_hi": "AV2",
    "vma.anon_vma": "AV1 AV4 AV5 AV6",
    "vma.root_refs": "AV6",
    "vma.anon_vma_chain_next": "AV1",
    "vma.anon_vma_chain_prev": "AV1",
    "avc.vma": "AV1 AV2 AV5 AV6",
    "avc.anon_vma": "AV1 AV2 AV5 AV6",
    "avc.same_vma_next": "AV1",
    "avc.same_vma_prev": "AV1",
    "anon_vma.root": "AV1 AV3 AV5 AV6",
    # Where an ancestor or another of the chain is named, num_children alone has it otherwise.
    "anon_vma.parent": "AV1 AV3 AV4 AV5 AV6",
    "anon_vma.refcount": "AV4 AV5",
    "anon_vma.num_children": "AV4",
    "anon_vma.num_active_vmas": "AV4",
    "anon_vma.degree": "AV4",
    "anon_vma.rb_node": "AV2",
    "anon_vma.rb_leftmost": "AV2",
}
_REST = {"vma": "AV0", "avc": "AV2", "anon_vma": "AV2 AV3", "mm": "AV0"}


def _is_right(finding: Finding, change: Change, related: set[int]) -> bool:
    families = _FAMILIES.get(str(change.subject), _REST[change.subject.kind])
    if change.role == UNMAPPED:
        # Whoever leads to it finds no VMA there, or one of another mm.
        families += " AV6"
    return finding.code[:3] in families.split() and (
        finding.word == change.place or finding.object_address in related
    )


def judge(change: Change) -> Cell:
    """Audit with one change, and tell what became of it."""
    if change.new == change.old:
        return Cell(change, Outcome.HARMLESS, reason=harmless(change) or "")
    begun = time.process_time()
    try:
        target = changed(change.target, change.place, change.size, change.new)
        tables = collect_audit(target, leaks=True)
        result = audit(tables)
        findings = list(result.findings(50))
    except Exception as error:
        return Cell(change, Outcome.MISSED, reason=f"{type(error).__name__}: {error}")
    taken = time.process_time() - begun
    for failed in result.failures:
        return Cell(change, Outcome.MISSED, reason=f"{failed.invariant.code}: {failed.reason}")
    if taken > _SECONDS:
        return Cell(change, Outcome.MISSED, reason=f"took {taken:.0f} seconds")
    related = _related(change)
    right = [finding for finding in findings if _is_right(finding, change, related)]
    said = "; ".join(_text(finding) for finding in findings[:4])
    reason = harmless(change)
    if findings and (reason is not None or not right):
        # What is harmless must not be reported: either the predicate is wrong, or the finding.
        why = f"{said} (yet harmless: {reason})" if reason is not None else said
        return Cell(change, Outcome.MISSED, reason=why, findings=len(findings))
    if right:
        worst = any(finding.severity is Severity.ERROR for finding in right)
        return Cell(
            change,
            Outcome.ERROR if worst else Outcome.WARNING,
            tuple(dict.fromkeys(finding.code for finding in right)),
            said,
            findings[0].word == change.place or findings[0].object_address in related,
            len(findings),
        )
    if reason is not None:
        return Cell(change, Outcome.HARMLESS, reason=reason)
    unseen = needs_pages(change)
    if unseen is not None:
        return Cell(change, Outcome.NEEDS_PAGES, reason=unseen)
    incomplete = "" if tables.complete else f" (incomplete: {len(tables.holes.address)} holes)"
    return Cell(change, Outcome.MISSED, reason=f"nothing found{incomplete}")


def _text(finding: Finding) -> str:
    return f"{finding.code} {finding.object_type} {finding.object_address:#x} {finding.message}"


# The object, and those that its words can contradict: what it and what the change lead to, and what
# leads to it.
def _related(change: Change) -> set[int]:
    tables, era = change.population.tables, change.population.tables.era
    vmas, avcs, anon_vmas = tables.vmas, tables.avcs, tables.anon_vmas
    related = {change.address}
    kind, member = change.subject.leads_to
    for value in (change.old, change.new):
        if change.subject.name.endswith("parent_color"):
            value &= ~3
        if member is not None:
            value -= change.population.record(kind).offset(member)
        related |= {value, value & ~7}
        if member == "same_vma":
            head = value + era.avc.offset("same_vma") - era.vma.offset("anon_vma_chain")
            related.add(head)
    at = np.uint64(change.address)
    if change.subject.kind == "avc":
        avc = int(np.searchsorted(avcs.address, at))
        related |= {int(avcs.vma[avc]), int(avcs.anon_vma[avc])}
        words = (avcs.rb_left[avc], avcs.rb_right[avc], avcs.rb_parent_color[avc] & ~np.uint64(3))
        related |= {int(word) - era.avc.offset("rb") for word in words if word}
    elif change.subject.kind == "vma":
        vma = int(np.searchsorted(vmas.address, at))
        related.add(int(vmas.vm_mm[vma]))
        # Those that have it as their root VMA.
        related |= set(vmas.address[vmas.anon_vma_pointer == at].tolist())
        related |= set(avcs.address[avcs.vma == at].tolist())
        for name in ("vm_rb_left", "vm_rb_right", "vm_rb_parent_color"):
            if name in era.vma:
                field = era.vma.fields[name]
                word = read(change.target.memory, change.address + field.offset, field.size)
                related.add((word & ~3) - era.vma.offset("vm_rb"))
        # Of two neighbours in a tree that are out of order, either may be the wrong one.
        home, tree = avcs.vma_row[tables.nodes.avc], tables.nodes.anon_vma
        for node in np.flatnonzero(home == vma).tolist():
            for other in (node - 1, node + 1):
                if 0 <= other < len(home) and tree[other] == tree[node] and home[other] >= 0:
                    related.add(int(vmas.address[home[other]]))
        slot = int(vmas.slot[vma])
        for other in (slot - 1, slot + 1):
            if 0 <= other < len(tables.slots.pointer):
                related.add(int(tables.slots.pointer[other]))
    elif change.subject.kind == "anon_vma":
        row = int(np.searchsorted(anon_vmas.address, at))
        related |= {int(anon_vmas.root[row]), int(anon_vmas.parent[row])}
    return related
