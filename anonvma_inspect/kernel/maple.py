"""Maple tree nodes: the trees of VMAs since v6.1.

Follows ``include/linux/maple_tree.h`` and ``lib/maple_tree.c`` (``ma_data_end()``,
``mas_logical_pivot()``, ``ma_dead_node()``), v6.12.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.kernel.era import Record

__all__ = (
    "LEAF_64",
    "NODE_ALIGNMENT",
    "NODE_TYPES",
    "NodeEntries",
    "decode_nodes",
    "is_node",
    "is_reserved",
    "node_address",
    "node_type",
)

LEAF_64, _RANGE_64, _ARANGE_64 = 1, 2, 3
#: The types of node that trees of VMAs are made of.
NODE_TYPES = (LEAF_64, _RANGE_64, _ARANGE_64)
#: Bytes: nodes lie on this boundary, and the bits below it carry their type.
NODE_ALIGNMENT = 256
_NODE_MASK = NODE_ALIGNMENT - 1
# Values of the form xxx10 below this are marks of the tree's own (XA_ZERO_ENTRY), not pointers.
_RESERVED_BELOW = 4096


def is_node(entry: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which entries are encoded nodes, as the root of a tree with more than one entry is."""
    found: NDArray[np.bool_] = ((entry & np.uint64(3)) == 2) & (entry > _RESERVED_BELOW)
    return found


def is_reserved(entry: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which entries are marks of the tree's own, such as the one that a failed fork leaves."""
    found: NDArray[np.bool_] = ((entry & np.uint64(3)) == 2) & (entry < _RESERVED_BELOW)
    return found


def node_address(entry: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Address of the ``struct maple_node`` of an encoded node."""
    return entry & ~np.uint64(_NODE_MASK)


def node_type(entry: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Its type."""
    return (entry >> np.uint64(3)) & np.uint64(15)


@dataclass(frozen=True)
class NodeEntries:
    """What nodes of one type hold.

    :ivar first: Shape (n, slots): first index of each slot.
    :ivar last: Last index, inclusive.
    :ivar slot: The entries.
    :ivar used: Which slots are in use (an unused one holds garbage); a used one may be NULL.
    :ivar sound: Shape (n,): the pivots ascend and stay within the node's range.
    :ivar dead: Shape (n,): the node was taken out of its tree.
    """

    first: NDArray[np.uint64]
    last: NDArray[np.uint64]
    slot: NDArray[np.uint64]
    used: NDArray[np.bool_]
    sound: NDArray[np.bool_]
    dead: NDArray[np.bool_]


def decode_nodes(
    record: Record,
    rows: NDArray[np.uint8],
    address: NDArray[np.uint64],
    kind: int,
    low: NDArray[np.uint64],
    high: NDArray[np.uint64],
) -> NodeEntries:
    """Decode nodes of one type.

    :param record: Layout of ``struct maple_node``.
    :param rows: Shape (n, size): their bytes.
    :param address: Where they lie.
    :param kind: One of :data:`NODE_TYPES`.
    :param low: First index that each node covers.
    :param high: Last.
    """
    prefix = "ma64" if kind == _ARANGE_64 else "mr64"
    pivot = _array(record, rows, f"{prefix}_pivot")
    slot = _array(record, rows, f"{prefix}_slot")
    slots, pivots = slot.shape[1], pivot.shape[1]
    meta_end = record.column(rows, f"{prefix}_meta_end").astype(np.int64)
    if kind == _ARANGE_64:
        end = meta_end
    else:
        # The metadata lie in the last slot, if that is not in use: the last pivot tells.
        final = pivot[:, -1]
        end = np.select([final == 0, final == high], [meta_end, pivots - 1], pivots)
    end = np.clip(end, 0, slots - 1)
    column = np.arange(slots)
    last = np.empty_like(slot)
    last[:, :pivots] = pivot
    last[:, pivots:] = high[:, None]
    # A pivot of 0 behind the first slot stands for the end of the node.
    last = np.where((last == 0) & (column > 0), high[:, None], last)
    used = column <= end[:, None]
    first = np.empty_like(last)
    first[:, 0] = low
    first[:, 1:] = last[:, :-1] + np.uint64(1)
    unsound = used & ((first > last) | (last > high[:, None]))
    return NodeEntries(
        first=first,
        last=last,
        slot=slot,
        used=used,
        sound=np.logical_not(unsound.any(axis=1)),
        dead=(record.column(rows, "parent") & ~np.uint64(_NODE_MASK)) == address,
    )


def _array(record: Record, rows: NDArray[np.uint8], name: str) -> NDArray[np.uint64]:
    field = record.fields[name]
    piece = np.ascontiguousarray(rows[:, field.offset : field.offset + field.size])
    return piece.view("<u8").astype(np.uint64, copy=False)
