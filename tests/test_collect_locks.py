"""Who holds and who awaits locks, in kernels that were stopped while some do.

What to expect is the guest's own word: the workload logs for every thread its state and what
``/proc/PID/stack`` says, once nothing has moved for a while.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import drgn
import numpy as np
import pytest
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.locking import RwsemLocked, rwsem_locked, rwsem_owner
from drgn.helpers.linux.rbtree import rbtree_inorder_for_each_entry

from anonvma_inspect.collect import collect, collect_locks, functions_on_stacks
from anonvma_inspect.kernel.functions import FUNCTIONS
from anonvma_inspect.kernel.locks import LockState, resolve_locks
from anonvma_inspect.tables import NO_ROW, ChainEnd, LockKind, Locks, OwnerState, Tables, Wanted

from .captures import FIXTURES, KERNELS, Capture
from .programs import program

HELD = [
    Capture(path.with_suffix(".core.xz"), path)
    for path in sorted((FIXTURES / "locks").glob("*.json"))
]
each = pytest.mark.parametrize("capture", HELD, ids=lambda capture: capture.name)
# The kernels in which a thread holds the lock of a root anon_vma, and others want it.
with_anon_vma = pytest.mark.parametrize(
    "capture",
    [capture for capture in HELD if capture.manifest["parameters"]["members"]],
    ids=lambda capture: capture.name,
)


@functools.cache
def tables_of(capture: Capture) -> Tables:
    return collect_locks(capture.target, collect(capture.target))


def locks_of(capture: Capture) -> Locks:
    locks = tables_of(capture).locks
    assert locks is not None
    return locks


# What the guest says of each thread of the workload's, by its id: state and functions. Of kernel
# threads that come upon the workload's memory it says nothing.
def word(capture: Capture) -> dict[int, Any]:
    log = capture.manifest["word"]["log"]
    said = {event["tid"]: event for event in log if event["event"] == "TASK"}
    tasks = locks_of(capture).tasks
    said.update(dict.fromkeys(tasks.pid[tasks.kthread].tolist()))
    return said


# Functions on its stack from the innermost on, but for those of the lock itself, which some kernels
# leave out.
def called(event: Any) -> list[str]:
    names = [name.partition(".")[0] for name in str(event["stack"]).split(",")]
    return [name for name in names if not re.match("(__)?(rt_mutex|rwsem|rwbase)", name)]


def is_realtime(capture: Capture) -> bool:
    records = resolve_locks(capture.target.layouts)
    assert records is not None
    return records.realtime


# The state of a lock that nobody has, and that somebody waits for.
def free(capture: Capture) -> LockState:
    return LockState.IDLE if is_realtime(capture) else LockState.QUEUED


# Whether a thread that is blocked there is so on a root anon_vma's lock; else on an mmap_lock.
def wants_anon_vma(event: Any) -> bool:
    return "anon_vma" in called(event)[0]


def test_there_are_such_kernels() -> None:
    assert HELD


@each
def test_those_who_wait_are_those_that_the_guest_says_are_blocked(capture: Capture) -> None:
    """One that has been woken to take a lock, and has no CPU to do it on, is among them."""
    locks, events = locks_of(capture), word(capture)
    blocked = {tid for tid, event in events.items() if event and event["state"] == "D"}
    waiting = locks.tasks.pid[locks.waiters.task].tolist()
    assert blocked <= set(waiting)
    assert len(waiting) == len(set(waiting))
    for tid in set(waiting) - blocked:
        if events[tid] is None:
            continue
        place = waiting.index(tid)
        assert events[tid]["state"] == "R"
        assert locks.waiters.position[place] == 0
        assert locks.rwsems.state[locks.waiters.lock[place]] == free(capture)
    assert locks.missing is None
    assert (locks.rwsems.waiters_end == ChainEnd.CLOSED).all()
    assert tables_of(capture).complete


@each
def test_each_waits_for_the_lock_that_it_asked_for(capture: Capture) -> None:
    locks, events = locks_of(capture), word(capture)
    for lock, task in zip(locks.waiters.lock, locks.waiters.task, strict=True):
        event = events[int(locks.tasks.pid[task])]
        if event is None:
            continue
        kind = LockKind.ANON_VMA if wants_anon_vma(event) else LockKind.MMAP_LOCK
        assert locks.rwsems.kind[lock] == kind, event
        assert locks.tasks.waits_for[task] == lock
        # All faults, mappings and forks of the workload are of a thread's own mm.
        if kind == LockKind.MMAP_LOCK:
            assert locks.rwsems.row[lock] == locks.tasks.mm[task]
            assert locks.tasks.tgid[task] == event["pid"]
        assert locks.tasks.comm[task].decode() == event["comm"]
        assert bool(locks.tasks.state[task] & np.uint64(2)) == (event["state"] == "D")


# The task that holds a lock, or that has been woken to take it.
def holder(capture: Capture, lock: int) -> int:
    locks = locks_of(capture)
    if locks.rwsems.state[lock] == LockState.WRITER:
        assert locks.rwsems.owner_state[lock] == OwnerState.WRITER
        return int(locks.rwsems.owner_task[lock])
    assert locks.rwsems.state[lock] == free(capture)
    return int(locks.waiters.task[locks.waiters.lock == lock][0])


@each
def test_who_holds_the_mmap_lock(capture: Capture) -> None:
    """The thread that forks on the other CPU, and is not on that CPU."""
    locks = locks_of(capture)
    is_mm = locks.rwsems.kind == LockKind.MMAP_LOCK
    lock = int(np.argmax(np.where(is_mm, locks.rwsems.waiters, -1)))
    task = holder(capture, lock)
    event = word(capture)[int(locks.tasks.pid[task])]
    assert (event["comm"], event["state"], event["pid"]) == ("locks-owner", "R", event["tid"])
    assert locks.rwsems.row[lock] == locks.tasks.mm[task]
    assert not locks.tasks.on_cpu[task]


@with_anon_vma
def test_who_holds_the_root(capture: Capture) -> None:
    locks = locks_of(capture)
    awaited = (locks.rwsems.kind == LockKind.ANON_VMA) & (locks.rwsems.waiters > 0)
    assert awaited.sum() == 1
    lock = int(np.flatnonzero(awaited)[0])
    event = word(capture)[int(locks.tasks.pid[holder(capture, lock)])]
    assert event["state"] == "R"
    assert any("anon_vma" in name for name in called(event))
    # The others are on their way: the members have their own mmap_locks meanwhile.
    behind = locks.tasks.waits_for[locks.rwsems.owner_task[locks.rwsems.owner_task != NO_ROW]]
    assert (behind == lock).sum() >= 2


@each
def test_how_long_they_wait(capture: Capture) -> None:
    """The guest has seen them blocked for 200 ms; the log's seconds bound it from above."""
    locks = locks_of(capture)
    told = locks.waiters.waited_ms
    if is_realtime(capture) or "clocksource_jiffies" not in capture.target.symbols:
        assert (told == -1).all()
    else:
        assert (told >= 200).all()
        assert (told < 120_000).all()
    ran = locks.tasks.last_ran_ms
    if "runqueues" in capture.target.symbols:
        assert (ran >= 200).all()
        assert (ran < 120_000).all()


@each
def test_readers_and_writers(capture: Capture) -> None:
    """Faults and MADV_DONTNEED ask for reading, mapping and forking for writing."""
    locks = locks_of(capture)
    events = word(capture)
    wanted = {
        int(locks.tasks.pid[task]): Wanted(want)
        for task, want in zip(locks.waiters.task, locks.waiters.wanted, strict=True)
    }
    for tid, want in wanted.items():
        if events[tid] is None:
            continue
        if want == Wanted.UNKNOWN:
            assert is_realtime(capture)
            continue
        names = {"do_madvise", "do_user_addr_fault", "exc_page_fault", "do_page_fault"}
        reads = not wants_anon_vma(events[tid]) and names & set(called(events[tid]))
        assert want == (Wanted.READ if reads else Wanted.WRITE), events[tid]


@each
def test_functions_on_stacks(capture: Capture) -> None:
    """All that the guest's own unwinder finds, of the functions that are looked for."""
    locks = locks_of(capture)
    events = word(capture)
    rows = np.arange(len(locks.tasks.address))
    for row, found in zip(
        rows, functions_on_stacks(capture.target, locks.tasks, rows), strict=True
    ):
        assert found is not None
        event = events[int(locks.tasks.pid[row])]
        if event is None or (event["state"] == "R" and event["comm"] != "locks-owner"):
            continue
        assert set(called(event)) & set(FUNCTIONS) <= set(found), event


# Those who are queued, as drgn's own helpers for lists and trees find them.
def queued(sem: drgn.Object) -> list[drgn.Object]:
    if hasattr(sem, "rwbase"):
        tree = sem.rwbase.rtmutex.waiters.rb_root.address_of_()
        return list(rbtree_inorder_for_each_entry("struct rt_mutex_waiter", tree, "tree.entry"))
    if hasattr(sem, "wait_list"):
        head = sem.wait_list.address_of_()
        return list(list_for_each_entry("struct rwsem_waiter", head, "list"))
    first = sem.first_waiter
    if not first:
        return []
    others = list_for_each_entry("struct rwsem_waiter", first.list.address_of_(), "list")
    return [first, *others]


@each
def test_drgn_says_the_same(capture: Capture) -> None:
    locks, prog = locks_of(capture), program(capture)
    rwsems, waiters, tasks = locks.rwsems, locks.waiters, locks.tasks
    for row, address in enumerate(rwsems.address.tolist()):
        sem = drgn.Object(prog, "struct rw_semaphore *", address)
        theirs = tasks.pid[waiters.task[waiters.lock == row]].tolist()
        assert [int(entry.task.pid) for entry in queued(sem)] == theirs
        if is_realtime(capture):
            continue
        expected = RwsemLocked.UNLOCKED
        if rwsems.state[row] == LockState.WRITER:
            expected = RwsemLocked.WRITE_LOCKED
            assert rwsem_owner(sem).pid == tasks.pid[rwsems.owner_task[row]]
        elif rwsems.readers[row] or rwsems.state[row] == LockState.QUEUED:
            # drgn takes the bit that says that somebody waits for a reader.
            expected = RwsemLocked.READ_LOCKED
        assert rwsem_locked(sem) == expected


@pytest.mark.parametrize("capture", KERNELS, ids=lambda capture: capture.name)
def test_nobody_at_rest(capture: Capture) -> None:
    locks = collect_locks(capture.target, capture.tables).locks
    assert locks is not None
    assert locks.missing is None
    assert (locks.rwsems.state == LockState.IDLE).all()
    assert not locks.rwsems.readers.any()
    assert not len(locks.waiters.lock)
    anon_vmas = capture.tables.anon_vmas
    roots = np.count_nonzero(anon_vmas.reached & (anon_vmas.root == anon_vmas.address))
    assert len(locks.rwsems.address) == roots + len(capture.tables.mms.address)
