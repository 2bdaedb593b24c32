"""``tree``: the interval tree of an anon_vma."""

from __future__ import annotations

import click
import numpy as np

from anonvma_inspect.cli.command import Command
from anonvma_inspect.cli.find import find_anon_vma, find_named
from anonvma_inspect.cli.options import shared_options
from anonvma_inspect.cli.session import Session, target_facts
from anonvma_inspect.cli.settings import Settings
from anonvma_inspect.errors import NotFoundError
from anonvma_inspect.kernel.tags import AnonVmaKind
from anonvma_inspect.report.objects import describe_vma
from anonvma_inspect.report.tree import TreeReport
from anonvma_inspect.tables import NO_ROW, PointerState, Tables

__all__ = ("active_anon_vma", "command")

_STATES = {
    PointerState.WILD: "cannot be right",
    PointerState.HOLE: "leads to what the target does not have",
    PointerState.STRANGER: "leads to no anon_vma",
}


@click.command("tree", cls=Command, options_metavar="[OPTIONS]")
@click.argument("pid", metavar="PID ADDRESS | ANON-VMA-POINTER")
@click.argument("address", required=False, metavar="")
@shared_options
@click.pass_obj
def command(settings: Settings, pid: str, address: str | None) -> int:
    """An anon_vma's interval tree, in tree order.

    The anon_vma is that of the VMA of process PID that ADDRESS lies in, or the one that
    ANON-VMA-POINTER points to. Smaller keys stand above; the root is at the left.
    """
    session = Session(settings)
    target, tables, row = find_named(
        session, "tree", (pid, address), find_anon_vma, active_anon_vma
    )
    session.answer(TreeReport(target_facts(target, tables), tables, row))
    if bool(tables.anon_vmas.tree_whole[row]):
        return 0
    session.note("the tree could not be walked whole; see: anonvma-inspect audit")
    return 0 if tables.complete else session.INCOMPLETE


def active_anon_vma(tables: Tables, vma: int) -> int:
    """The anon_vma that a VMA has; see :mod:`anonvma_inspect.kernel.tags` for words that name none.

    :param vma: Row.
    :return: Row in :class:`~anonvma_inspect.tables.AnonVmas`.
    :raises NotFoundError: if it has none.
    """
    vmas = tables.vmas
    row = int(vmas.active[vma])
    if row != NO_ROW:
        return row
    name = describe_vma(tables, vma)
    pointer, tag = int(vmas.anon_vma_pointer[vma]), int(vmas.anon_vma_tag[vma])
    kind = tables.era.tags.kind(pointer, tag)
    if kind in (AnonVmaKind.NONE, AnonVmaKind.UNFAULTED):
        raise NotFoundError(f"{name} has no anon_vma: nothing anonymous was ever faulted in there")
    if kind is AnonVmaKind.LAZY_VMA:
        raise NotFoundError(f"{name} has no anon_vma yet: it leads to the root VMA {pointer:#x}")
    if kind is AnonVmaKind.LAZY_PARENT:
        raise NotFoundError(
            f"{name} has no anon_vma of its own yet: its parent's is {pointer:#x}, "
            f"see: anonvma-inspect tree {pointer:#x}"
        )
    raw = int(vmas.anon_vma[vma])
    if kind is AnonVmaKind.TAGGED:
        raise NotFoundError(f"{name}: its anon_vma, {raw:#x}, has low bits set and is no pointer")
    state = tables.pointer_state(
        np.array([pointer], dtype=np.uint64),
        np.array([NO_ROW], dtype=np.int64),
        tables.era.anon_vma.size,
    )
    why = _STATES[PointerState(int(state[0]))]
    raise NotFoundError(f"{name}: its anon_vma, {raw:#x}, {why}; see: anonvma-inspect audit")
