"""Who has, and who waits for, the semaphores that protect the reverse map.

A task that waits is queued with a struct on its own kernel stack, so that a queue leads from stack
to stack. Every entry must lie on the stack of a task that the task list knows, and name that task:
nothing else is followed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from anonvma_inspect.collect.lists import walk_lists
from anonvma_inspect.collect.mms import looks_like_mm
from anonvma_inspect.collect.reader import Columns, Progress, Reader
from anonvma_inspect.collect.slab_caches import read_cpus
from anonvma_inspect.collect.stacks import stack_size
from anonvma_inspect.collect.tasks import read_threads, until_nul
from anonvma_inspect.collect.trees import MAX_DEPTH
from anonvma_inspect.kernel.era import Era, Record, resolve_record
from anonvma_inspect.kernel.locks import (
    LockRecords,
    LockState,
    lock_readers,
    lock_states,
    owner_tasks,
    queued_since,
    resolve_locks,
    ticks_per_second,
)
from anonvma_inspect.kernel.tags import rb_parent
from anonvma_inspect.tables import (
    NO_ROW,
    ChainEnd,
    I64Column,
    LockKind,
    Locks,
    LockTasks,
    LockWaiters,
    OwnerState,
    RowColumn,
    Rwsems,
    Tables,
    U8Column,
    Wanted,
    find_rows,
)
from anonvma_inspect.target.memory import (
    WORD,
    AddressSpace,
    BoolColumn,
    U64Column,
    distinct,
    merge_ranges,
)
from anonvma_inspect.target.target import Target

__all__ = ("LOCKS_WALK", "collect_locks")

#: What a snapshot calls this walk.
LOCKS_WALK = "locks"

# include/linux/sched.h
_PF_KTHREAD = 0x00200000
_NOTHING: U64Column = np.empty(0, dtype=np.uint64)
_NO_ROWS: RowColumn = np.empty(0, dtype=np.int64)
_KINDS: U8Column = np.empty(0, dtype=np.uint8)
_FLAGS: BoolColumn = np.empty(0, dtype=bool)
_RWSEM_WORDS = (
    "count",
    "owner",
    "wait_list_next",
    "first_waiter",
    "rt_readers",
    "rt_owner",
    "rt_waiters",
)
_LIST_WORDS = ("task", "type", "timeout")
_TREE_WORDS = ("task", "rb_parent_color", "rb_left", "rb_right")
# Nobody waits longer than the kernel runs, and no kernel has run for ten years.
_MAX_MS = 10 * 366 * 24 * 3600 * 1000


def collect_locks(target: Target, tables: Tables, progress: Progress | None = None) -> Tables:
    """Read the semaphores of some tables' root anon_vmas and mms, their owners and their queues.

    Where none is held, it is a word or two of each.

    :param tables: As :func:`anonvma_inspect.collect.collect` has filled them from this target.
    :param progress: Called with what is being read, and how much of it so far.
    :return: The same tables with :attr:`Tables.locks`, and what was missing among the holes.
    :raises TargetError: if the task list, without which no owner is believed, is out of reach.
    """
    records = resolve_locks(target.layouts)
    if records is None:
        reason = "the semaphores of this kernel are of no form that is understood"
        return replace(tables, locks=Locks(_NO_RWSEMS, _NO_WAITERS, _NO_TASKS, reason))
    reader = Reader(target, progress)
    stacks_reader, locks = _Walker(target, tables, reader, records).walk()
    holes = reader.holes(tables.holes)
    return replace(
        tables, locks=locks, holes=stacks_reader.holes(holes) if stacks_reader else holes
    )


_NO_RWSEMS = Rwsems(
    _NOTHING, _KINDS, _NO_ROWS, _KINDS, _NOTHING, _NO_ROWS, _NOTHING, _KINDS, _NO_ROWS, _NO_ROWS,
    _KINDS,
)  # fmt: skip
_NO_WAITERS = LockWaiters(_NO_ROWS, _NO_ROWS, _NOTHING, _NO_ROWS, _KINDS, _NO_ROWS)
_NO_TASKS = LockTasks(
    address=_NOTHING,
    pid=_NO_ROWS,
    tgid=_NO_ROWS,
    comm=np.empty(0, dtype="S16"),
    kthread=_FLAGS,
    state=_NOTHING,
    exit_state=_NOTHING,
    on_cpu=_FLAGS,
    last_ran_ms=_NO_ROWS,
    stack=_NOTHING,
    stack_size=0,
    mm=_NO_ROWS,
    waits_for=_NO_ROWS,
)


@dataclass(frozen=True)
class _Queue:
    # Entries of queues: which lock's, in order, and the task that each names, which is known. For a
    # lock with none: how the walk ended.
    lock: RowColumn
    address: U64Column
    task: U64Column
    wanted: U8Column
    waited_ms: I64Column
    end: U8Column


class _Walker:
    def __init__(
        self, target: Target, tables: Tables, reader: Reader, records: LockRecords
    ) -> None:
        self._target, self._tables, self._reader, self._records = target, tables, reader, records
        self._era: Era = tables.era

    def walk(self) -> tuple[Reader | None, Locks]:
        """Read everything.

        :return: Also the reader of kernel stacks, which has holes of its own.
        """
        kind, row, address, words = self._semaphores()
        count, rt_readers = words.get("count"), words.get("rt_readers")
        if self._records.realtime:
            count = None
        word = words["rt_readers"] if count is None else count
        state = lock_states(count, rt_readers, True)
        readers = lock_readers(count, rt_readers)
        readers[state == LockState.IMPOSSIBLE] = 0
        owner = words["rt_owner"] if count is None else words["owner"]
        owner_state, owner_task = self._owners(state, readers, owner)
        waiting = self._waiting(address, words)
        end = np.full(len(address), ChainEnd.CLOSED, dtype=np.uint8)
        queue = _Queue(_NO_ROWS, _NOTHING, _NOTHING, _KINDS, _NO_ROWS, end)
        tasks, missing, stacks_reader = _NO_TASKS, None, None
        if waiting.any() or (owner_task != 0).any():
            stacks = _Stacks.of(self._target, self._reader, self._era, self._records)
            if isinstance(stacks, str):
                missing = stacks
                end[waiting] = ChainEnd.NOT_WALKED
                owner_state[owner_task != 0] = OwnerState.STRANGER
                owner_task[:] = 0
            else:
                stacks_reader = stacks.reader
                stranger = (owner_task != 0) & (find_rows(stacks.task, owner_task) == NO_ROW)
                owner_state[stranger] = OwnerState.STRANGER
                owner_task[stranger] = 0
                queue = self._queues(stacks, address, words, waiting)
                queue = _with_next(queue, state, owner_state, owner_task)
                tasks = self._tasks(stacks, distinct(np.concatenate([owner_task, queue.task])))
        length = np.bincount(queue.lock, minlength=len(address))
        task = find_rows(tasks.address, queue.task)
        waits_for = np.full(len(tasks.address), NO_ROW, dtype=np.int64)
        waits_for[task] = queue.lock
        rwsems = Rwsems(
            address=address,
            kind=kind,
            row=row,
            state=state,
            word=word,
            readers=readers,
            owner=owner,
            owner_state=owner_state,
            owner_task=find_rows(tasks.address, owner_task),
            waiters=length,
            waiters_end=queue.end,
        )
        waiters = LockWaiters(
            lock=queue.lock,
            position=np.arange(len(queue.lock)) - (np.cumsum(length) - length)[queue.lock],
            address=queue.address,
            task=task,
            wanted=queue.wanted,
            waited_ms=queue.waited_ms,
        )
        return stacks_reader, Locks(rwsems, waiters, replace(tasks, waits_for=waits_for), missing)

    # Those of root anon_vmas, then of mms, as far as they can be read.
    def _semaphores(self) -> tuple[U8Column, RowColumn, U64Column, Columns]:
        anon_vmas, mms, record = self._tables.anon_vmas, self._tables.mms, self._records.rwsem
        roots = np.flatnonzero(anon_vmas.reached & (anon_vmas.root == anon_vmas.address))
        mm_rows = np.arange(len(mms.address))
        if self._target.live:
            roots, mm_rows = self._still_there(roots)
        address = np.concatenate(
            [
                anon_vmas.address[roots] + np.uint64(self._records.anon_vma),
                mms.address[mm_rows] + np.uint64(self._records.mm),
            ]
        )
        row = np.concatenate([roots, mm_rows])
        kind = np.repeat(
            np.array([LockKind.ANON_VMA, LockKind.MMAP_LOCK], dtype=np.uint8),
            [len(roots), len(mm_rows)],
        )
        self._reader.progress("semaphores", len(address))
        words, present = self._reader.columns(record, address, _RWSEM_WORDS)
        words = {name: column[present] for name, column in words.items()}
        return kind[present], row[present], address[present], words

    # In a kernel that runs: the objects that have not become something else since they were met. An
    # anon_vma that was freed and is still as it was has a lock that nobody holds.
    def _still_there(self, roots: RowColumn) -> tuple[RowColumn, RowColumn]:
        anon_vmas, mms = self._tables.anon_vmas, self._tables.mms
        # What has gone is no hole.
        reader = Reader(self._target)
        words, present = reader.columns(
            self._era.anon_vma, anon_vmas.address[roots], ("root", "refcount")
        )
        refcount = self._era.anon_vma.as_signed("refcount", words["refcount"])
        kept = present & (words["root"] == anon_vmas.address[roots]) & (refcount > 0)
        alive = np.isin(mms.address, read_threads(reader, self._era, self._target).mm)
        unlisted = np.flatnonzero(~mms.listed)
        alive[unlisted] |= looks_like_mm(reader, self._era, mms.address[unlisted])
        return roots[kept], np.flatnonzero(alive)

    # What the owner's word says, and the task that it names, known or not; 0 for none.
    def _owners(
        self, state: U8Column, readers: I64Column, owner: U64Column
    ) -> tuple[U8Column, U64Column]:
        task, is_reader = owner_tasks(owner, self._records.realtime)
        writer = state == LockState.WRITER
        # The writer's own flag of the last reader stays until it has put itself in its place.
        says = np.select(
            [task == 0, writer & ~is_reader, is_reader & (readers > 0)],
            [OwnerState.NONE, OwnerState.WRITER, OwnerState.LAST_READER],
            OwnerState.NEXT if self._records.realtime else OwnerState.NONE,
        ).astype(np.uint8)
        says[state == LockState.IMPOSSIBLE] = OwnerState.NONE
        return says, np.where(says == OwnerState.NONE, np.uint64(0), task)

    # Which semaphores have a queue.
    def _waiting(self, address: U64Column, words: Columns) -> BoolColumn:
        waiting: BoolColumn
        if self._records.realtime:
            waiting = words["rt_waiters"] != 0
        elif "first_waiter" in words:
            waiting = words["first_waiter"] != 0
        else:
            head = address + np.uint64(self._records.rwsem.offset("wait_list"))
            waiting = words["wait_list_next"] != head
        return waiting

    def _queues(
        self, stacks: _Stacks, address: U64Column, words: Columns, waiting: BoolColumn
    ) -> _Queue:
        assert self._records.waiter is not None
        if self._records.realtime:
            return _walk_trees(stacks, self._records.waiter, words["rt_waiters"])
        record = self._records.waiter
        rows = np.flatnonzero(waiting)
        ring = "first_waiter" in words
        if ring:
            first = words["first_waiter"][rows] + np.uint64(record.offset("list"))
            head = first
        else:
            first = words["wait_list_next"][rows]
            head = address[rows] + np.uint64(self._records.rwsem.offset("wait_list"))
        walk = walk_lists(stacks.reader, record, "list", first, head, names=_LIST_WORDS, ring=ring)
        order = np.lexsort((walk.position, walk.list))
        lock, entry = rows[walk.list[order]], walk.address[order]
        words = {name: column[order] for name, column in walk.columns.items()}
        end = np.full(len(address), ChainEnd.CLOSED, dtype=np.uint8)
        end[rows] = walk.end
        own = stacks.owns(entry, words["task"])
        end[lock[~own]] = ChainEnd.STRANGER
        return _Queue(
            lock=lock[own],
            address=entry[own],
            task=words["task"][own],
            # enum rwsem_waiter_type, kernel/locking/rwsem.c.
            wanted=np.minimum(words["type"][own], Wanted.UNKNOWN).astype(np.uint8),
            waited_ms=self._waited(words["timeout"][own]),
            end=end,
        )

    def _waited(self, timeout: U64Column) -> I64Column:
        unknown = np.full(len(timeout), -1, dtype=np.int64)
        now, ticks = self._variable("jiffies_64", WORD), self._ticks()
        if now is None or ticks is None:
            return unknown
        waited = (np.uint64(now) - queued_since(timeout, ticks)).view(np.int64)
        sound = (waited >= 0) & (waited <= _MAX_MS * ticks // 1000)
        return np.where(sound, waited * 1000 // ticks, unknown)

    def _ticks(self) -> int | None:
        missing: list[str] = []
        record = resolve_record(self._target.layouts, "clocksource", ("mult", "shift"), missing)
        place = self._target.symbols.get("clocksource_jiffies")
        if missing or place is None:
            return None
        words, present = self._reader.columns(
            record, np.array([place], dtype=np.uint64), ("mult", "shift")
        )
        if not present[0]:
            return None
        return ticks_per_second(int(words["mult"][0]), int(words["shift"][0]))

    def _variable(self, name: str, size: int) -> int | None:
        if name not in self._target.symbols:
            return None
        place = np.array([self._target.symbols[name]], dtype=np.uint64)
        rows, present = self._reader.memory.gather(place, size)
        return int.from_bytes(rows[0].tobytes(), "little") if present[0] else None

    def _tasks(self, stacks: _Stacks, wanted: U64Column) -> LockTasks:
        record = self._records.task
        assert record is not None
        address = wanted[wanted != 0]

        def words(name: str) -> U64Column:
            return self._reader.words(record, address, name)[0]

        comm_field = record.fields["comm"]
        comm, _ = self._reader.memory.gather(
            address + np.uint64(comm_field.offset), comm_field.size
        )
        kthread = (words("flags") & np.uint64(_PF_KTHREAD)) != 0
        mm = self._mm_rows(words("mm"))
        mm[kthread] = NO_ROW
        last_arrival = words("last_arrival") if "last_arrival" in record else None
        return LockTasks(
            address=address,
            pid=words("pid").astype(np.int64),
            tgid=words("tgid").astype(np.int64),
            comm=until_nul(comm),
            kthread=kthread,
            # Up to v5.13 a signed long.
            state=words("state") & np.uint64(2**32 - 1),
            exit_state=words("exit_state"),
            on_cpu=words("on_cpu") != 0,
            last_ran_ms=self._since(last_arrival, len(address)),
            stack=stacks.base[find_rows(stacks.task, address)],
            stack_size=stacks.size,
            mm=mm,
            waits_for=np.full(len(address), NO_ROW, dtype=np.int64),
        )

    def _mm_rows(self, addresses: U64Column) -> RowColumn:
        order = np.argsort(self._tables.mms.address)
        found = find_rows(self._tables.mms.address[order], addresses)
        return np.append(order, NO_ROW)[found]

    # The clock of the scheduler is one a CPU, and stands still on an idle one: what the latest says
    # is now.
    def _since(self, then: U64Column | None, count: int) -> I64Column:
        unknown = np.full(count, -1, dtype=np.int64)
        clock = self._target.layouts.field("rq", "clock")
        place = self._target.symbols.get("runqueues")
        cpus = read_cpus(self._reader, self._target)
        if then is None or clock is None or place is None or cpus is None or clock.size != WORD:
            return unknown
        # Where per-CPU symbols are offsets, the sum is meant to wrap round.
        at = np.uint64((place + clock.offset) % 2**64) + cpus
        rows, present = self._reader.memory.gather(at, WORD)
        clocks = rows.view("<u8").reshape(-1)[present].astype(np.uint64)
        if not len(clocks):
            return unknown
        ago = (clocks.max() - then).view(np.int64) // 1_000_000
        return np.where((then != 0) & (ago >= 0) & (ago <= _MAX_MS), ago, unknown)


@dataclass(frozen=True)
class _Stacks:
    # The kernel stacks of all threads: by task, the lowest address of each; and in the order of the
    # stacks, the rows of their tasks. The reader takes for wild what is on none of them.
    task: U64Column
    base: U64Column
    order: RowColumn
    size: int
    reader: Reader

    @staticmethod
    def of(target: Target, reader: Reader, era: Era, records: LockRecords) -> _Stacks | str:
        if target.walks is not None and LOCKS_WALK not in target.walks:
            return "not in this snapshot"
        if records.task is None or records.waiter is None:
            return "the types of this target do not tell how tasks wait"
        threads = read_threads(reader, era, target)
        base, present = reader.words(records.task, threads.known, "stack")
        size = stack_size(target)
        base[~present] = 0
        known = base[base != 0]
        ranges = merge_ranges(np.stack([known, known + np.uint64(size)], axis=1))
        space = AddressSpace(ranges, target.page_size, 0)
        return _Stacks(
            task=threads.known,
            base=base,
            order=np.argsort(base),
            size=size,
            reader=Reader(replace(target, space=space)),
        )

    def owns(self, addresses: U64Column, tasks: U64Column) -> BoolColumn:
        """Which of some addresses lie on the stacks of these tasks."""
        if not len(self.task):
            return np.zeros(len(addresses), dtype=bool)
        at = np.searchsorted(self.base[self.order], addresses, side="right") - 1
        row = self.order[np.maximum(at, 0)]
        owns: BoolColumn = addresses - self.base[row] < np.uint64(self.size)
        owns &= self.task[row] == tasks
        return owns


# The red-black trees in which waiters of a PREEMPT_RT kernel's are ordered by priority, a level of
# all of them a round. The walk goes down only where a node names the one that it comes from as its
# parent: then it meets none twice.
def _walk_trees(stacks: _Stacks, record: Record, root: U64Column) -> _Queue:
    reader, offset = stacks.reader, np.uint64(record.offset("rb"))
    end = np.full(len(root), ChainEnd.CLOSED, dtype=np.uint8)
    lock = np.flatnonzero(root != 0)
    node, parent = root[lock], np.zeros(len(lock), dtype=np.uint64)
    # Where each node stands in order, as a fraction of 2**62.
    place = np.full(len(lock), 1 << 61, dtype=np.int64)
    met: list[tuple[RowColumn, U64Column, U64Column, I64Column]] = []
    for depth in range(MAX_DEPTH // 2 - 4):
        if not len(lock):
            break
        address = node - offset
        wild = reader.space.wild(address, record.size)
        end[lock[wild]] = ChainEnd.WILD
        lock, node, parent, place = lock[~wild], node[~wild], parent[~wild], place[~wild]
        address = address[~wild]
        words, present = reader.columns(record, address, _TREE_WORDS)
        end[lock[~present]] = ChainEnd.HOLE
        own = present & (rb_parent(words["rb_parent_color"]) == parent)
        own &= stacks.owns(address, words["task"])
        own &= (words["rb_left"] != words["rb_right"]) | (words["rb_left"] == 0)
        end[lock[present & ~own]] = ChainEnd.STRANGER
        lock, node, place, address = lock[own], node[own], place[own], address[own]
        words = {name: column[own] for name, column in words.items()}
        met.append((lock, address, words["task"], place))
        step = np.int64(1 << (60 - depth))
        children = np.stack([words["rb_left"], words["rb_right"]], axis=1).reshape(-1)
        place = np.stack([place - step, place + step], axis=1).reshape(-1)
        lock, parent = np.repeat(lock, 2), np.repeat(node, 2)
        below = children != 0
        lock, node, parent, place = lock[below], children[below], parent[below], place[below]
    end[lock] = ChainEnd.LOOP
    lock = np.concatenate([_NO_ROWS, *(part[0] for part in met)])
    order = np.lexsort((np.concatenate([_NO_ROWS, *(part[3] for part in met)]), lock))
    return _Queue(
        lock=lock[order],
        address=np.concatenate([_NOTHING, *(part[1] for part in met)])[order],
        task=np.concatenate([_NOTHING, *(part[2] for part in met)])[order],
        wanted=np.full(len(order), Wanted.UNKNOWN, dtype=np.uint8),
        waited_ms=np.full(len(order), -1, dtype=np.int64),
        end=end,
    )


# With PREEMPT_RT a writer first takes the rtmutex, and then waits for the readers inside: it is in
# no tree, but before all that are (rwbase_write_lock(), kernel/locking/rwbase_rt.c, v6.12).
def _with_next(
    queue: _Queue, state: U8Column, owner_state: U8Column, owner_task: U64Column
) -> _Queue:
    lock = np.flatnonzero((owner_state == OwnerState.NEXT) & (state == LockState.QUEUED))
    if not len(lock):
        return queue
    every = np.concatenate([lock, queue.lock])
    order = np.argsort(every, kind="stable")
    count = len(lock)
    return _Queue(
        lock=every[order],
        address=np.concatenate([np.zeros(count, dtype=np.uint64), queue.address])[order],
        task=np.concatenate([owner_task[lock], queue.task])[order],
        wanted=np.concatenate([np.full(count, Wanted.WRITE, dtype=np.uint8), queue.wanted])[order],
        waited_ms=np.concatenate([np.full(count, -1, dtype=np.int64), queue.waited_ms])[order],
        end=queue.end,
    )
