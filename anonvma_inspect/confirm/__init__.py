"""On a target that runs while it is read: is it a corruption, or was it a race?

Reading takes time, and the kernel goes on: what one audit of a running kernel finds is a
*suspicion*. It becomes a finding only if the next two readings show the very same: every object of
the family with the same words in the same place, found anew from the task list on, while nobody
held the family's root or an ``mmap_lock`` of its processes for write, and nobody held that of the
process which the finding is about at all.

Why that cannot report a consistent structure. All words of one reading are read before the first
word of the next. That an mm is the same one in all three, and not what was made of its memory, its
``ctx_id`` says (x86-64), and a task that has it in each: the same task, in the same program. That
its ``mmap_lock`` was not held for write between the first look at it and the last, ``mm_lock_seq``
says from v6.4 on: every writer leaves it one higher. The reading in the middle was made between
these two looks, whatever it read first: so what that lock protects was at rest all the while, and a
dump taken then would show the same contradiction. Older kernels have no such number: there four
readings must agree. What no number guards, changes under an ``mmap_lock`` held for read (a
mapping's first anonymous page, the end of munmap), and comes back to the same words in three
readings only if the same objects are freed and taken again for the same purpose in between, twice.

What it can miss: a corruption that something overwrites at once, one in a family that never rests
for as long as three readings of it take, one in an mm that no task has, and one that the first
reading does not show: what is new in a later one is left to the next audit. The first two are
counted as transient.
"""

from __future__ import annotations

from anonvma_inspect.confirm.confirm import MAX_READINGS, confirm
from anonvma_inspect.confirm.running import audit_running

__all__ = ("MAX_READINGS", "audit_running", "confirm")
