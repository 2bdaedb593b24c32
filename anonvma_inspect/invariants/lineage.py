"""Roots and parents of anon_vmas."""

from __future__ import annotations

import numpy as np

from anonvma_inspect.invariants.base import (
    Invariant,
    Severity,
    Verdict,
    Violations,
    address_text,
    always,
)
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.invariants.facts import Facts
from anonvma_inspect.kernel.era import Era
from anonvma_inspect.kernel.locks import LockState
from anonvma_inspect.tables import NO_ROW, RowColumn
from anonvma_inspect.target.memory import BoolColumn, U64Column, starts_run

__all__ = ("INVARIANTS",)


def _check_root(facts: Facts) -> Verdict:
    # * root can be the address of an anon_vma.
    # * The root of the root is itself.
    # If an anon_vma has a root that is none: where that one's parent pointer says that it is one,
    # its own root is wrong, and that is said once for all of its family.
    anon_vmas = facts.tables.anon_vmas
    believed = facts.believed
    root = facts.root_row
    wild = np.flatnonzero(believed)
    wild = wild[facts.wild(facts.root[wild], root[wild], facts.era.anon_vma)]

    of_root = take(root, root, NO_ROW)
    wrong = np.flatnonzero(believed & (root != NO_ROW) & (of_root != root))
    top = root[wrong]
    is_top = facts.parent_row[top] == top if facts.era.has_parent else ~believed[top]
    disowned = np.unique(top[is_top & believed[top]])
    wrong = np.setdiff1d(wrong[~is_top], disowned)
    # What the root should be: the parent's, if that is in order.
    expected = _root_by_parent(facts, wrong)
    wild_expected = _root_by_parent(facts, wild)
    groups = [
        facts.of_anon_vmas(
            "root of an anon_vma cannot be the address of one",
            wild,
            "root",
            address_text(wild_expected, wild_expected != 0, "an anon_vma"),
            address_text(anon_vmas.root[wild]),
        ),
        facts.of_anon_vmas(
            "a root anon_vma is not its own root",
            disowned,
            "root",
            address_text(anon_vmas.address[disowned]),
            address_text(anon_vmas.root[disowned]),
        ),
        facts.of_anon_vmas(
            "root of an anon_vma leads to one that is no root",
            wrong,
            "root",
            address_text(expected, expected != 0, "a root"),
            address_text(anon_vmas.root[wrong]),
        ),
    ]
    return Verdict(int(np.count_nonzero(believed)), groups)


def _root_by_parent(facts: Facts, rows: RowColumn) -> U64Column:
    # Addresses of the roots that the parents of anon_vmas have, an anon_vma that is its own parent
    # being its own root; 0 where that is not clear.
    address = facts.tables.anon_vmas.address
    if not facts.era.has_parent:
        return np.zeros(len(rows), dtype=np.uint64)
    parent = facts.parent_row[rows]
    root = np.where(parent == rows, rows, take(facts.root_row, parent, NO_ROW))
    sound = (parent == rows) | (take(facts.root_row, root, NO_ROW) == root)
    return np.where(sound, take(address, root, 0), np.uint64(0))


def _check_parent(facts: Facts) -> Verdict:
    # * parent can be the address of an anon_vma.
    # * An anon_vma is its own parent exactly if it is its own root.
    # * The root of the parent is the root.
    # * Going from parent to parent ends at the root.
    # Only of anon_vmas whose tree is not empty: behind an empty one, the parent may be freed.
    # Where root and parent contradict each other, a chain tells which of both is right: it has all
    # ancestors of its members.
    anon_vmas = facts.tables.anon_vmas
    itself = np.arange(len(anon_vmas.address))
    judged = facts.believed & (facts.tree_pointer != 0)
    parent, root = facts.parent_row, facts.root_row
    wild = np.flatnonzero(judged)
    wild = wild[facts.wild(facts.parent[wild], parent[wild], facts.era.anon_vma)]

    is_parent, is_root = parent == itself, facts.root == anon_vmas.address
    # Of a wild root AV301 tells, and nothing follows from it.
    known = judged & (parent != NO_ROW) & (root != NO_ROW)
    own_parent = np.flatnonzero(known & is_parent & ~is_root)
    in_chain = facts.in_chain(facts.vma_in_tree(own_parent), root[own_parent])
    groups = [
        facts.of_anon_vmas(
            "parent of an anon_vma cannot be the address of one",
            wild,
            "parent",
            always("an anon_vma"),
            address_text(anon_vmas.parent[wild]),
        ),
        _wrong_parent(
            facts,
            "an anon_vma that is not its own root is its own parent",
            own_parent[in_chain],
        ),
        _wrong_root(
            facts,
            "an anon_vma that is its own parent has another root",
            own_parent[~in_chain],
            own_parent[~in_chain],
        ),
    ]

    own_root = np.flatnonzero(known & is_root & ~is_parent)
    above = root[parent[own_root]]
    elsewhere = (above != NO_ROW) & (above != own_root)
    elsewhere &= facts.in_chain(facts.vma_in_tree(own_root), above)
    groups.append(
        _wrong_root(
            facts,
            "an anon_vma that is its own root has another parent, of another root",
            own_root[elsewhere],
            above[elsewhere],
        )
    )
    kept = own_root[~elsewhere]
    groups.append(
        facts.of_anon_vmas(
            "an anon_vma that is its own root has another parent",
            kept,
            "parent",
            address_text(anon_vmas.address[kept]),
            address_text(anon_vmas.parent[kept]),
        )
    )
    groups += _check_root_of_parent(facts, known & ~is_parent & ~is_root)
    cyclic = _cycles(facts, judged)
    groups.append(
        _wrong_parent(facts, "going from parent to parent leads round in a circle", cyclic)
    )
    return Verdict(int(np.count_nonzero(judged)), groups)


def _wrong_parent(facts: Facts, message: str, rows: RowColumn) -> Violations:
    return facts.of_anon_vmas(
        message,
        rows,
        "parent",
        always("another anon_vma of its chains"),
        address_text(facts.tables.anon_vmas.parent[rows]),
    )


def _wrong_root(facts: Facts, message: str, rows: RowColumn, expected: RowColumn) -> Violations:
    anon_vmas = facts.tables.anon_vmas
    return facts.of_anon_vmas(
        message,
        rows,
        "root",
        address_text(anon_vmas.address[expected]),
        address_text(anon_vmas.root[rows]),
    )


def _check_root_of_parent(facts: Facts, judged: BoolColumn) -> list[Violations]:
    anon_vmas = facts.tables.anon_vmas
    rows = np.flatnonzero(judged)
    above = facts.parent_row[rows]
    differs = facts.root[above] != facts.root[rows]
    rows, above = rows[differs], above[differs]
    vma = facts.vma_in_tree(rows)
    root_fits = facts.in_chain(vma, facts.root_row[rows])
    parent_fits = facts.in_chain(vma, above)
    # The root of a chain that says itself that it is none: AV301 tells of it.
    broken_root = root_fits & parent_fits & (above == facts.root_row[rows])
    of_root = ~root_fits & parent_fits
    of_above = root_fits & parent_fits & ~broken_root
    of_parent = ~(of_root | of_above | broken_root)
    # An anon_vma can have both the wrong parent's and wrong children's.
    odd = np.concatenate([rows[of_root], above[of_above]])
    right = facts.root[np.concatenate([above[of_root], rows[of_above]])]
    odd, first = np.unique(odd, return_index=True)
    return [
        facts.of_anon_vmas(
            "an anon_vma has another root than its parent or its children",
            odd,
            "root",
            address_text(right[first]),
            address_text(anon_vmas.root[odd]),
        ),
        facts.of_anon_vmas(
            "the parent of an anon_vma has another root",
            rows[of_parent],
            "parent",
            always("an anon_vma of the same root"),
            address_text(anon_vmas.parent[rows[of_parent]]),
        ),
    ]


# One anon_vma of each circle that parent pointers make: the one with the largest tree. All trees
# of ancestors hold their descendants' VMAs, so they never get smaller upwards; where they do, the
# pointer is wrong.
def _cycles(facts: Facts, judged: BoolColumn) -> RowColumn:
    count = len(judged)
    itself = np.arange(count)
    step = np.where(judged & (facts.parent_row != NO_ROW), facts.parent_row, itself)
    # Twice as far each round: who has not arrived at one that is its own parent after as many steps
    # as there are anon_vmas, is in a circle or leads into one.
    far = step
    for _ in range(count.bit_length()):
        if (step[far] == far).all():
            return itself[:0]
        far = far[far]
    member = np.unique(far[step[far] != far])
    # The smallest row of each circle is its name.
    name = itself.copy()
    far = step
    for _ in range(count.bit_length()):
        name = np.minimum(name, name[far])
        far = far[far]
    size = facts.nodes_in_tree[member]
    order = np.lexsort((member, -size, name[member]))
    member = member[order]
    return member[starts_run(name[member])]


def _lock_word(era: Era) -> str:
    return "rwsem_count" if "rwsem_count" in era.anon_vma else "rwsem_readers"


def _check_idle_lock(facts: Facts) -> Verdict:
    # Nobody locks an anon_vma that is not a root for write, and so nobody waits for it either.
    anon_vmas = facts.tables.anon_vmas
    judged = facts.believed & (facts.root_row != np.arange(len(anon_vmas.address)))
    judged &= facts.root_row != NO_ROW
    groups = []
    for held, expected, actual in (
        (anon_vmas.write_locked, "not locked for write", "locked for write"),
        (anon_vmas.lock_state == LockState.QUEUED, "not waited for", "waited for by a writer"),
    ):
        rows = np.flatnonzero(judged & held)
        groups.append(
            facts.of_anon_vmas(
                f"an anon_vma that is not a root is {actual}",
                rows,
                _lock_word(facts.era),
                always(expected),
                always(actual),
            )
        )
    return Verdict(int(np.count_nonzero(judged)), groups)


def _check_lock_word(facts: Facts) -> Verdict:
    # The rwsem of every anon_vma says what a rwsem can say.
    rows = np.flatnonzero(
        facts.believed & (facts.tables.anon_vmas.lock_state == LockState.IMPOSSIBLE)
    )
    return Verdict(
        int(np.count_nonzero(facts.believed)),
        [
            facts.of_anon_vmas(
                "the rwsem of an anon_vma is in a state that no rwsem has",
                rows,
                _lock_word(facts.era),
                always("free, or held or waited for by tasks"),
                always("unused bits set, or more readers than there can be tasks"),
            )
        ],
    )


def _has_lock_word(era: Era) -> str | None:
    known = "rwsem_owner" in era.anon_vma or "rwsem_readers" in era.anon_vma
    return None if known else "this kernel's rwsem counts in another way"


def _has_parent(era: Era) -> str | None:
    return None if era.has_parent else "anon_vmas of this kernel have no parent"


INVARIANTS = (
    Invariant(
        code="AV301",
        slug="root",
        severity=Severity.ERROR,
        statement="The root of every anon_vma is an anon_vma that is its own root.",
        why=(
            "A new anon_vma is its own root; one made by fork gets the root of the parent VMA's "
            "active one, and holds a reference to it until it is freed itself. The root never "
            "changes."
        ),
        consequence=(
            "The lock of the whole family is the root's: with another root, walkers and writers "
            "take different locks or none, and whoever frees the anon_vma drops a reference of "
            "something else."
        ),
        lock="None: set before the anon_vma is visible, and pinned by a reference.",
        source=(
            "anon_vma_alloc(), anon_vma_fork(), anon_vma_free(), __put_anon_vma() in mm/rmap.c "
            "(v6.1, v6.12)."
        ),
        eras="v2.6.36 and later.",
        objects="anon_vmas",
        check=_check_root,
    ),
    Invariant(
        code="AV302",
        slug="parent",
        severity=Severity.ERROR,
        statement=(
            "The parent of an anon_vma has the same root, only a root is its own parent, and "
            "parents lead up to it."
        ),
        why=(
            "Fork sets root and parent together from the parent VMA's active anon_vma; an anon_vma "
            "made otherwise is its own root and its own parent. Neither changes, and a parent "
            "outlives the trees of its children. When an anon_vma's tree is empty, its parent may "
            "be freed: then nothing is said."
        ),
        consequence=(
            "num_children is counted at the wrong anon_vma: fork reuses one that is in use, or "
            "unlinking brings a counter below zero."
        ),
        lock="None: set before the anon_vma is visible.",
        source="anon_vma_alloc(), anon_vma_fork(), unlink_anon_vmas() in mm/rmap.c (v6.1, v6.12).",
        eras="v3.19 and later, where the field exists.",
        objects="anon_vmas",
        check=_check_parent,
        applies=_has_parent,
    ),
    Invariant(
        code="AV303",
        slug="idle-lock",
        severity=Severity.WARNING,
        statement="Only a root anon_vma's rwsem is ever held for write, or waited for.",
        why=(
            "Whoever changes a tree of the family locks the root. An anon_vma that is none can be "
            "locked for read for a moment, by a walker that came late to one that was freed and "
            "given out again; nobody locks it for write."
        ),
        consequence="Somebody believes that he has locked the family, and has not.",
        lock="The root's rwsem.",
        source="anon_vma_lock_write(), folio_lock_anon_vma_read() in mm/rmap.c (v6.1, v6.12).",
        eras="v2.6.36 and later.",
        objects="anon_vmas that are no roots",
        check=_check_idle_lock,
    ),
    Invariant(
        code="AV304",
        slug="lock-word",
        severity=Severity.WARNING,
        statement="The rwsem of every anon_vma is in a state that a rwsem can be in.",
        why=(
            "In its word some bits have no meaning and are never set, and the readers that are "
            "counted in it are tasks, of which there cannot be more than PID_MAX_LIMIT. A warning, "
            "because vendors change locks, and their layouts look the same."
        ),
        consequence=(
            "Nobody gets the lock any more, or everybody does: whoever changes a tree of the "
            "family waits for ever, or meets others there."
        ),
        lock="None: atomic.",
        source=(
            "rwsem_read_trylock(), rwsem_mark_wake() in kernel/locking/rwsem.c (v5.10, v6.12); "
            "rwbase_write_lock() in kernel/locking/rwbase_rt.c (v6.12)."
        ),
        eras="v5.3 and later, also with PREEMPT_RT, which has a lock of another form.",
        objects="anon_vmas",
        check=_check_lock_word,
        applies=_has_lock_word,
    ),
)
