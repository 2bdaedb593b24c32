"""Whether what is pointed to is an allocated object of the right slab cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from anonvma_inspect.invariants.base import (
    Invariant,
    Severity,
    Text,
    Verdict,
    Violations,
    address_text,
    always,
    count_text,
)
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.invariants.facts import Facts
from anonvma_inspect.kernel.tags import AnonVmaKind
from anonvma_inspect.tables import (
    NO_ROW,
    Allocation,
    ObjectState,
    Placement,
    RowColumn,
    Unreached,
    find_rows,
    marked,
)
from anonvma_inspect.target.memory import BoolColumn, U64Column

__all__ = ("INVARIANTS",)

_STRUCTS = ("vm_area_struct", "anon_vma_chain", "anon_vma")
_NOT_ASKED = "slabs were not read"
_HOLDERS = "a holder: KSM, migration, or a fork or a first fault in flight"
_NO_LEAKS = "only looked for with --leaks"
# Makes violations of one kind of objects: Facts.of_avcs and the like.
_Maker = Callable[[str, RowColumn, str, Text, Text], Violations]


@dataclass(frozen=True)
class _Kind:
    """Objects of one table.

    :ivar vouched: Something else than the one pointer to it says that it is one; of each row of the
        table.
    :ivar in_use: So much so that it cannot be free, whatever operation the dump caught half-way.
    """

    struct: str
    placement: Placement
    vouched: BoolColumn
    in_use: BoolColumn

    def rows(self, state: ObjectState, which: BoolColumn) -> RowColumn:
        """Those of some rows that are in a state."""
        found: RowColumn = np.flatnonzero((self.placement.state[: len(which)] == state) & which)
        return found


@dataclass(frozen=True)
class _Pointers:
    """Words that point to objects of a kind.

    :ivar rows: Rows of their holders.
    :ivar words: Their words, without low bits.
    :ivar target: Rows of what they point to, or NO_ROW.
    :ivar lasting: Nobody is about to take that away.
    """

    make: _Maker
    field: str
    rows: RowColumn
    kind: _Kind
    words: U64Column
    target: RowColumn
    lasting: BoolColumn

    def wrong(self, state: ObjectState) -> tuple[RowColumn, RowColumn]:
        """Those that lead to what is in a state, and is vouched for by nothing else.

        :return: Which they are, and where what they lead to stands in the kind's placement.
        """
        placement, known = self.kind.placement, len(self.kind.vouched)
        more = find_rows(placement.address[known:], self.words)
        place = np.where((self.target == NO_ROW) & (more != NO_ROW), more + known, self.target)
        wrong = take(placement.state, place, ObjectState.UNKNOWN) == state
        wrong &= ~take(self.kind.vouched, self.target, False)
        index = np.flatnonzero(wrong)
        return index, place[index]


def _read(facts: Facts) -> Allocation | str:
    allocation = facts.tables.allocation
    if allocation is None:
        return _NOT_ASKED
    if allocation.not_read is not None:
        return allocation.not_read
    for struct, placement in zip(_STRUCTS, _placements(allocation), strict=True):
        if len(placement.state) and not placement.cache:
            return f"the slab cache of {struct} is not known"
    return allocation


def _placements(allocation: Allocation) -> tuple[Placement, Placement, Placement]:
    return allocation.vmas, allocation.avcs, allocation.anon_vmas


def _known(placement: Placement) -> int:
    return int(np.count_nonzero(placement.state != ObjectState.UNKNOWN))


def _kinds(facts: Facts, allocation: Allocation) -> tuple[_Kind, _Kind, _Kind]:
    tables = facts.tables
    vmas, anon_vmas, links = tables.vmas, tables.anon_vmas, tables.links
    count = len(anon_vmas.address)
    at_rest = facts.at_rest
    in_tree = marked(len(vmas.address), facts.home[tables.nodes.avc[facts.node_real]])
    on_list = marked(len(vmas.address), links.vma[facts.link_owned])
    # unlink_anon_vmas() frees an anon_vma right before it takes the AVC off the list.
    listed = facts.link_anon_vma[take(at_rest, links.vma, False)]
    used = (facts.nodes_in_tree > 0) | marked(count, listed)
    used |= marked(count, facts.root_row[facts.nodes_in_tree > 0])
    return (
        _Kind(
            "vm_area_struct",
            allocation.vmas,
            (vmas.slot != NO_ROW) | on_list,
            at_rest | (in_tree & on_list),
        ),
        _Kind(
            "anon_vma_chain",
            allocation.avcs,
            facts.avc_known,
            facts.avc_known,
        ),
        _Kind(
            "anon_vma",
            allocation.anon_vmas,
            facts.believed,
            facts.believed & used,
        ),
    )


def _pointers(facts: Facts, vma: _Kind, anon_vma: _Kind) -> Iterator[_Pointers]:
    tables = facts.tables
    vmas = tables.vmas
    avc = np.flatnonzero(facts.avc_known)
    at_rest = facts.at_rest
    lasting = (facts.node_of_avc[avc] != NO_ROW) | take(at_rest, facts.home[avc], False)
    words, row = facts.avc_vma[avc], facts.avc_vma_row[avc]
    yield _Pointers(facts.of_avcs, "vma", avc, vma, words, row, lasting)
    words, row = facts.avc_anon_vma[avc], facts.avc_anon_vma_row[avc]
    yield _Pointers(facts.of_avcs, "anon_vma", avc, anon_vma, words, row, lasting)
    for kind, rows, row in _targets(facts, vma, anon_vma):
        words = vmas.anon_vma_pointer[rows]
        yield _Pointers(facts.of_vmas, "anon_vma", rows, kind, words, row, at_rest[rows])
    rows = np.flatnonzero(facts.believed)
    full = facts.nodes_in_tree[rows] > 0
    words, row = facts.root[rows], facts.root_row[rows]
    yield _Pointers(facts.of_anon_vmas, "root", rows, anon_vma, words, row, full)
    if facts.era.has_parent:
        rows, full = rows[full], full[full]
        words, row = facts.parent[rows], facts.parent_row[rows]
        yield _Pointers(facts.of_anon_vmas, "parent", rows, anon_vma, words, row, full)


# Which VMAs' words lead to objects of which kind, and to which rows of theirs. Of tags that may
# mean anything, nothing is known.
def _targets(
    facts: Facts, vma: _Kind, anon_vma: _Kind
) -> Iterator[tuple[_Kind, RowColumn, RowColumn]]:
    vmas = facts.tables.vmas
    own = (vmas.anon_vma_pointer != 0) & ~facts.explained
    own &= facts.era.tags.understood(vmas.anon_vma_tag)
    rows = np.flatnonzero(own)
    yield anon_vma, rows, vmas.active[rows]
    rows = facts.vmas_of_kind(AnonVmaKind.LAZY_PARENT)
    yield anon_vma, rows, facts.lent_by(rows)
    rows = facts.vmas_of_kind(AnonVmaKind.LAZY_VMA)
    yield vma, rows, facts.root_vma_of(rows)


# What is wrong of the objects in some states: said of the slab, if the objects are in order
# otherwise, else of each pointer that leads to them.
def _misplaced(
    facts: Facts, allocation: Allocation, states: Sequence[ObjectState]
) -> list[Violations]:
    if not any(np.isin(placement.state, states).any() for placement in _placements(allocation)):
        return []
    kinds = _kinds(facts, allocation)
    groups = []
    for state in states:
        for kind in kinds:
            rows = kind.rows(state, kind.vouched)
            groups.append(_of_slabs(allocation, kind, rows, state))
        for pointers in _pointers(facts, kinds[0], kinds[2]):
            groups.append(_of_pointers(allocation, pointers, *pointers.wrong(state), state))
    return groups


_SAID = {
    ObjectState.NO_SLAB: "a page that is no slab",
    ObjectState.OTHER_CACHE: "a slab of another cache",
    ObjectState.INSIDE: "the middle of an object",
    ObjectState.FREE: "a free object",
}


def _of_slabs(
    allocation: Allocation, kind: _Kind, rows: RowColumn, state: ObjectState
) -> Violations:
    slab, first, count = np.unique(kind.placement.slab[rows], return_index=True, return_counts=True)
    slabs = allocation.slabs
    word = np.where(
        state == ObjectState.OTHER_CACHE,
        slabs.address[slab] + np.uint64(allocation.cache_offset),
        np.uint64(0),
    )

    def actual(index: int) -> str:
        what = _place_text(allocation, int(slab[index]), state)
        return f"{int(count[index])} of them in {what}"

    where = rows[first]
    return Violations(
        f"{kind.struct}s that are in use lie in {_SAID[state]}",
        "page" if state is ObjectState.NO_SLAB else allocation.slab_struct,
        slabs.address[slab],
        always(_cache_text(allocation, kind.placement.cache)),
        actual,
        word=word,
        vma=where if kind.struct == "vm_area_struct" else None,
        anon_vma=where if kind.struct == "anon_vma" else None,
    )


def _of_pointers(
    allocation: Allocation,
    pointers: _Pointers,
    index: RowColumn,
    place: RowColumn,
    state: ObjectState,
) -> Violations:
    kind = pointers.kind

    def actual(number: int) -> str:
        row = int(place[number])
        page = _place_text(allocation, int(kind.placement.slab[row]), state)
        return f"{int(kind.placement.address[row]):#x}, in {page}"

    return pointers.make(
        f"{pointers.field} points to {_SAID[state]}",
        pointers.rows[index],
        pointers.field,
        always(f"an object of {_cache_text(allocation, kind.placement.cache)}"),
        actual,
    )


def _cache_text(allocation: Allocation, cache: int) -> str:
    name = allocation.cache_names.get(cache)
    known = "" if name is None else f" ({name.decode('ascii', 'backslashreplace')})"
    return f"the slab cache {cache:#x}{known}"


def _place_text(allocation: Allocation, slab: int, state: ObjectState) -> str:
    base = f"the page at {int(allocation.slabs.base[slab]):#x}"
    if state is ObjectState.NO_SLAB:
        return base
    return f"{base}, of {_cache_text(allocation, int(allocation.slabs.cache[slab]))}"


def _check_cache(facts: Facts) -> Verdict:
    # * What is pointed to lies in a page that is a slab.
    # * That slab is of the cache that objects of its kind come from: that of most of them, to which
    #   a variable points.
    allocation = _read(facts)
    if isinstance(allocation, str):
        return Verdict(0, not_checked=allocation)
    groups = _misplaced(facts, allocation, (ObjectState.NO_SLAB, ObjectState.OTHER_CACHE))
    for placement in _placements(allocation):
        wrong = placement.cache and placement.named not in (0, placement.cache)
        variable = np.array([placement.variable] * bool(wrong), dtype=np.uint64)
        groups.append(
            Violations(
                "a variable does not point to the slab cache of its objects",
                "kmem_cache *",
                variable,
                always(_cache_text(allocation, placement.cache)),
                always(f"{placement.named:#x}"),
                word=variable,
            )
        )
    return Verdict(_judged(allocation), groups)


def _check_object(facts: Facts) -> Verdict:
    # * In a slab of the right cache, a pointer leads to where an object begins.
    allocation = _read(facts)
    if isinstance(allocation, str):
        return Verdict(0, not_checked=allocation)
    return Verdict(_judged(allocation), _misplaced(facts, allocation, (ObjectState.INSIDE,)))


def _judged(allocation: Allocation) -> int:
    return sum(_known(placement) for placement in _placements(allocation))


def _check_allocated(facts: Facts) -> Verdict:
    # * What is in use is on no list of free objects: of its slab, of a CPU, or in a sheaf.
    # * A pointer leads to no free object, either.
    # What an operation in flight may still name although it is free, is left out.
    allocation = _read(facts)
    if isinstance(allocation, str):
        return Verdict(0, not_checked=allocation)
    placements = _placements(allocation)
    if not any((placement.state == ObjectState.FREE).any() for placement in placements):
        return Verdict(_judged(allocation), not_checked=allocation.free_not_read)
    kinds = _kinds(facts, allocation)
    vma, avc, anon_vma = (kind.rows(ObjectState.FREE, kind.in_use) for kind in kinds)
    makers: tuple[tuple[Callable[..., Violations], _Kind, RowColumn], ...] = (
        (facts.of_vmas, kinds[0], vma),
        (facts.of_avcs, kinds[1], avc),
        (facts.of_anon_vmas, kinds[2], anon_vma),
    )
    groups = [
        make(
            f"a {kind.struct} that is in use is free",
            rows,
            None,
            always("allocated"),
            always("on a list of free objects"),
        )
        for make, kind, rows in makers
    ]
    for pointers in _pointers(facts, kinds[0], kinds[2]):
        index, place = pointers.wrong(ObjectState.FREE)
        kept = pointers.lasting[index]
        index, place = index[kept], place[kept]
        groups.append(_of_pointers(allocation, pointers, index, place, ObjectState.FREE))
    return Verdict(_judged(allocation), groups)


def _check_freelist(facts: Facts) -> Verdict:
    # * A slab's list of free objects leads from one object of the slab to another, and ends.
    allocation = _read(facts)
    if isinstance(allocation, str):
        return Verdict(0, not_checked=allocation)
    slab = allocation.broken_slab
    return Verdict(
        len(allocation.slabs.address),
        [
            Violations(
                "a list of free objects leads astray",
                allocation.slab_struct,
                allocation.slabs.address[slab],
                always("another object of the slab, or NULL"),
                address_text(allocation.broken_value),
                word=allocation.broken_word,
            )
        ],
    )


# What looking at all slabs found, or why it was not done.
def _unreached(facts: Facts) -> Unreached | str:
    allocation = _read(facts)
    if isinstance(allocation, str):
        return allocation
    if allocation.unreached is None:
        return allocation.unreached_not_read or _NO_LEAKS
    return allocation.unreached


def _check_free_state(facts: Facts) -> Verdict:
    # * A free anon_vma has no references.
    # * Its tree is empty.
    found = _unreached(facts)
    if isinstance(found, str):
        return Verdict(0, not_checked=found)
    record = facts.era.anon_vma
    address = found.free_anon_vmas
    held = np.flatnonzero(found.free_refcount != 0)
    full = np.flatnonzero(found.free_rb_root != 0)
    return Verdict(
        len(address),
        [
            Violations(
                "a free anon_vma has references",
                record.struct,
                address[held],
                always("0"),
                count_text(found.free_refcount[held]),
                word=address[held] + np.uint64(record.offset("refcount")),
            ),
            Violations(
                "the tree of a free anon_vma is not empty",
                record.struct,
                address[full],
                always("0x0"),
                address_text(found.free_rb_root[full]),
                word=address[full] + np.uint64(record.offset("rb_node")),
            ),
        ],
    )


def _check_unreached(facts: Facts) -> Verdict:
    # * An allocated anon_vma with references is in a VMA's chain, or active, or the root of one.
    # * An allocated object that says that it is a VMA's AVC is on that VMA's list or in a tree; but
    #   in an mm that is locked for write, or that no task has, it may be linked or unlinked just
    #   now.
    # * Fork makes an anon_vma before it has the locks that it takes to link it: so many may be as
    #   new as there are forks in flight (mms that no task has yet, locked for write).
    # One whose refcount is 0 is free, on its way to a list. An AVC that was never linked, or not
    # since it was last free, cannot be told from whatever else its cache may hold.
    found = _unreached(facts)
    if isinstance(found, str):
        return Verdict(0, not_checked=found)
    tables = facts.tables
    if not tables.complete:
        return Verdict(0, not_checked="what would lead to an object may be missing")
    held = found.anon_vma_refcount > 0
    empty = held & (found.anon_vma_rb_root == 0)
    new = empty & (found.anon_vma_root == found.anon_vmas) & (found.anon_vma_refcount == 1)
    forks = np.count_nonzero(facts.mm_writer & ~tables.mms.listed)
    if np.count_nonzero(new) <= forks:
        empty &= ~new
    empty = np.flatnonzero(empty)
    full = np.flatnonzero(held & (found.anon_vma_rb_root != 0))
    # A root is held by the anon_vmas of its family, VMAs or not.
    root = find_rows(found.anon_vmas, found.anon_vma_root)
    child = np.flatnonzero(held & (root != NO_ROW) & (root != np.arange(len(root))))
    children = np.bincount(root[child], minlength=len(root))
    by_address = np.argsort(tables.mms.address)
    mm = find_rows(tables.mms.address[by_address], found.avc_mm)
    mm = take(by_address, mm, NO_ROW)
    resting = tables.mms.listed & ~facts.mm_writer
    avc = np.flatnonzero(found.avc_linked & take(resting, mm, False))

    def holders(rows: RowColumn) -> Text:
        def text(index: int) -> str:
            count, own = int(found.anon_vma_refcount[rows[index]]), int(children[rows[index]])
            return f"refcount {count}" + (f", {own} of it by others of its family" if own else "")

        return text

    def of_anon_vmas(message: str, rows: RowColumn, expected: str) -> Violations:
        return Violations(
            message, "anon_vma", found.anon_vmas[rows], always(expected), holders(rows)
        )

    objects = (tables.anon_vmas.address, tables.avcs.address, found.anon_vmas, found.avcs)
    return Verdict(
        sum(len(column) for column in objects),
        [
            of_anon_vmas("an anon_vma without VMAs is held", empty, _HOLDERS),
            of_anon_vmas("an anon_vma has VMAs that no mm has", full, "in a VMA's chain"),
            Violations(
                "an anon_vma_chain is not where its VMA or its anon_vma could find it",
                "anon_vma_chain",
                found.avcs[avc],
                always("on the list of its VMA, and in the tree of its anon_vma"),
                _vma_text(found.avc_vma[avc]),
                mm=mm[avc],
            ),
        ],
    )


def _vma_text(vma: U64Column) -> Text:
    return lambda index: f"that of VMA {int(vma[index]):#x}"


_SLAB_LOCK = "None: an object that is linked is allocated; it is freed after it was unlinked."
_SLAB_ERAS = (
    "All with the SLUB allocator. CPUs keep slabs of their own up to v6.19, and arrays of free "
    "objects (sheaves) since v6.18. Objects that KFENCE holds are looked up in its own pool. Not "
    "checked: SLAB, SLOB, and caches for each memory cgroup (v4.5 to v5.8)."
)
_SLAB_SCHEMES = (
    "In force. Under ANON_VMA_LAZY a word that leads to a root VMA is a pointer to a VMA: one that "
    "was unmapped must be allocated still."
)
_SLAB_SOURCE = (
    "virt_to_slab(), nearest_obj() in mm/slab.h and include/linux/slub_def.h; get_freepointer(), "
    "slab_alloc_node(), alloc_from_pcs() in mm/slub.c (v5.10, v6.1, v6.12, 7.3); "
    "addr_to_metadata() in mm/kfence/kfence.h; anon_vma_init() in mm/rmap.c."
)

INVARIANTS = (
    Invariant(
        code="AV501",
        slug="slab-cache",
        severity=Severity.ERROR,
        statement="VMAs, AVCs and anon_vmas lie in slabs of the caches that they come from.",
        why=(
            "Each kind is allocated from one cache, and the struct of the page that an object lies "
            "in says that it is a slab, and of which cache. A cache may be shared with other kinds "
            "of objects of the same size (anon_vma_chain's usually is), so this is of pointers "
            "that lead to something else altogether. Where the objects contradict nothing else, "
            "the struct of their page is what is wrong."
        ),
        consequence=(
            "What follows the pointer reads and writes another kind of object; when it is freed, "
            "it is put into the cache that the page names."
        ),
        lock=_SLAB_LOCK,
        source=_SLAB_SOURCE,
        eras=_SLAB_ERAS,
        schemes=_SLAB_SCHEMES,
        objects="objects",
        check=_check_cache,
    ),
    Invariant(
        code="AV502",
        slug="slab-object",
        severity=Severity.ERROR,
        statement="A pointer to a VMA, an AVC or an anon_vma leads to where an object begins.",
        why=(
            "The objects of a slab lie one behind the other, all of the size that its cache says; "
            "one that KFENCE holds is at either end of a page, and its metadata tell where."
        ),
        consequence=(
            "What follows the pointer takes parts of two objects for one: a wrong lock, a wrong "
            "counter, a wrong list."
        ),
        lock=_SLAB_LOCK,
        source=_SLAB_SOURCE,
        eras=_SLAB_ERAS,
        schemes=_SLAB_SCHEMES,
        objects="objects",
        check=_check_object,
    ),
    Invariant(
        code="AV503",
        slug="allocated",
        severity=Severity.ERROR,
        statement="A VMA, an AVC or an anon_vma that is in use is not free.",
        why=(
            "Free objects are on the list of their slab, on that of a CPU, or in a sheaf. Whoever "
            "frees one has unlinked it before: a VMA is out of its mm's tree, an AVC off its list "
            "and out of its tree, the tree of an anon_vma is empty. Left out is what may be free "
            "already: what hangs on an mm without users, or on one that a failed fork has left, "
            "unless a tree holds it. That nothing is found here does not prove that all is "
            "allocated: objects on their way from one list to another are on none."
        ),
        consequence=(
            "Use after free: the next allocation hands the object to somebody else, and both write "
            "to it."
        ),
        lock=_SLAB_LOCK,
        source=(
            f"{_SLAB_SOURCE} unlink_anon_vmas(), anon_vma_free() in mm/rmap.c; vm_area_free() in "
            "kernel/fork.c (v6.1, v6.12)."
        ),
        eras=_SLAB_ERAS,
        schemes=_SLAB_SCHEMES,
        objects="objects",
        check=_check_allocated,
    ),
    Invariant(
        code="AV504",
        slug="freelist",
        severity=Severity.ERROR,
        statement="The list of free objects of a slab leads to objects of that slab, and ends.",
        why=(
            "The link in each free object, scrambled with CONFIG_SLAB_FREELIST_HARDENED, leads to "
            "another object of the same slab or is NULL, and there are no more of them than the "
            "slab has objects. Looked at are the slabs of the objects met; with --leaks, all of "
            "the three caches: but one that is looked for and has nothing in use may be new, and "
            "its list be made just now, so of that one nothing is said."
        ),
        consequence=(
            "Somebody has written to a free object (use after free), or freed one twice; an "
            "allocation will return whatever the word leads to."
        ),
        lock="Of a slab's list, the slab's counters, which change with it; of a CPU's, that CPU.",
        source=(
            "get_freepointer(), set_freepointer(), allocate_slab() in mm/slub.c (v5.10, v6.1, "
            "v6.12, 7.3)."
        ),
        eras=_SLAB_ERAS,
        objects="slabs",
        check=_check_freelist,
    ),
    Invariant(
        code="AV505",
        slug="free-state",
        severity=Severity.ERROR,
        statement="A free anon_vma has no references and an empty tree.",
        why=(
            "anon_vmas are set up once, when their slab is, and not when they are allocated: they "
            "are freed in that same state, and stay readable, since RCU readers may still look at "
            "one. Looked at with --leaks: it takes the slabs that hold no object in use."
        ),
        consequence=(
            "The next VMA that gets the anon_vma gets the references or the nodes of another one."
        ),
        lock="None.",
        source="anon_vma_ctor(), anon_vma_free() in mm/rmap.c (v6.1, v6.12).",
        eras=_SLAB_ERAS,
        objects="free anon_vmas",
        check=_check_free_state,
    ),
    Invariant(
        code="AV506",
        slug="unreached",
        severity=Severity.WARNING,
        statement="Every allocated anon_vma and AVC is reached from a VMA.",
        why=(
            "What is neither in a VMA's chain nor in a tree of the family is either held by "
            "something else, or leaked. Legal holders: KSM and migration keep anon_vmas whose VMAs "
            "are gone; a root is held by such an anon_vma; fork and the first fault of a mapping "
            "allocate what they link later; unlinking takes off what it frees later. Left out are "
            "as many new anon_vmas as forks are in flight, and AVCs of VMAs whose mm no task has, "
            "or is locked for write. Looked at with --leaks, at all slabs of the machine."
        ),
        consequence="If nobody holds it, it is never freed; an anon_vma keeps its root as well.",
        lock="None.",
        source="anon_vma_fork(), unlink_anon_vmas(), __put_anon_vma() in mm/rmap.c (v6.1, v6.12).",
        eras=_SLAB_ERAS,
        objects="objects",
        check=_check_unreached,
    ),
)
