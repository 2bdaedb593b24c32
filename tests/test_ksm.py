"""KSM's references to anon_vmas: as many as the guest says, and no trust in what leads to them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import drgn
import numpy as np
import pytest

from anonvma_inspect.collect import collect, collect_from, save_snapshot
from anonvma_inspect.helpers import open_core
from anonvma_inspect.invariants.base import Severity, State
from anonvma_inspect.invariants.catalogue import Audit, audit
from anonvma_inspect.kernel.era import Record
from anonvma_inspect.kernel.ksm import KsmRecords
from anonvma_inspect.tables import NO_ROW, Tables
from anonvma_inspect.target import Target, TargetOptions, open_target
from anonvma_inspect.target.layouts import Field, Layouts
from anonvma_inspect.target.memory import BoolColumn, ByteRows, Memory, OverlayMemory, U64Column

from .captures import CAPTURES, Capture, few_or_all

WILD = 0x4141414141414148

MERGED = [
    capture for capture in CAPTURES if "ksm_pages_shared" in capture.manifest["word"]["facts"]
]
PAGES = [capture for capture in MERGED if capture.manifest["workload"] == "pages"]
FULL = [capture for capture in PAGES if capture.target.walks is None]

pages = pytest.mark.parametrize("capture", PAGES, ids=lambda capture: capture.name)


def state(audited: Audit, code: str) -> State:
    return next(result.state for result in audited.results if result.invariant.code == code)


# ---- what the guest says


def test_there_are_captures() -> None:
    # With one tree for all nodes of the machine, and with one each.
    facts = [capture.manifest["word"]["facts"] for capture in PAGES]
    assert {fact["ksm_merge_across_nodes"] for fact in facts} == {"0", "1"}
    assert any(int(fact["ksm_stable_node_chains"]) for fact in facts)
    names = {capture.tables.ksm.records.rmap_item.struct for capture in PAGES}  # type: ignore[union-attr]  # None fails the test
    assert names == {"rmap_item", "ksm_rmap_item"}


@pytest.mark.parametrize("capture", MERGED, ids=lambda capture: capture.name)
def test_as_many_as_the_kernel_counts(capture: Capture) -> None:
    # Documentation/admin-guide/mm/ksm.rst: pages_shared is how many merged pages there are,
    # pages_sharing how many more places they are mapped in.
    tables, facts = capture.tables, capture.manifest["word"]["facts"]
    shared, sharing = int(facts["ksm_pages_shared"]), int(facts["ksm_pages_sharing"])
    assert tables.ksm.missing is None
    assert len(tables.stable_nodes.address) == shared
    assert len(tables.rmap_items.address) == shared + sharing
    assert tables.rmap_items.settled.all()


@pages
def test_as_many_as_each_process_counts(capture: Capture) -> None:
    tables, items = capture.tables, capture.tables.rmap_items
    log = {event["event"]: event for event in capture.manifest["word"]["log"]}
    each = capture.manifest["parameters"]["pages"]
    for process in capture.manifest["word"]["processes"]:
        # 5.10 does not count them.
        if "ksm" not in process:
            continue
        row = np.flatnonzero(tables.tasks.tgid == process["tgid"])[0]
        assert np.count_nonzero(items.mm_row == tables.tasks.mm[row]) == process["ksm"]
    # One process, and its child, are gone since.
    assert log["ksm"]["left"] not in tables.tasks.tgid
    gone = items.mm_row == NO_ROW
    assert len(np.unique(items.mm[gone])) == 2
    assert np.count_nonzero(gone) == 2 * each


@pages
def test_what_only_ksm_holds(capture: Capture) -> None:
    tables, items = capture.tables, capture.tables.rmap_items
    anon_vmas = tables.anon_vmas
    held = np.unique(items.anon_vma_row[items.mm_row == NO_ROW])
    assert len(held) == 2
    assert anon_vmas.reached[held].all()
    assert not anon_vmas.rb_root[held].any()
    # fork made one out of the other.
    (root,) = held[anon_vmas.root_row[held] == held]
    (child,) = held[anon_vmas.root_row[held] != held]
    assert anon_vmas.root_row[child] == root
    each = capture.manifest["parameters"]["pages"]
    assert anon_vmas.refcount[child] == each
    assert anon_vmas.refcount[root] == each + 1


@pages
def test_references_are_exact(capture: Capture) -> None:
    audited = audit(capture.tables)
    assert not list(audited.findings())
    assert {state(audited, code) for code in ("AV403", "AV404", "AV705", "AV706")} == {State.OK}


@pytest.mark.parametrize("capture", FULL, ids=lambda capture: capture.name)
def test_the_other_way_round(capture: Capture) -> None:
    """From ``ksm_mm_head`` over the mms to all their rmap_items, with nothing but drgn."""
    system_map = capture.core.with_suffix(".map")
    prog = open_core(capture.core, system_map=system_map if system_map.exists() else None)
    try:
        type_, node = prog.type("struct ksm_mm_slot"), "slot.mm_node"
    except LookupError:
        type_, node = prog.type("struct mm_slot"), "mm_list"
    offset = drgn.offsetof(type_, node)
    head = prog.symbol("ksm_mm_head").address + offset
    found = {}
    at = prog.read_u64(head)
    while at != head:
        item = drgn.Object(prog, type_, address=at - offset).rmap_list
        while item:
            if item.address & 0x200:
                found[int(item)] = int(item.anon_vma)
            item = item.rmap_list
        at = prog.read_u64(at)
    items = capture.tables.rmap_items
    assert dict(zip(items.address.tolist(), items.anon_vma.tolist(), strict=True)) == found


# ---- a part of it


@pages
def test_one_process(capture: Capture) -> None:
    whole = capture.tables
    process = next(p for p in capture.processes() if p["comm"] == "ksm-breaker")
    tables = collect(capture.target, [process["pid"]])
    items = tables.rmap_items
    # The breaker's pages are its own family's, and no other process is in that.
    mm = np.flatnonzero(whole.tasks.tgid == process["tgid"])[0]
    of_process = whole.rmap_items.mm_row == whole.tasks.mm[mm]
    assert set(items.address.tolist()) == set(whole.rmap_items.address[of_process].tolist())
    assert items.settled.all()
    assert not list(audit(tables).findings())


@pages
def test_one_that_only_ksm_holds(capture: Capture) -> None:
    whole = capture.tables
    items = whole.rmap_items
    for row in np.unique(items.anon_vma_row[items.mm_row == NO_ROW]):
        tables = collect_from(capture.target, anon_vmas=[int(whole.anon_vmas.address[row])])
        # The whole family, whichever of both was named.
        assert len(tables.anon_vmas.address) == 2
        assert len(tables.rmap_items.address) == 2 * capture.manifest["parameters"]["pages"]
        assert not list(audit(tables).findings())


@pages
def test_snapshot_of_a_snapshot(capture: Capture, tmp_path: object) -> None:
    path = f"{tmp_path}/again.core"
    save_snapshot(capture.target, path)
    again = collect(open_target(TargetOptions(core=path)))
    assert again.ksm.missing is None
    assert np.array_equal(again.rmap_items.anon_vma, capture.tables.rmap_items.anon_vma)


# ---- where it cannot be known


def a_capture() -> Capture:
    """One with a tree for each node, whose heads are in memory that KSM allocated."""
    return next(
        capture
        for capture in PAGES
        if capture.manifest["word"]["facts"]["ksm_merge_across_nodes"] == "0"
    )


def test_older_snapshots_say_nothing() -> None:
    target = next(c for c in CAPTURES if c.name == "forktree-6.12").target
    tables = collect(replace(target, walks=frozenset({"audit"})))
    assert tables.ksm.missing == "not in this snapshot"
    audited = audit(tables)
    assert audited.complete
    assert state(audited, "AV404") is State.OK
    for code in ("AV705", "AV706"):
        result = next(r for r in audited.results if r.invariant.code == code)
        assert (result.state, result.reason) == (
            State.NOT_CHECKED,
            "what KSM holds is not known: not in this snapshot",
        )


class NoKsm:
    """The types of a kernel that was built without KSM, or one that calls a member otherwise."""

    def __init__(self, layouts: Layouts, *, lacks: str = "") -> None:
        self._layouts, self._lacks = layouts, lacks

    @property
    def source(self) -> str:
        return self._layouts.source

    def size(self, name: str) -> int | None:
        return None if "rmap_item" in name and not self._lacks else self._layouts.size(name)

    def field(self, name: str, path: str) -> Field | None:
        return None if path == self._lacks else self._layouts.field(name, path)

    def enumerator(self, name: str) -> int | None:
        return self._layouts.enumerator(name)


def surplus(tables: Tables) -> list[str]:
    """What AV404 says; nothing else may be found."""
    audited = audit(tables)
    assert not audited.failures
    assert {finding.code for finding in audited.findings()} == {"AV404"}
    return sorted({finding.message for finding in audited.findings()})


def test_built_without_it() -> None:
    target = a_capture().target
    tables = collect(replace(target, layouts=NoKsm(target.layouts)))
    assert tables.ksm.records is None
    assert tables.ksm.missing is None
    # That there are references all the same, is then a leak.
    assert surplus(tables) == ["an anon_vma has more references than are known"]


def test_a_member_is_not_there() -> None:
    target = a_capture().target
    tables = collect(replace(target, layouts=NoKsm(target.layouts, lacks="hlist_dup")))
    assert tables.ksm.missing == "ksm_stable_node.hlist_dup not found"
    assert surplus(tables) == [
        "an anon_vma has more references than are known, and KSM may hold them "
        "(ksm_stable_node.hlist_dup not found)"
    ]


@pytest.mark.parametrize("name", ["root_stable_tree", "ksm_nr_node_ids", "migrate_nodes"])
def test_a_symbol_is_not_there(name: str) -> None:
    target = a_capture().target
    symbols = {key: value for key, value in target.symbols.items() if key != name}
    symbols.pop("one_stable_tree", None)
    tables = collect(replace(target, symbols=symbols))
    assert tables.ksm.missing == f"the symbol {name} was not found"
    audited = audit(tables)
    assert audited.totals[Severity.ERROR] == 0
    if name == "root_stable_tree":
        assert state(audited, "AV706") is State.NOT_CHECKED
        assert surplus(tables)
    else:
        # What was found is judged.
        assert state(audited, "AV706") is State.OK


# ---- what cannot be right


def place(record: Record, address: int, name: str) -> int:
    return address + record.offset(name)


def with_words(target: Target, words: dict[int, int]) -> Target:
    return replace(target, memory=OverlayMemory(target.memory, words))


def records(tables: Tables) -> KsmRecords:
    assert tables.ksm.records is not None
    return tables.ksm.records


def longest(tables: Tables) -> tuple[int, list[int]]:
    """A stable node with several rmap_items, and these, by address."""
    row = int(np.argmax(tables.stable_nodes.listed))
    items = tables.rmap_items.address[tables.rmap_items.node == row]
    return int(tables.stable_nodes.address[row]), [int(item) for item in items]


@pytest.mark.parametrize("to", [0, 1, 2])
def test_list_that_goes_round(to: int) -> None:
    target, tables = a_capture().target, a_capture().tables
    record = records(tables).rmap_item
    _, items = longest(tables)
    word = place(record, items[0], "hlist_next")
    places = [place(record, item, "hlist") for item in items]
    (row,), _ = target.memory.gather(np.array([word], dtype=np.uint64), 8)
    others = [at for at in places if at != int.from_bytes(row.tobytes(), "little")]
    words = {word: others[to]}
    audited = audit(collect(with_words(target, words)))
    assert not audited.failures
    assert audited.totals[Severity.ERROR] == 0
    # Round, or past some of them: either way they are not as many as the node says.
    assert state(audited, "AV705") is State.WARNED


@pytest.mark.parametrize("value", [WILD, 0xDEAD000000000100, 8])
def test_list_that_leads_astray(value: int) -> None:
    target, tables = a_capture().target, a_capture().tables
    record = records(tables).stable_node
    node, items = longest(tables)
    broken = collect(with_words(target, {place(record, node, "hlist"): value}))
    assert broken.ksm.missing == "a list of rmap_items breaks off"
    assert not set(items) & set(broken.rmap_items.address.tolist())
    audited = audit(broken)
    assert audited.totals[Severity.ERROR] == 0
    assert state(audited, "AV705") is State.WARNED
    # What these rmap_items hold is not known: no leak, then.
    assert state(audited, "AV404") is State.NOT_CHECKED


@pytest.mark.parametrize("name", ["rb_left", "rb_right"])
def test_stable_tree_that_goes_round(name: str) -> None:
    target, tables = a_capture().target, a_capture().tables
    record = records(tables).stable_node
    head = int.from_bytes(read(target, target.symbols["root_stable_tree"]), "little")
    top = int.from_bytes(read(target, head), "little") - record.offset("rb")
    for to in (place(record, top, "rb"), WILD, 0x10):
        broken = collect(with_words(target, {place(record, top, name): to}))
        assert broken.ksm.missing == "the stable tree is not whole"
        audited = audit(broken)
        assert not audited.failures
        assert {finding.code for finding in audited.findings()} <= {"AV404"}


@pytest.mark.parametrize("symbol", ["root_stable_tree", "ksm_nr_node_ids", "migrate_nodes"])
@pytest.mark.parametrize("value", [0, WILD, 2**64 - 8, "itself"])
def test_heads_that_cannot_be_right(symbol: str, value: int | str) -> None:
    target = a_capture().target
    at = target.symbols[symbol]
    word = at if isinstance(value, str) else value
    tables = collect(with_words(target, {at - at % 8: word}))
    audited = audit(tables)
    assert not audited.failures
    assert audited.totals[Severity.ERROR] == 0
    # A list_head that leads to itself is an empty list.
    assert tables.ksm.missing is not None or (symbol, value) == ("migrate_nodes", "itself")


def read(target: Target, address: int, size: int = 8) -> bytes:
    rows, present = target.memory.gather(np.array([address], dtype=np.uint64), size)
    assert present.all()
    return rows.tobytes()


def test_refcount_of_a_real_one() -> None:
    capture = a_capture()
    target, tables = capture.target, capture.tables
    items, anon_vmas = tables.rmap_items, tables.anon_vmas
    field = tables.era.anon_vma.fields["refcount"]
    for row in np.unique(items.anon_vma_row):
        at = int(anon_vmas.address[row]) + field.offset
        word = int.from_bytes(read(target, at - at % 8), "little")
        for change, code in ((-1, "AV403"), (1, "AV404")):
            changed = {at - at % 8: word + (change << 8 * (at % 8))}
            (finding,) = audit(collect(with_words(target, changed))).findings()
            assert (finding.code, finding.word) == (code, at)


@pytest.mark.parametrize("value", [WILD, 0, "mm", "node", "inside"])
def test_rmap_item_that_leads_to_no_anon_vma(value: int | str) -> None:
    capture = a_capture()
    target, tables = capture.target, capture.tables
    items = tables.rmap_items
    for row in (0, int(np.flatnonzero(items.mm_row == NO_ROW)[0])):
        others = {
            "mm": int(items.mm[row]),
            "node": int(items.head[row]),
            "inside": int(items.anon_vma[row]) + 8,
        }
        word = others[value] if isinstance(value, str) else value
        at = place(records(tables).rmap_item, int(items.address[row]), "anon_vma")
        audited = audit(collect(Holes.filled(with_words(target, {at: word}))))
        assert not audited.failures
        (finding,) = audited.findings()
        assert (finding.code, finding.word) == ("AV706", at)


class Holes:
    """Memory without holes: what a snapshot lacks is zeros, as in a dump that was filled up."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def gather(self, addresses: U64Column, size: int) -> tuple[ByteRows, BoolColumn]:
        rows, present = self._memory.gather(addresses, size)
        return rows, present | (addresses >= np.uint64(1 << 63))

    def uncached(self) -> Memory:
        return self

    @staticmethod
    def filled(target: Target) -> Target:
        return replace(target, memory=Holes(target.memory))


def wrong_words(tables: Tables, rng: random.Random) -> Iterator[dict[int, int]]:
    ksm = records(tables)
    every = [*tables.rmap_items.address.tolist(), *tables.stable_nodes.address.tolist()]
    links = [*every, *(address + ksm.rmap_item.offset("hlist") for address in every)]
    for _ in range(few_or_all(60, 150)):
        address = rng.choice(every) + 8 * rng.randrange(8)
        yield {address: rng.choice([rng.choice(links), WILD, 0, 2**64 - 1, rng.getrandbits(64)])}


def test_any_wrong_word_of_ksm() -> None:
    capture = a_capture()
    for words in wrong_words(capture.tables, random.Random(1)):
        audited = audit(collect(with_words(capture.target, words)))
        assert not audited.failures
        # An error only of an rmap_item, or of the anon_vma that it then leads to.
        errors = [f for f in audited.findings() if f.severity is Severity.ERROR]
        assert {finding.code for finding in errors} <= {"AV403", "AV706"}
        assert len(errors) <= 1
