"""The answer of ``locks``: who holds and who awaits the locks of the reverse map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from anonvma_inspect.kernel.locks import LockState
from anonvma_inspect.report.escape import escape
from anonvma_inspect.report.facts import Document, TargetFacts
from anonvma_inspect.report.lock_chains import LockChains, find_chains
from anonvma_inspect.report.objects import process_of_mm
from anonvma_inspect.report.style import Style
from anonvma_inspect.report.words import (
    counted,
    describe_calls,
    hex_or_null,
    hexadecimal,
    table,
)
from anonvma_inspect.tables import (
    NO_ROW,
    ChainEnd,
    LockKind,
    Locks,
    OwnerState,
    RowColumn,
    Tables,
    Wanted,
)
from anonvma_inspect.target.memory import BoolColumn, distinct

__all__ = ("LocksReport", "chosen_locks")

SCHEMA = "anonvma-inspect/locks/1"

_WANTED = {Wanted.WRITE: "write", Wanted.READ: "read", Wanted.UNKNOWN: None}
_ROLES = {
    OwnerState.WRITER: "writer",
    OwnerState.LAST_READER: "last reader",
    OwnerState.NEXT: "next",
}
# More waiters of one lock than a person reads; who wants all takes JSON.
_MAX_WAITERS = 20
# include/linux/sched.h; the letters are those of /proc/PID/stat (fs/proc/array.c).
_STATES = ((0x1, "S"), (0x2, "D"), (0x4, "T"), (0x8, "t"), (0x1000, "D"))
_NOLOAD = 0x400
_EXIT_STATES = ((0x10, "X"), (0x20, "Z"))


def chosen_locks(tables: Tables, pids: Sequence[int], *, idle: bool) -> RowColumn:
    """The semaphores to list, those that most tasks wait for first.

    :param pids: Limit them to those that the threads of these processes hold or wait for, the mms
        that they have, and the families that their VMAs belong to. Empty: all.
    :param idle: Also those that nobody holds or waits for.
    :return: Rows in :class:`~anonvma_inspect.tables.Rwsems`.
    """
    locks = tables.locks
    assert locks is not None
    rwsems, waiters = locks.rwsems, locks.waiters
    chosen = np.ones(len(rwsems.address), dtype=bool)
    if not idle:
        chosen = (rwsems.state != LockState.IDLE) | (rwsems.readers > 0) | (rwsems.waiters > 0)
        chosen |= rwsems.waiters_end != ChainEnd.CLOSED
    if pids:
        chosen &= _of_processes(tables, locks, pids)
    longest = np.full(len(chosen), -1, dtype=np.int64)
    np.maximum.at(longest, waiters.lock, waiters.waited_ms)
    rows = np.flatnonzero(chosen)
    return rows[np.lexsort((rwsems.address[rows], -longest[rows], -rwsems.waiters[rows]))]


def _of_processes(tables: Tables, locks: Locks, pids: Sequence[int]) -> BoolColumn:
    rwsems, waiters, tasks = locks.rwsems, locks.waiters, locks.tasks
    named = np.isin(tables.tasks.pid, pids) | np.isin(tables.tasks.tgid, pids)
    mms = np.unique(tables.tasks.mm[named])
    vmas = np.flatnonzero(np.isin(tables.vmas.mm, mms))
    links = np.isin(tables.links.vma, vmas)
    anon_vma = tables.avcs.anon_vma_row[tables.links.avc[links]]
    roots = tables.anon_vmas.root_row[anon_vma[anon_vma != NO_ROW]]
    is_mm = rwsems.kind == LockKind.MMAP_LOCK
    chosen: BoolColumn = np.where(is_mm, np.isin(rwsems.row, mms), np.isin(rwsems.row, roots))
    theirs = np.isin(tasks.pid, pids) | np.isin(tasks.tgid, pids)
    chosen |= np.append(theirs, False)[rwsems.owner_task]
    chosen[waiters.lock[theirs[waiters.task]]] = True
    return chosen


@dataclass(frozen=True)
class LocksReport:
    """Semaphores, their owners, and those who wait.

    :ivar rows: Which to list, in that order; see :func:`chosen_locks`.
    :ivar functions: What is on the kernel stack of each task, by row in
        :class:`~anonvma_inspect.tables.LockTasks`; ``None`` where that is not known.
    """

    facts: TargetFacts
    tables: Tables
    rows: RowColumn
    functions: Sequence[tuple[str, ...] | None]

    items = "locks"

    def document(self) -> Document:
        """See :meth:`anonvma_inspect.report.render.Report.document`."""
        address = self._locks.rwsems.address
        return {
            "schema": SCHEMA,
            "target": self.facts.document(),
            "counts": self._counts(),
            "locks": [self._entry(int(row)) for row in self.rows],
            "deadlocks": [
                [hexadecimal(int(address[row])) for row in cycle] for cycle in self.deadlocks
            ],
            "missing": self._locks.missing,
            "complete": self.complete,
        }

    def text(self, style: Style) -> Iterator[str]:
        """See :meth:`anonvma_inspect.report.render.Report.text`."""
        counts = self._counts()
        yield (
            f"{counted(counts['locks'], 'lock')}, {counts['held']:,} held, "
            f"{counts['contended']:,} waited for, {counted(counts['waiting'], 'task')} waiting"
        )
        for cycle in self.deadlocks:
            yield ""
            yield from self._deadlock_text(cycle, style)
        for row in self.rows:
            yield ""
            yield from self._lock_text(int(row), style)
        if self._locks.missing is not None:
            yield ""
            yield style.warn(f"owners and waiters are not known: {self._locks.missing}")

    @property
    def complete(self) -> bool:
        """Whether all owners and all waiters are known."""
        ends = self._locks.rwsems.waiters_end
        return self._locks.missing is None and bool((ends == ChainEnd.CLOSED).all())

    @property
    def deadlocks(self) -> list[list[int]]:
        """See :attr:`anonvma_inspect.report.lock_chains.LockChains.deadlocks`."""
        return self._chains.deadlocks

    @property
    def _locks(self) -> Locks:
        assert self.tables.locks is not None
        return self.tables.locks

    @cached_property
    def _chains(self) -> LockChains:
        return find_chains(self._locks)

    @cached_property
    def _protected(self) -> _Protected:
        return _Protected.of(self.tables)

    # Where the waiters of each semaphore begin; they are sorted by it.
    @cached_property
    def _first(self) -> RowColumn:
        return np.searchsorted(self._locks.waiters.lock, np.arange(len(self._locks.rwsems.row) + 1))

    def _waiters(self, row: int) -> range:
        return range(int(self._first[row]), int(self._first[row + 1]))

    def _counts(self) -> dict[str, int]:
        rwsems = self._locks.rwsems
        held = (rwsems.state == LockState.WRITER) | (rwsems.readers > 0)
        return {
            "locks": len(rwsems.address),
            "held": int(np.count_nonzero(held)),
            "contended": int(np.count_nonzero(rwsems.waiters)),
            "waiting": len(self._locks.waiters.lock),
        }

    def _state(self, row: int) -> str:
        rwsems = self._locks.rwsems
        state = rwsems.state[row]
        if state not in (LockState.IDLE, LockState.QUEUED):
            return LockState(state).name.lower()
        if rwsems.readers[row] > 0:
            return "readers"
        # PREEMPT_RT's word does not say that somebody waits.
        return "queued" if state == LockState.QUEUED or rwsems.waiters[row] > 0 else "idle"

    def _entry(self, row: int) -> Document:
        rwsems = self._locks.rwsems
        is_mm = rwsems.kind[row] == LockKind.MMAP_LOCK
        of = int(rwsems.row[row])
        process = process_of_mm(self.tables, of) if is_mm else None
        following = int(self._chains.next[row])
        owner = int(rwsems.owner_task[row])
        role = _ROLES.get(OwnerState(rwsems.owner_state[row]))
        return {
            "address": hexadecimal(int(rwsems.address[row])),
            "kind": LockKind(rwsems.kind[row]).name.lower(),
            "object": {
                "type": "mm_struct" if is_mm else "anon_vma",
                "address": hexadecimal(
                    int((self.tables.mms if is_mm else self.tables.anon_vmas).address[of])
                ),
            },
            "pid": process.pid if process else None,
            "comm": escape(process.comm) if process else None,
            "state": self._state(row),
            "word": hexadecimal(int(rwsems.word[row])),
            "readers": int(rwsems.readers[row]),
            "owner": None if owner == NO_ROW else {"role": role, **self._task(owner)},
            "owner_waits_for": (
                None if following == NO_ROW else hexadecimal(int(rwsems.address[following]))
            ),
            "protects": self._protected.document(is_mm, of),
            "blocked": int(self._chains.blocked[row]),
            "waiters_total": int(rwsems.waiters[row]),
            "waiters_complete": bool(rwsems.waiters_end[row] == ChainEnd.CLOSED),
            "waiters": [self._waiter(waiter) for waiter in self._waiters(row)],
        }

    def _waiter(self, waiter: int) -> Document:
        waiters = self._locks.waiters
        return {
            "wants": _WANTED[Wanted(waiters.wanted[waiter])],
            "waited_ms": _known(int(waiters.waited_ms[waiter])),
            "entry": hex_or_null(int(waiters.address[waiter]) or None),
            **self._task(int(waiters.task[waiter])),
        }

    def _task(self, row: int) -> Document:
        tasks, functions = self._locks.tasks, self.functions[row]
        return {
            "task": hexadecimal(int(tasks.address[row])),
            "pid": int(tasks.tgid[row]),
            "tid": int(tasks.pid[row]),
            "comm": escape(bytes(tasks.comm[row])),
            "kernel_thread": bool(tasks.kthread[row]),
            "state": _letter(int(tasks.state[row]), int(tasks.exit_state[row])),
            "on_cpu": bool(tasks.on_cpu[row]),
            "last_ran_ms": _known(int(tasks.last_ran_ms[row])),
            "functions": None if functions is None else list(functions),
        }

    def _lock_text(self, row: int, style: Style) -> Iterator[str]:
        rwsems = self._locks.rwsems
        waiting = int(rwsems.waiters[row])
        more = int(self._chains.blocked[row]) - waiting
        said = [self._held_text(row)]
        if waiting:
            said.append(f"{counted(waiting, 'task')} waiting")
        if more > 0:
            said.append(f"{more:,} more behind those")
        title = f"{self._name(row)}: {', '.join(said)}"
        yield style.strong(title) if waiting else title
        is_mm = rwsems.kind[row] == LockKind.MMAP_LOCK
        yield f"  protects  {self._protected.text(is_mm, int(rwsems.row[row]))}"
        owner = int(rwsems.owner_task[row])
        if owner != NO_ROW:
            role = _ROLES[OwnerState(rwsems.owner_state[row])]
            role = "owner" if role == "writer" else role
            hint = " (it may have left)" if role == "last reader" else ""
            yield f"  {role:<9} {self._who(owner)}{hint}: {self._doing(owner)}"
        elif rwsems.owner_state[row] == OwnerState.STRANGER and self._locks.missing is None:
            owner_word = hexadecimal(int(rwsems.owner[row]))
            yield style.warn(f"  owner     {owner_word} leads to no task")
        following = int(self._chains.next[row])
        if following != NO_ROW:
            names = [self._name(lock) for lock in self._chains.path(row)[1:]]
            yield f"  which waits for {', whose owner waits for '.join(names)}"
        yield from self._waiters_text(row)
        if rwsems.waiters_end[row] != ChainEnd.CLOSED and self._locks.missing is None:
            end = ChainEnd(rwsems.waiters_end[row]).name.lower()
            yield style.warn(f"  the queue cannot be followed further ({end})")

    def _waiters_text(self, row: int) -> Iterator[str]:
        waiters, every = self._locks.waiters, self._waiters(row)
        lines = [
            (
                _duration(int(waiters.waited_ms[waiter])),
                _WANTED[Wanted(waiters.wanted[waiter])] or "?",
                self._who(task),
                self._doing(task),
            )
            for waiter in every[:_MAX_WAITERS]
            for task in (int(waiters.task[waiter]),)
        ]
        if not lines:
            return
        headers = ("WAITING", "TO", "TASK", "WHERE")
        for line in table(lines, headers, ("right", "left", "left", "left")):
            yield f"  {line}"
        if len(every) > _MAX_WAITERS:
            yield f"  and {len(every) - _MAX_WAITERS:,} more (--format json has all)"

    def _deadlock_text(self, cycle: list[int], style: Style) -> Iterator[str]:
        rwsems = self._locks.rwsems
        yield style.bad(f"deadlock of {counted(len(cycle), 'task')}, each waits for the next one:")
        for row in cycle:
            owner, then = int(rwsems.owner_task[row]), int(self._chains.next[row])
            yield f"  {self._who(owner)} holds {self._name(row)}, waits for {self._name(then)}"

    def _name(self, row: int) -> str:
        rwsems = self._locks.rwsems
        address = hexadecimal(int(rwsems.address[row]))
        if rwsems.kind[row] == LockKind.ANON_VMA:
            root = hexadecimal(int(self.tables.anon_vmas.address[rwsems.row[row]]))
            return f"lock of root anon_vma {root}"
        process = process_of_mm(self.tables, int(rwsems.row[row]))
        return f"mmap_lock {address} of {process or 'an mm that no task has'}"

    def _held_text(self, row: int) -> str:
        readers = int(self._locks.rwsems.readers[row])
        return {
            "writer": "held for write",
            "readers": f"held by {counted(readers, 'reader')}",
            "queued": "free, about to be taken",
            "impossible": "in a state that no semaphore has; see audit",
            "idle": "free",
        }[self._state(row)]

    def _who(self, row: int) -> str:
        tasks = self._locks.tasks
        comm = bytes(tasks.comm[row])
        pid, tid = int(tasks.tgid[row]), int(tasks.pid[row])
        name = f"PID {pid}" if pid == tid else f"PID {pid} thread {tid}"
        return f"{name} ({escape(comm)})" if comm else name

    def _doing(self, row: int) -> str:
        tasks, functions = self._locks.tasks, self.functions[row]
        state = _letter(int(tasks.state[row]), int(tasks.exit_state[row]))
        said = {"R": "runnable", "D": "asleep (D)", "S": "asleep (S)"}.get(state, state)
        ago = int(tasks.last_ran_ms[row])
        if tasks.on_cpu[row]:
            said = "running"
        elif ago >= 0:
            said += f", last ran {_duration(ago)} ago"
        return f"{said}, in {describe_calls(functions)}" if functions else said


@dataclass(frozen=True)
class _Protected:
    # Of anon_vmas that are roots: processes, VMAs and anon_vmas of the family, VMAs in its own tree
    # and in the largest. Of mms: VMAs, and the families that they belong to.
    tables: Tables
    root: dict[str, RowColumn]
    mm: dict[str, RowColumn]

    @staticmethod
    def of(tables: Tables) -> _Protected:
        anon_vmas, links, vmas = tables.anon_vmas, tables.links, tables.vmas
        roots, mms = len(anon_vmas.address), len(tables.mms.address)
        size = np.bincount(tables.nodes.anon_vma, minlength=roots)
        members = np.flatnonzero(anon_vmas.reached & (anon_vmas.root_row != NO_ROW))
        largest = np.zeros(roots, dtype=np.int64)
        np.maximum.at(largest, anon_vmas.root_row[members], size[members])
        # A VMA belongs to the families that its chain leads to: at rest, to one.
        anon_vma = tables.avcs.anon_vma_row[links.avc]
        root = np.where(anon_vma == NO_ROW, NO_ROW, anon_vmas.root_row[anon_vma])
        root, vma = _pairs(root, links.vma, len(vmas.address))
        of_mm = _pairs(root, vmas.mm[vma], mms)
        return _Protected(
            tables,
            {
                "mms": np.bincount(of_mm[0], minlength=roots),
                "vmas": np.bincount(root, minlength=roots),
                "anon_vmas": np.bincount(anon_vmas.root_row[members], minlength=roots),
                "tree": size,
                "largest_tree": largest,
            },
            {
                "mms": np.ones(mms, dtype=np.int64),
                "vmas": np.bincount(vmas.mm[vmas.mm != NO_ROW], minlength=mms),
                "families": np.bincount(of_mm[1], minlength=mms),
            },
        )

    def document(self, is_mm: bool, row: int) -> Document:
        columns = self.mm if is_mm else self.root
        names = ("mms", "vmas", "anon_vmas", "families", "tree", "largest_tree")
        return {name: int(columns[name][row]) if name in columns else None for name in names}

    def text(self, is_mm: bool, row: int) -> str:
        if is_mm:
            return (
                f"{counted(int(self.mm['vmas'][row]), 'VMA')} of "
                f"{counted(int(self.mm['families'][row]), 'family', 'families')}"
            )
        root = {name: int(column[row]) for name, column in self.root.items()}
        return (
            f"{counted(root['vmas'], 'VMA')} of {counted(root['mms'], 'mm')}, "
            f"{counted(root['anon_vmas'], 'anon_vma')}, {root['tree']:,} in its own tree, "
            f"{root['largest_tree']:,} in the largest"
        )


# Pairs of rows, each once, without those of which one is none.
def _pairs(first: RowColumn, second: RowColumn, seconds: int) -> tuple[RowColumn, RowColumn]:
    both = (first != NO_ROW) & (second != NO_ROW)
    keys = distinct((first[both] * seconds + second[both]).view(np.uint64)).view(np.int64)
    return keys // max(seconds, 1), keys % max(seconds, 1)


def _known(milliseconds: int) -> int | None:
    return None if milliseconds < 0 else milliseconds


def _duration(milliseconds: int) -> str:
    if milliseconds < 0:
        return "?"
    if milliseconds < 10_000:
        return f"{milliseconds:,} ms"
    seconds = milliseconds // 1000
    if seconds < 600:
        return f"{seconds} s"
    minutes = seconds // 60
    return f"{minutes} min" if minutes < 600 else f"{minutes // 60:,} h"


# As /proc/PID/stat has it.
def _letter(state: int, exit_state: int) -> str:
    for bit, letter in _EXIT_STATES:
        if exit_state & bit:
            return letter
    if state & _NOLOAD and state & 0x2:
        return "I"
    for bit, letter in _STATES:
        if state & bit:
            return letter
    return "R"
