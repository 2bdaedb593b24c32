"""What a running kernel shows is believed if it stays, and if nobody was about to change it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from anonvma_inspect.collect import collect
from anonvma_inspect.confirm import MAX_READINGS, audit_running
from anonvma_inspect.confirm.steady import Steady
from anonvma_inspect.invariants import catalogue
from anonvma_inspect.invariants.catalogue import Audit
from anonvma_inspect.kernel.locks import LockState
from anonvma_inspect.tables import NO_ROW, Allocation

from .captures import CAPTURES, Capture
from .running import Words, field_words, running

EACH_KERNEL = [capture for capture in CAPTURES if capture.name.startswith("forktree-")]
# One without mm_lock_seq, and one with it.
TWO_KERNELS = [c for c in EACH_KERNEL if c.name in ("forktree-5.10", "forktree-6.12")]
each_kernel = pytest.mark.parametrize("capture", EACH_KERNEL, ids=lambda capture: capture.name)
two_kernels = pytest.mark.parametrize("capture", TWO_KERNELS, ids=lambda capture: capture.name)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)


class Family:
    """A family of a capture: a VMA of a process of its own, whose anon_vma is a child of others."""

    def __init__(self, capture: Capture) -> None:
        self.capture, tables = capture, capture.tables
        self.era = tables.era
        anon_vmas, vmas = tables.anon_vmas, tables.vmas
        active = vmas.active
        child = (active != NO_ROW) & (vmas.mm != NO_ROW) & (vmas.slot != NO_ROW)
        child &= anon_vmas.root_row[active] != active
        self.vma = int(np.flatnonzero(child)[0])
        self.anon_vma = int(active[self.vma])
        self.root = int(anon_vmas.root_row[self.anon_vma])
        self.mm = int(vmas.mm[self.vma])
        others = np.flatnonzero(
            (active != NO_ROW) & (anon_vmas.root_row[active] != self.root) & (vmas.mm != self.mm)
        )
        self.other_vma = int(others[0])

    def _set(self, record: str, address: int, name: str, value: int) -> Words:
        return field_words(self.capture.target, getattr(self.era, record), address, name, value)

    def wrong_count(self, more: int = 5) -> Words:
        """A corruption: of the anon_vma's VMAs there are more than its counter says."""
        anon_vmas = self.capture.tables.anon_vmas
        name = "degree" if "degree" in self.era.anon_vma else "num_active_vmas"
        value = int(getattr(anon_vmas, name)[self.anon_vma]) + more
        return self._set("anon_vma", int(anon_vmas.address[self.anon_vma]), name, value)

    @property
    def end_code(self) -> str:
        # A red-black tree of VMAs has no ranges of its own.
        return "AV205" if self.era.maple_node is None else "AV002"

    def wrong_end(self, vma: int | None = None) -> Words:
        """A corruption: a VMA that covers a page more than its trees know of."""
        vmas = self.capture.tables.vmas
        row = self.vma if vma is None else vma
        end = int(vmas.vm_end[row]) + self.era.page_size
        return self._set("vma", int(vmas.address[row]), "vm_end", end)

    def sequence(self, value: int) -> Words:
        mms = self.capture.tables.mms
        return self._set("mm", int(mms.address[self.mm]), "mm_lock_seq", value)

    def without_users(self) -> Words:
        """What a task that exits leaves of its mm while it takes it down, and after."""
        return self._set("mm", int(self.capture.tables.mms.address[self.mm]), "mm_users", 0)

    def mm_locked(self, *, for_write: bool) -> Words:
        mm = int(self.capture.tables.mms.address[self.mm])
        if "mmap_lock_readers" in self.era.mm:
            readers = 1 << 30 if for_write else (1 << 31) + 1
            return self._set("mm", mm, "mmap_lock_readers", readers)
        return self._set("mm", mm, "mmap_lock_count", 1 if for_write else 1 << 8)

    def root_locked(self) -> Words:
        root = int(self.capture.tables.anon_vmas.address[self.root])
        if "rwsem_readers" in self.era.anon_vma:
            return self._set("anon_vma", root, "rwsem_readers", 1 << 30)
        return self._set("anon_vma", root, "rwsem_count", 1)

    def flags(self, vma: int, bits: int) -> Words:
        """Something that changes in a VMA and that nothing is wrong with."""
        vmas = self.capture.tables.vmas
        flags = int(vmas.vm_flags[vma]) ^ bits
        return self._set("vma", int(vmas.address[vma]), "vm_flags", flags)


# include/linux/mm.h, v6.12: VM_SEQ_READ and VM_RAND_READ, what madvise() sets.
BITS = (0, 0x8000, 0x10000)


def audited(family: Family, views: Iterable[Words]) -> Audit:
    return audit_running(running(family.capture.target, views))


def counted(views: Iterable[Words], seen: list[int]) -> Iterator[Words]:
    for view in views:
        seen.append(len(seen))
        yield view


def codes(audit: Audit) -> set[str]:
    return {finding.code for finding in audit.findings()}


def transient(audit: Audit) -> set[str]:
    return {result.invariant.code for result in audit.transient if result.total}


@two_kernels
def test_nothing_is_read_twice_where_nothing_is_suspicious(capture: Capture) -> None:
    seen: list[int] = []
    result = audited(Family(capture), counted(itertools.repeat({}), seen))
    assert not codes(result)
    assert not result.transient
    assert len(seen) == 1


@each_kernel
def test_what_stays_is_a_finding(capture: Capture) -> None:
    """Three readings are enough where mm_lock_seq tells of writers; else it takes four."""
    family = Family(capture)
    seen: list[int] = []
    result = audited(family, counted(itertools.repeat(family.wrong_count()), seen))
    finding = next(result.findings())
    assert codes(result) == {"AV402"}
    assert finding.object_address == capture.tables.anon_vmas.address[family.anon_vma]
    assert finding.where.pid is not None
    assert not transient(result)
    assert len(seen) == (3 if "mm_lock_seq" in family.era.mm else 4)
    assert next(r for r in result.results if r.invariant.code == "AV402").state.value == "violated"


@two_kernels
def test_what_goes_is_transient(capture: Capture) -> None:
    family = Family(capture)
    result = audited(family, [family.wrong_count(), {}])
    assert not codes(result)
    assert transient(result) == {"AV402"}
    assert next(r for r in result.results if r.invariant.code == "AV402").state.value == "ok"
    assert next(result.transient[0].findings()).code == "AV402"


@two_kernels
def test_what_comes_and_goes_is_transient(capture: Capture) -> None:
    family = Family(capture)
    result = audited(family, itertools.cycle([family.wrong_count(), {}]))
    assert not codes(result)
    assert transient(result) == {"AV402"}


@two_kernels
def test_what_changes_each_time_is_transient(capture: Capture) -> None:
    family = Family(capture)
    seen: list[int] = []
    views = (family.wrong_count(5 + number % 7) for number in itertools.count())
    result = audited(family, counted(views, seen))
    assert not codes(result)
    assert transient(result) == {"AV402"}
    assert len(seen) == MAX_READINGS


def test_a_list_of_free_objects_that_is_read_while_it_changes() -> None:
    """No mm, VMA or anon_vma says of it that it rests: it has to be the same list."""
    capture = next(capture for capture in EACH_KERNEL if capture.name == "forktree-6.12")
    allocation = capture.tables.allocation
    field = capture.target.layouts.field("slab", "freelist")
    assert isinstance(allocation, Allocation)
    assert field is not None
    slab = int(allocation.slabs.address[allocation.slabs.cache == allocation.avcs.cache][1])
    wrong = (0x4141414141410000 + 8 * number for number in itertools.count())
    result = audited(Family(capture), ({slab + field.offset: word} for word in wrong))
    assert not codes(result)
    assert transient(result) == {"AV504"}
    result = audited(Family(capture), itertools.repeat({slab + field.offset: next(wrong)}))
    assert codes(result) == {"AV504"}
    assert not transient(result)


def test_a_writer_in_between() -> None:
    """The same words, but somebody had the mmap_lock for write while they were read."""
    family = Family(TWO_KERNELS[1])
    views = ({**family.wrong_end(), **family.sequence(2 * n)} for n in itertools.count())
    result = audited(family, views)
    assert not codes(result)
    assert "AV002" in transient(result)
    assert "AV002" in codes(audited(family, itertools.repeat(family.wrong_end())))


@two_kernels
def test_a_reader_of_the_mm(capture: Capture) -> None:
    """munmap downgrades its lock, and faults hold it: what an mm shows then is not at rest."""
    family = Family(capture)
    held = {**family.wrong_end(), **family.mm_locked(for_write=False)}
    result = audited(family, itertools.repeat(held))
    assert not codes(result)
    assert family.end_code in transient(result)
    # Until the lock is free for as long as three readings (four) take.
    views = itertools.chain([held] * 3, itertools.repeat(family.wrong_end()))
    assert family.end_code in codes(audited(family, views))


@two_kernels
def test_a_task_that_is_freed_while_it_is_looked_at(capture: Capture) -> None:
    """No number guards the list of tasks: what some readings show may be chance."""
    tables = capture.tables
    task = int(tables.tasks.address[len(tables.tasks.address) // 2])
    freed = field_words(capture.target, tables.era.task, task, "signal", 0xAA6)
    # Four readings agree; but a walk of the tasks alone, at once, does not.
    for chances in (3, 4, 5):
        result = audited(Family(capture), itertools.chain([freed] * chances, itertools.repeat({})))
        assert not codes(result)
        assert "AV001" in transient(result)
    assert "AV001" in codes(audited(Family(capture), itertools.repeat(freed)))


@two_kernels
def test_an_mm_that_is_another_one_each_time(capture: Capture) -> None:
    """Children of one parent get the same memory for their mm, and do the same with it."""
    family = Family(capture)
    tasks = capture.tables.tasks

    def view(number: int) -> Words:
        words = dict(family.wrong_end())
        for task in tasks.address[tasks.mm == family.mm].tolist():
            words.update(field_words(capture.target, family.era.task, task, "pid", number))
        return words

    result = audited(family, map(view, itertools.count(1000)))
    assert not codes(result)
    assert family.end_code in transient(result)
    assert family.end_code in codes(audited(family, itertools.repeat(view(1000))))


@two_kernels
@pytest.mark.parametrize("word", ["pid", "start_boottime", "self_exec_id", "ctx_id"])
def test_what_tells_a_process_from_the_one_before_it(capture: Capture, word: str) -> None:
    family = Family(capture)
    shown = catalogue.audit(collect(running(capture.target, [family.wrong_end()]).again()))
    result = next(r for r in shown.results if r.invariant.code == family.end_code)
    (group,) = [group for group in result.violations if len(group)]
    table = "mms" if word == "ctx_id" else "tasks"
    before = getattr(shown.tables, table)
    again = dataclasses.replace(before, **{word: getattr(before, word) + 1})
    for later, kept in ((before, True), (again, False)):
        steady = Steady(shown.tables, dataclasses.replace(shown.tables, **{table: later}))
        assert steady.violations(group).tolist() == [kept] * len(group)


def test_an_mm_that_is_taken_down() -> None:
    """A task was met before it gave up its mm, and the mm after: both for as long as one looks."""
    family = Family(TWO_KERNELS[1])
    result = audited(family, itertools.repeat({**family.wrong_end(), **family.without_users()}))
    assert "AV002" not in codes(result)
    assert "AV002" in transient(result)


@two_kernels
def test_a_writer_of_the_root(capture: Capture) -> None:
    family = Family(capture)
    held = {**family.wrong_count(), **family.root_locked()}
    result = audited(family, itertools.repeat(held))
    assert "AV402" not in codes(result)
    assert "AV402" in transient(result)


@two_kernels
def test_a_family_that_never_rests(capture: Capture) -> None:
    """Another object of the family changes all the time; one of another family may."""
    family = Family(capture)
    for vma, expected in ((family.vma, set()), (family.other_vma, {"AV402"})):
        bits = itertools.cycle(BITS)
        views = ({**family.wrong_count(), **family.flags(vma, next(bits))} for _ in bits)
        result = audited(family, views)
        assert codes(result) == expected
        assert transient(result) == {"AV402"} - expected


def test_what_is_new_each_time_is_not_gone_after() -> None:
    """On a busy machine each reading shows something new: only the first one's is read for."""
    family = Family(TWO_KERNELS[1])
    vmas = family.capture.tables.vmas
    seen: list[int] = []
    elsewhere = (family.wrong_end(row) for row in range(len(vmas.address)))
    assert not codes(audited(family, counted(elsewhere, seen)))
    assert len(seen) == 2


@two_kernels
def test_the_same_of_two_words(capture: Capture) -> None:
    """Rules that look at several words of an object say the same of each."""
    family = Family(capture)
    avcs, record = capture.tables.avcs, family.era.avc
    rows = np.flatnonzero(avcs.anon_vma_row == family.anon_vma)[:1].tolist()
    rows += np.flatnonzero(avcs.vma_row == family.other_vma)[:1].tolist()
    words: dict[int, int] = {}
    for row, name in zip(rows, ("vma", "anon_vma"), strict=True):
        address, value = int(avcs.address[row]), int(getattr(avcs, name)[row]) | 1
        words.update(field_words(capture.target, record, address, name, value))
    result = audited(family, itertools.repeat(words))
    tagged = [f.object_address for f in result.findings() if f.code == "AV601"]
    assert sorted(tagged) == sorted(int(avcs.address[row]) for row in rows)
    assert "AV601" not in transient(result)


def test_one_of_two() -> None:
    """A finding neither waits for a suspicion in another place, nor vouches for it."""
    family = Family(TWO_KERNELS[1])
    views = (
        {**family.wrong_count(), **(family.wrong_end(family.other_vma) if number % 2 == 0 else {})}
        for number in itertools.count()
    )
    result = audited(family, views)
    assert codes(result) == {"AV402"}
    assert family.end_code in transient(result)


KSM = next(capture for capture in CAPTURES if capture.name == "pages-6.1")


@pytest.mark.parametrize("turns", [False, True], ids=["ksmd sleeps", "ksmd works"])
def test_a_list_of_ksm(turns: bool) -> None:
    """No lock tells of ksmd: what it is at work on shows by what else changes there."""
    tables = KSM.tables
    records, items = tables.ksm.records, tables.rmap_items
    assert records is not None
    node = int(tables.stable_nodes.address[items.node[0]])
    longer = int(tables.stable_nodes.rmap_hlist_len[items.node[0]]) + 1
    wrong = field_words(KSM.target, records.stable_node, node, "rmap_hlist_len", longer)
    page = int(items.page[0])
    views = (
        # mm/ksm.c: the low byte of an rmap_item's address counts ksmd's rounds.
        {
            **wrong,
            **field_words(
                KSM.target,
                records.rmap_item,
                int(items.address[0]),
                "address",
                page ^ (number & 0xFF if turns else 0),
            ),
        }
        for number in itertools.count()
    )
    result = audit_running(running(KSM.target, views))
    assert codes(result) == (set() if turns else {"AV705"})
    assert transient(result) == ({"AV705"} if turns else set())


def test_a_list_of_ksm_of_which_nothing_was_met() -> None:
    """Seen of 6.12 in mid-storm: the same node, in use again, with another list each time."""
    tables = KSM.tables
    records = tables.ksm.records
    assert records is not None
    node = int(tables.stable_nodes.address[0])
    lost = field_words(KSM.target, records.stable_node, node, "hlist_first", node)
    result = audit_running(running(KSM.target, itertools.repeat(lost)))
    assert "AV705" not in codes(result)
    assert "AV705" in transient(result)


def test_lock_words_of_the_tests_are_what_they_say() -> None:
    for capture in EACH_KERNEL:
        family = Family(capture)
        held = running(capture.target, [{**family.root_locked()}]).again()
        tables = collect(held)
        assert tables.anon_vmas.lock_state[family.root] == LockState.WRITER
        assert tables.mms.lock_free[family.mm]
        for for_write in (False, True):
            words = family.mm_locked(for_write=for_write)
            mms = collect(running(capture.target, [words]).again()).mms
            assert mms.write_locked[family.mm] == for_write
            assert not mms.lock_free[family.mm]
