"""Everything that an audit looks at."""

from __future__ import annotations

from collections.abc import Sequence

from anonvma_inspect.collect.collector import collect
from anonvma_inspect.collect.pages import collect_pages
from anonvma_inspect.collect.reader import Progress
from anonvma_inspect.collect.slabs import collect_slabs
from anonvma_inspect.tables import Tables
from anonvma_inspect.target.target import Target

__all__ = ("collect_audit",)


def collect_audit(
    target: Target,
    pids: Sequence[int] = (),
    progress: Progress | None = None,
    *,
    leaks: bool = False,
    deep: int = 0,
) -> Tables:
    """Read the anonymous reverse map of a target, and what its slab allocator says of it.

    :param pids: See :func:`anonvma_inspect.collect.collect`.
    :param progress: Likewise.
    :param leaks: Also look at all slabs for objects that nothing reached; families found so, of mms
        that no task leads to, are read as well. Not with ``pids``.
    :param deep: Also walk the page tables; look at one in so many blocks of memory
        (:func:`anonvma_inspect.collect.collect_pages`). 0: do not.
    :raises TargetError: See there.
    :raises NotFoundError: See there.
    """
    tables = _with_slabs(target, pids, progress, leaks)
    return collect_pages(target, tables, progress, sample=deep) if deep else tables


def _with_slabs(
    target: Target, pids: Sequence[int], progress: Progress | None, leaks: bool
) -> Tables:
    tables = collect_slabs(target, collect(target, pids, progress), progress, leaks=leaks)
    unreached = None if tables.allocation is None else tables.allocation.unreached
    if unreached is None:
        return tables
    used = (unreached.anon_vma_refcount > 0) & (unreached.anon_vma_rb_root != 0)
    if not used.any():
        return tables
    more = collect(target, progress=progress, anon_vmas=unreached.anon_vmas[used].tolist())
    return collect_slabs(target, more, progress, leaks=True)
