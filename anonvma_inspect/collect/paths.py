"""Names of mapped files."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.kernel.era import Record, resolve_record
from anonvma_inspect.target.layouts import Layouts
from anonvma_inspect.target.memory import BoolColumn, Memory, U64Column
from anonvma_inspect.target.target import Target

__all__ = ("file_paths",)

_FILE = ("mnt=f_path.mnt", "dentry=f_path.dentry")
_DENTRY = (
    "d_parent",
    "name=d_name.name",
    "len=d_name.len",
    # NULL in one that is not hashed: its file was deleted, or it never had a name in a directory.
    "hashed=d_hash.pprev",
)
_MOUNT = ("mnt", "mnt_root=mnt.mnt_root", "mnt_parent", "mnt_mountpoint")
# PATH_MAX leaves room for no more components than this, and mounts are not stacked that deep.
_MAX_STEPS = 4096
_NAME_MAX = 255


def file_paths(target: Target, vm_files: U64Column) -> dict[int, bytes]:
    """Paths of files, from the root of the mount tree, as ``/proc/PID/maps`` shows them.

    Follows ``prepend_path()`` and ``simple_dname()``, ``fs/d_path.c``, v6.12. All files go up a
    step of their paths a round.

    :param vm_files: Addresses of ``struct file``; 0 and what repeats are passed over.
    :return: Bytes by address. A file whose path cannot be read whole is not there.
    """
    walker = _Walker.of(target)
    return {} if walker is None else walker.walk(np.unique(vm_files[vm_files != 0]))


class _Walker:
    def __init__(self, memory: Memory, file: Record, dentry: Record, mount: Record) -> None:
        self._memory, self._file, self._dentry, self._mount = memory, file, dentry, mount

    @staticmethod
    def of(target: Target) -> _Walker | None:
        missing: list[str] = []
        layouts: Layouts = target.layouts
        file = resolve_record(layouts, "file", _FILE, missing)
        dentry = resolve_record(layouts, "dentry", _DENTRY, missing)
        mount = resolve_record(layouts, "mount", _MOUNT, missing)
        return None if missing else _Walker(target.memory, file, dentry, mount)

    def walk(self, files: U64Column) -> dict[int, bytes]:
        mnt, lost_mnt = self._words(self._file, files, "mnt")
        dentry, lost_dentry = self._words(self._file, files, "dentry")
        parts: list[list[bytes]] = [[] for _ in files]
        finished = np.zeros(len(files), dtype=bool)
        deleted = self._words(self._dentry, dentry, "hashed")[0] == 0
        active = np.flatnonzero(~lost_mnt & ~lost_dentry)
        nameless = np.zeros(len(files), dtype=bool)
        for _ in range(_MAX_STEPS):
            if not len(active):
                break
            mount = mnt[active] - np.uint64(self._mount.offset("mnt"))
            root, lost = self._words(self._mount, mount, "mnt_root")
            parent_mount, lost_up = self._words(self._mount, mount, "mnt_parent")
            mountpoint, lost_point = self._words(self._mount, mount, "mnt_mountpoint")
            at_root = dentry[active] == root
            lost |= at_root & (lost_up | lost_point)
            top = at_root & (parent_mount == mount)
            up = at_root & ~top & ~lost
            mnt[active[up]] = parent_mount[up] + np.uint64(self._mount.offset("mnt"))
            dentry[active[up]] = mountpoint[up]
            finished[active[top & ~lost]] = True

            inner = np.flatnonzero(~at_root & ~lost)
            index = active[inner]
            names, lost_name = self._names(dentry[index])
            above, lost_above = self._words(self._dentry, dentry[index], "d_parent")
            lost[inner] |= lost_name | lost_above
            for position, name in zip(index, names, strict=True):
                parts[position].append(name)
            # A dentry that is its own parent, but no mount's root, stands for a file that has no
            # place in any directory (memfd, shared anonymous memory).
            pseudo = (above == dentry[index]) & ~lost[inner]
            finished[index[pseudo]] = True
            nameless[index[pseudo]] = True
            dentry[index] = above
            on = ~lost & ~finished[active]
            active = active[on]
        suffix = np.where(deleted | nameless, b" (deleted)", b"")
        return {
            int(files[index]): b"/" + b"/".join(reversed(parts[index])) + bytes(suffix[index])
            for index in np.flatnonzero(finished)
        }

    def _words(
        self, record: Record, addresses: U64Column, name: str
    ) -> tuple[NDArray[np.uint64], BoolColumn]:
        field = record.fields[name]
        rows, present = self._memory.gather(addresses + np.uint64(field.offset), field.size)
        return record.column(rows, name, field.offset), ~present

    def _names(self, dentries: U64Column) -> tuple[list[bytes], BoolColumn]:
        pointer, lost = self._words(self._dentry, dentries, "name")
        length, _ = self._words(self._dentry, dentries, "len")
        lost |= length > _NAME_MAX
        names = [b""] * len(dentries)
        for size in np.unique(length[~lost]):
            if not size:
                continue
            of_size = np.flatnonzero(~lost & (length == size))
            rows, present = self._memory.gather(pointer[of_size], int(size))
            lost[of_size[~present]] = True
            for index, row in zip(of_size, rows, strict=True):
                names[index] = row.tobytes()
        return names, lost
