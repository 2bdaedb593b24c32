"""Copy a core with one field of one object changed, to see what an audit makes of it.

    python scripts/corrupt.py IN OUT STRUCT ADDRESS FIELD VALUE

VALUE is a number, or +N or -N to change the one that is there. The copy is written without
compression. Only objects in the direct map of an ELF core or snapshot can be changed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from anonvma_inspect.errors import AnonVmaInspectError, UsageError
from anonvma_inspect.target import Target, TargetOptions, open_target
from anonvma_inspect.target.elf import parse_core
from anonvma_inspect.target.files import map_file
from anonvma_inspect.target.snapshot import decompress


def file_offset(data: np.ndarray[tuple[int], np.dtype[np.uint8]], path: str, address: int) -> int:
    """Where a virtual address of a snapshot lies in its file."""
    load = parse_core(data, path).load
    inside = (load.vaddr <= address) & (address - load.vaddr < load.filesz)
    if not inside.any():
        raise UsageError(f"{address:#x} is not in {path} (or this is no snapshot)")
    segment = int(np.flatnonzero(inside)[0])
    return int(load.offset[segment]) + address - int(load.vaddr[segment])


def corrupt(target: Target, struct: str, address: int, name: str, value: str, out: Path) -> str:
    """Write the copy.

    :return: What was changed, for people.
    """
    field = target.layouts.field(struct, name)
    if field is None:
        raise UsageError(f"struct {struct} has no field {name} in this kernel")
    compressed = target.path.endswith(".xz")
    data = decompress(Path(target.path)) if compressed else map_file(target.path)
    at = file_offset(data, target.path, address + field.offset)
    copy = bytearray(data.tobytes())
    old = int.from_bytes(copy[at : at + field.size], "little")
    number = int(value, 0)
    new = (old + number if value[0] in "+-" else number) % 2 ** (8 * field.size)
    copy[at : at + field.size] = new.to_bytes(field.size, "little")
    out.write_bytes(copy)
    shown = [str(word) if word < 1 << 16 else f"{word:#x}" for word in (new, old)]
    return f"struct {struct} {address:#x}: {name} is now {shown[0]}, was {shown[1]}"


def main(arguments: list[str]) -> int:
    """Run the command."""
    if len(arguments) != 6:
        print(__doc__, file=sys.stderr)
        return 2
    path, out, struct, address, name, value = arguments
    try:
        target = open_target(TargetOptions(core=path))
        print(corrupt(target, struct, int(address, 16), name, value, Path(out)))
    except AnonVmaInspectError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
