"""``locks``: what it answers, and what it makes of locks whose words are wrong."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import anonvma_inspect.target
from anonvma_inspect.cli.session import target_facts
from anonvma_inspect.collect import collect, collect_locks, functions_on_stacks
from anonvma_inspect.kernel.locks import LockRecords, resolve_locks
from anonvma_inspect.report.locks import LocksReport, chosen_locks
from anonvma_inspect.report.style import PLAIN
from anonvma_inspect.tables import NO_ROW, LockKind, Locks, OwnerState, Tables
from anonvma_inspect.target import Target
from anonvma_inspect.target.memory import AddressSpace, Memory, OverlayMemory

from .captures import FIXTURES, Capture
from .clirun import Cli

# The waiters of the first are on a list with a head, those of the second in a ring, those of the
# third in trees.
HELD = [
    Capture(FIXTURES / "locks" / f"{name}.core.xz", FIXTURES / "locks" / f"{name}.json")
    for name in ("locks-6.1", "locks-7.3", "locks-6.12-rt")
]
WILD = 0xFFFFDEAD00000000


class Kernel:
    """One of them, and where its words are."""

    def __init__(self, capture: Capture) -> None:
        self.target = capture.target
        self.read: Tables = collect(self.target)
        self.tables: Tables = collect_locks(self.target, self.read)
        records = resolve_locks(self.target.layouts)
        assert records is not None
        self.records: LockRecords = records
        #: The lock that most tasks wait for: that of a root anon_vma.
        self.root = int(np.argmax(self.locks.rwsems.waiters))
        assert self.locks.rwsems.kind[self.root] == LockKind.ANON_VMA

    @property
    def mmap(self) -> int:
        """The mmap_lock of the one who holds that."""
        return self.mmap_lock(int(self.locks.rwsems.owner_task[self.root]))

    @property
    def locks(self) -> Locks:
        assert self.tables.locks is not None
        return self.tables.locks

    def mmap_lock(self, task: int) -> int:
        """Row of the mmap_lock of a task's mm."""
        rwsems = self.locks.rwsems
        own = (rwsems.kind == LockKind.MMAP_LOCK) & (rwsems.row == self.locks.tasks.mm[task])
        return int(np.flatnonzero(own)[0])

    def waiters(self, lock: int) -> list[int]:
        """Addresses of what is queued for it."""
        waiters = self.locks.waiters
        return [int(address) for address in waiters.address[waiters.lock == lock]]

    def waiting_task(self, lock: int, place: int) -> int:
        """Row of one who waits for it."""
        waiters = self.locks.waiters
        return int(waiters.task[waiters.lock == lock][place])

    def word(self, lock: int, name: str) -> int:
        """Address of a field of its ``rw_semaphore``."""
        return int(self.locks.rwsems.address[lock]) + self.records.rwsem.offset(name)

    def first(self, lock: int) -> int:
        """Address of the word that leads to the first who waits."""
        ring = "first_waiter" in self.records.rwsem
        return self.word(lock, "first_waiter" if ring else "wait_list_next")

    def entry(self, address: int, name: str) -> int:
        """Address of a field of an ``rwsem_waiter``."""
        assert self.records.waiter is not None
        return address + self.records.waiter.offset(name)


*KERNELS, REALTIME = [Kernel(capture) for capture in HELD]
each = pytest.mark.parametrize("kernel", KERNELS, ids=[capture.name for capture in HELD[:2]])


def broken(kernel: Kernel, words: dict[int, int]) -> Target:
    """The kernel with some of its words changed."""
    return dataclasses.replace(kernel.target, memory=OverlayMemory(kernel.target.memory, words))


def answer(kernel: Kernel, words: dict[int, int], *pids: int, idle: bool = False) -> Any:
    """The answer for programs, and under ``text`` that for people, of a kernel so changed."""
    target = broken(kernel, words)
    tables = collect_locks(target, kernel.read)
    assert tables.locks is not None
    functions = functions_on_stacks(
        target, tables.locks.tasks, np.arange(len(tables.locks.tasks.address))
    )
    rows = chosen_locks(tables, pids, idle=idle)
    report = LocksReport(target_facts(target, tables), tables, rows, functions)
    document: Any = report.document()
    json.dumps(document)
    return {**document, "text": "\n".join(report.text(PLAIN))}


def entry_of(document: Any, kernel: Kernel, lock: int) -> Any:
    address = f"{int(kernel.locks.rwsems.address[lock]):#x}"
    return next(entry for entry in document["locks"] if entry["address"] == address)


@each
def test_most_waiters_come_first(kernel: Kernel) -> None:
    document = answer(kernel, {})
    assert document["complete"]
    found = [
        (-entry["waiters_total"], -max([w["waited_ms"] for w in entry["waiters"]], default=-1))
        for entry in document["locks"]
    ]
    assert found == sorted(found)
    assert document["locks"][0]["object"]["address"] == (
        f"{int(kernel.tables.anon_vmas.address[kernel.locks.rwsems.row[kernel.root]]):#x}"
    )
    assert document["counts"]["waiting"] == len(kernel.locks.waiters.task)
    assert document["deadlocks"] == []
    assert all(entry["state"] != "idle" for entry in document["locks"])


@each
def test_all(kernel: Kernel) -> None:
    document = answer(kernel, {}, idle=True)
    assert len(document["locks"]) == document["counts"]["locks"] == len(kernel.locks.rwsems.row)
    assert {entry["state"] for entry in document["locks"]} >= {"idle", "writer"}


@each
def test_those_of_one_process(kernel: Kernel) -> None:
    """What it holds, what it waits for, its mmap_lock, and its families."""
    task = kernel.waiting_task(kernel.root, 0)
    pid = int(kernel.locks.tasks.tgid[task])
    document = answer(kernel, {}, pid)
    entry_of(document, kernel, kernel.root)
    if kernel.locks.tasks.mm[task] != NO_ROW:
        entry_of(document, kernel, kernel.mmap_lock(task))
    for entry in document["locks"]:
        tasks = [entry["owner"] or {"pid": None}, *entry["waiters"]]
        if entry["kind"] == "mmap_lock" and entry["pid"] != pid:
            assert pid in [task["pid"] for task in tasks]
    # A process that has nothing to do with the family.
    assert len(document["locks"]) < len(answer(kernel, {})["locks"])


@each
def test_a_chain_of_locks(kernel: Kernel) -> None:
    """Whoever waits for the mmap_lock of one who waits for the root's lock waits for both."""
    rwsems, tasks = kernel.locks.rwsems, kernel.locks.tasks
    document = answer(kernel, {})
    root = entry_of(document, kernel, kernel.root)
    behind = 0
    for lock in np.flatnonzero(rwsems.owner_state == OwnerState.WRITER):
        if tasks.waits_for[rwsems.owner_task[lock]] == kernel.root:
            behind += int(rwsems.waiters[lock])
            entry = entry_of(document, kernel, int(lock))
            assert entry["owner_waits_for"] == root["address"]
    assert behind
    assert root["blocked"] == root["waiters_total"] + behind
    assert f"{behind} more behind those" in document["text"]


@each
def test_a_deadlock(kernel: Kernel) -> None:
    """One who waits for an mmap_lock owns the root's lock, and that one's owner waits for it."""
    tasks = kernel.locks.tasks
    for_mmap = kernel.waiting_task(kernel.mmap, 0)
    for_root = kernel.waiting_task(kernel.root, 0)
    words = {
        kernel.word(kernel.root, "owner"): int(tasks.address[for_mmap]),
        kernel.word(kernel.mmap, "owner"): int(tasks.address[for_root]),
    }
    document = answer(kernel, words)
    addresses = {
        f"{int(kernel.locks.rwsems.address[lock]):#x}" for lock in (kernel.root, kernel.mmap)
    }
    assert [set(cycle) for cycle in document["deadlocks"]] == [addresses]
    assert "deadlock of 2 tasks" in document["text"]
    assert f"thread {int(tasks.pid[for_mmap])}" in document["text"]
    # Each of them blocks all who wait for the other.
    blocked = {entry_of(document, kernel, lock)["blocked"] for lock in (kernel.root, kernel.mmap)}
    assert len(blocked) == 1


@each
def test_no_deadlock_of_one_who_is_awake(kernel: Kernel) -> None:
    """For a moment a writer that got the lock is still in the queue: it runs then."""
    task = int(kernel.locks.tasks.address[kernel.waiting_task(kernel.root, 0)])
    owned = {kernel.word(kernel.root, "owner"): task}
    assert len(answer(kernel, owned)["deadlocks"]) == 1
    assert kernel.records.task is not None
    state = task + kernel.records.task.offset("state")
    assert state % 8 == 0
    rows, _ = kernel.target.memory.gather(np.array([state], dtype=np.uint64), 8)
    awake = int.from_bytes(rows.tobytes(), "little") & ~0xFFFFFFFF
    document = answer(kernel, {**owned, state: awake})
    assert document["deadlocks"] == []


@each
@pytest.mark.parametrize("how", ["wild", "loop", "stranger", "other stack", "task"])
def test_a_queue_that_breaks_off(kernel: Kernel, how: str) -> None:
    waiters = kernel.waiters(kernel.root)
    elsewhere = kernel.waiters(kernel.mmap)
    words = {
        "wild": {kernel.entry(waiters[1], "list_next"): WILD},
        "loop": {kernel.entry(waiters[3], "list_next"): kernel.entry(waiters[2], "list")},
        # Something on the same stack that is no entry.
        "stranger": {kernel.entry(waiters[1], "list_next"): waiters[2] + 64},
        "other stack": {kernel.entry(waiters[1], "list_next"): kernel.entry(elsewhere[1], "list")},
        "task": {kernel.entry(waiters[2], "task"): int(kernel.tables.tasks.address[0])},
    }[how]
    document = answer(kernel, words)
    assert not document["complete"]
    entry = entry_of(document, kernel, kernel.root)
    assert not entry["waiters_complete"]
    assert 2 <= entry["waiters_total"] <= len(waiters)
    assert [waiter["entry"] for waiter in entry["waiters"]][:2] == [
        f"{address:#x}" for address in waiters[:2]
    ]
    assert "the queue cannot be followed further" in document["text"]
    # The others are not touched by it.
    assert entry_of(document, kernel, kernel.mmap)["waiters_complete"]


@each
@pytest.mark.parametrize("first", [WILD, 8, 1, 2**64 - 8])
def test_a_queue_that_leads_nowhere(kernel: Kernel, first: int) -> None:
    document = answer(kernel, {kernel.first(kernel.root): first})
    entry = entry_of(document, kernel, kernel.root)
    assert entry["waiters"] == []
    assert not entry["waiters_complete"]


@each
@pytest.mark.parametrize("owner", [WILD, 0x1000, 2**64 - 8])
def test_an_owner_that_is_no_task(kernel: Kernel, owner: int) -> None:
    document = answer(kernel, {kernel.word(kernel.root, "owner"): owner})
    entry = entry_of(document, kernel, kernel.root)
    assert entry["owner"] is None
    assert entry["state"] == "writer"
    assert "leads to no task" in document["text"]


@each
def test_a_last_reader_may_have_left(kernel: Kernel) -> None:
    """RWSEM_READER_OWNED in the owner's word, two readers in the count."""
    task = int(kernel.locks.rwsems.owner_task[kernel.mmap])
    words = {
        kernel.word(kernel.mmap, "owner"): int(kernel.locks.tasks.address[task]) | 1,
        kernel.word(kernel.mmap, "count"): 2 << 8 | 2,
    }
    document = answer(kernel, words)
    entry = entry_of(document, kernel, kernel.mmap)
    assert (entry["state"], entry["readers"]) == ("readers", 2)
    assert entry["owner"]["role"] == "last reader"
    assert "(it may have left)" in document["text"]
    assert "held by 2 readers" in document["text"]


@each
def test_an_impossible_word(kernel: Kernel) -> None:
    document = answer(kernel, {kernel.word(kernel.mmap, "count"): 0xF8})
    entry = entry_of(document, kernel, kernel.mmap)
    assert (entry["state"], entry["owner"], entry["readers"]) == ("impossible", None, 0)


@each
def test_names_that_bite(kernel: Kernel) -> None:
    task = int(kernel.locks.rwsems.owner_task[kernel.root])
    comm = int(kernel.locks.tasks.address[task]) + kernel.tables.era.task.offset("comm")
    assert comm % 8 == 0
    document = answer(kernel, {comm: int.from_bytes(b'\x1b[2J\n\xff\\"', "little")})
    assert document["locks"][0]["owner"]["comm"].startswith('\\x1b[2J\\n\\xff\\\\"')
    assert "\x1b" not in document["text"]


def read(kernel: Kernel, address: int) -> int:
    """A word of its memory."""
    rows, present = kernel.target.memory.gather(np.array([address], dtype=np.uint64), 8)
    assert present[0]
    return int.from_bytes(rows.tobytes(), "little")


@pytest.mark.parametrize("how", ["wild", "wild child", "loop", "twice", "task", "parent"])
def test_a_tree_of_waiters_that_breaks_off(how: str) -> None:
    kernel = REALTIME
    root = kernel.word(kernel.root, "rt_waiters")
    assert kernel.records.waiter is not None
    top = read(kernel, root) - kernel.records.waiter.offset("rb")
    leaf = next(
        address
        for address in kernel.waiters(kernel.root)
        if not read(kernel, kernel.entry(address, "rb_left"))
        and not read(kernel, kernel.entry(address, "rb_right"))
    )
    words = {
        "wild": {root: WILD},
        "wild child": {kernel.entry(top, "rb_left"): WILD},
        "loop": {kernel.entry(leaf, "rb_left"): kernel.entry(top, "rb")},
        "twice": {kernel.entry(top, "rb_left"): read(kernel, kernel.entry(top, "rb_right"))},
        "task": {kernel.entry(leaf, "task"): int(kernel.tables.tasks.address[0])},
        "parent": {kernel.entry(leaf, "rb_parent_color"): kernel.entry(leaf, "rb")},
    }[how]
    document = answer(kernel, words)
    assert not document["complete"]
    entry = entry_of(document, kernel, kernel.root)
    assert not entry["waiters_complete"]
    whole = [f"{address:#x}" for address in kernel.waiters(kernel.root)]
    found = [waiter["entry"] for waiter in entry["waiters"]]
    # Those that are met are met once, in order.
    assert found == [address for address in whole if address in found]
    assert len(found) < len(whole) or how == "loop"


def test_a_writer_that_waits_for_readers() -> None:
    """It has the rtmutex and has taken READER_BIAS away (kernel/locking/rwbase_rt.c, v6.12)."""
    kernel = REALTIME
    held = kernel.locks.rwsems.owner_state == OwnerState.WRITER
    lock = int(np.argmax(np.where(held, kernel.locks.rwsems.waiters, -1)))
    document = answer(kernel, {kernel.word(lock, "rt_readers"): 2})
    entry = entry_of(document, kernel, lock)
    assert (entry["state"], entry["readers"], entry["owner"]["role"]) == ("readers", 2, "next")
    first, *others = entry["waiters"]
    assert (first["wants"], first["entry"]) == ("write", None)
    assert first["task"] == entry["owner"]["task"]
    assert [waiter["entry"] for waiter in others] == [f"{a:#x}" for a in kernel.waiters(lock)]
    assert entry["waiters_total"] == len(others) + 1


def test_a_snapshot_of_before() -> None:
    """One that does not hold what tells who waits."""
    kernel = KERNELS[0]
    walks = (kernel.target.walks or frozenset()) - {"locks"}
    before = Kernel.__new__(Kernel)
    before.__dict__ = {**kernel.__dict__, "target": dataclasses.replace(kernel.target, walks=walks)}
    document = answer(before, {})
    assert document["missing"] == "not in this snapshot"
    assert document["counts"]["held"] == answer(kernel, {})["counts"]["held"]
    assert "owners and waiters are not known: not in this snapshot" in document["text"]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Target], None]:
    """Lets the command line work on another target than the file's."""

    def install(target: Target) -> None:
        monkeypatch.setattr(anonvma_inspect.target, "open_target", lambda options: target)

    return install


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """One lock a line, and the rest last."""
    ran = Cli(capsys)("-c", str(HELD[0].core), "--format", "jsonl", "locks")
    *locks, last = [json.loads(line) for line in ran.out.splitlines()]
    assert last["locks"] is None
    assert last["schema"] == "anonvma-inspect/locks/1"
    assert locks[0]["address"] == (f"{int(KERNELS[0].locks.rwsems.address[KERNELS[0].root]):#x}")


def test_incomplete(capsys: pytest.CaptureFixture[str], serve: Callable[[Target], None]) -> None:
    kernel = KERNELS[0]
    serve(broken(kernel, {kernel.first(kernel.root): WILD}))
    ran = Cli(capsys)("-c", "x", "locks")
    assert ran.code == 4
    assert "incomplete: not all who hold or await a lock are known" in ran.err
    assert "the queue cannot be followed further (wild)" in ran.out


def test_a_pid_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = Cli(capsys).fails(2, "-c", str(HELD[0].core), "locks", "--pid", "4000000")
    assert sentence == "there is no PID 4000000 with memory of its own in this target"


def test_a_kernel_thread(capsys: pytest.CaptureFixture[str]) -> None:
    """One that has no mm, and waits for a lock."""
    tasks = KERNELS[1].locks.tasks
    pid = int(tasks.pid[tasks.kthread][0])
    ran = Cli(capsys)("-c", str(HELD[1].core), "--format", "json", "locks", "--pid", str(pid))
    (lock,) = json.loads(ran.out)["locks"]
    assert [w["pid"] for w in lock["waiters"] if w["kernel_thread"]] == [pid]


def test_a_kernel_that_runs(
    capsys: pytest.CaptureFixture[str], serve: Callable[[Target], None]
) -> None:
    """What a look shows that comes while a queue changes, the next one does not."""
    kernel = KERNELS[0]
    tasks = kernel.locks.tasks
    owner = int(tasks.address[kernel.waiting_task(kernel.root, 0)])
    looks = iter(
        [
            {kernel.first(kernel.root): WILD},
            {kernel.word(kernel.root, "owner"): owner},
            {},
        ]
    )
    seen = []

    def renew(before: Memory | None) -> tuple[Memory, AddressSpace]:
        seen.append(next(looks))
        return broken(kernel, seen[-1]).memory, kernel.target.space

    serve(dataclasses.replace(kernel.target, live=True, renew=renew))
    ran = Cli(capsys)("-c", "x", "--format", "json", "locks")
    assert len(seen) == 3
    assert ran.code == 0
    document = json.loads(ran.out)
    assert document["complete"]
    assert document["deadlocks"] == []
    assert document["counts"] == answer(kernel, {})["counts"]
