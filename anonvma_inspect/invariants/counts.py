"""To come."""

from anonvma_inspect.invariants.base import Invariant

__all__ = ("INVARIANTS",)

INVARIANTS: tuple[Invariant, ...] = ()
