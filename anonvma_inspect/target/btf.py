"""Types from BTF, the kernel's own compact type information, without drgn.

A kernel with ``CONFIG_DEBUG_INFO_BTF`` carries its types in its image: in every full dump, and in
``/sys/kernel/btf/vmlinux``. :class:`Btf` indexes them and decodes only those that are asked for;
:class:`BtfLayouts` answers where a field lies. The format is that of ``include/uapi/linux/btf.h``,
up to the wider ``vlen`` and the layout section of 7.x kernels.

BTF comes out of a dump and is not to be trusted: whatever is wrong with it ends in a
:class:`~anonvma_inspect.errors.TargetError`, after a bounded amount of work.
"""

__all__ = ("Btf", "BtfLayouts", "Enumerator", "Kind", "Member", "Parameter", "Record")

import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.layouts import BIT_FIELD_KINDS, Field, bit_field_storage, canonical_name


class Kind(IntEnum):
    """What a type is: the ``BTF_KIND_*`` constants."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


@dataclass(frozen=True)
class Member:
    """A member of a struct or union."""

    name: str  #: Empty if anonymous.
    type_id: int
    bit_offset: int  #: Bits from the start of the struct.
    bit_size: int | None  #: Bits of a bit-field, else None.


@dataclass(frozen=True)
class Parameter:
    """A parameter of a function type. A last one of type 0 without a name stands for ``...``."""

    name: str
    type_id: int


@dataclass(frozen=True)
class Enumerator:
    """An enumeration constant."""

    name: str
    value: int


@dataclass(frozen=True)
class Record:
    """One type, as its record says; types that it refers to are named by id, 0 is ``void``."""

    id: int
    kind: Kind
    name: str  #: Empty if anonymous.
    size: int = 0  #: Bytes, of INT, STRUCT, UNION, ENUM, ENUM64, FLOAT and DATASEC.
    type_id: int = 0  #: What PTR, ARRAY, TYPEDEF and so on refer to; what FUNC_PROTO returns.
    flag: bool = False  #: ``kind_flag``: FWD of a union, signed ENUM.
    length: int = 0  #: Elements of an ARRAY.
    signed: bool = False  #: Of INT, ENUM and ENUM64.
    boolean: bool = False  #: Of INT: ``_Bool``.
    members: tuple[Member, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    enumerators: tuple[Enumerator, ...] = ()


_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_LAYOUT_HEADER = struct.Struct("<II")

# Words (of 4 bytes) of a record: those of struct btf_type and what always follows it, and those
# that follow vlen times.
_WORDS: dict[int, tuple[int, int]] = {
    **{int(kind): (3, 0) for kind in Kind if kind != Kind.VOID},
    Kind.INT: (4, 0),
    Kind.ARRAY: (6, 0),
    Kind.VAR: (4, 0),
    Kind.DECL_TAG: (4, 0),
    Kind.STRUCT: (3, 3),
    Kind.UNION: (3, 3),
    Kind.ENUM: (3, 2),
    Kind.FUNC_PROTO: (3, 2),
    Kind.DATASEC: (3, 3),
    Kind.ENUM64: (3, 3),
}

_SIZED = frozenset(
    (Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64, Kind.FLOAT, Kind.DATASEC)
)
_COMPOUND = frozenset((Kind.STRUCT, Kind.UNION))
_ENUMS = frozenset((Kind.ENUM, Kind.ENUM64))
# What a name can mean, by its tag; without one, the first of these that there is.
_TAGS = {
    "struct": (Kind.STRUCT,),
    "union": (Kind.UNION,),
    "enum": (Kind.ENUM, Kind.ENUM64),
    "": (Kind.TYPEDEF, Kind.INT, Kind.FLOAT),
}
_QUALIFIERS = {Kind.CONST: "const", Kind.VOLATILE: "volatile", Kind.RESTRICT: "restrict"}
# Nothing refers to these by its type.
_UNREFERENCED = frozenset((Kind.FUNC, Kind.VAR, Kind.DATASEC, Kind.DECL_TAG))
# What stands between a name and the bytes it names.
_TRANSPARENT = frozenset((Kind.TYPEDEF, Kind.TYPE_TAG, *_QUALIFIERS))

_INT_SIGNED = 1 << 0
_INT_BOOL = 1 << 2

# No kernel nests types this deep; cycles do. Spelling a type visits at most _MAX_PARTS others (the
# kernel's longest, a function of many parameters, takes 32), which bounds the recursion as well.
_MAX_DEPTH = 64
_MAX_PARTS = 200

# Several times KSYM_NAME_LEN. Without a limit, 100,000 names could share one of 4 MB.
_MAX_NAME = 4096

# The largest kernels have some 20 MB of types, and some 1,000 members or enumerators in one.
_MAX_SECTION = 1 << 26
_MAX_MEMBERS = 1 << 16

# BTF does not tell the size of a pointer; this package inspects 64-bit kernels.
_POINTER_SIZE = 8

# Compilers name C's integer types in their own way.
_C_NAMES = {
    "long int": "long",
    "long unsigned int": "unsigned long",
    "short int": "short",
    "short unsigned int": "unsigned short",
    "long long int": "long long",
    "long long unsigned int": "unsigned long long",
    "__int128 unsigned": "unsigned __int128",
}
_BTF_NAMES = {name: written for written, name in _C_NAMES.items()}

_LAYOUT_KINDS = {
    Kind.VOID: "void",
    Kind.INT: "integer",
    Kind.PTR: "pointer",
    Kind.ARRAY: "array",
    Kind.STRUCT: "struct",
    Kind.UNION: "union",
    Kind.ENUM: "enum",
    Kind.ENUM64: "enum",
    Kind.FUNC_PROTO: "function",
    Kind.FLOAT: "float",
}


class Btf:
    """The types in one BTF section.

    Opening it finds where each type's record begins, which takes about 0.2 microseconds a type;
    everything else is decoded when it is asked for.

    :param data: The section, from its header on. It is kept, not copied, but for the strings.
    :param origin: What to call it in error messages.
    :raises TargetError: if it is not BTF, damaged, or of a kind that this cannot read.
    """

    def __init__(
        self, data: bytes | bytearray | memoryview | NDArray[np.uint8], origin: str = "BTF"
    ) -> None:
        self.origin = origin
        section = (data.data if isinstance(data, np.ndarray) else memoryview(data)).cast("B")
        types, strings, layout = self._sections(section)
        # The native type of the same layout, for fast access to single words by way of memoryview.
        self._words = np.frombuffer(types, "<u4").astype(np.uint32, copy=False)
        self._strings = bytes(strings)
        self._starts = self._index(layout)
        self._names = self._words[self._starts]
        self._info = self._words[self._starts + np.uint32(1)]
        self._records: dict[int, Record] = {}

    def __len__(self) -> int:
        """Number of types, ``void`` (id 0) included: ids are less than this."""
        return len(self._starts) + 1

    def ids(self, name: str, *kinds: Kind) -> list[int]:
        """Find types by name.

        A name is found where it is written in full, as ``libbpf`` writes it: once, with no tails
        shared among strings.

        :param kinds: The kinds wanted; any kind if none is named.
        :return: Ids in ascending order. A kernel can have several structs of one name.
        """
        offset = self._find_string(name)
        if offset is None:
            return []
        found = np.flatnonzero(self._names == offset)
        ids = [int(row) + 1 for row in found]
        return [id_ for id_ in ids if not kinds or self.kind(id_) in kinds]

    def kind(self, type_id: int) -> Kind:
        """Kind of a type.

        :raises TargetError: if there is no such type, or it is of a kind without a meaning here.
        """
        if type_id == 0:
            return Kind.VOID
        if not 0 < type_id <= len(self._starts):
            raise self._damaged(
                f"type {type_id} is referred to, but there are only {len(self._starts)}"
            )
        kind = int(self._info[type_id - 1]) >> 24 & 0x7F
        try:
            return Kind(kind)
        except ValueError:
            raise self._damaged(f"type {type_id} of unknown kind {kind} is referred to") from None

    def record(self, type_id: int) -> Record:
        """Decode one type.

        :raises TargetError: if there is no such type, or a name lies outside of the strings.
        """
        record = self._records.get(type_id)
        if record is None:
            record = self._records[type_id] = self._decode(type_id)
        return record

    def resolve(self, type_id: int) -> int:
        """Look behind typedefs, qualifiers and type tags.

        :return: Id of the first type that is none of those.
        :raises TargetError: if they lead in a circle.
        """
        for _ in range(_MAX_DEPTH):
            if self.kind(type_id) not in _TRANSPARENT:
                return type_id
            type_id = self._type_of(type_id)
        raise self._damaged(f"type {type_id} leads through more than {_MAX_DEPTH} others")

    def size(self, type_id: int) -> int | None:
        """Bytes that a type takes; None for ``void``, functions, and structs only declared."""
        count = 1
        for _ in range(_MAX_DEPTH):
            type_id = self.resolve(type_id)
            kind = self.kind(type_id)
            if kind == Kind.ARRAY:
                record = self.record(type_id)
                count *= record.length
                type_id = record.type_id
            elif kind == Kind.PTR:
                return count * _POINTER_SIZE
            else:
                return count * self._type_of(type_id) if kind in _SIZED else None
        raise self._damaged(f"type {type_id} is an array of more than {_MAX_DEPTH} dimensions")

    def spell(self, type_id: int) -> str:
        """Write a type as drgn's ``Type.type_name()`` does: ``const char *``, ``int [4]``.

        :raises TargetError: if it is made of more parts than any type of a kernel.
        """
        return self._declare(type_id, [_MAX_PARTS])

    def enumerator(self, name: str) -> int | None:
        """Value of an enumeration constant of whatever enum; None if there is none of that name."""
        owner = self.enum_of(name)
        enumerators = () if owner is None else self.record(owner).enumerators
        return next((e.value for e in enumerators if e.name == name), None)

    def enum_of(self, name: str) -> int | None:
        """Find an enumeration constant.

        :return: Id of the enum that has one of this name (the first, if several have); None if
            there is none.
        """
        offset = self._find_string(name)
        if offset is None:
            return None
        for word in np.flatnonzero(self._words == offset):
            row = int(np.searchsorted(self._starts, word, side="right")) - 1
            kind = int(self._info[row]) >> 24 & 0x7F
            within = int(word) - int(self._starts[row]) - 3
            if kind in _ENUMS and within >= 0 and within % _WORDS[Kind(kind)][1] == 0:
                return row + 1
        return None

    def reduce(self, names: Iterable[str]) -> bytes:
        """Write a smaller BTF section that is the same to whoever asks for the named types.

        The named types are complete, and so is whatever they hold by value. A struct or union that
        they only point to is declared (FWD); names of parameters are dropped.

        :param names: Structs, unions, enums, typedefs and enumerators, with or without their tags.
            Those that do not exist are passed over: which exist depends on the kernel.
        :return: The section, with its header.
        :raises TargetError: if the types needed are damaged.
        """
        roots: list[int] = []
        for name in names:
            ids = self.find(name)
            owner = self.enum_of(name)
            roots.extend(ids if owner is None else [*ids, owner])
        return _write(self, self._closure(roots))

    def find(self, name: str) -> list[int]:
        """Find types by name, with a tag (``"struct page"``) or without.

        :return: Ids; without a tag, of the structs of that name if there are any, else of the
            unions, the enums, or the typedefs.
        """
        tag, _, rest = name.rpartition(" ")
        if tag not in _TAGS:
            tag, rest = "", name
        for kinds in (_TAGS[tag],) if tag else _TAGS.values():
            ids = self.ids(rest, *kinds) or self.ids(_BTF_NAMES.get(rest, ""), *kinds)
            if ids:
                return ids
        return []

    # Where the three sections lie; the layout section describes kinds that are newer than this.
    def _sections(self, section: memoryview) -> tuple[memoryview, memoryview, memoryview]:
        if len(section) < _HEADER.size:
            raise self._damaged(f"{len(section)} bytes are too few for a header")
        if len(section) > _MAX_SECTION:
            raise self._damaged(f"{len(section)} bytes are more than any kernel's")
        magic, version, _, header_size, *bounds = _HEADER.unpack_from(section)
        if magic == 0x9FEB:
            raise TargetError(f"{self.origin}: big-endian BTF is not supported")
        if bytes(section[:4]) == b"\x7fELF":
            raise TargetError(
                f"{self.origin}: an ELF file, not raw BTF; raw is /sys/kernel/btf/vmlinux, or what "
                "objcopy -O binary -j .BTF --set-section-flags .BTF=alloc writes"
            )
        if magic != _MAGIC:
            raise TargetError(f"{self.origin}: not BTF: it begins with {magic:#06x}, not 0xeb9f")
        if version != 1:
            raise TargetError(f"{self.origin}: BTF version {version} is not supported, only 1")
        if not _HEADER.size <= header_size <= len(section):
            raise self._damaged(f"a header of {header_size} bytes")
        if header_size >= _HEADER.size + _LAYOUT_HEADER.size:
            bounds += _LAYOUT_HEADER.unpack_from(section, _HEADER.size)
        else:
            bounds += (0, 0)
        body = section[header_size:]
        parts = []
        for name, offset, size in zip(
            ("types", "strings", "layout"), bounds[::2], bounds[1::2], strict=True
        ):
            if offset + size > len(body):
                raise self._damaged(
                    f"truncated: the {name} end {offset + size - len(body)} bytes behind its end"
                )
            parts.append(body[offset : offset + size])
        types, strings, layout = parts
        if bounds[0] % 4 or len(types) % 4:
            raise self._damaged("the types are not aligned to 4 bytes")
        if len(strings) == 0 or strings[0] != 0 or strings[-1] != 0:
            raise self._damaged("the strings neither begin nor end with an empty one")
        return types, strings, layout

    # Word at which each type's record begins. How long a record is depends on its info word alone,
    # and a kernel's 100,000 types have some 300 different ones: a loop over a dictionary of those
    # needs less time and memory than array operations over all words that could begin a record.
    def _index(self, layout: memoryview) -> NDArray[np.uint32]:
        steps = _Steps(layout)
        words = self._words.data
        end = len(words)
        starts = array("I")
        append = starts.append
        at = 0
        try:
            while at < end:
                append(at)
                at += steps[words[at + 1]]
        except (IndexError, KeyError) as error:
            if isinstance(error, IndexError):
                raise self._damaged(f"truncated: type {len(starts)} has no end") from None
            raise TargetError(
                f"{self.origin}: type {len(starts)} is of kind {error}, which is not known "
                "here, and no layout section describes it; give the types with -s (a vmlinux)"
            ) from None
        if at != end:
            raise self._damaged(f"type {len(starts)} runs past the end of the types")
        return np.frombuffer(starts, np.uint32)

    def _damaged(self, what: str) -> TargetError:
        return TargetError(f"{self.origin}: damaged BTF: {what}")

    def _find_string(self, name: str) -> int | None:
        wanted = name.encode(errors="replace")
        if not wanted or b"\0" in wanted:
            return None
        at = self._strings.find(b"\0" + wanted + b"\0")
        return None if at < 0 else at + 1

    def _string(self, offset: int) -> str:
        if offset >= len(self._strings):
            raise self._damaged(f"a name at {offset}, but {len(self._strings)} bytes of strings")
        end = self._strings.find(b"\0", offset, offset + _MAX_NAME)
        if end < 0:
            raise self._damaged(f"the name at {offset} is longer than {_MAX_NAME} bytes")
        return self._strings[offset:end].decode(errors="backslashreplace")

    # The third word: a size, or the type referred to.
    def _type_of(self, type_id: int) -> int:
        return int(self._words[int(self._starts[type_id - 1]) + 2])

    # All words of a type's record.
    def _record_words(self, type_id: int) -> list[int]:
        start = int(self._starts[type_id - 1])
        end = int(self._starts[type_id]) if type_id < len(self._starts) else len(self._words)
        words: list[int] = self._words[start:end].tolist()
        return words

    def _decode(self, type_id: int) -> Record:
        kind = self.kind(type_id)
        if kind == Kind.VOID:
            return Record(0, kind, "void")
        if int(self._info[type_id - 1]) & 0xFFFFFF > _MAX_MEMBERS:
            raise self._damaged(f"type {type_id} has more than {_MAX_MEMBERS} members")
        name_offset, info, value, *rest = self._record_words(type_id)
        name = self._string(name_offset)
        flag = bool(info >> 31)
        size, target = (value, 0) if kind in _SIZED else (0, value)
        if kind in _COMPOUND:
            members = tuple(self._members(rest, flag))
            return Record(type_id, kind, name, size, flag=flag, members=members)
        if kind in _ENUMS:
            enumerators = tuple(self._enumerators(rest, flag, kind == Kind.ENUM64))
            signed = flag or any(e.value < 0 for e in enumerators)
            return Record(
                type_id, kind, name, size, flag=flag, signed=signed, enumerators=enumerators
            )
        if kind == Kind.INT:
            encoding = rest[0] >> 24 & 0xF
            return Record(
                type_id,
                kind,
                name,
                size,
                signed=bool(encoding & _INT_SIGNED),
                boolean=bool(encoding & _INT_BOOL),
            )
        if kind == Kind.ARRAY:
            element, _, length = rest
            return Record(type_id, kind, name, type_id=element, length=length)
        if kind == Kind.FUNC_PROTO:
            parameters = tuple(
                Parameter(self._string(offset), parameter)
                for offset, parameter in zip(rest[::2], rest[1::2], strict=True)
            )
            return Record(type_id, kind, name, type_id=target, parameters=parameters)
        return Record(type_id, kind, name, size, target, flag)

    def _members(self, words: list[int], flag: bool) -> Iterator[Member]:
        for name, type_id, position in zip(words[::3], words[1::3], words[2::3], strict=True):
            if flag:
                yield Member(
                    self._string(name), type_id, position & 0xFFFFFF, position >> 24 or None
                )
            else:
                yield Member(self._string(name), type_id, position, None)

    def _enumerators(self, words: list[int], flag: bool, wide: bool) -> Iterator[Enumerator]:
        if wide:
            values = [low | high << 32 for low, high in zip(words[1::3], words[2::3], strict=True)]
            sign, names = 1 << 63, words[::3]
        else:
            values, sign, names = words[1::2], 1 << 31, words[::2]
        # Before pahole 1.24 no enum had the flag and values above 2**31 were stored all the same:
        # without any flag in all of the section it says nothing, and small negatives are likelier.
        signed = flag or (not wide and not self._flags_enums())
        for name, value in zip(names, values, strict=True):
            yield Enumerator(
                self._string(name), value - 2 * sign if signed and value & sign else value
            )

    def _flags_enums(self) -> bool:
        return bool(np.any(self._info >> np.uint32(24) == (0x80 | Kind.ENUM)))

    # Spell a type; parts[0] is how many more parts of types may be visited.
    def _declare(self, type_id: int, parts: list[int]) -> str:
        declarator = ""
        behind_pointer = False
        while True:
            qualifiers = set()
            while (kind := self.kind(type_id)) in _QUALIFIERS or kind == Kind.TYPE_TAG:
                self._spend(parts, type_id)
                qualifiers.add(_QUALIFIERS.get(kind, ""))
                type_id = self._type_of(type_id)
            self._spend(parts, type_id)
            qualifier = "".join(f"{word} " for word in _QUALIFIERS.values() if word in qualifiers)
            if kind == Kind.PTR:
                # As drgn writes it: "char * const *".
                declarator = (
                    f"* {qualifier}{declarator}".rstrip() if qualifier else f"*{declarator}"
                )
                behind_pointer = True
            elif kind in (Kind.ARRAY, Kind.FUNC_PROTO):
                if behind_pointer:
                    declarator = f"({declarator})"
                behind_pointer = False
                if kind == Kind.ARRAY:
                    declarator += f"[{self.record(type_id).length}]"
                else:
                    declarator += f"({self._declare_parameters(type_id, parts)})"
            else:
                base = qualifier + self._base_name(type_id, kind)
                return f"{base} {declarator}" if declarator else base
            type_id = self.record(type_id).type_id

    def _spend(self, parts: list[int], type_id: int) -> None:
        parts[0] -= 1
        if parts[0] < 0:
            raise self._damaged(f"type {type_id} is part of one of more than {_MAX_PARTS} parts")

    def _declare_parameters(self, type_id: int, parts: list[int]) -> str:
        parameters = self.record(type_id).parameters
        if len(parameters) > parts[0]:
            raise self._damaged(f"type {type_id} has {len(parameters)} parameters")
        words = []
        for number, parameter in enumerate(parameters, 1):
            variadic = number == len(parameters) and parameter == Parameter("", 0)
            words.append("..." if variadic else self._declare(parameter.type_id, parts))
        return ", ".join(words) or "void"

    def _base_name(self, type_id: int, kind: Kind) -> str:
        if kind == Kind.VOID:
            return "void"
        name = self._string(int(self._names[type_id - 1]))
        if kind in (Kind.INT, Kind.FLOAT):
            return _C_NAMES.get(name, name)
        if kind == Kind.TYPEDEF:
            return name
        if kind in _ENUMS:
            tag = "enum"
        elif kind == Kind.UNION or (kind == Kind.FWD and int(self._info[type_id - 1]) >> 31):
            tag = "union"
        elif kind in (Kind.STRUCT, Kind.FWD):
            tag = "struct"
        else:
            raise self._damaged(f"type {type_id} is a {kind.name} and cannot be part of a type")
        return f"{tag} {name or '<anonymous>'}"

    # All types that the roots need: id -> whether it is needed in full. Only named structs and
    # unions can do with less.
    def _closure(self, roots: Iterable[int]) -> dict[int, bool]:
        needed: dict[int, bool] = {}
        todo = [(type_id, True) for type_id in roots]
        while todo:
            type_id, full = todo.pop()
            kind = self.kind(type_id)
            if kind in _UNREFERENCED:
                raise self._damaged(f"type {type_id}, a {kind.name}, is part of another")
            if kind in _COMPOUND and not self._names[type_id - 1]:
                full = True
            if kind == Kind.VOID or needed.get(type_id) in (True, full):
                continue
            needed[type_id] = full
            if kind in _COMPOUND and not full:
                continue
            # What a pointer or a function refers to is not held by value.
            full = full and kind not in (Kind.PTR, Kind.FUNC_PROTO)
            todo.extend((referred, full) for referred in self._references(type_id))
        return needed

    def _references(self, type_id: int) -> list[int]:
        words = self._record_words(type_id)
        return [words[at] for at in _reference_positions(self.kind(type_id), len(words))]


# Words of a record, by its info word.
class _Steps(dict[int, int]):
    def __init__(self, layout: memoryview) -> None:
        self._words: dict[int, tuple[int, int]] = {
            kind: (3 + (layout[4 * kind] + 3) // 4, (layout[4 * kind + 1] + 3) // 4)
            for kind in range(1, min(len(layout) // 4, 128))
        } | {int(kind): words for kind, words in _WORDS.items()}

    def __missing__(self, info: int) -> int:
        fixed, each = self._words[info >> 24 & 0x7F]
        step = self[info] = fixed + each * (info & 0xFFFFFF)
        return step


# Which words of a record are type ids, and which are offsets of strings.
def _reference_positions(kind: Kind, size: int) -> Iterable[int]:
    if kind in _COMPOUND:
        return range(4, size, 3)
    if kind == Kind.ARRAY:
        return (3, 4)
    if kind == Kind.FUNC_PROTO:
        return (2, *range(4, size, 2))
    return () if kind in _SIZED or kind == Kind.FWD else (2,)


def _name_positions(kind: Kind, size: int) -> Iterable[int]:
    if kind in _COMPOUND or kind == Kind.ENUM64:
        return (0, *range(3, size, 3))
    if kind == Kind.ENUM:
        return (0, *range(3, size, 2))
    return (0,)


def _write(btf: Btf, needed: dict[int, bool]) -> bytes:
    new_ids = {0: 0} | {type_id: number for number, type_id in enumerate(sorted(needed), 1)}
    strings = {"": 0}
    text = bytearray(1)
    types = array("I")
    for type_id in sorted(needed):
        kind = btf.kind(type_id)
        words = btf._record_words(type_id)
        if kind in _COMPOUND and not needed[type_id]:
            words = [words[0], Kind.FWD << 24 | (kind == Kind.UNION) << 31, 0]
            kind = Kind.FWD
        for at in _reference_positions(kind, len(words)):
            words[at] = new_ids[words[at]]
        if kind == Kind.FUNC_PROTO:
            words[3::2] = [0] * len(words[3::2])
        for at in _name_positions(kind, len(words)):
            name = btf._string(words[at])
            if name not in strings:
                strings[name] = len(text)
                text += name.encode() + b"\0"
            words[at] = strings[name]
        types.extend(words)
    body = types.tobytes()
    return (
        _HEADER.pack(_MAGIC, 1, 0, _HEADER.size, 0, len(body), len(body), len(text)) + body + text
    )


class BtfLayouts:
    """:class:`~anonvma_inspect.target.layouts.Layouts` from BTF.

    Where a kernel has several structs of one name, that with the lowest id is meant.

    :param btf: The kernel's types.
    """

    source = "btf"

    def __init__(self, btf: Btf) -> None:
        self.btf = btf
        self._found: dict[str, int | None] = {}
        self._members: dict[int, dict[str, Member]] = {}
        self._fields: dict[tuple[str, str], Field | None] = {}

    def size(self, name: str) -> int | None:
        """See :meth:`~anonvma_inspect.target.layouts.Layouts.size`."""
        type_id = self._find(name)
        return None if type_id is None else self.btf.size(type_id)

    def field(self, name: str, path: str) -> Field | None:
        """See :meth:`~anonvma_inspect.target.layouts.Layouts.field`."""
        if (name, path) not in self._fields:
            self._fields[name, path] = self._find_field(name, path)
        return self._fields[name, path]

    def _find_field(self, name: str, path: str) -> Field | None:
        type_id = self._find(name)
        if type_id is None:
            return None
        end = self.btf.size(type_id) or 0
        position = 0
        bits = None
        for part in path.split("."):
            member = self._members_of(self.btf.resolve(type_id)).get(part)
            if member is None:
                return None
            position += member.bit_offset
            type_id = member.type_id
            bits = member.bit_size
        field = self._make_field(type_id, position, bits, end)
        if field is not None and field.end > end:
            raise TargetError(
                f"{self.btf.origin}: damaged BTF: {path} ends {field.end} bytes into {name}, "
                f"which has {end}"
            )
        return field

    def enumerator(self, name: str) -> int | None:
        """See :meth:`~anonvma_inspect.target.layouts.Layouts.enumerator`."""
        return self.btf.enumerator(name)

    def _find(self, name: str) -> int | None:
        if name not in self._found:
            self._found[name] = next(iter(self.btf.find(name)), None)
        return self._found[name]

    # Members of a struct by name, those of its anonymous members among them, with offsets from its
    # own start. Each anonymous struct is visited once, however often a damaged one contains itself.
    def _members_of(self, type_id: int) -> dict[str, Member]:
        if type_id in self._members:
            return self._members[type_id]
        members: dict[str, Member] = {}
        todo = [(type_id, 0)]
        seen = {type_id}
        while todo:
            inner, base = todo.pop()
            if self.btf.kind(inner) not in _COMPOUND:
                continue
            for member in self.btf.record(inner).members:
                position = base + member.bit_offset
                if member.name:
                    members.setdefault(
                        member.name,
                        Member(member.name, member.type_id, position, member.bit_size),
                    )
                elif (anonymous := self.btf.resolve(member.type_id)) not in seen:
                    seen.add(anonymous)
                    todo.append((anonymous, position))
        self._members[type_id] = members
        return members

    def _make_field(self, type_id: int, position: int, bits: int | None, end: int) -> Field | None:
        size = self.btf.size(type_id)
        if size is None:
            return None
        record = self.btf.record(self.btf.resolve(type_id))
        kind = self._kind(record)
        type_name = canonical_name(self.btf.spell(type_id))
        signed = self._is_signed(record)
        if bits is not None:
            if kind not in BIT_FIELD_KINDS or not 0 < bits <= 8 * size:
                raise TargetError(
                    f"{self.btf.origin}: damaged BTF: a bit-field of {bits} bits of {type_name}"
                )
            offset, storage, bit_offset = bit_field_storage(position, bits, size, end)
            return Field(offset, storage, kind, type_name, signed, bit_offset, bits)
        if record.kind != Kind.ARRAY:
            return Field(position // 8, size, kind, type_name, signed)
        length, element = record.length, record.type_id
        while self.btf.kind(element) == Kind.ARRAY:
            length *= self.btf.record(element).length
            element = self.btf.record(element).type_id
        return Field(
            position // 8,
            size,
            kind,
            type_name,
            signed,
            length=length,
            element_size=self.btf.size(element),
            element_kind=self._kind(self.btf.record(self.btf.resolve(element))),
        )

    def _kind(self, record: Record) -> str:
        kind = _LAYOUT_KINDS.get(record.kind)
        if kind is None:
            raise TargetError(
                f"{self.btf.origin}: damaged BTF: a field of type {record.id}, a {record.kind.name}"
            )
        return kind

    def _is_signed(self, record: Record) -> bool:
        for _ in range(_MAX_DEPTH):
            if record.kind != Kind.ARRAY:
                break
            record = self.btf.record(self.btf.resolve(record.type_id))
        return record.signed
