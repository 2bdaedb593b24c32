"""The answers of ``family``: a tree, a list, a picture."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from anonvma_inspect.analysis.families import find_families
from anonvma_inspect.report.escape import escape, quote_dot
from anonvma_inspect.report.family import SORTS, FamiliesReport, FamilyReport, sorted_families
from anonvma_inspect.report.render import render
from anonvma_inspect.report.style import PLAIN, Style
from anonvma_inspect.tables import NO_ROW, Tables

from .captures import CAPTURES
from .clirun import Cli
from .small_tables import FACTS, make_tables, numbers

CAPTURE = next(capture for capture in CAPTURES if capture.name == "forktree-6.12")
CORE = str(CAPTURE.core)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def report(tables: Tables, family: int = 0) -> FamilyReport:
    return FamilyReport(FACTS, tables, find_families(tables), family)


def drawn(tables: Tables) -> str:
    return "".join(render(report(tables), "dot", PLAIN))


def answer(cli: Cli, *arguments: str) -> Any:
    ran = cli("-q", "-c", CORE, "--format", "json", *arguments)
    assert (ran.code, ran.err) == (0, "")
    return json.loads(ran.out)


def test_text() -> None:
    assert "".join(render(report(make_tables()), "table", PLAIN)) == (
        "family of root 0xffff888000040000: 2 anon_vmas, 2 generations, 2 VMAs, 2 mms, 3 AVCs, "
        "400 bytes\n"
        "0xffff888000040000  tree 2, refcount 2, num_children 2, num_active_vmas 1"
        "  PID 100 (mother) 00001000-00003000\n"
        "└─ 0xffff888000040080  tree 1, refcount 1, num_children 0, num_active_vmas 1"
        "  PID 101 (child) 00001000-00003000\n"
    )


def test_json() -> None:
    document: Any = report(make_tables()).document()
    del document["target"]
    assert document == {
        "schema": "anonvma-inspect/family/1",
        "family": {
            "root": "0xffff888000040000",
            "anon_vmas": 2,
            "vmas": 2,
            "avcs": 3,
            "mms": 2,
            "generations": 2,
            "zombies": 0,
            "waiting": 0,
            "reused": 0,
            # Two of 104 and three of 64.
            "bytes": 400,
            "pid": 100,
            "comm": "mother",
        },
        "anon_vmas": [
            {
                "address": "0xffff888000040000",
                "below": None,
                "parent": "0xffff888000040000",
                "depth": 0,
                "refcount": 2,
                "num_children": 2,
                "num_active_vmas": 1,
                "degree": None,
                "tree": 2,
                "zombie": False,
                "waiting": False,
                "reused": False,
                "vmas": [
                    {
                        "address": "0xffff888000020000",
                        "start": "0x1000",
                        "end": "0x3000",
                        "pid": 100,
                        "comm": "mother",
                    }
                ],
            },
            {
                "address": "0xffff888000040080",
                "below": "0xffff888000040000",
                "parent": "0xffff888000040000",
                "depth": 1,
                "refcount": 1,
                "num_children": 0,
                "num_active_vmas": 1,
                "degree": None,
                "tree": 1,
                "zombie": False,
                "waiting": False,
                "reused": False,
                "vmas": [
                    {
                        "address": "0xffff888000020200",
                        "start": "0x1000",
                        "end": "0x3000",
                        "pid": 101,
                        "comm": "child",
                    }
                ],
            },
        ],
    }


def family_of(parents: Sequence[int]) -> Tables:
    """Some anon_vmas of one root, each with the parent that is named; none has a VMA."""
    count = len(parents)
    tables = make_tables()

    def column(value: Any) -> Any:
        return np.full(count, value[0], dtype=value.dtype)

    anon_vmas = {
        field.name: column(getattr(tables.anon_vmas, field.name))
        for field in dataclasses.fields(tables.anon_vmas)
    }
    anon_vmas["address"] = np.arange(count, dtype=np.uint64) * np.uint64(0x80) + np.uint64(2**63)
    anon_vmas["root_row"] = np.zeros(count, dtype=np.int64)
    anon_vmas["parent_row"] = np.array(parents, dtype=np.int64)
    return dataclasses.replace(
        tables,
        anon_vmas=dataclasses.replace(tables.anon_vmas, **anon_vmas),
        vmas=dataclasses.replace(tables.vmas, active=np.full(3, NO_ROW)),
        avcs=dataclasses.replace(tables.avcs, anon_vma_row=np.full(3, NO_ROW)),
    )


def indents(tables: Tables, style: Style = PLAIN) -> list[str]:
    lines = "".join(render(report(tables), "table", style)).splitlines()[1:]
    return [line.split("0x")[0] for line in lines]


def test_drawn_as_a_tree() -> None:
    # 0 has 1 and 4; 1 has 2 and 3; 4 has 5.
    tables = family_of([0, 0, 1, 1, 0, 4])
    assert indents(tables) == ["", "├─ ", "│  ├─ ", "│  └─ ", "└─ ", "   └─ "]
    assert indents(tables, Style(unicode=False)) == ["", "|- ", "|  |- ", "|  `- ", "`- ", "   `- "]


def test_huge_and_deep_families_stay_readable() -> None:
    tables = family_of([max(row - 1, 0) for row in range(3000)])
    lines = "".join(render(report(tables), "table", PLAIN)).splitlines()
    assert len(lines) == 1002
    assert lines[1000].startswith("... generation 999: 0x")
    assert lines[-1] == "... 2,000 more of 3,000 anon_vmas; --format json lists all"
    document: Any = report(tables).document()
    assert [entry["depth"] for entry in document["anon_vmas"]] == list(range(3000))


def test_marks() -> None:
    tables = make_tables()
    waiting = dataclasses.replace(tables.vmas, active=numbers(NO_ROW, NO_ROW, 1))
    lines = "".join(render(report(dataclasses.replace(tables, vmas=waiting)), "table", PLAIN))
    assert "1 waiting" in lines.splitlines()[0]
    assert lines.splitlines()[1].startswith("0xffff888000040000  waiting  tree 2, ")
    empty = dataclasses.replace(tables.anon_vmas, rb_root=np.zeros(2, dtype=np.uint64))
    lines = "".join(render(report(dataclasses.replace(tables, anon_vmas=empty)), "table", PLAIN))
    assert "2 zombies" in lines.splitlines()[0]


# --- the picture ---------------------------------------------------------------------------------


def test_picture() -> None:
    assert drawn(make_tables()).splitlines() == [
        "digraph family {",
        "  rankdir=LR",
        '  node [fontname="monospace", fontsize=10]',
        '  edge [fontname="monospace", fontsize=9]',
        '  label="family of root 0xffff888000040000"',
        "  subgraph cluster_mm1 {",
        '    label="PID 100 (mother)"',
        r'    v0 [shape=box, label="VMA 0xffff888000020000\n00001000-00003000\nrw-p"]',
        "  }",
        "  subgraph cluster_mm2 {",
        '    label="PID 101 (child)"',
        r'    v2 [shape=box, label="VMA 0xffff888000020200\n00001000-00003000\nrw-p"]',
        "  }",
        r'  a0 [shape=ellipse, label="anon_vma 0xffff888000040000\nroot\nrefcount 2\n'
        r'num_children 2\nnum_active_vmas 1", style="filled", fillcolor="lightgrey"]',
        r'  a1 [shape=ellipse, label="anon_vma 0xffff888000040080\nrefcount 1\n'
        r'num_children 0\nnum_active_vmas 1"]',
        '  c2 [shape=box, height=0.2, color=black, label="AVC 0xffff888000030080"]',
        '  c0 [shape=box, height=0.2, color=black, label="AVC 0xffff888000030000"]',
        '  c1 [shape=box, height=0.2, color=red, label="AVC 0xffff888000030040"]',
        "  v2 -> c2 [arrowhead=none, style=bold]",
        "  c2 -> a1",
        "  v0 -> c0 [arrowhead=none, style=bold]",
        "  c0 -> a0",
        "  v2 -> c1 [arrowhead=none]",
        "  c1 -> a0",
        '  a1 -> a0 [style=dashed, label="parent"]',
        '  a0 -> c0 [style=dotted, label="rb"]',
        '  c0 -> c1 [style=dotted, label="right"]',
        '  a1 -> c2 [style=dotted, label="rb"]',
        "}",
    ]


HOSTILE = (
    b'"]; evil [x="',
    b"\\N\\l\\\\",
    b"<b>&lt;</b>",
    b"\x1b[31m\n\r}",
    b"\xff\xfe",
    "‮gnp".encode(),
    b'\\"',
)


@pytest.mark.parametrize("comm", HOSTILE)
def test_names_cannot_break_out(comm: bytes) -> None:
    text = drawn(make_tables(comm_a=comm[:15]))
    lines = text.splitlines()
    assert lines[5:9:3] == ["  subgraph cluster_mm1 {", "  }"]
    # A quoted string: no quote inside that has no backslash before it, no lone backslash.
    label = re.fullmatch(r'    label="((?:[^"\\]|\\["\\])*)"', lines[6])
    assert label is not None
    shown = label[1].replace('\\"', '"').replace("\\\\", "\\").replace("&amp;", "&")
    assert shown == f"PID 100 ({escape(comm[:15])})"
    assert len(lines) == len(drawn(make_tables()).splitlines())
    assert all(character.isprintable() for line in lines for character in line)


def test_newlines_break_lines() -> None:
    assert quote_dot('a\n"b"') == r'"a\n\"b\""'


def test_picture_of_what_contradicts_itself() -> None:
    """Active, but not in the chain: drawn in red."""
    tables = make_tables()
    vmas = dataclasses.replace(tables.vmas, active=numbers(1, NO_ROW, 1))
    assert "  v0 -> a1 [style=bold, color=red]" in drawn(dataclasses.replace(tables, vmas=vmas))


def test_picture_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = make_tables()
    monkeypatch.setattr("anonvma_inspect.report.dot._MAX_AVCS", 1)
    text = drawn(tables)
    assert "(1 of 3 AVCs drawn)" in text
    assert "  c2 -> a1" in text
    assert "a0 [" not in text


# --- the command ---------------------------------------------------------------------------------


def arena_processes() -> list[int]:
    """PIDs of the workload's processes, by the guest's own word."""
    return [
        process["pid"]
        for process in CAPTURE.manifest["word"]["processes"]
        if process["comm"].startswith("tree-")
    ]


def test_list(cli: Cli) -> None:
    document = answer(cli, "family")
    families = document["families"]
    assert len(families) == document["families_total"]
    assert [family["anon_vmas"] for family in families] == sorted(
        (family["anon_vmas"] for family in families), reverse=True
    )
    # All processes are of one tree of forks, and its first has them all in each of its families.
    first = min(arena_processes())
    of_first = [family for family in families if family["pid"] == first]
    assert {family["mms"] for family in of_first} == {len(arena_processes())}
    # A child's VMA gets an anon_vma a fork, of which there are four below the first process.
    assert {family["generations"] for family in of_first} == {5}
    assert document["complete"] is True


@pytest.mark.parametrize("sort", SORTS)
def test_sorts(cli: Cli, sort: str) -> None:
    families = answer(cli, "family", "--sort", sort, "--limit", "5")["families"]
    values = [family[SORTS[sort]] for family in families]
    assert len(values) == 5
    assert values == sorted(values, reverse=True)


def test_list_of_a_process(cli: Cli) -> None:
    pid = min(arena_processes())
    listed = answer(cli, "family", "--pid", str(pid))["families"]
    everything = answer(cli, "family", "--all")["families"]
    assert listed == [family for family in everything if family["pid"] == pid]


def test_text_list_is_cut(cli: Cli) -> None:
    ran = cli("-q", "-c", CORE, "family", "--limit", "2")
    lines = ran.out.splitlines()
    assert len(lines) == 5
    assert lines[-1].endswith("--limit 33 lists all, and so does --format json")


def test_one_family_by_any_of_its_anon_vmas(cli: Cli) -> None:
    families = answer(cli, "family", "--limit", "1")["families"]
    by_root = answer(cli, "family", families[0]["root"])
    assert by_root["family"] == families[0]
    assert len(by_root["anon_vmas"]) == families[0]["anon_vmas"]
    leaf = by_root["anon_vmas"][-1]
    assert answer(cli, "family", leaf["address"]) == by_root
    vma = by_root["anon_vmas"][0]["vmas"][0]
    assert answer(cli, "family", str(vma["pid"]), vma["start"])["family"] == families[0]
    # Each below its parent, which comes before it.
    met: set[str] = set()
    for entry in by_root["anon_vmas"]:
        assert entry["below"] in met or entry["below"] is None
        met.add(entry["address"])
    assert {len(entry["vmas"]) for entry in by_root["anon_vmas"]} <= {1, 3}


def test_drawing_by_the_command(cli: Cli) -> None:
    root = answer(cli, "family", "--limit", "1")["families"][0]
    ran = cli("-q", "-c", CORE, "--format", "dot", "family", root["root"])
    assert ran.code == 0
    assert ran.out.count(" -> ") >= 2 * root["avcs"]
    assert ran.out.count("shape=ellipse") == root["anon_vmas"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "dot", "family"), "--format dot draws one family: name its ROOT"),
        (("--format", "dot", "stats"), "stats has nothing to draw: --format dot is for family"),
        (("family", "1", "4c2000", "--all"), "--all, --pid, --sort and --limit are for the list"),
        (("family", "1"), "1 is no kernel pointer"),
        (("family", "0xffff888000000000"), "is not an anon_vma"),
    ],
)
def test_wrong_usage(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    assert message in cli.fails(2, "-c", CORE, *arguments)


def test_order_of_equals() -> None:
    tables = family_of([0, 1, 2])
    own = dataclasses.replace(tables.anon_vmas, root_row=np.arange(3))
    families = find_families(dataclasses.replace(tables, anon_vmas=own))
    assert sorted_families(families, "size").tolist() == [0, 1, 2]
    listing = FamiliesReport(FACTS, tables, families, np.array([2]), None)
    assert "no task" not in "".join(render(listing, "table", PLAIN))
