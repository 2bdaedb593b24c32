"""What drgn asks for when it has no debugging information: types, objects, symbols."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import drgn
from drgn import FindObjectFlags, Object, Program, Symbol, Type

from anonvma_inspect.helpers.btf_types import BtfTypes
from anonvma_inspect.helpers.global_types import GLOBAL_TYPES
from anonvma_inspect.target.btf import Btf, Kind
from anonvma_inspect.target.target import Target

__all__ = ("enable_finders",)

_NAME = "anonvma_inspect"
# The finders of a program are kept in its own cache, where the garbage collector sees that types
# and program refer to each other.
_CACHE_KEY = "anonvma_inspect.finders"


def enable_finders(
    prog: Program, target: Target, load_index: Callable[[Program], drgn.SymbolIndex]
) -> None:
    """Make a program answer from a kernel's BTF and symbols.

    Debugging information that somebody loads later goes first for types and objects. For symbols
    kallsyms goes first: it is faster.

    :param target: What is known of the kernel.
    :param load_index: Gets all symbols, when they are first needed.
    """
    prog.cache[_CACHE_KEY] = _Finders(prog, target.load_btf(), target, load_index)
    prog.register_type_finder(_NAME, _find_type, enable_index=-1)
    prog.register_object_finder(_NAME, _find_object, enable_index=-1)
    prog.register_symbol_finder(_NAME, _find_symbol, enable_index=0)


# BTF does not know the files that types come from, so whoever names one gets no answer.
def _find_type(
    prog: Program, kinds: drgn.TypeKindSet, name: str, filename: str | None
) -> Type | None:
    return None if filename is not None else _finders(prog).types.find(kinds, name)


def _find_object(
    prog: Program, name: str, flags: FindObjectFlags, filename: str | None
) -> Object | None:
    return None if filename is not None else _finders(prog).find_object(name, flags)


def _find_symbol(
    prog: Program, name: str | None, address: int | None, one: bool
) -> Sequence[Symbol]:
    found: Sequence[Symbol] = _finders(prog).symbols()(prog, name, address, one)
    return found


def _finders(prog: Program) -> _Finders:
    finders = prog.cache[_CACHE_KEY]
    assert isinstance(finders, _Finders)
    return finders


class _Finders:
    def __init__(
        self,
        prog: Program,
        btf: Btf,
        target: Target,
        load_index: Callable[[Program], drgn.SymbolIndex],
    ) -> None:
        self.types = BtfTypes(prog, btf)
        self._prog = prog
        self._target = target
        self._load_index = load_index
        self._index: drgn.SymbolIndex | None = None
        # As with types, drgn asks again and again.
        self._objects: dict[tuple[str, FindObjectFlags], Object | None] = {}

    def symbols(self) -> drgn.SymbolIndex:
        if self._index is None:
            self._index = self._load_index(self._prog)
        return self._index

    def find_object(self, name: str, flags: FindObjectFlags) -> Object | None:
        key = (name, flags)
        if key not in self._objects:
            self._objects[key] = self._look_up(name, flags)
        return self._objects[key]

    def _look_up(self, name: str, flags: FindObjectFlags) -> Object | None:
        found = None
        if FindObjectFlags.CONSTANT in flags:
            found = self._constant(name)
        if found is None and FindObjectFlags.VARIABLE in flags:
            found = self._variable(name)
        if found is None and FindObjectFlags.FUNCTION in flags:
            found = self._function(name)
        return found

    def _constant(self, name: str) -> Object | None:
        owner = self.types.btf.enum_of(name)
        if owner is None:
            return None
        type_ = self.types.type(owner)
        enumerators = type_.enumerators or ()
        return next(
            (Object(self._prog, type_, each.value) for each in enumerators if each.name == name),
            None,
        )

    def _variable(self, name: str) -> Object | None:
        type_: Type | None = None
        ids = self.types.btf.ids(name, Kind.VAR)
        if ids:
            type_ = self.types.type(self.types.btf.record(ids[0]).type_id)
        elif name in GLOBAL_TYPES:
            with contextlib.suppress(LookupError):
                type_ = self._prog.type(GLOBAL_TYPES[name])
        return None if type_ is None else self._at_symbol(name, type_)

    def _function(self, name: str) -> Object | None:
        ids = self.types.btf.ids(name, Kind.FUNC)
        if not ids:
            return None
        return self._at_symbol(name, self.types.type(self.types.btf.record(ids[0]).type_id))

    def _at_symbol(self, name: str, type_: Type) -> Object | None:
        address = self._target.symbols.get(name)
        if address is None:
            symbols = self.symbols()(self._prog, name, None, True)
            if not symbols:
                return None
            address = symbols[0].address
        return Object(self._prog, type_, address=address)
