"""Where the kernel's functions begin and end."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.kallsyms import Kallsyms
from anonvma_inspect.target.target import Target
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo

__all__ = ("find_functions",)


def find_functions(target: Target, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Find functions by name, in the kernel's own symbol table.

    A function ends where the next symbol begins.

    :return: Start and end of those that exist; nothing if the target does not have the table.
    """
    if target.functions is not None:
        functions = target.functions
        return {name: functions[name] for name in names if name in functions}
    kallsyms = target.kallsyms or _read_kallsyms(target)
    if kallsyms is None:
        return {}
    found = kallsyms.lookup(names)
    ordered = np.unique(kallsyms.addresses)
    start = np.array(list(found.values()), dtype=np.uint64)
    after = np.minimum(np.searchsorted(ordered, start, side="right"), len(ordered) - 1)
    return {
        name: (int(first), int(end))
        for name, first, end in zip(found, start, ordered[after], strict=True)
        if first < end
    }


def _read_kallsyms(target: Target) -> Kallsyms | None:
    page = target.page_size

    # Page by page: a row of some thousand pages takes as many rounds.
    def read(address: int, size: int) -> bytes:
        first, end = address // page, -(-(address + size) // page)
        rows, present = memory.gather(
            np.arange(first, end, dtype=np.uint64) * np.uint64(page), page
        )
        if not present.all():
            raise LookupError("not in the target")
        return rows.reshape(-1)[address - first * page :][:size].tobytes()

    memory = target.memory.uncached()

    try:
        return Kallsyms(read, parse_vmcoreinfo(target.vmcoreinfo, target.path))
    except TargetError:
        return None
