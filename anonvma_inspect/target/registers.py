"""Where the CPUs were when a dump was taken."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from anonvma_inspect.target.elf import Note

__all__ = ("Registers", "read_registers")

#: Program counter and stack pointer of each CPU.
Registers = tuple[tuple[int, int], ...]

_NT_PRSTATUS = 1
# In struct elf_prstatus (include/linux/elfcore.h) the registers are at 112: struct user_regs_struct
# of arch/x86/include/asm/user_64.h, struct user_pt_regs of arch/arm64/include/uapi/asm/ptrace.h.
_PC_AND_SP = {"x86_64": (112 + 16 * 8, 112 + 19 * 8), "aarch64": (112 + 32 * 8, 112 + 31 * 8)}


def read_registers(notes: Iterable[Note], machine: str) -> Registers:
    """Read what the notes of a core file tell of the CPUs.

    :param machine: The name of the architecture, as ``uname -m`` has it.
    """
    if machine not in _PC_AND_SP:
        return ()
    pc, sp = _PC_AND_SP[machine]
    return tuple(
        (_word(note.desc, pc), _word(note.desc, sp))
        for note in notes
        if note.name == b"CORE" and note.type == _NT_PRSTATUS and len(note.desc) >= max(pc, sp) + 8
    )


def _word(data: bytes, at: int) -> int:
    word: int = struct.unpack_from("<Q", data, at)[0]
    return word
