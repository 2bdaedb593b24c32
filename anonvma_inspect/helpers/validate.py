"""
Validators
----------

The ``anonvma_inspect.helpers.validate`` module provides validators of the
anonymous reverse map. They are the audit of the command line
(``anonvma-inspect audit``, and ``anonvma-inspect explain CODE`` for what each
code means) for one family: the ``anon_vma``s of one root, and everything that
refers to them. That is the least that counters can be checked against.

What they do not see: a VMA, or a whole family, that nothing leads to. And a
running kernel is read without its locks: check again before you believe a
finding.
"""

from __future__ import annotations

from collections.abc import Sequence

import drgn
import numpy as np
from drgn import Object, Program
from drgn.helpers import ValidationError

from anonvma_inspect.collect import collect_from, collect_slabs
from anonvma_inspect.errors import NotFoundError
from anonvma_inspect.in_flight import audit as run_audit
from anonvma_inspect.invariants.base import Finding, Severity
from anonvma_inspect.kernel.tags import strip_lock_mark
from anonvma_inspect.tables import NO_ROW, Tables, find_rows
from anonvma_inspect.target.program import target_of

__all__ = ("AnonVmaValidationError", "validate_anon_vma", "validate_vma_anon")

# A family that is corrupt throughout has millions of findings.
_MAX_FINDINGS = 100


class AnonVmaValidationError(ValidationError):
    """
    Error raised when a family contradicts the rules of the anonymous reverse
    map. The message is that of the first finding.
    """

    def __init__(self, findings: Sequence[Finding], total: int) -> None:
        super().__init__(_describe(findings[0], total - 1))
        self.findings: tuple[Finding, ...] = tuple(findings)
        """
        :class:`anonvma_inspect.invariants.base.Finding` objects, those about
        the object that was to be validated first; at most 100 a rule.
        """


def validate_vma_anon(vma: Object) -> None:
    """
    Validate a virtual memory area's part in the anonymous reverse map:

    - its ``anon_vma_chain`` list and ``anon_vma``;
    - every ``struct anon_vma`` of that family: its root, parent and counters,
      the shape, order and augmentation of its interval tree;
    - every other VMA that is in one of those trees, likewise;
    - that all of these are allocated objects of their slab caches.

    >>> validate_vma_anon(vma)
    >>> validate_vma_anon(broken_vma)
    Traceback (most recent call last):
      ...
    anonvma_inspect.helpers.validate.AnonVmaValidationError: AV... chain-links: ...

    The address may be that of anything.

    :param vma: ``struct vm_area_struct *``
    :raises AnonVmaValidationError: if any of it contradicts the rest
    :raises ValidationError: if *vma* can be no VMA
    :raises FaultError: if no contradiction was found, but something that is
        needed for that cannot be read
    """
    _validate(vma.prog_, "vm_area_struct", vma.value_())


def validate_anon_vma(anon_vma: Object) -> None:
    """
    Validate an ``anon_vma`` and the whole family that it belongs to. See
    :func:`validate_vma_anon()`.

    >>> validate_anon_vma(vma_anon_vma(vma))

    :param anon_vma: ``struct anon_vma *``
    :raises AnonVmaValidationError: if any of it contradicts the rest
    :raises ValidationError: if *anon_vma* can be no ``struct anon_vma``
    :raises FaultError: if no contradiction was found, but something that is
        needed for that cannot be read
    """
    _validate(anon_vma.prog_, "anon_vma", anon_vma.value_())


def _validate(prog: Program, struct: str, address: int) -> None:
    target = target_of(prog)
    try:
        if struct == "vm_area_struct":
            tables = collect_from(target, vmas=[address])
        else:
            tables = collect_from(target, anon_vmas=[address])
    except NotFoundError as error:
        raise ValidationError(str(error)) from None
    tables = collect_slabs(target, tables)
    audit = run_audit(tables)
    errors = [result for result in audit.results if result.invariant.severity is Severity.ERROR]
    findings = [finding for result in errors for finding in result.findings(_MAX_FINDINGS)]
    if findings:
        # A stable sort: the rest stays in the order of the codes.
        findings.sort(key=lambda finding: finding.object_address != address)
        raise AnonVmaValidationError(findings, sum(result.total for result in errors))
    if struct == "anon_vma":
        _check_in_use(tables, address)
    for failure in audit.failures:
        raise RuntimeError(f"{failure.invariant.code}: {failure.reason}") from failure.error
    if not tables.complete:
        holes = tables.holes
        raise drgn.FaultError(
            f"could not read memory needed for struct {holes.needed_for[0]}", int(holes.address[0])
        )


# The rules are about what VMAs lead to. That nothing leads to this one is no contradiction in the
# family, but what it is then must be asked: one that reclaim or migration still holds has an empty
# tree, a count and a root; a free one has no count, and anything else is no anon_vma.
def _check_in_use(tables: Tables, address: int) -> None:
    anon_vmas = tables.anon_vmas
    row = int(find_rows(anon_vmas.address, np.array([address], dtype=np.uint64))[0])
    if row == NO_ROW or anon_vmas.reached[row]:
        return
    root = int(anon_vmas.root_row[row])
    held = (
        strip_lock_mark(int(anon_vmas.rb_root[row])) == 0
        and anon_vmas.refcount[row] > 0
        and root != NO_ROW
        and anon_vmas.root_row[root] == root
    )
    if not held:
        raise ValidationError(
            f"no VMA leads to {address:#x}: a struct anon_vma that is free, or none at all"
        )


def _describe(finding: Finding, others: int) -> str:
    text = (
        f"{finding.code} {finding.slug}: struct {finding.object_type} "
        f"{finding.object_address:#x}: {finding.message} "
        f"(expected {finding.expected}, actual {finding.actual})"
    )
    if others:
        text += f", and {others} more finding{'s' if others > 1 else ''}"
    return text
