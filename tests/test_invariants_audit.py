"""What an audit does not report, how it is run, and what its findings say beside the four words."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from anonvma_inspect.errors import UsageError
from anonvma_inspect.invariants import pages, tag_schemes
from anonvma_inspect.invariants.base import Invariant, Severity, State, Verdict
from anonvma_inspect.invariants.catalogue import CATALOGUE, Audit, audit, run, select
from anonvma_inspect.invariants.facts import Facts
from anonvma_inspect.kernel.era import Era, Record
from anonvma_inspect.kernel.tags import TagScheme
from anonvma_inspect.tables import ObjectState, Tables
from anonvma_inspect.target.layouts import Field

from .captures import few_or_all
from .handmade import ERA, PAGE, RAM, AnonVma, Avc, Model, RmapItem, StableNode, forest, without
from .test_invariants import CASES, POISON_NEXT, WILD, file, found, lost_avc, own, piece, root_of

UNSTABLE = 1 << 22


def result(audited: Audit, code: str) -> State:
    return next(r.state for r in audited.results if r.invariant.code == code)


# ---- what is legal


def test_sound_forest_is_silent() -> None:
    audited = audit(forest().tables())
    assert not audited.failures
    deep = {invariant.code for invariant in pages.INVARIANTS}
    states = {r.invariant.code: r.state for r in audited.results}
    assert len(states) == len(CATALOGUE)
    sound = (State.OK, State.NOT_APPLICABLE)
    assert {code for code, state in states.items() if state not in sound} == deep
    assert audited.complete
    assert audited.findings_total == 0
    assert not list(audited.findings())


def test_nothing_at_all() -> None:
    audited = audit(Model().finish().tables())
    assert not audited.failures
    assert audited.findings_total == 0


@pytest.mark.parametrize("how", ["fork", "unlisted", "not locked", "another's lock", "elsewhere"])
def test_tree_of_a_fork_in_flight(how: str) -> None:
    # The child's tree still holds the parent's VMAs from the sixth piece on, and map_count follows.
    model = forest()
    child, parent = model.mms[2], model.mms[1]
    for vma in child.vmas[6:]:
        for avc in vma.chain:
            avc.of_anon_vma.tree.remove(avc)
            model.avcs.remove(avc)
        model.vmas.remove(vma)
        if vma.active is not None:
            model.anon_vmas.remove(vma.active)
    del child.vmas[6:]
    model.finish()
    child.slots += parent.slots[6:]
    if how == "elsewhere":
        first, last, pointer = child.slots[-1]
        child.slots[-1] = first, last + PAGE, pointer
    model.tasks = [task for task in model.tasks if task.mm is not child]
    forks, other = (next(t for t in model.tasks if t.mm is mm) for mm in (parent, model.mms[0]))
    if how != "unlisted":
        parent.write_locked, parent.lock_owner = True, forks.address
        child.write_locked = how != "not locked"
        child.lock_owner = (other if how == "another's lock" else forks).address
    codes = {finding.code for finding in found(model)}
    assert codes == (set() if how == "fork" else {"AV001"})


def test_freed_vmas_in_the_tree_of_an_exiting_mm() -> None:
    # vm_start of a freed VMA is overlaid by what the allocator keeps there.
    model = forest()
    mm = model.mms[3]
    model.tasks = [task for task in model.tasks if task.mm is not mm]
    mm.mm_users = 0
    mm.vmas[12].vm_start = WILD & ~0xFFF
    mm.map_count = 3
    assert not found(model)


@pytest.mark.parametrize("how", ["exiting", "unlisted", "unstable", "not walked", "not whole"])
def test_vma_in_trees_only(how: str) -> None:
    # In exit, the mm's tree goes before what is left of its VMAs.
    model = forest()
    mm = model.mms[0]
    del mm.slots[5]
    mm.map_count -= 1
    if how in ("exiting", "unlisted"):
        model.tasks = [task for task in model.tasks if task.mm is not mm]
        mm.mm_users = int(how == "unlisted")
    elif how == "not walked":
        mm.walked = False
    elif how == "not whole":
        mm.whole = False
    else:
        mm.flags = UNSTABLE
    codes = [finding.code for finding in found(model)]
    assert codes == (["AV202"] if how in ("unlisted", "unstable") else [])


def test_take_all_locks() -> None:
    model = forest()
    root = root_of(piece(model, 0))
    root.rb_root |= 1
    root.write_locked, root.lock_owner = True, model.tasks[0].address
    assert not found(model)


def test_mark_under_a_lock_that_no_task_holds() -> None:
    model = forest()
    root = root_of(piece(model, 0))
    root.rb_root |= 1
    root.write_locked = True
    assert [finding.code for finding in found(model)] == ["AV207"]


def test_unmapped_while_moving() -> None:
    # mremap: two VMAs of one mm with the same anon_vma and the same keys; the new one anywhere.
    model = Model()
    mm = model.mm("init")
    vma = model.map(mm, 0x1000, 2)
    model.fault(vma)
    copy = model.map(mm, 0x9000, 2, pgoff=0x1000)
    copy.active = vma.active
    model.link(copy, own(vma))
    assert not found(model.finish())


def test_reuse() -> None:
    # init forked a child, that one another, and exited; init's mapping is gone, too. The grandchild
    # forks: its child reuses what the one in between has left, which is no ancestor of itself.
    model = Model()
    vma = model.map(model.mm("init"), 0x1000, 2)
    root = model.fault(vma)
    child = model.fork(model.mms[0], "child")
    grandchild = model.fork(child, "grandchild")
    middle = own(child.vmas[0])
    for gone in (child.vmas[0],):
        for avc in gone.chain:
            avc.of_anon_vma.tree.remove(avc)
            model.avcs.remove(avc)
        model.vmas.remove(gone)
        child.vmas.remove(gone)
    new = model.map(model.mm("new"), 0x1000, 2)
    for avc in reversed(grandchild.vmas[0].chain):
        model.link(new, avc.of_anon_vma)
    new.active = middle
    assert {avc.of_anon_vma for avc in new.chain} == {root, middle, own(grandchild.vmas[0])}
    assert not found(model.finish())


def test_parent_of_an_empty_tree_is_not_followed() -> None:
    # unlink_anon_vmas(), second loop: the AVC is still listed, the parent may be freed.
    model = forest()
    vma = piece(model, 5, mm=2)
    anon_vma = own(vma)
    (avc,) = anon_vma.tree
    anon_vma.tree.clear()
    vma.chain[:] = [avc]
    for other in [a for a in model.avcs if a.of_vma is vma and a is not avc]:
        other.of_anon_vma.tree.remove(other)
        model.avcs.remove(other)
    vma.active = None
    model.finish()
    anon_vma.parent = WILD
    codes = {finding.code for finding in found(model)}
    # In flight, and so it looks; but nothing is said of the parent.
    assert codes <= {"AV104", "AV105", "AV201"}


# ---- what is missing


def every_object(model: Model) -> list[int]:
    return [
        *(vma.address for vma in model.vmas),
        *(avc.address for avc in model.avcs),
        *(anon_vma.address for anon_vma in model.anon_vmas),
    ]


def test_one_hole_is_no_finding() -> None:
    for address in every_object(forest()):
        model = forest()
        model.holes = {address}
        audited = audit(model.tables())
        assert not audited.failures
        assert not list(audited.findings()), hex(address)
        assert not audited.complete


def test_many_holes_are_no_finding() -> None:
    rng = random.Random(1)
    addresses = every_object(forest())
    for _ in range(60):
        model = forest()
        model.holes = set(rng.sample(addresses, rng.choice([2, 5, 20, 60])))
        audited = audit(model.tables())
        assert not audited.failures
        assert not list(audited.findings()), sorted(map(hex, model.holes))


def test_too_low_shows_in_what_is_known() -> None:
    model = forest()
    root = root_of(piece(model, 0))
    model.holes = {piece(model, 5, mm=2).address}
    root.num_active_vmas -= 1
    root.num_children -= 2
    root.refcount = 3
    (children, active, references) = found(model)
    assert (children.code, children.expected) == ("AV401", "at least 25")
    assert (active.code, active.expected) == ("AV402", "at least 12")
    assert (references.code, references.expected) == ("AV403", "at least 36")


def test_too_high_says_nothing_in_what_is_not() -> None:
    model = forest()
    root = root_of(piece(model, 0))
    model.holes = {piece(model, 5, mm=2).address}
    root.num_active_vmas += 1
    root.num_children += 2
    root.refcount += 3
    assert not found(model)


def test_refcounts_that_nobody_can_judge() -> None:
    model = Model()
    vma = model.map(model.mm("init"), 0x1000, 2)
    model.fault(vma)
    below = model.split(vma, 0x1001).chain[0]
    model.finish()
    model.holes = {below.address}
    audited = audit(model.tables())
    assert result(audited, "AV404") is State.NOT_CHECKED
    (judged,) = [r for r in audited.results if r.invariant.code == "AV404"]
    assert judged.reason == "no family of anon_vmas is known as a whole"


# ---- eras


def test_degree() -> None:
    era = without("num_children", "num_active_vmas", degree=56)
    assert not found(forest(era))
    audited = audit(forest(era).tables())
    assert result(audited, "AV402") is State.NOT_APPLICABLE
    model = forest(era)
    root = root_of(piece(model, 0))
    root.degree -= 1
    (finding,) = found(model)
    assert (finding.code, finding.expected, finding.actual) == ("AV401", "37", "36")
    assert finding.word == root.address + 56


def test_without_leftmost() -> None:
    model = forest(without("rb_leftmost"))
    for anon_vma in model.anon_vmas:
        anon_vma.rb_leftmost = 0
    assert not found(model)
    assert result(audit(model.tables()), "AV206") is State.NOT_APPLICABLE


def test_without_parent() -> None:
    model = forest(without("parent"))
    for anon_vma in model.anon_vmas:
        anon_vma.parent = 0
    audited = audit(model.tables())
    assert result(audited, "AV302") is State.NOT_APPLICABLE
    # There was no counter of children, either.
    assert {finding.code for finding in audited.findings()} <= {"AV401"}


def integer_pointer() -> Era:
    record = ERA.vma
    fields = dict(record.fields)
    fields["anon_vma"] = Field(80, 8, "integer", "unsigned long")
    return replace(
        ERA,
        tags=TagScheme("unfaulted", "", unfaulted=1),
        vma=Record(record.struct, record.size, fields),
    )


def test_flag_in_the_pointer() -> None:
    model = forest(integer_pointer())
    model.mms[0].vmas[12].anon_vma = 1
    assert not found(model)
    # Together with a pointer, it is legal under no scheme.
    piece(model, 5).anon_vma |= 1
    assert {finding.code for finding in found(model)} == {"AV603"}


# ---- KSM at work


def give_back(model: Model, node: StableNode, item: RmapItem) -> Iterator[None]:
    node.rmap_hlist_len -= 1
    yield
    item.of_anon_vma.refcount -= 1
    yield


def remove_node(model: Model) -> Iterator[None]:
    """remove_node_from_stable_tree(): what is no longer marked stays on the list."""
    node = model.stable_nodes[0]
    for item in list(node.items):
        yield from give_back(model, node, item)
        node.items.remove(item)
        yield


def remove_item(model: Model) -> Iterator[None]:
    """remove_rmap_item_from_tree()."""
    node = model.stable_nodes[1]
    item = node.items.pop()
    yield
    yield from give_back(model, node, item)


def merge_two(model: Model) -> Iterator[None]:
    """cmp_and_merge_page(): two references, then a node for them, then one after the other."""
    anon_vma = own(file(model))
    made = model.merge((file(model), 0), (file(model), 1))
    items, made.items = made.items, []
    model.stable_nodes.remove(made)
    for _ in items:
        anon_vma.refcount += 1
        yield
    model.stable_nodes.append(made)
    yield
    for item in items:
        made.rmap_hlist_len += 1
        yield
        made.items.insert(0, item)
        yield


@pytest.mark.parametrize("work", [remove_node, remove_item, merge_two])
def test_ksmd_at_work_is_no_error(work: Callable[[Model], Iterator[None]]) -> None:
    model = forest()
    steps = 0
    for _ in work(model):
        steps += 1
        audited = audit(model.tables())
        assert audited.totals[Severity.ERROR] == 0, f"step {steps}"
        assert not audited.failures
    assert steps > 2
    # What is done is whole again.
    assert not found(model)


def test_ksm_not_known() -> None:
    model = forest()
    model.stable_nodes, model.ksm_missing = [], "no word of it"
    audited = audit(model.tables())
    assert result(audited, "AV705") is State.NOT_CHECKED
    assert result(audited, "AV706") is State.NOT_CHECKED
    (finding,) = audited.findings()
    assert (finding.code, finding.object_address) == ("AV404", own(file(model)).address)
    assert (finding.expected, finding.actual) == ("4", "6")
    assert finding.message.endswith("and KSM may hold them (no word of it)")


# ---- what findings say


def test_where_and_root() -> None:
    model = forest()
    vma = piece(model, 5, mm=2)
    anon_vma = own(vma)
    anon_vma.num_children = 7
    (finding,) = found(model)
    assert finding.where.pid == 102
    assert finding.where.comm == b"leaf"
    assert (finding.where.start, finding.where.end) == (vma.vm_start, vma.vm_end)
    assert finding.root == root_of(vma).address
    assert finding.severity is Severity.ERROR
    assert finding.object_type == "anon_vma"
    assert finding.word == anon_vma.address + ERA.anon_vma.offset("num_children")
    assert finding.cause is None


def test_where_of_an_mm() -> None:
    model = forest()
    model.mms[3].map_count = 0
    (finding,) = found(model)
    assert (finding.where.pid, finding.where.comm, finding.where.start) == (103, b"right", None)
    assert finding.root is None


def test_cause() -> None:
    model = forest()
    CASES["root_is_no_root"](model)
    findings = found(model)
    assert len({finding.cause for finding in findings}) == 1
    assert findings[0].cause == findings[0].word is not None


def test_order_and_limit() -> None:
    model = forest()
    for anon_vma in model.anon_vmas:
        anon_vma.num_children += 5
        anon_vma.num_active_vmas -= 5
    audited = audit(model.tables())
    findings = list(audited.findings())
    assert audited.findings_total == len(findings) == 2 * len(model.anon_vmas)
    assert audited.totals == {Severity.ERROR: len(findings), Severity.WARNING: 0}
    keys = [(f.code, f.object_address, f.message) for f in findings]
    assert keys == sorted(keys)
    assert list(audited.findings(3)) == findings[:3]
    assert not list(audited.findings(0))


# ---- choosing and running


@pytest.mark.parametrize(
    ("names", "codes"),
    [
        (["AV402"], ["AV402"]),
        (["av402", "refcount-low"], ["AV402", "AV403"]),
        (["AV403,AV001"], ["AV001", "AV403"]),
        (["AV3"], ["AV301", "AV302", "AV303", "AV304"]),
        (["AV40"], ["AV401", "AV402", "AV403", "AV404"]),
    ],
)
def test_select(names: list[str], codes: list[str]) -> None:
    assert [invariant.code for invariant in select(names)] == codes
    rest = [invariant.code for invariant in select(skip=names)]
    assert rest == [invariant.code for invariant in CATALOGUE if invariant.code not in codes]


def test_select_all() -> None:
    assert select() == CATALOGUE


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ZZ999", "explain"),
        ("refcout-low", "did you mean refcount-low"),
        ("nonsense", "explain"),
        ("", "explain"),
        ("AV9", "did you mean"),
    ],
)
def test_select_unknown(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        select([name])
    with pytest.raises(UsageError, match=hint):
        select(skip=[name])


def test_select_nothing() -> None:
    with pytest.raises(UsageError, match="no invariant is left"):
        select(["AV4"], ["AV40"])


def test_results_are_in_order() -> None:
    codes = [r.invariant.code for r in run(forest().tables(), CATALOGUE[::-1])]
    assert codes == [invariant.code for invariant in CATALOGUE]


def test_a_check_that_fails_does_not_hide() -> None:
    def fail(facts: Facts) -> Verdict:
        raise IndexError("out of bounds")

    broken = [replace(CATALOGUE[0], check=fail), *CATALOGUE[1:]]
    audited = audit(forest().tables(), broken)
    (failed,) = audited.failures
    assert failed.state is State.NOT_CHECKED
    assert failed.reason == "a bug of this tool: IndexError: out of bounds"
    assert isinstance(failed.error, IndexError)
    assert not audited.complete
    others = [r for r in audited.results[1:] if r.invariant not in pages.INVARIANTS]
    assert all(r.state in (State.OK, State.NOT_APPLICABLE) for r in others)


# ---- slabs


@pytest.mark.parametrize("how", ["exit", "failed fork", "unlisted", "write-locked"])
def test_freed_vmas_that_an_mm_still_names(how: str) -> None:
    # exit_mmap() frees VMAs before the tree that names them; so does a fork that failed.
    model = forest()
    mm = model.mms[3]
    vma = mm.vmas[12]
    assert not vma.chain
    model.states[vma.address] = ObjectState.FREE
    mm.write_locked = how == "write-locked"
    if not mm.write_locked:
        model.tasks = [task for task in model.tasks if task.mm is not mm]
    mm.mm_users = int(how != "exit")
    mm.flags = UNSTABLE if how == "failed fork" else 0
    codes = [finding.code for finding in found(model)]
    assert codes == (["AV503"] if how in ("unlisted", "write-locked") else [])


@pytest.mark.parametrize("how", ["exit", "at rest"])
def test_freed_anon_vma_that_an_avc_still_names(how: str) -> None:
    # unlink_anon_vmas(), second loop: the reference is dropped, and with it the anon_vma, before
    # the AVC leaves the list.
    model = forest()
    mm = model.mms[3]
    vma = mm.vmas[5]
    anon_vma, avc = own(vma), vma.chain[0]
    assert avc.of_anon_vma is anon_vma
    vma.anon_vma = 0
    vma.next = vma.prev = avc.node
    avc.next = avc.prev = vma.head
    anon_vma.rb_root = anon_vma.rb_leftmost = anon_vma.refcount = 0
    model.states[anon_vma.address] = ObjectState.FREE
    if how == "exit":
        model.tasks = [task for task in model.tasks if task.mm is not mm]
        mm.mm_users = 0
    freed = [finding for finding in found(model) if finding.code == "AV503"]
    assert bool(freed) == (how == "at rest")


@pytest.mark.parametrize("how", ["unlinked", "unlisted", "write-locked"])
def test_avcs_that_an_operation_in_flight_has(how: str) -> None:
    model = forest()
    mm = model.mms[2]
    avc = lost_avc(model, mm.vmas[5])
    if how == "unlinked":
        avc.next = POISON_NEXT
    elif how == "unlisted":
        model.tasks = [task for task in model.tasks if task.mm is not mm]
    else:
        mm.write_locked, mm.lock_owner = True, model.tasks[2].address
    assert not found(model)


@pytest.mark.parametrize(("made", "forks", "left"), [(1, 1, 0), (2, 1, 2), (1, 0, 1), (2, 3, 0)])
def test_anon_vmas_that_fork_has_made(made: int, forks: int, left: int) -> None:
    model = forest()
    for _ in range(forks):
        child = model.mm()
        child.write_locked, child.lock_owner = True, model.tasks[0].address
    for number in range(made):
        address = RAM + 0x9000 + 128 * number
        model.lost_anon_vmas.append(AnonVma(address, root=address, refcount=1))
    assert [finding.code for finding in found(model)] == ["AV506"] * left


def allocated(model: Model, **changes: object) -> Tables:
    tables = model.tables()
    assert tables.allocation is not None
    return replace(tables, allocation=replace(tables.allocation, **changes))  # type: ignore[arg-type]


def states(tables: Tables) -> dict[str, tuple[State, str | None]]:
    group = [r for r in audit(tables).results if r.invariant.code.startswith("AV5")]
    return {r.invariant.code: (r.state, r.reason) for r in group}


def test_slabs_that_were_not_read_are_not_clean() -> None:
    unread = states(replace(forest().tables(), allocation=None))
    assert set(unread.values()) == {(State.NOT_CHECKED, "slabs were not read")}
    missing = states(allocated(forest(), not_read="gone"))
    assert set(missing.values()) == {(State.NOT_CHECKED, "gone")}
    tables = forest().tables()
    assert tables.allocation is not None
    unknown = replace(tables.allocation.avcs, cache=0)
    nameless = states(allocated(forest(), avcs=unknown))
    reason = "the slab cache of anon_vma_chain is not known"
    assert set(nameless.values()) == {(State.NOT_CHECKED, reason)}


def test_free_objects_that_were_not_read() -> None:
    some = states(allocated(forest(), free_not_read="no CPUs"))
    assert some.pop("AV503") == (State.NOT_CHECKED, "no CPUs")
    assert set(some.values()) == {(State.OK, None)}
    # What is known to be free is, whatever else is not known.
    model = forest()
    model.states[model.vmas[0].address] = ObjectState.FREE
    assert states(allocated(model, free_not_read="no CPUs"))["AV503"][0] is State.VIOLATED


def test_leaks_are_only_looked_for_if_asked() -> None:
    left = states(allocated(forest(), unreached=None))
    assert left.pop("AV505") == (State.NOT_CHECKED, "only looked for with --leaks")
    assert left.pop("AV506") == (State.NOT_CHECKED, "only looked for with --leaks")
    assert set(left.values()) == {(State.OK, None)}
    failed = states(allocated(forest(), unreached=None, unreached_not_read="gone"))
    assert failed["AV506"] == (State.NOT_CHECKED, "gone")


# ---- no input must break it


def words_of(model: Model) -> list[tuple[object, str]]:
    fields = {
        "Vma": ("vm_start", "vm_end", "vm_mm", "vm_pgoff", "anon_vma", "next", "prev"),
        "Avc": (
            *("vma", "anon_vma", "next", "prev"),
            *("rb_parent_color", "rb_left", "rb_right", "rb_subtree_last"),
        ),
        "AnonVma": (
            *("root", "parent", "refcount", "num_children", "num_active_vmas"),
            *("rb_root", "rb_leftmost"),
        ),
    }
    objects = [*model.vmas, *model.avcs, *model.anon_vmas]
    return [(o, name) for o in objects for name in fields[type(o).__name__]]


COUNTS = ("refcount", "num_children", "num_active_vmas")


def test_any_word_can_be_anything() -> None:
    rng = random.Random(2)
    for _ in range(few_or_all(100, 250)):
        model = forest()
        words = words_of(model)
        for _ in range(rng.choice([1, 1, 3, 30])):
            object_, name = rng.choice(words)
            other, other_name = rng.choice(words)
            old = getattr(object_, name)
            values = [0, WILD, old ^ (1 << rng.randrange(40)), old + 8, getattr(other, other_name)]
            width = 31 if name in COUNTS else 64
            setattr(object_, name, rng.choice(values) % 2**width)
        audited = audit(model.tables())
        for failed in audited.failures:
            assert failed.error is not None
            raise failed.error
        assert len(list(audited.findings())) == audited.findings_total


def test_all_words_are_garbage() -> None:
    rng = random.Random(3)
    model = forest()
    for object_, name in words_of(model):
        garbage = RAM + rng.randrange(1 << 20) * 8
        setattr(object_, name, garbage % 2**31 if name in COUNTS else garbage)
    audited = audit(model.tables())
    assert not audited.failures
    assert len(list(audited.findings(5))) == 5


def test_a_list_that_never_ends() -> None:
    model = Model()
    vma = model.map(model.mm("init"), 0x1000, 64)
    model.fault(vma)
    for _ in range(40):
        model.fork(model.mms[-1], "child")
    last = model.mms[-1].vmas[0]
    model.finish()
    assert len(last.chain) == 41
    last.chain[30].next = last.chain[7].node
    (finding,) = found(model)
    assert (finding.code, finding.object_address) == ("AV101", last.chain[30].address)


def test_duplicate_in_a_long_chain() -> None:
    model = Model()
    vma = model.map(model.mm("init"), 0x1000, 64)
    model.fault(vma)
    for _ in range(40):
        model.fork(model.mms[-1], "child")
    last = model.mms[-1].vmas[0]
    twin: Avc = model.link(last, last.chain[35].of_anon_vma)
    model.finish()
    assert twin is last.chain[0]
    (finding,) = found(model)
    assert (finding.code, finding.object_address) == ("AV103", last.chain[36].address)


# ---- the catalogue


def test_codes() -> None:
    codes = [invariant.code for invariant in CATALOGUE]
    assert codes == sorted(set(codes))
    assert all(re.fullmatch(r"AV\d{3}", code) for code in codes)
    slugs = [invariant.slug for invariant in CATALOGUE]
    assert len(set(slugs)) == len(slugs)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", slug) for slug in slugs)


@pytest.mark.parametrize("invariant", CATALOGUE, ids=lambda invariant: invariant.code)
def test_every_invariant_is_explained(invariant: Invariant) -> None:
    for text in (
        *(invariant.statement, invariant.why, invariant.consequence),
        *(invariant.lock, invariant.source, invariant.eras),
    ):
        assert text == " ".join(text.split())
        assert text.endswith(".")
    assert len(invariant.statement) < 160
    assert len(invariant.why) > 60
    # A source that can be opened: a file, a function, a release.
    assert re.search(r"\b(mm|lib|include|kernel)/[\w/]+\.[ch]\b", invariant.source)
    assert re.search(r"\w+\(\)|\b[A-Z_]{6,}", invariant.source)
    # Proposals have a date.
    assert re.search(r"v\d\.\d+|\(20\d\d-\d\d\)", invariant.source)
    assert invariant.objects


def test_every_code_is_produced_by_a_case() -> None:
    produced = {code for case in CASES.values() for code, *_ in case(forest())}
    # Those of pages and of tags have cases of their own: see test_pages, test_invariants_tags.
    elsewhere = (*pages.INVARIANTS, *tag_schemes.INVARIANTS)
    assert produced == {each.code for each in CATALOGUE if each not in elsewhere}


def test_neighbours_in_the_forest_touch() -> None:
    # The forest is what its docstring says.
    vmas = forest().mms[0].vmas
    assert all(one.vm_end == two.vm_start for one, two in pairwise(vmas[:12]))
    assert vmas[0].vm_start == 0x1000 * PAGE
