"""Operations of the kernel's that a target caught half-way, and what they explain.

A dump of a kernel that was stopped in the middle of things holds states that contradict the rules
and are right all the same: until its locks are given back, an operation may leave a VMA half
linked, or a count one short. None of this is excused because some lock is held. The modules here
recognise each such state by its objects and the locks of just these, complete the operation (or
take it back) in a copy of the tables, and check that: what is gone from the findings was the
operation's doing, amounts included; what is not, or what turns up new, is a contradiction.
"""

from anonvma_inspect.in_flight.operation import Lock, Operation
from anonvma_inspect.in_flight.resolve import Audit, InFlight, audit, explain

__all__ = ("Audit", "InFlight", "Lock", "Operation", "audit", "explain")
