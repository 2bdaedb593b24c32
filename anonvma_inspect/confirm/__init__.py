"""On a target that runs while it is read: is it a corruption, or was it a race?

Reading takes time, and the kernel goes on: what one audit of a running kernel finds is a
*suspicion*. It becomes a finding only if another reading of the families concerned shows the very
same: every object of the family with the same words in the same place, found anew from the task
list on, while nobody held the family's root or an ``mmap_lock`` of its processes for write, and
nobody held that of the process which the finding is about at all.

Why that cannot report a consistent structure. All words of the one reading were read before the
first word of the next. A word that is the same in both either kept its value in between, or changed
and changed back. In the first case there was a moment between the two readings at which all of
these words had the values that were read: a dump taken then would show the same contradiction, with
the locks that protect the structure free. The second case is what ``mm_lock_seq`` rules out from
v6.4 on: every writer of an ``mmap_lock`` leaves it one higher. Older kernels have no such number:
there three readings must agree. What no number guards, changes under an ``mmap_lock`` held for
read (a mapping's first anonymous page, the end of munmap), and comes back to the same words only if
the same objects are freed and taken again for the same purpose while two readings are made.

What it can miss: a corruption that something overwrites at once, and one in a family that never
rests for as long as two readings of it take. Those are counted as transient.
"""

from __future__ import annotations

from anonvma_inspect.confirm.confirm import MAX_READINGS, confirm
from anonvma_inspect.confirm.running import audit_running

__all__ = ("MAX_READINGS", "audit_running", "confirm")
