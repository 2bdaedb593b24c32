"""The audit of a target that runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

from anonvma_inspect.collect import broken_threads, collect_audit
from anonvma_inspect.collect.reader import Progress
from anonvma_inspect.confirm.confirm import confirm
from anonvma_inspect.errors import NotFoundError
from anonvma_inspect.in_flight import Audit
from anonvma_inspect.invariants import catalogue
from anonvma_inspect.invariants.base import Invariant
from anonvma_inspect.invariants.catalogue import CATALOGUE
from anonvma_inspect.tables import Holes, Tables
from anonvma_inspect.target.target import Target

__all__ = ("audit_running",)

# Whoever holds a lock needs time to give it back: twice as long before each reading.
_FIRST_PAUSE = 0.001
# How often everything is read for the sake of holes.
_LOOKS = 3


def audit_running(
    target: Target,
    pids: Sequence[int] = (),
    invariants: Sequence[Invariant] = CATALOGUE,
    *,
    leaks: bool = False,
    deep: int = 0,
    progress: Progress | None = None,
    on_finding: Callable[[Target], None] = lambda view: None,
) -> Audit:
    """Audit a kernel that runs: what it shows while it is read is confirmed before it counts.

    :param target: It is read through fresh views; its own is not touched.
    :param pids: See :func:`anonvma_inspect.collect.collect_audit`.
    :param invariants: See :func:`anonvma_inspect.invariants.catalogue.audit`.
    :param leaks: See :func:`anonvma_inspect.collect.collect_audit`.
    :param deep: Likewise.
    :param progress: Likewise.
    :param on_finding: Called with the view that confirmed something, when it did.
    :return: See :func:`anonvma_inspect.confirm.confirm`. Its holes are those that persist.
    :raises TargetError: See :func:`anonvma_inspect.collect.collect_audit`.
    :raises NotFoundError: Likewise.
    """
    view = target

    def look() -> Tables:
        nonlocal view
        view = view.again()
        return collect_audit(view, pids, progress, leaks=leaks, deep=deep)

    pause = _FIRST_PAUSE

    # Everything, from the tasks on: an object that was freed rests like no other, and whoever reads
    # it again by its address finds it as it was, though nothing leads to it any more.
    def read_again() -> catalogue.Audit | None:
        nonlocal pause
        time.sleep(pause)
        pause *= 2
        try:
            return catalogue.audit(look(), invariants)
        except NotFoundError:
            return None  # the process has ended

    tables = look()
    for _ in range(_LOOKS - 1):
        if tables.complete:
            break
        later = look()
        tables = dataclasses.replace(later, holes=_in_both(tables.holes, later.holes))
    return confirm(
        catalogue.audit(tables, invariants),
        read_again,
        lambda: broken_threads(target.again()),
        lambda: on_finding(view),
    )


def _in_both(before: Holes, now: Holes) -> Holes:
    known = set(zip(before.address.tolist(), before.size.tolist(), strict=True))
    kept = np.array(
        [hole in known for hole in zip(now.address.tolist(), now.size.tolist(), strict=True)],
        dtype=bool,
    )
    return Holes(now.address[kept], now.size[kept], now.needed_for[kept])
