"""Finding variables in the kernel's image by what they hold, when no symbol names them.

kallsyms has no data symbols without CONFIG_KALLSYMS_ALL. What is needed of them has a form that
nothing else has: pointers to itself, and neighbours that point back.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.image import KernelImage
from anonvma_inspect.target.layouts import Layouts
from anonvma_inspect.target.memory import KERNEL_HALF

__all__ = ("find_init_task", "find_iomem_resource")

# printk() keeps the command name with each message since 7.2: thousands that are no task's.
_MOST_PLACES = 1 << 16
_MOST_NAMES, _MOST_POINTERS = 8, 64
_IORESOURCE_MEM = 0x200  # include/linux/ioport.h


class _Struct:
    """Reads fields of a struct in the target's memory; 0 for what this kernel does not have."""

    def __init__(self, image: KernelImage, layouts: Layouts, name: str) -> None:
        self._image, self._layouts, self._name = image, layouts, name

    def offset(self, path: str) -> int | None:
        field = self._layouts.field(self._name, path)
        return None if field is None else field.offset

    def value(self, address: int, path: str) -> int:
        field = self._layouts.field(self._name, path)
        if field is None:
            raise LookupError(path)
        return int.from_bytes(self._image.read(address + field.offset, field.size), "little")


def find_init_task(image: KernelImage, layouts: Layouts) -> int | None:
    """Search for the task that every CPU's idle loop and every process descends from.

    Follows ``init/init_task.c`` and ``init_idle()`` in ``kernel/sched/core.c`` (v6.12): the group
    leader and parent of itself, with pid 0 and no mm, named ``swapper`` or ``swapper/0``, on a list
    of tasks whose neighbours point back. Other CPUs' idle tasks are on no list, and not in the
    image.

    :return: Its address; ``None`` if there is none.
    :raises TargetError: if there are several.
    """
    task = _Struct(image, layouts, "task_struct")
    comm = task.offset("comm")
    found = []
    if comm is not None:
        for number, place in enumerate(image.find(b"swapper")):
            if number >= _MOST_PLACES:
                raise _ambiguous("init_task")
            if _is_init_task(image, task, place - comm):
                found.append(place - comm)
    return _only(found, "init_task")


def _is_init_task(image: KernelImage, task: _Struct, address: int) -> bool:
    comm, tasks = task.offset("comm"), task.offset("tasks")
    if comm is None or tasks is None or address % 8:
        return False
    try:
        name = image.read(address + comm, 16).split(b"\0")[0]
        if (
            name not in (b"swapper", b"swapper/0")
            or any(task.value(address, path) for path in ("pid", "tgid", "mm"))
            or any(
                task.value(address, path) != address
                for path in ("group_leader", "real_parent", "parent")
            )
        ):
            return False
        head = address + tasks
        following, preceding = (task.value(address, f"tasks.{way}") for way in ("next", "prev"))
        return _links(image.read, head, following, 8) and _links(image.read, head, preceding, 0)
    except LookupError:
        return False


# Whether a neighbour on a list points back; `at` is where it does.
def _links(read: Callable[[int, int], bytes], head: int, neighbour: int, at: int) -> bool:
    return (
        KERNEL_HALF <= neighbour < 2**64 - 16
        and neighbour % 8 == 0
        and read(neighbour + at, 8) == struct.pack("<Q", head)
    )


def find_iomem_resource(image: KernelImage, layouts: Layouts) -> int | None:
    """Search for the root of the tree that tells where RAM is.

    Follows ``kernel/resource.c`` (v6.12): named ``PCI mem``, from 0 on, with no parent and no
    sibling, and with a first child that knows it as its parent.

    :return: Its address; ``None`` if there is none.
    :raises TargetError: if there are several.
    """
    resource = _Struct(image, layouts, "resource")
    name = resource.offset("name")
    found = []
    if name is not None:
        # The end of a longer string can serve as this one.
        texts = list(itertools.islice(image.find(b"PCI mem\0"), _MOST_NAMES))
        for text in texts:
            places = list(itertools.islice(image.find(struct.pack("<Q", text)), _MOST_POINTERS))
            if len(texts) == _MOST_NAMES or len(places) == _MOST_POINTERS:
                raise _ambiguous("iomem_resource")
            found += [at - name for at in places if _is_iomem_resource(resource, at - name)]
    return _only(found, "iomem_resource")


def _is_iomem_resource(resource: _Struct, address: int) -> bool:
    try:
        child = resource.value(address, "child")
        return (
            address % 8 == 0
            and resource.value(address, "flags") & _IORESOURCE_MEM != 0
            and not any(resource.value(address, path) for path in ("start", "parent", "sibling"))
            and child >= KERNEL_HALF
            and resource.value(child, "parent") == address
        )
    except LookupError:
        return False


def _only(found: list[int], name: str) -> int | None:
    if len(found) > 1:
        raise _ambiguous(name)
    return found[0] if found else None


def _ambiguous(name: str) -> TargetError:
    return TargetError(
        f"more than one place in this dump looks like {name}: give the symbols with --system-map "
        "(a copy of /proc/kallsyms, or System.map)"
    )
