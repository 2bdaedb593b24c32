"""``vma->anon_vma`` as proposals have it: an integer, in the BTF of a kernel that has a pointer.

Nothing is known of the values that ANON_VMA_LAZY's tags have, nor whether BTF tells them: names are
given to them on demand.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from anonvma_inspect.target.btf import Btf, Kind

__all__ = ("Tags", "tagged_btf")

_HEADER = struct.Struct("<HBBIIIII")
_MEMBER = "anon_vma"


@dataclass(frozen=True)
class Tags:
    """Low bits of ``vma->anon_vma``.

    :ivar named: BTF has an enum of them.
    :ivar typed: And ANON_VMA_LAZY's typedef.
    :ivar counted: VMAs have the count of references to root VMAs, by the name that is known.
    """

    unfaulted: int = 0
    vma: int = 0
    parent: int = 0
    named: bool = False
    typed: bool = True
    counted: bool = False

    def enumerators(self) -> list[tuple[str, int]]:
        """What the enum has."""
        values = {
            "ANON_VMA_UNFAULTED": self.unfaulted,
            "ANON_VMA_TREE_VMA": self.vma,
            "ANON_VMA_TREE_PARENT": self.parent,
        }
        return [(name, value) for name, value in values.items() if value]


class _Section:
    # A BTF section that grows.
    def __init__(self, data: bytes) -> None:
        *_, header, type_offset, type_size, string_offset, string_size = _HEADER.unpack_from(data)
        types = data[header + type_offset :][:type_size]
        self.words = list(struct.unpack(f"<{type_size // 4}I", types))
        self.strings = data[header + string_offset :][:string_size]
        self.types = len(Btf(data))

    def name(self, text: str) -> int:
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text) - 1

    def text(self, offset: int) -> str:
        return self.strings[offset : self.strings.index(b"\0", offset)].decode()

    def add(self, words: Sequence[int]) -> int:
        self.words += words
        self.types += 1
        return self.types - 1

    def pack(self) -> bytes:
        size = 4 * len(self.words)
        header = _HEADER.pack(0xEB9F, 1, 0, _HEADER.size, 0, size, size, len(self.strings))
        return header + struct.pack(f"<{len(self.words)}I", *self.words) + self.strings


def tagged_btf(btf: Btf, types: Sequence[str], tags: Tags) -> Btf:
    """Change the type of ``vma->anon_vma``.

    :param types: What is kept of the BTF.
    :param tags: With tags of ANON_VMA_LAZY it becomes an ``anon_vma_tree_t``, else, or if that is
        not told, an ``unsigned long``.
    """
    data = btf.reduce(types)
    reduced, section = Btf(data), _Section(data)
    (vma,) = reduced.ids("vm_area_struct", Kind.STRUCT)
    (member,) = (each for each in reduced.record(vma).members if each.name == _MEMBER)
    (word,) = reduced.ids("long unsigned int", Kind.INT)
    place = next(
        at
        for at in range(1, len(section.words) - 1)
        if section.words[at : at + 2] == [member.type_id, member.bit_offset]
        and section.words[at - 1] < len(section.strings)
        and section.text(section.words[at - 1]) == _MEMBER
    )
    if tags.vma and tags.typed:
        word = section.add([section.name("anon_vma_tree_t"), Kind.TYPEDEF << 24, word])
    section.words[place] = word
    if tags.named:
        values = tags.enumerators()
        enum = [section.name("anon_vma_tag"), Kind.ENUM << 24 | len(values), 4]
        for name, value in values:
            enum += [section.name(name), value]
        section.add(enum)
    return Btf(section.pack(), f"{btf.origin}, with tags")
