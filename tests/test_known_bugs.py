"""What the kernel's own bugs left in memory, rebuilt on the model, and the codes that find it.

``docs/known-bugs.md`` has a row for each; the codes there are those that are found here.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from anonvma_inspect.collect import collect
from anonvma_inspect.invariants.base import Finding
from anonvma_inspect.invariants.catalogue import audit

from .known_bugs import active, bug, forget, link, started, vma_of
from .model.eras import ERAS
from .model.image import Image
from .model.links import get_anon_vma, put_anon_vma
from .model.objects import AnonVma
from .model.script import Operation, Player
from .scheme_bugs import BUGS

DOCS = Path(__file__).parent.parent / "docs" / "known-bugs.md"
_ROW = re.compile(r"^\| (?P<bug>[^|]+) \| [^|]+ \| [^|]+ \| (?P<codes>[^|]+) \|$", re.MULTILINE)


def findings(player: Player, image: Image | None = None) -> list[Finding]:
    result = audit(collect((image or Image(player.machine)).target()))
    assert not result.failures
    return list(result.findings())


@bug("double reuse")
def double_reuse() -> Player:
    # By nothing but operations, on a kernel of that time. The anon_vma of process 2 is taken over
    # while 2 still has it: a leaf with one VMA has as much degree as one with one child.
    player = Player(ERAS["4.14"])
    player.do(Operation(0, "map", 0, 8))
    player.do(Operation(0, "write", 0))
    for operation in (
        *(Operation(0, "fork", to=1), Operation(1, "fork", to=2), Operation(1, "exit")),
        *(Operation(2, "fork", to=3), Operation(3, "fork", to=4), Operation(3, "fork", to=5)),
        *(Operation(4, "exit"), Operation(5, "fork", to=6)),
    ):
        assert player.do(operation) == 0
    assert active(player, 6) is active(player, 2)
    return player


@bug("failed clone")
def failed_clone() -> Player:
    # The VMA counts as a user that nobody counted.
    player = started("7.0")
    vma = vma_of(player, 1)
    forget(vma, player)
    active(player, 1).num_active_vmas -= 1
    return player


@bug("degree underflow")
def degree_underflow() -> Player:
    player = started("4.14")
    active(player, 1).num_active_vmas -= 1
    return player


@bug("degree of another anon_vma")
def degree_of_another() -> Player:
    player = started("4.14")
    active(player, 1).num_active_vmas -= 1
    active(player, 2).num_active_vmas += 1
    return player


@bug("sharers with different chains")
def sharers() -> Player:
    # A neighbour's anon_vma is taken over, but not the rest of its chain.
    player = Player(ERAS["3.19"])
    player.do(Operation(0, "map", 0, 8))
    player.do(Operation(0, "write", 0))
    player.do(Operation(0, "fork", to=1))
    player.do(Operation(1, "map", 12, 2))
    anon_vma, new = active(player, 1), vma_of(player, 1, 1)
    assert new.anon_vma is None
    for member in (anon_vma.root, anon_vma):
        link(player, new, member)
    vma = vma_of(player, 1)
    lost = next(avc for avc in vma.chain if avc.anon_vma is not anon_vma)
    assert lost.anon_vma is anon_vma.root
    new.anon_vma = anon_vma
    anon_vma.num_active_vmas += 1
    # One more anon_vma, that only one of them has in its chain.
    other = player.machine.allocate(AnonVma(player.machine))
    other.root, other.parent = anon_vma.root, anon_vma
    get_anon_vma(other.root)
    anon_vma.num_children += 1
    link(player, new, other)
    return player


@bug("AVCs of a freed VMA")
def split_failure() -> Player:
    # The new VMA was cloned into the trees, then freed alone.
    player = started("6.1")
    vma = vma_of(player, 0)
    new = player.machine.allocate(vma.dup())
    for avc in reversed(vma.chain):
        link(player, new, avc.anon_vma)
    active(player, 0).num_active_vmas += 1
    return player


@bug("dead anon_vma pointer")
def dead_pointer() -> Player:
    # MREMAP_DONTUNMAP cut the links of what it left behind, but not the pointer; the last other
    # user has gone.
    player = Player(ERAS["5.10"])
    player.do(Operation(0, "map", 0, 8))
    player.do(Operation(0, "write", 0))
    vma = vma_of(player, 0)
    anon_vma = active(player, 0)
    forget(vma, player)
    anon_vma.num_active_vmas = anon_vma.num_children = 0
    put_anon_vma(anon_vma)
    return player


@bug("no longer reachable ancestors")
def hierarchy() -> Player:
    player = started("7.3")
    player.do(Operation(1, "exit"))
    player.do(Operation(0, "unmap", 0, 8))
    return player


@bug("source of MREMAP_DONTUNMAP keeps its chain")
def kept_chain() -> Player:
    player = started("5.10")
    assert player.do(Operation(0, "leave", 0, 8, to=10)) == 0
    return player


@bug("anon_vma of a merge that failed")
def dup_not_undone() -> Player:
    # A VMA that has no anonymous page got its neighbour's anon_vmas, and keeps them.
    player = started("6.1")
    player.do(Operation(0, "map", 10, 2))
    target, source = vma_of(player, 0, 1), vma_of(player, 0)
    for avc in reversed(source.chain):
        link(player, target, avc.anon_vma)
    target.anon_vma = active(player, 0)
    target.anon_vma.num_active_vmas += 1
    return player


def documented() -> dict[str, set[str]]:
    """The codes of each row of the documentation; empty for "none"."""
    return {
        row["bug"].strip(): set(re.findall(r"AV\d{3}", row["codes"]))
        for row in _ROW.finditer(DOCS.read_text())
    }


@pytest.mark.parametrize("name", BUGS)
def test_state(name: str) -> None:
    assert {finding.code for finding in findings(BUGS[name]())} == documented()[name]


def test_every_documented_code_is_produced() -> None:
    with_codes = {name for name, codes in documented().items() if codes}
    assert with_codes <= set(BUGS)
    assert set(BUGS) <= set(documented())
