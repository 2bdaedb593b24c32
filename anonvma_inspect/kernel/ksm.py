"""KSM's structures: what holds references to anon_vmas for merged pages.

A page that ksmd merged has a *stable node*, and on that node's list an *rmap_item* for each place
where it is mapped. While an rmap_item has :data:`STABLE_FLAG` it holds one reference to an
anon_vma (``mm/ksm.c``: ``try_to_merge_with_ksm_page()`` takes it before ``stable_tree_append()``
sets the flag; ``remove_rmap_item_from_tree()`` and ``remove_node_from_stable_tree()`` give it back
before they clear it). Without the flag the word may be another member of its union, or old.
"""

from __future__ import annotations

from dataclasses import dataclass

from anonvma_inspect.kernel.era import Record, resolve_record
from anonvma_inspect.target.layouts import Layouts

__all__ = ("STABLE_FLAG", "STABLE_NODE_CHAIN", "KsmRecords", "resolve_ksm")

# mm/ksm.c (v5.10, v6.1, v6.12, v7.3); the same since the flags exist (v2.6.33), and since chains do
# (v4.13).
#: In ``rmap_item->address``: listed from the stable tree.
STABLE_FLAG = 0x200
#: In ``stable_node->rmap_hlist_len``: a node whose list is of other stable nodes.
STABLE_NODE_CHAIN = -1024

_RMAP_ITEM = (
    "anon_vma",
    "mm",
    "address",
    "head",
    "hlist",
    "hlist_next=hlist.next",
    "hlist_prev=hlist.pprev",
    # Since v7.3 the reverse walk goes by it: the index that the page had before it was merged.
    "?linear_page_index",
)
_STABLE_NODE = (
    "rb=node",
    "rb_parent_color=node.__rb_parent_color",
    "rb_left=node.rb_left",
    "rb_right=node.rb_right",
    "head",
    "dup=hlist_dup",
    "dup_next=hlist_dup.next",
    "dup_prev=hlist_dup.pprev",
    "list",
    "list_next=list.next",
    "list_prev=list.prev",
    "hlist",
    "hlist_first=hlist.first",
    "rmap_hlist_len",
)


@dataclass(frozen=True)
class KsmRecords:
    """KSM's structs, as far as references to anon_vmas go.

    :ivar missing: Members without which its lists cannot be followed, if this kernel lacks some.
    """

    rmap_item: Record
    stable_node: Record
    missing: tuple[str, ...]


def resolve_ksm(layouts: Layouts) -> KsmRecords | None:
    """Find the structs' members.

    :return: ``None`` for a kernel that was built without KSM.
    """
    missing: list[str] = []
    rmap_item = _resolve(layouts, "rmap_item", _RMAP_ITEM, missing)
    stable_node = _resolve(layouts, "stable_node", _STABLE_NODE, missing)
    if rmap_item is None or stable_node is None:
        return None
    return KsmRecords(rmap_item, stable_node, tuple(missing))


# The structs' names have a prefix since v6.1.
def _resolve(
    layouts: Layouts, struct: str, members: tuple[str, ...], missing: list[str]
) -> Record | None:
    for name in (f"ksm_{struct}", struct):
        if layouts.size(name) is not None:
            return resolve_record(layouts, name, members, missing)
    return None
