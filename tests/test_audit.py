"""The audit of real kernels: silent on what they were, right about every word changed in them."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from anonvma_inspect import parallel
from anonvma_inspect.collect import collect_audit, save_snapshot
from anonvma_inspect.invariants.base import Finding, Severity
from anonvma_inspect.invariants.catalogue import Audit, audit
from anonvma_inspect.kernel.era import Record
from anonvma_inspect.tables import NO_ROW, Tables
from anonvma_inspect.target import TargetOptions, open_target
from anonvma_inspect.target.memory import OverlayMemory

from .captures import CAPTURES, SOME, Capture, pairs_with

BY_NAME = {capture.name: capture for capture in CAPTURES}


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda capture: capture.name)
def test_clean(capture: Capture) -> None:
    result = audit(capture.tables)
    assert not list(result.findings(20))
    assert result.complete
    # Nothing need be free, and KSM need have nothing.
    idle = {one.invariant.code for one in result.results if one.state == "ok" and not one.objects}
    assert idle <= {"AV505", "AV705", "AV706"}


def texts(result: Audit) -> list[str]:
    return [
        f"{one.invariant.code} {one.state} {one.objects} {one.reason} {one.total}"
        for one in result.results
    ] + [repr(finding) for finding in result.findings()]


def assert_equal(ours: object, theirs: object, name: str) -> None:
    """Compare tables column by column."""
    if isinstance(ours, np.ndarray):
        assert np.array_equal(ours, theirs), name  # type: ignore[arg-type]
    elif dataclasses.is_dataclass(ours) and not isinstance(ours, (type, Record)):
        for field in dataclasses.fields(ours):
            assert_equal(
                getattr(ours, field.name), getattr(theirs, field.name), f"{name}.{field.name}"
            )
    else:
        assert ours == theirs, name


@pytest.mark.parametrize("capture", SOME, ids=lambda capture: capture.name)
def test_snapshot_gives_the_same_audit(
    capture: Capture, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A fixture is a snapshot already: then this is a snapshot of a snapshot."""
    path = tmp_path_factory.mktemp("snapshot") / "again.core"
    save_snapshot(capture.target, str(path))
    again = collect_audit(open_target(TargetOptions(core=str(path))), leaks=True)
    for field in dataclasses.fields(Tables):
        if field.name not in ("era", "space"):
            assert_equal(
                getattr(again, field.name), getattr(capture.tables, field.name), field.name
            )
    assert texts(audit(again)) == texts(audit(capture.tables))


def test_threads_give_the_same_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is checked at once, where there is much of it, does not get into its own way."""
    tables = BY_NAME["forktree-6.12"].tables
    alone = texts(audit(tables))
    monkeypatch.setattr(parallel, "_WORTH_ROWS", 0)
    assert texts(audit(tables)) == alone


# --- One wrong word ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objects:
    """Seeded objects of a fixture, one for each role."""

    tables: Tables

    @functools.cached_property
    def vma(self) -> int:
        """A VMA in a fork child, with several AVCs."""
        vmas = self.tables.vmas
        fit = (vmas.chain_length >= 3) & (vmas.active != NO_ROW) & (vmas.slot != NO_ROW)
        rows = np.flatnonzero(fit)
        return int(rows[len(rows) // 2])

    @functools.cached_property
    def bare_vma(self) -> int:
        """A VMA without an anon_vma."""
        vmas = self.tables.vmas
        return int(np.flatnonzero((vmas.anon_vma == 0) & (vmas.slot != NO_ROW))[7])

    @functools.cached_property
    def other_vma(self) -> int:
        """A VMA of another family than :attr:`vma`."""
        vmas, anon_vmas = self.tables.vmas, self.tables.anon_vmas
        root = np.where(vmas.active == NO_ROW, NO_ROW, anon_vmas.root_row[vmas.active])
        mine = root[self.vma]
        return int(np.flatnonzero((root != NO_ROW) & (root != mine) & (vmas.chain_length > 1))[3])

    @functools.cached_property
    def below_another(self) -> int:
        """A VMA that ends where the next one begins."""
        slots = self.tables.slots
        fit = (slots.mm[1:] == slots.mm[:-1]) & (slots.first[1:] == slots.last[:-1] + np.uint64(1))
        return int(slots.vma[np.flatnonzero(fit)[20]])

    def next_of(self, vma: int) -> int:
        return int(self.tables.slots.vma[self.tables.vmas.slot[vma] + 1])

    @functools.cached_property
    def chain(self) -> list[int]:
        """Rows of the AVCs of :attr:`vma`, in list order."""
        links = self.tables.links
        return [int(row) for row in links.avc[links.vma == self.vma]]

    @functools.cached_property
    def leaf_node(self) -> int:
        """A node without children in a tree of many."""
        nodes = self.tables.nodes
        fit = (nodes.left == NO_ROW) & (nodes.right == NO_ROW) & (nodes.depth >= 3)
        return int(np.flatnonzero(fit)[5])

    @functools.cached_property
    def inner_node(self) -> int:
        """A node with two children that is not the root of its tree."""
        nodes = self.tables.nodes
        fit = (nodes.left != NO_ROW) & (nodes.right != NO_ROW) & (nodes.depth >= 1)
        return int(np.flatnonzero(fit)[5])

    @functools.cached_property
    def tree(self) -> int:
        """Row of an anon_vma, root of its family, with a deep tree."""
        anon_vmas, nodes = self.tables.anon_vmas, self.tables.nodes
        size = np.bincount(nodes.anon_vma, minlength=len(anon_vmas.address))
        size[anon_vmas.root_row != np.arange(len(size))] = 0
        return int(np.argmax(size))

    @functools.cached_property
    def child(self) -> int:
        """Row of an anon_vma whose parent is not its root."""
        anon_vmas = self.tables.anon_vmas
        return int(np.flatnonzero(anon_vmas.parent_row != anon_vmas.root_row)[2])

    # Addresses, in the kernel's own words.
    def vma_at(self, row: int, field: str = "") -> int:
        base = int(self.tables.vmas.address[row])
        return base + (self.tables.era.vma.offset(field) if field else 0)

    def avc_at(self, row: int, field: str = "") -> int:
        base = int(self.tables.avcs.address[row])
        return base + (self.tables.era.avc.offset(field) if field else 0)

    def node_at(self, node: int, field: str = "") -> int:
        return self.avc_at(int(self.tables.nodes.avc[node]), field)

    def anon_vma_at(self, row: int, field: str = "") -> int:
        base = int(self.tables.anon_vmas.address[row])
        return base + (self.tables.era.anon_vma.offset(field) if field else 0)

    def mm_of(self, vma: int) -> int:
        return int(self.tables.mms.address[self.tables.vmas.mm[vma]])


@dataclass(frozen=True)
class Corruption:
    """One word changed.

    :ivar word: Its address.
    :ivar change: From the old 64-bit word to the new one.
    :ivar codes: At least one finding has one of these codes ...
    :ivar objects: ... and one of these objects: the one that holds the word, or one that it
        contradicts.
    """

    name: str
    word: Callable[[Objects], int]
    change: Callable[[Objects, int], int]
    codes: str
    objects: Callable[[Objects], set[int]]
    severity: Severity = Severity.ERROR


def to(value: int) -> Callable[[Objects, int], int]:
    return lambda objects, old: value


def plus(difference: int, bits: int = 64) -> Callable[[Objects, int], int]:
    """Change the low ``bits`` of a word only: a counter that shares it with another."""
    mask = 2**bits - 1
    return lambda objects, old: (old & ~mask) | ((old + difference) & mask)


def flip(bit: int) -> Callable[[Objects, int], int]:
    return lambda objects, old: old ^ (1 << bit)


def tree_key(o: Objects) -> int:
    """Since v7.3 anonymous trees have a key of their own."""
    fields = o.tables.era.vma.fields
    return o.vma_at(o.vma, "anon_pgoff_lo" if "anon_pgoff_lo" in fields else "vm_pgoff")


def tree_of_vmas(o: Objects) -> int:
    field = "ma_root" if "ma_root" in o.tables.era.mm else "mm_rb_node"
    return o.mm_of(o.vma) + o.tables.era.mm.offset(field)


WILD = 0xFFFF000012345678 & ~7
POISON = 0xDEAD000000000122


def vma(field: str) -> Callable[[Objects], int]:
    return lambda o: o.vma_at(o.vma, field)


def avc(position: int, field: str) -> Callable[[Objects], int]:
    return lambda o: o.avc_at(o.chain[position], field)


def its_vma(o: Objects) -> set[int]:
    return {o.vma_at(o.vma)}


def its_vma_or_mm(o: Objects) -> set[int]:
    return {o.vma_at(o.vma), o.mm_of(o.vma)}


def its_avc(position: int) -> Callable[[Objects], set[int]]:
    return lambda o: {o.avc_at(o.chain[position])}


def list_neighbours(*positions: int) -> Callable[[Objects], set[int]]:
    """AVCs of the list, and the VMA that is its head."""
    return lambda o: {o.avc_at(o.chain[position]) for position in positions} | its_vma(o)


def tree(field: str) -> Callable[[Objects], int]:
    return lambda o: o.anon_vma_at(o.tree, field)


def its_tree(o: Objects) -> set[int]:
    return {o.anon_vma_at(o.tree)}


def child(field: str) -> Callable[[Objects], int]:
    return lambda o: o.anon_vma_at(o.child, field)


def its_child(o: Objects) -> set[int]:
    return {o.anon_vma_at(o.child)}


def leaf(field: str) -> Callable[[Objects], int]:
    return lambda o: o.node_at(o.leaf_node, field)


def its_leaf(o: Objects) -> set[int]:
    parent = int(o.tables.nodes.parent[o.leaf_node])
    return {o.node_at(o.leaf_node), o.node_at(parent)}


def inner(field: str) -> Callable[[Objects], int]:
    return lambda o: o.node_at(o.inner_node, field)


def its_inner(o: Objects) -> set[int]:
    nodes = o.tables.nodes
    around = (nodes.left[o.inner_node], nodes.right[o.inner_node], nodes.parent[o.inner_node])
    return {o.node_at(int(node)) for node in (o.inner_node, *around)}


def its_tree_or_inner(o: Objects) -> set[int]:
    owner = int(o.tables.nodes.anon_vma[o.inner_node])
    return its_inner(o) | {o.anon_vma_at(owner)}


def other_active(o: Objects, old: int) -> int:
    return int(o.tables.vmas.anon_vma[o.other_vma])


def of_another_root(o: Objects, old: int) -> int:
    """An anon_vma that is not of the child's family."""
    anon_vmas = o.tables.anon_vmas
    others = anon_vmas.address[anon_vmas.root_row != anon_vmas.root_row[o.child]]
    return int(others[len(others) // 2])


def other_vma(o: Objects, old: int) -> int:
    return o.vma_at(o.other_vma)


def other_list_node(o: Objects, old: int) -> int:
    links = o.tables.links
    return int(o.tables.avcs.list_node[links.avc[links.vma == o.other_vma][0]])


def itself(o: Objects, old: int) -> int:
    return old


ERROR_LISTS = "AV101 AV102"
CORRUPTIONS = [
    # vm_area_struct
    Corruption("vm_start beyond vm_end", vma("vm_start"), plus(1 << 40), "AV002", its_vma),
    Corruption("vm_start unaligned", vma("vm_start"), plus(8), "AV002", its_vma),
    # Before 6.1 the tree of VMAs has no range of its own to compare with.
    Corruption("vm_end one page up", vma("vm_end"), plus(4096), "AV002 AV205", its_vma),
    Corruption("vm_end zero", vma("vm_end"), to(0), "AV002", its_vma),
    Corruption("vm_start one page down", vma("vm_start"), plus(-4096), "AV002 AV205", its_vma),
    Corruption(
        "vm_end in the next VMA",
        lambda o: o.vma_at(o.below_another, "vm_end"),
        plus(4096),
        "AV002",
        lambda o: {o.vma_at(o.below_another), o.vma_at(o.next_of(o.below_another))},
    ),
    Corruption("vm_mm null", vma("vm_mm"), to(0), "AV001", its_vma),
    Corruption("vm_mm wild", vma("vm_mm"), to(WILD), "AV001", its_vma),
    Corruption(
        "vm_mm of another process",
        vma("vm_mm"),
        lambda o, old: o.mm_of(o.other_vma if o.mm_of(o.other_vma) != old else o.bare_vma),
        "AV001",
        its_vma,
    ),
    Corruption("tree key wraps", tree_key, to(2**64 - 1), "AV204", its_vma),
    Corruption("anon_vma null", vma("anon_vma"), to(0), "AV105", its_vma),
    Corruption("anon_vma of another", vma("anon_vma"), other_active, "AV105", its_vma),
    Corruption("anon_vma wild", vma("anon_vma"), to(WILD), "AV105", its_vma),
    Corruption("anon_vma tagged", vma("anon_vma"), flip(0), "AV601", its_vma),
    Corruption("anon_vma tagged 2", vma("anon_vma"), flip(1), "AV601", its_vma),
    Corruption(
        "anon_vma where there is none",
        lambda o: o.vma_at(o.bare_vma, "anon_vma"),
        other_active,
        "AV105",
        lambda o: {o.vma_at(o.bare_vma)},
    ),
    Corruption(
        "list head null",
        lambda o: o.vma_at(o.bare_vma, "anon_vma_chain_next"),
        to(0),
        "AV101",
        lambda o: {o.vma_at(o.bare_vma)},
    ),
    Corruption(
        "list head's prev of an empty list",
        lambda o: o.vma_at(o.bare_vma, "anon_vma_chain_prev"),
        other_list_node,
        "AV101",
        lambda o: {o.vma_at(o.bare_vma)},
    ),
    Corruption("chain next wild", vma("anon_vma_chain_next"), to(WILD), "AV101", its_vma),
    Corruption("chain prev wild", vma("anon_vma_chain_prev"), to(WILD), "AV101", its_vma),
    Corruption(
        "chain next to another list",
        vma("anon_vma_chain_next"),
        other_list_node,
        "AV101",
        list_neighbours(0),
    ),
    # anon_vma_chain
    Corruption("avc->vma null", avc(1, "vma"), to(0), "AV102", its_avc(1)),
    Corruption("avc->vma wild", avc(0, "vma"), to(WILD), "AV102", its_avc(0)),
    Corruption("avc->vma of another", avc(1, "vma"), other_vma, "AV102", its_avc(1)),
    Corruption("avc->anon_vma null", avc(1, "anon_vma"), to(0), "AV201 AV202", its_avc(1)),
    Corruption("avc->anon_vma wild", avc(1, "anon_vma"), to(WILD), "AV201 AV202", its_avc(1)),
    Corruption(
        "avc->anon_vma of another family",
        avc(1, "anon_vma"),
        other_active,
        "AV201 AV202",
        its_avc(1),
    ),
    Corruption(
        "avc->anon_vma of its neighbour",
        avc(1, "anon_vma"),
        lambda o, old: int(o.tables.avcs.anon_vma[o.chain[0]]),
        "AV103 AV202",
        its_avc(1),
    ),
    Corruption("avc->anon_vma tagged", avc(1, "anon_vma"), flip(0), "AV601 AV202", its_avc(1)),
    Corruption(
        "same_vma.next loops", avc(1, "same_vma_next"),
        lambda o, old: int(o.tables.avcs.list_node[o.chain[0]]),
        "AV101", list_neighbours(0, 1, 2),
    ),
    Corruption(
        "same_vma.next to itself", avc(1, "same_vma_next"),
        lambda o, old: int(o.tables.avcs.list_node[o.chain[1]]),
        "AV101", list_neighbours(0, 1, 2),
    ),
    Corruption("same_vma.next poisoned", avc(1, "same_vma_next"), to(POISON), "AV101", its_avc(1)),
    Corruption("same_vma.prev poisoned", avc(1, "same_vma_prev"), to(POISON), "AV101", its_avc(1)),
    Corruption(
        "same_vma.next skips one", avc(0, "same_vma_next"),
        lambda o, old: int(o.tables.avcs.list_node[o.chain[2]]),
        "AV101", list_neighbours(0, 1, 2),
    ),
    Corruption(
        "same_vma.next cuts the list off", avc(0, "same_vma_next"),
        lambda o, old: int(o.tables.vmas.chain_head[o.vma]),
        "AV101", list_neighbours(0, 1),
    ),
    Corruption("rb colour of a leaf", leaf("rb_parent_color"), flip(0), "AV203", its_leaf),
    Corruption("rb parent of a leaf", leaf("rb_parent_color"), to(WILD | 1), "AV203", its_leaf),
    Corruption("rb parent colour bit 1", leaf("rb_parent_color"), flip(1), "AV203", its_leaf),
    Corruption("rb parent of an inner node", inner("rb_parent_color"), to(1), "AV203", its_inner),
    Corruption("rb_left wild", inner("rb_left"), to(WILD), "AV203", its_inner),
    Corruption("rb_left null", inner("rb_left"), to(0), "AV203 AV201", its_tree_or_inner),
    Corruption("rb_right null", inner("rb_right"), to(0), "AV203 AV201", its_tree_or_inner),
    Corruption(
        "rb_right to itself", inner("rb_right"),
        lambda o, old: int(o.tables.avcs.rb_node[o.tables.nodes.avc[o.inner_node]]),
        "AV203", its_inner,
    ),
    Corruption("rb_subtree_last up", inner("rb_subtree_last"), plus(1), "AV205", its_inner),
    Corruption("rb_subtree_last down", leaf("rb_subtree_last"), plus(-1), "AV205", its_leaf),
    Corruption("rb_subtree_last zero", leaf("rb_subtree_last"), to(0), "AV205", its_leaf),
    # anon_vma
    Corruption("root null", child("root"), to(0), "AV301", its_child),
    Corruption("root wild", child("root"), to(WILD), "AV301", its_child),
    Corruption(
        "root of another family", child("root"), of_another_root, "AV301 AV302 AV104", its_child
    ),
    Corruption(
        "root is itself", child("root"),
        lambda o, old: o.anon_vma_at(o.child), "AV302 AV104", its_child,
    ),
    Corruption("parent null", child("parent"), to(0), "AV302", its_child),
    Corruption("parent wild", child("parent"), to(WILD), "AV302", its_child),
    Corruption(
        "parent is itself", child("parent"),
        lambda o, old: o.anon_vma_at(o.child), "AV302", its_child,
    ),
    Corruption(
        "parent of another family", child("parent"), of_another_root, "AV302 AV104", its_child
    ),
    Corruption("refcount low", tree("refcount"), plus(-1, 32), "AV403", its_tree),
    Corruption("refcount zero", child("refcount"), plus(-1, 32), "AV403", its_child),
    Corruption(
        "refcount high", tree("refcount"), plus(1, 32), "AV404", its_tree, Severity.WARNING
    ),
    Corruption("num_children up", tree("num_children"), plus(1), "AV401", its_tree),
    Corruption("num_children down", tree("num_children"), plus(-1), "AV401", its_tree),
    Corruption("num_active_vmas up", child("num_active_vmas"), plus(1), "AV402", its_child),
    Corruption("num_active_vmas down", child("num_active_vmas"), plus(-1), "AV402", its_child),
    Corruption("num_active_vmas high bit", child("num_active_vmas"), flip(63), "AV402", its_child),
    Corruption("rb_root null", tree("rb_node"), to(0), "AV201 AV206", its_tree),
    Corruption("rb_root wild", tree("rb_node"), to(WILD), "AV203", its_tree),
    Corruption("rb_root marked", tree("rb_node"), flip(0), "AV207", its_tree),
    Corruption("rb_leftmost null", tree("rb_leftmost"), to(0), "AV206", its_tree),
    Corruption("rb_leftmost wild", tree("rb_leftmost"), to(WILD), "AV206", its_tree),
    Corruption(
        "rb_leftmost is the root", tree("rb_leftmost"),
        lambda o, old: int(o.tables.anon_vmas.rb_root[o.tree]), "AV206", its_tree,
    ),
    # mm_struct
    Corruption(
        "map_count up",
        lambda o: o.mm_of(o.vma) + o.tables.era.mm.offset("map_count"),
        plus(1, 32),
        "AV002",
        lambda o: {o.mm_of(o.vma)},
    ),
    Corruption(
        "tree of VMAs wild",
        tree_of_vmas,
        to((WILD & ~0xFF) | 0xE),
        "AV002",
        lambda o: {o.mm_of(o.vma)},
    ),
]  # fmt: skip

# Where one fixture of each kernel has objects of every role.
# Where tags are legal, other rules tell of them: see test_invariants_tags, and scripts/fuzz.
CORRUPTED = [
    capture
    for capture in CAPTURES
    if capture.name.startswith("forktree-") and "anon_vma" not in capture.manifest["word"]["facts"]
]


@functools.cache
def objects_of(capture: Capture) -> Objects:
    return Objects(capture.tables)


@pytest.mark.parametrize(
    ("capture", "corruption"), pairs_with(CORRUPTIONS, CORRUPTED), ids=lambda one: one.name
)
def test_one_wrong_word(capture: Capture, corruption: Corruption) -> None:
    objects = objects_of(capture)
    address = corruption.word(objects)
    word = address & ~7
    shift = 8 * (address - word)
    rows, present = capture.target.memory.gather(np.array([word], dtype=np.uint64), 8)
    assert present.all()
    whole = int(rows.view("<u8")[0, 0])
    new = corruption.change(objects, whole >> shift) << shift | whole & (2**shift - 1)
    new %= 2**64
    assert new != whole
    overlaid = dataclasses.replace(
        capture.target, memory=OverlayMemory(capture.target.memory, {word: new})
    )
    result = audit(collect_audit(overlaid))
    findings = list(result.findings())
    right = [finding for finding in findings if is_right(finding, corruption, objects)]
    assert right, "\n".join(map(str, findings)) or "nothing found"
    assert not result.failures


def is_right(finding: Finding, corruption: Corruption, objects: Objects) -> bool:
    return (
        finding.code in corruption.codes.split()
        and finding.severity == corruption.severity
        and finding.object_address in corruption.objects(objects)
    )


def test_enough_words_are_changed() -> None:
    assert len(CORRUPTIONS) >= 30
    assert len({corruption.name for corruption in CORRUPTIONS}) == len(CORRUPTIONS)
    assert len(CORRUPTED) >= 1


@pytest.mark.skipif(
    "ANONVMA_VMLINUX" not in os.environ or "ANONVMA_CORE" not in os.environ,
    reason="needs a dump and its vmlinux: ANONVMA_CORE, ANONVMA_VMLINUX",
)
def test_dwarf_gives_the_same_answer() -> None:
    """Byte for byte, but for ``target``."""
    core, vmlinux = os.environ["ANONVMA_CORE"], os.environ["ANONVMA_VMLINUX"]
    words = ("--format", "json", "audit")
    answers = []
    for options in ([], ["-s", vmlinux]):
        ended = subprocess.run(
            [sys.executable, "-m", "anonvma_inspect", "-c", core, *options, *words],
            stdout=subprocess.PIPE,
            check=True,
        )
        answer = json.loads(ended.stdout)
        answers.append((answer.pop("target"), json.dumps(answer)))
    (btf_target, from_btf), (dwarf_target, from_dwarf) = answers
    assert from_btf == from_dwarf
    assert btf_target.pop("layouts") == "btf"
    assert dwarf_target.pop("layouts") == "dwarf"
    assert btf_target.pop("symbols") == "kallsyms"
    assert dwarf_target.pop("symbols") == "dwarf"
    assert btf_target == dwarf_target
