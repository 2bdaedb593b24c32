"""Each report in each format, over tables small enough to know the answer."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from anonvma_inspect import __version__
from anonvma_inspect.in_flight import Audit, Lock, Operation
from anonvma_inspect.invariants.base import (
    Finding,
    Invariant,
    Result,
    Severity,
    State,
    Verdict,
    Violations,
    Where,
    always,
)
from anonvma_inspect.kernel.tags import NO_TAGS, TagScheme
from anonvma_inspect.report.audit import AuditReport, Outcome
from anonvma_inspect.report.chain import ChainReport
from anonvma_inspect.report.explain import ExplainReport
from anonvma_inspect.report.filtered import Filtered
from anonvma_inspect.report.objects import Process
from anonvma_inspect.report.render import Report, render
from anonvma_inspect.report.snapshot import SnapshotReport
from anonvma_inspect.report.stats import StatsReport
from anonvma_inspect.report.style import PLAIN, Style
from anonvma_inspect.report.tree import TreeReport
from anonvma_inspect.report.vma import VmaReport
from anonvma_inspect.tables import (
    NO_ROW,
    CacheTotals,
    Ksm,
    Nodes,
    RmapItems,
    StableNodes,
    Tables,
)

from .handmade import Model
from .small_tables import (
    AVC_L,
    BASE,
    FACTS,
    FILE,
    LEAF,
    MM_A,
    MM_B,
    RB,
    ROOT,
    VMA_A,
    VMA_B,
    VMA_F,
    flags,
    make_era,
    make_record,
    make_tables,
    numbers,
    with_hole,
    words,
)

TARGET = {
    "kind": "elf-core",
    "release": "6.12.0-test",
    "architecture": "x86_64",
    "era": "maple tree, num_children, rb_leftmost",
    "tag_scheme": "none",
    "tag_scheme_certain": True,
    "tag_scheme_enabled": None,
    "tag_scheme_evidence": "vma->anon_vma is a pointer, which has no tags",
    "layouts": "btf",
    "symbols": "kallsyms",
}
COUNTS = {
    "processes": 2,
    "mms": 2,
    "unlisted_mms": 0,
    "vmas": 3,
    "avcs": 3,
    "anon_vmas": 2,
    "roots": 1,
}


def text_of(report: Report, style: Style = PLAIN) -> str:
    return "".join(render(report, "table", style))


def json_of(report: Report) -> Any:
    text = "".join(render(report, "json", PLAIN))
    assert text.endswith("}\n")
    assert text.isascii()
    return json.loads(text)


def lines_of(report: Report) -> list[Any]:
    text = "".join(render(report, "jsonl", PLAIN))
    return [json.loads(line) for line in text.splitlines()]


def replace(tables: Tables, table: str, **columns: Any) -> Tables:
    changed = dataclasses.replace(getattr(tables, table), **columns)
    return dataclasses.replace(tables, **{table: changed})


# --- audit ---------------------------------------------------------------------------------------


def rule(code: str, slug: str, severity: Severity = Severity.ERROR) -> Invariant:
    return Invariant(
        code=code,
        slug=slug,
        severity=severity,
        statement=f"The rule of {slug}.",
        why="It is so.",
        consequence="An oops.",
        lock="None.",
        source="mm/rmap.c",
        eras="All.",
        objects="anon_vmas",
        check=lambda facts: Verdict(0),
    )


def make_finding(invariant: Invariant, violations: Violations, index: int) -> Finding:
    return Finding(
        code=invariant.code,
        slug=invariant.slug,
        severity=invariant.severity,
        message=violations.message,
        object_type=violations.object_type,
        object_address=int(violations.address[index]),
        expected=violations.expected(index),
        actual=violations.actual(index),
        where=Where(101, b"ch\x1bild", 0x1000, 0x3000) if index == 0 else Where(),
        root=ROOT if index == 0 else None,
        cause=LEAF + 0x48 if index == 0 else None,
        word=LEAF + 0x48 if index == 0 else None,
    )


def result(invariant: Invariant, state: State = State.OK, *addresses: int) -> Result:
    violations = [
        Violations("a count is wrong", "anon_vma", words(*addresses), always("1"), always("2"))
    ]
    reason = None
    if state in (State.NOT_CHECKED, State.NOT_APPLICABLE):
        reason = "no rwsem in this kernel"
    return Result(invariant, state, 12345, reason, violations if addresses else (), make_finding)


def report_of(*results: Result, tables: Tables | None = None, **options: Any) -> AuditReport:
    return AuditReport(FACTS, Audit(tables or make_tables(), results), **options)


OK = result(rule("AV401", "num-children"))
BAD = result(rule("AV402", "num-active-vmas"), State.VIOLATED, LEAF, ROOT + 0x1000)
WARNED = result(rule("AV404", "refcount-high", Severity.WARNING), State.WARNED, ROOT)
NOT_CHECKED = result(rule("AV405", "one-child-root"), State.NOT_CHECKED)
NOT_APPLICABLE = result(rule("AV501", "allocated"), State.NOT_APPLICABLE)


def test_audit_clean_text() -> None:
    assert text_of(report_of(OK, NOT_CHECKED, NOT_APPLICABLE)) == (
        "2 processes, 2 mms, 3 VMAs, 3 AVCs, 2 anon_vmas, 1 root\n"
        "\n"
        "AV401 num-children    ok              12,345 anon_vmas\n"
        "AV405 one-child-root  not checked     no rwsem in this kernel\n"
        "AV501 allocated       not applicable  no rwsem in this kernel\n"
        "\n"
        "clean: 1 check, 0 findings\n"
    )


def in_flight_report(**options: Any) -> AuditReport:
    lock = Lock("mmap_lock", MM_A, "write", 102, b"ch\x1bild")
    operation = Operation("split", lock, ("a count",), lambda draft: None)
    audit = Audit(make_tables(), (OK,), explained=((BAD, (operation, operation)),))
    return AuditReport(FACTS, audit, **options)


@pytest.mark.parametrize(
    ("functions", "doing"),
    [
        ({}, ""),
        ({102: ("down_write", "__split_vma")}, ", in down_write < __split_vma"),
        ({102: tuple("abcdefgh")}, ", in a < b < c < d < e < f"),
    ],
)
def test_audit_of_operations_under_way(functions: dict[int, tuple[str, ...]], doing: str) -> None:
    report = in_flight_report(functions=functions)
    held = f"mm_struct {MM_A:#x} locked for write by PID 102 (ch\\x1bild){doing}"
    lines = [line for line in text_of(report).splitlines() if line.startswith("split")]
    assert len(lines) == 2
    assert all(line.endswith(held) for line in lines)
    states = json_of(report)["in_flight"]
    assert [state["owner"] for state in states] == 2 * [
        {
            "pid": 102,
            "comm": "ch\\x1bild",
            "functions": list(functions[102]) if functions else None,
        }
    ]


def test_audit_violated_text() -> None:
    assert text_of(report_of(OK, BAD, WARNED)) == (
        "2 processes, 2 mms, 3 VMAs, 3 AVCs, 2 anon_vmas, 1 root\n"
        "\n"
        "AV401 num-children     ok        12,345 anon_vmas\n"
        "AV402 num-active-vmas  violated  12,345 anon_vmas, 2 findings\n"
        "AV404 refcount-high    warned    12,345 anon_vmas, 1 finding\n"
        "\n"
        "AV402 num-active-vmas: a count is wrong\n"
        "  object    anon_vma 0xffff888000040080\n"
        "  expected  1\n"
        "  actual    2\n"
        "  word      0xffff8880000400c8\n"
        "  where     PID 101 (ch\\x1bild) 00001000-00003000\n"
        "  root      0xffff888000040000\n"
        "  cause     0xffff8880000400c8, which other findings blame as well\n"
        "  leads to  An oops.\n"
        "\n"
        "AV402 num-active-vmas: a count is wrong\n"
        "  object    anon_vma 0xffff888000041000\n"
        "  expected  1\n"
        "  actual    2\n"
        "  leads to  An oops.\n"
        "\n"
        "AV404 refcount-high: a count is wrong\n"
        "  object    anon_vma 0xffff888000040000\n"
        "  expected  1\n"
        "  actual    2\n"
        "  word      0xffff8880000400c8\n"
        "  where     PID 101 (ch\\x1bild) 00001000-00003000\n"
        "  root      0xffff888000040000\n"
        "  cause     0xffff8880000400c8, which other findings blame as well\n"
        "  leads to  An oops.\n"
        "\n"
        "violated: 3 checks, 3 findings (2 errors, 1 warning), "
        "see: anonvma-inspect explain AV402\n"
    )


def test_audit_incomplete_text() -> None:
    lines = text_of(report_of(OK, tables=with_hole(make_tables()))).splitlines()
    assert lines[-3:] == [
        "1 hole in the target (1 for anon_vma_chain): what lies there was not checked",
        "",
        "incomplete: 1 check, 0 findings, 1 hole, see: anonvma-inspect --format json audit",
    ]


def test_audit_names_the_cause_of_holes_that_a_filter_made() -> None:
    filtered = Filtered("7.3", 31, {"anon_vma_chain": 5})
    report = report_of(OK, tables=with_hole(make_tables()), filtered=filtered)
    assert f"was not checked\n{filtered.message}\n\nincomplete:" in text_of(report)
    assert json_of(report)["filtered"] == filtered.document()
    assert json_of(report_of(OK, tables=with_hole(make_tables())))["filtered"] is None


def test_audit_lists_no_more_than_asked_for() -> None:
    lines = text_of(report_of(BAD, WARNED, max_findings=1)).splitlines()
    assert sum(line.startswith("  object") for line in lines) == 1
    assert "1 of 3 findings listed: --max-findings 3 lists all, and so does --format json" in lines
    document = json_of(report_of(BAD, WARNED, max_findings=1))
    assert document["findings_total"] == 3
    assert len(document["findings"]) == 1


@pytest.mark.parametrize(
    ("results", "hole", "options", "outcome"),
    [
        ([OK], False, {}, Outcome.CLEAN),
        ([OK], True, {}, Outcome.INCOMPLETE),
        ([BAD], False, {}, Outcome.VIOLATED),
        # What was found wins over what could not be seen.
        ([BAD], True, {}, Outcome.VIOLATED),
        ([BAD], False, {"max_findings": 0}, Outcome.VIOLATED),
        ([WARNED], False, {}, Outcome.CLEAN),
        ([WARNED], False, {"strict": True}, Outcome.VIOLATED),
        ([WARNED], True, {"strict": True}, Outcome.VIOLATED),
        ([NOT_CHECKED], False, {}, Outcome.CLEAN),
        # A check that was not done matters if it was asked for by name.
        ([NOT_CHECKED], False, {"must_run": frozenset({"AV405"})}, Outcome.INCOMPLETE),
        ([NOT_APPLICABLE], False, {"must_run": frozenset({"AV501"})}, Outcome.CLEAN),
        (
            [dataclasses.replace(NOT_CHECKED, error=ZeroDivisionError())],
            False,
            {},
            Outcome.INCOMPLETE,
        ),
    ],
)
def test_audit_outcome(
    results: Sequence[Result], hole: bool, options: dict[str, Any], outcome: Outcome
) -> None:
    tables = with_hole(make_tables()) if hole else make_tables()
    report = report_of(*results, tables=tables, **options)
    assert report.outcome is outcome
    last = text_of(report).splitlines()[-1]
    assert last.startswith(f"{outcome.value}: ")


def test_audit_json() -> None:
    assert json_of(report_of(BAD, NOT_CHECKED, tables=with_hole(make_tables()))) == {
        "schema": "anonvma-inspect/audit/1",
        "tool": f"anonvma-inspect {__version__}",
        "target": TARGET,
        "counts": COUNTS,
        "checked": [
            {
                "code": "AV402",
                "slug": "num-active-vmas",
                "state": "violated",
                "objects": 12345,
                "reason": None,
            },
            {
                "code": "AV405",
                "slug": "one-child-root",
                "state": "not checked",
                "objects": 12345,
                "reason": "no rwsem in this kernel",
            },
        ],
        "complete": False,
        "holes": [{"address": "0xffff888000060000", "size": 64, "needed_for": "anon_vma_chain"}],
        "filtered": None,
        "transient": [],
        "transient_total": 0,
        "looked": None,
        "pages": None,
        "in_flight": [],
        "findings_total": 2,
        "findings": [
            {
                "code": "AV402",
                "slug": "num-active-vmas",
                "severity": "error",
                "message": "a count is wrong",
                "object": {"type": "anon_vma", "address": "0xffff888000040080"},
                "expected": "1",
                "actual": "2",
                "where": {"pid": 101, "comm": r"ch\x1bild", "start": "0x1000", "end": "0x3000"},
                "root": "0xffff888000040000",
                "cause": "0xffff8880000400c8",
            },
            {
                "code": "AV402",
                "slug": "num-active-vmas",
                "severity": "error",
                "message": "a count is wrong",
                "object": {"type": "anon_vma", "address": "0xffff888000041000"},
                "expected": "1",
                "actual": "2",
                "where": {"pid": None, "comm": None, "start": None, "end": None},
                "root": None,
                "cause": None,
            },
        ],
    }


def test_audit_jsonl() -> None:
    report = report_of(BAD)
    *findings, summary = lines_of(report)
    document = json_of(report)
    assert findings == document["findings"]
    assert summary == {**document, "findings": None}


def test_counts_tell_unlisted_mms() -> None:
    tables = replace(make_tables(), "mms", listed=flags(True, False), task=numbers(0, NO_ROW))
    assert json_of(report_of(OK, tables=tables))["counts"]["unlisted_mms"] == 1
    assert "1 mm (and 1 unlisted)" in text_of(report_of(OK, tables=tables))


# --- vma -----------------------------------------------------------------------------------------


def vma_report(tables: Tables | None = None, path: bytes = b"/bin/a b") -> VmaReport:
    return VmaReport(
        FACTS, tables or make_tables(), Process(100, b"mother", 0), [0, 1], {FILE: path}
    )


def test_vma_text() -> None:
    assert text_of(vma_report()) == (
        "PID 100 (mother): 2 VMAs\n"
        "RANGE              PERM    OFFSET    VMA                 ANON_VMA              CHAIN"
        "  FILE\n"
        "00001000-00003000  rw-p    00000000  0xffff888000020000  0xffff888000040000        1"
        "  [heap]\n"
        "00003000-00004000  r-xp    00002000  0xffff888000020100  -                         0"
        "  /bin/a b\n"
    )


def test_vma_json() -> None:
    assert json_of(vma_report(path=b"/bin/\xff\n")) == {
        "schema": "anonvma-inspect/vma/1",
        "target": TARGET,
        "pid": 100,
        "comm": "mother",
        "vmas": [
            {
                "address": "0xffff888000020000",
                "start": "0x1000",
                "end": "0x3000",
                "flags": "0x100073",
                "pgoff": "0x1",
                "file": "[heap]",
                "anon_vma": {
                    "raw": "0xffff888000040000",
                    "tag": "0x0",
                    "kind": "anon_vma",
                    "target": "0xffff888000040000",
                },
                "chain_length": 1,
            },
            {
                "address": "0xffff888000020100",
                "start": "0x3000",
                "end": "0x4000",
                "flags": "0x75",
                "pgoff": "0x2",
                "file": "/bin/\\xff\\n",
                "anon_vma": {"raw": "0x0", "tag": "0x0", "kind": "none", "target": None},
                "chain_length": 0,
            },
        ],
    }


def test_vma_that_cannot_be_read() -> None:
    report = vma_report(replace(make_tables(), "slots", vma=numbers(NO_ROW, 1, 2)))
    assert json_of(report)["vmas"][0] == {
        "address": "0xffff888000020000",
        "start": "0x1000",
        "end": "0x3000",
        "flags": None,
        "pgoff": None,
        "file": None,
        "anon_vma": None,
        "chain_length": None,
    }
    assert text_of(report).splitlines()[2].split() == [
        "00001000-00003000",
        "?",
        "?",
        "0xffff888000020000",
        "unreadable",
        "?",
    ]


@pytest.mark.parametrize(
    ("scheme", "pointer", "tag", "kind", "target"),
    [
        (NO_TAGS, ROOT, 2, "tagged", hex(ROOT)),
        (TagScheme("unfaulted", "", unfaulted=1), 0, 1, "unfaulted", None),
        (TagScheme("unfaulted", "", unfaulted=1), ROOT, 1, "tagged", hex(ROOT)),
        (TagScheme("unfaulted", "", unfaulted=1, certain=False), 0, 1, "tagged", None),
        (TagScheme("lazy", "", vma=1, parent=2), ROOT, 1, "lazy_vma", hex(ROOT)),
        (TagScheme("lazy", "", vma=1, parent=2), ROOT, 2, "lazy_parent", hex(ROOT)),
        (TagScheme("lazy", "", vma=1, parent=2), ROOT, 3, "tagged", hex(ROOT)),
        (TagScheme("lazy", "", vma=1, parent=2), 0, 1, "tagged", None),
    ],
)
def test_vma_with_low_bits(
    scheme: TagScheme, pointer: int, tag: int, kind: str, target: str | None
) -> None:
    tables = replace(
        make_tables(era=make_era(tags=scheme)),
        "vmas",
        anon_vma=words(pointer | tag, 0, 0),
        anon_vma_pointer=words(pointer, 0, 0),
        anon_vma_tag=words(tag, 0, 0),
    )
    assert json_of(vma_report(tables))["vmas"][0]["anon_vma"] == {
        "raw": hex(pointer | tag),
        "tag": hex(tag),
        "kind": kind,
        "target": target,
    }
    assert f"{pointer | tag:#x} ({kind})" in text_of(vma_report(tables))


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ({"start_brk": words(0, 0), "brk": words(0, 0)}, None),
        ({"start_brk": words(0x3000, 0)}, None),
        ({"start_stack": words(0x2FF0, 0), "brk": words(0, 0)}, "[stack]"),
        ({"vdso": words(0x1000, 0)}, "[vdso]"),
    ],
)
def test_names_in_brackets(columns: dict[str, Any], name: str | None) -> None:
    report = vma_report(replace(make_tables(), "mms", **columns))
    assert json_of(report)["vmas"][0]["file"] == name


def test_vma_jsonl() -> None:
    *entries, summary = lines_of(vma_report())
    assert entries == json_of(vma_report())["vmas"]
    assert summary["schema"] == "anonvma-inspect/vma/1"
    assert summary["vmas"] is None


# --- chain ---------------------------------------------------------------------------------------


def test_chain_text() -> None:
    assert text_of(ChainReport(FACTS, make_tables(), 2)) == (
        "VMA 0xffff888000020200 00001000-00003000 rw-p of PID 101 (child): 2 AVCs in its chain\n"
        "AVC                 ANON_VMA            ROOT                PARENT\n"
        "0xffff888000030080  0xffff888000040080  0xffff888000040000  0xffff888000040000  active\n"
        "0xffff888000030040  0xffff888000040000  itself              itself\n"
    )


def test_empty_chain_text() -> None:
    assert text_of(ChainReport(FACTS, make_tables(), 1)) == (
        "VMA 0xffff888000020100 00003000-00004000 r-xp of PID 100 (mother): 0 AVCs in its chain\n"
    )


@pytest.mark.parametrize(
    ("scheme", "pointer", "tag", "said", "lent"),
    [
        ("lazy", VMA_B, 1, f"{VMA_B | 1:#x} (lazy_vma), root VMA {VMA_B:#x}, itself", False),
        ("lazy", VMA_A, 1, f"{VMA_A | 1:#x} (lazy_vma), root VMA {VMA_A:#x}", False),
        ("lazy", VMA_F, 1, f"{VMA_F | 1:#x} (lazy_vma), root VMA {VMA_F:#x}, unmapped", False),
        ("lazy", RB, 1, f"{RB | 1:#x} (lazy_vma), root VMA {RB:#x}", False),
        (
            "lazy",
            ROOT,
            2,
            f"{ROOT | 2:#x} (lazy_parent), its parent's anon_vma {ROOT:#x}",
            True,
        ),
        ("lazy", ROOT, 4, f"{ROOT | 4:#x} (tagged), low bits that mean nothing known", False),
        ("unfaulted", 0, 1, "0x1 (unfaulted), no anon_vma yet", False),
        ("none", ROOT, 1, f"{ROOT | 1:#x} (tagged), low bits that mean nothing known", False),
    ],
)
def test_chain_of_a_vma_with_low_bits(
    scheme: str, pointer: int, tag: int, said: str, lent: bool
) -> None:
    """The list of VMA_B, whose own entries are of LEAF and ROOT; VMA_F is in no mm's tree."""
    values = {"unfaulted": {"unfaulted": 1}, "lazy": {"vma": 1, "parent": 2}, "none": {}}[scheme]
    tables = replace(
        make_tables(era=make_era(tags=TagScheme(scheme, "", **values))),  # type: ignore[arg-type]
        "vmas",
        anon_vma=words(0, 0, pointer | tag),
        anon_vma_pointer=words(0, 0, pointer),
        anon_vma_tag=words(0, 0, tag),
        slot=numbers(0, NO_ROW, 2),
    )
    report = ChainReport(FACTS, tables, 2)
    _, word, _, *entries = text_of(report).splitlines()
    assert word == f"vma->anon_vma: {said}"
    assert [line.endswith("  its parent's") for line in entries] == [False, lent]
    assert not any(line.endswith("active") for line in entries)
    document = json_of(report)
    assert document["anon_vma"] == {
        "raw": hex(pointer | tag),
        "tag": hex(tag),
        "kind": said.split("(")[1].split(")")[0],
        "target": hex(pointer) if pointer else None,
    }
    assert [(entry["active"], entry["lent"]) for entry in document["avcs"]] == [
        (False, False),
        (False, lent),
    ]


def test_chain_json() -> None:
    assert json_of(ChainReport(FACTS, make_tables(), 2)) == {
        "schema": "anonvma-inspect/chain/1",
        "target": TARGET,
        "vma": "0xffff888000020200",
        "anon_vma": {
            "raw": "0xffff888000040080",
            "tag": "0x0",
            "kind": "anon_vma",
            "target": "0xffff888000040080",
        },
        "avcs": [
            {
                "address": "0xffff888000030080",
                "anon_vma": "0xffff888000040080",
                "root": "0xffff888000040000",
                "parent": "0xffff888000040000",
                "active": True,
                "lent": False,
            },
            {
                "address": "0xffff888000030040",
                "anon_vma": "0xffff888000040000",
                "root": "0xffff888000040000",
                "parent": "0xffff888000040000",
                "active": False,
                "lent": False,
            },
        ],
    }


def test_chain_through_an_anon_vma_that_was_not_read() -> None:
    tables = replace(make_tables(), "avcs", anon_vma_row=numbers(0, 0, NO_ROW))
    entry = json_of(ChainReport(FACTS, tables, 2))["avcs"][0]
    assert (entry["root"], entry["parent"]) == (None, None)
    assert "0xffff888000040080  ?" in text_of(ChainReport(FACTS, tables, 2))


# --- tree ----------------------------------------------------------------------------------------


def test_tree_text() -> None:
    assert text_of(TreeReport(FACTS, make_tables(), 0)) == (
        "anon_vma 0xffff888000040000 (a root, refcount 2, num_children 2, num_active_vmas 1): "
        "2 nodes in 2 levels\n"
        "black [0x1, 0x2]  subtree_last 0x2  avc 0xffff888000030000  vma 0xffff888000020000"
        "  PID 100 (mother)\n"
        "└─ red   [0x1, 0x2]  subtree_last 0x2  avc 0xffff888000030040  vma 0xffff888000020200"
        "  PID 101 (child)\n"
    )
    title = text_of(TreeReport(FACTS, make_tables(), 1)).splitlines()[0]
    assert title == (
        "anon_vma 0xffff888000040080 (root 0xffff888000040000, parent 0xffff888000040000, "
        "refcount 1, num_children 0, num_active_vmas 1): 1 node in 1 level"
    )


def test_tree_json() -> None:
    assert json_of(TreeReport(FACTS, make_tables(), 0)) == {
        "schema": "anonvma-inspect/tree/1",
        "target": TARGET,
        "anon_vma": {
            "address": "0xffff888000040000",
            "root": "0xffff888000040000",
            "parent": "0xffff888000040000",
            "refcount": 2,
            "num_children": 2,
            "num_active_vmas": 1,
            "degree": None,
            "rmap_items": 0,
        },
        "nodes": [
            {
                "avc": "0xffff888000030000",
                "vma": "0xffff888000020000",
                "pid": 100,
                "first": "0x1",
                "last": "0x2",
                "subtree_last": "0x2",
                "color": "black",
                "left": None,
                "right": "0xffff888000030040",
                "depth": 0,
            },
            {
                "avc": "0xffff888000030040",
                "vma": "0xffff888000020200",
                "pid": 101,
                "first": "0x1",
                "last": "0x2",
                "subtree_last": "0x2",
                "color": "red",
                "left": None,
                "right": None,
                "depth": 1,
            },
        ],
    }


def test_tree_of_a_kernel_with_degree() -> None:
    era = make_era(anon_vma=make_record("anon_vma", 96, "parent", "degree"))
    tables = replace(make_tables(era=era), "anon_vmas", degree=numbers(3, 1))
    counters = json_of(TreeReport(FACTS, tables, 0))["anon_vma"]
    assert counters["degree"] == 3
    assert counters["num_children"] is None
    assert counters["num_active_vmas"] is None


def test_tree_nodes_of_unknown_and_unlisted_vmas() -> None:
    tables = replace(make_tables(), "avcs", vma_row=numbers(NO_ROW, 2, 2))
    tables = replace(tables, "mms", task=numbers(0, NO_ROW))
    first, second = json_of(TreeReport(FACTS, tables, 0))["nodes"]
    assert (first["first"], first["last"], first["pid"]) == (None, None, None)
    assert second["pid"] is None
    lines = text_of(TreeReport(FACTS, tables, 0)).splitlines()
    assert "keys unknown (its VMA could not be read)" in lines[1]
    assert lines[2].endswith("no task")


def nodes_of(parent: Sequence[int], left: Sequence[int], right: Sequence[int]) -> Nodes:
    depth = []
    for node in range(len(parent)):
        at, level = node, 0
        while parent[at] != NO_ROW and level < len(parent):
            at, level = parent[at], level + 1
        depth.append(level)
    count = len(parent)
    return Nodes(
        anon_vma=np.zeros(count, dtype=np.int64),
        avc=np.zeros(count, dtype=np.int64),
        parent=np.array(parent, dtype=np.int64),
        left=np.array(left, dtype=np.int64),
        right=np.array(right, dtype=np.int64),
        depth=np.array(depth, dtype=np.int64),
        again=np.zeros(count, dtype=bool),
    )


def drawing(tables: Tables, style: Style) -> list[str]:
    lines = text_of(TreeReport(FACTS, tables, 0), style).splitlines()[1:]
    return [line.split("black")[0].rstrip() for line in lines]


def test_tree_is_drawn_on_its_side() -> None:
    # Rows in order:     0 1 2 3 4 5 6
    # 3 at the top, 1 and 5 below it, 0 2 4 6 below those.
    nodes = nodes_of([1, 3, 1, -1, 5, 3, 5], [-1, 0, -1, 1, -1, 4, -1], [-1, 2, -1, 5, -1, 6, -1])
    tables = dataclasses.replace(make_tables(), nodes=nodes)
    assert drawing(tables, PLAIN) == ["  ┌─", "┌─", "│ └─", "", "│ ┌─", "└─", "  └─"]
    ascii_style = Style(unicode=False)
    assert drawing(tables, ascii_style) == ["  ,-", ",-", "| `-", "", "| ,-", "`-", "  `-"]


def test_tree_zigzag() -> None:
    # 0 at the top, 3 at its right, 1 at the left of that, 2 at the right of that.
    nodes = nodes_of([-1, 3, 1, 0], [-1, -1, -1, 1], [3, 2, -1, -1])
    tables = dataclasses.replace(make_tables(), nodes=nodes)
    assert drawing(tables, PLAIN) == ["", "│ ┌─", "│ │ └─", "└─"]


def test_huge_and_deep_trees_stay_readable() -> None:
    # A list rather than a tree, as no sound tree is: each node at the right of the one before.
    count = 3000
    nodes = nodes_of([], [], [])
    nodes = dataclasses.replace(
        nodes,
        anon_vma=np.zeros(count, dtype=np.int64),
        avc=np.zeros(count, dtype=np.int64),
        parent=np.arange(count) - 1,
        left=np.full(count, NO_ROW),
        right=np.append(np.arange(1, count), NO_ROW),
        depth=np.arange(count),
        again=np.zeros(count, dtype=bool),
    )
    tables = dataclasses.replace(make_tables(), nodes=nodes)
    lines = text_of(TreeReport(FACTS, tables, 0)).splitlines()
    assert len(lines) == 1002
    assert lines[1000].startswith("... depth 999: black")
    assert lines[-1] == "... 2,000 more of 3,000 nodes; --format json lists all"
    assert len(json_of(TreeReport(FACTS, tables, 0))["nodes"]) == 3000


# --- stats, snapshot, explain --------------------------------------------------------------------


def test_stats_json() -> None:
    assert json_of(StatsReport(FACTS, make_tables())) == {
        "schema": "anonvma-inspect/stats/1",
        "target": TARGET,
        "counts": COUNTS,
        "bytes": {
            "vm_area_struct": {"objects": 3, "size": 176, "bytes": 528},
            "anon_vma_chain": {"objects": 3, "size": 64, "bytes": 192},
            "anon_vma": {"objects": 2, "size": 104, "bytes": 208},
        },
        "vma_words": {
            "kinds": {
                "none": 1,
                "anon_vma": 2,
                "unfaulted": 0,
                "lazy_vma": 0,
                "lazy_parent": 0,
                "tagged": 0,
            },
            "root_vmas": 0,
            "unmapped_root_vmas": 0,
        },
        "ksm": {
            "stable_nodes": 0,
            "rmap_items": 0,
            "anon_vmas": 0,
            "without_vmas": 0,
            "missing": None,
        },
        "distributions": {
            "chain_length": {
                "objects": 3,
                "sum": 3,
                "min": 0,
                "median": 1,
                "p90": 2,
                "p99": 2,
                "max": 2,
                "histogram": [
                    {"first": 0, "last": 0, "objects": 1},
                    {"first": 1, "last": 1, "objects": 1},
                    {"first": 2, "last": 3, "objects": 1},
                ],
            },
            "tree_size": {
                "objects": 2,
                "sum": 3,
                "min": 1,
                "median": 1,
                "p90": 2,
                "p99": 2,
                "max": 2,
                "histogram": [
                    {"first": 1, "last": 1, "objects": 1},
                    {"first": 2, "last": 3, "objects": 1},
                ],
            },
            "tree_depth": {
                "objects": 2,
                "sum": 3,
                "min": 1,
                "median": 1,
                "p90": 2,
                "p99": 2,
                "max": 2,
                "histogram": [
                    {"first": 1, "last": 1, "objects": 1},
                    {"first": 2, "last": 3, "objects": 1},
                ],
            },
            "vmas_per_root": {
                "objects": 1,
                "sum": 2,
                "min": 2,
                "median": 2,
                "p90": 2,
                "p99": 2,
                "max": 2,
                "histogram": [{"first": 2, "last": 3, "objects": 1}],
            },
        },
        "slabs": {"missing": "not asked for: --slabs", "caches": []},
        "owners": {
            "processes": [
                {
                    "pid": 101,
                    "comm": "child",
                    "vmas": 1,
                    "with_anon_vma": 1,
                    "avcs": 2,
                    "anon_vmas": 1,
                    "bytes": 2 * 64 + 104,
                    "fork": {"vmas": 1, "avcs": 3, "anon_vmas": 1, "reused": 0, "locked": 1},
                },
                {
                    "pid": 100,
                    "comm": "mother",
                    "vmas": 2,
                    "with_anon_vma": 1,
                    "avcs": 1,
                    "anon_vmas": 1,
                    "bytes": 64 + 104,
                    "fork": {"vmas": 2, "avcs": 2, "anon_vmas": 1, "reused": 0, "locked": 1},
                },
            ],
            "commands": [
                {
                    "comm": "child",
                    "processes": 1,
                    "vmas": 1,
                    "with_anon_vma": 1,
                    "avcs": 2,
                    "anon_vmas": 1,
                    "bytes": 232,
                },
                {
                    "comm": "mother",
                    "processes": 1,
                    "vmas": 2,
                    "with_anon_vma": 1,
                    "avcs": 1,
                    "anon_vmas": 1,
                    "bytes": 168,
                },
            ],
            "nobody": {"vmas": 0, "with_anon_vma": 0, "avcs": 0, "anon_vmas": 0, "bytes": 0},
        },
        # Two pages each; the mother's are looked for in both VMAs, the child's in one.
        "walks": {
            "weights": "vmas",
            "pages": 4,
            "mean": 1.5,
            "worst": 2,
            "one_anon_vma": 2.0,
            "families": [
                {
                    "root": hex(ROOT),
                    "pages": 4,
                    "mean": 1.5,
                    "worst": 2,
                    "one_anon_vma": 2.0,
                }
            ],
            "hot_spots": [
                {
                    "anon_vma": hex(ROOT),
                    "pages": 2,
                    "mean": 2.0,
                    "worst": 2,
                    "tree": 2,
                    "pid": 100,
                    "comm": "mother",
                }
            ],
        },
        "growth": {
            "waiting": 0,
            "zombies": 0,
            "bound": 2,
            "families_over": 0,
            "families": [],
            "deepest": [
                {"vma": "0xffff888000020200", "start": "0x1000", "pid": 101, "chain_length": 2}
            ],
        },
        "complete": True,
    }


def test_stats_text_of_costs() -> None:
    text = text_of(StatsReport(FACTS, make_tables()))
    assert text.endswith(
        "\n"
        "slabs: not known (not asked for: --slabs)\n"
        "\n"
        "objects by command\n"
        "COMMAND      PROCESSES    VMAS    WITH ANON_VMA    AVCS    ANON_VMAS    BYTES\n"
        "child                1       1                1       2            1      232\n"
        "mother               1       2                1       1            1      168\n"
        "nobody's                     0                0       0            0        0\n"
        "\n"
        "objects by process\n"
        "PROCESS             VMAS    WITH ANON_VMA    AVCS    ANON_VMAS    BYTES\n"
        "PID 101 (child)        1                1       2            1      232\n"
        "PID 100 (mother)       2                1       1            1      168\n"
        "\n"
        "what the next fork of a process allocates\n"
        "PROCESS             VMAS    AVCS    ANON_VMAS    REUSED    VMAS UNDER LOCKS\n"
        "PID 101 (child)        1       3            1         0                   1\n"
        "PID 100 (mother)       2       2            1         0                   1\n"
        "\n"
        "VMAs that a walk of the reverse map visits, a page: mean 1.500, worst 2; if each family "
        "had one anon_vma, as before 2.6.34: mean 2.000\n"
        "each of the 4 pages that VMAs have room for counts, in the anon_vma that new ones go to; "
        "which are there is not known without page data\n"
        "FAMILY                PAGES    MEAN    WORST    ONE ANON_VMA  FIRST PROCESS\n"
        "0xffff888000040000        4   1.500        2           2.000  PID 100 (mother)\n"
        "HOT SPOT              PAGES    MEAN    WORST    TREE  PROCESS\n"
        "0xffff888000040000        2   2.000        2       2  PID 100 (mother)\n"
        "\n"
        "growth: 0 anon_vmas without an active VMA, 0 without any; 0 families with more than 2 "
        "anon_vmas a VMA, which forks keep down\n"
        "  2 AVCs in the chain of VMA 0xffff888000020200 00001000-00003000 rw-p of PID 101 (child)"
        "\n"
    )


def test_stats_of_commands_without_names_and_of_nobody() -> None:
    """An anonymized snapshot; and an mm that no task has."""
    tables = make_tables(comm_a=b"", comm_b=b"")
    tables = replace(tables, "mms", listed=flags(True, False), task=numbers(0, NO_ROW))
    owners = json_of(StatsReport(FACTS, tables))["owners"]
    assert [entry["comm"] for entry in owners["processes"]] == [""]
    assert owners["nobody"] == {
        "vmas": 1,
        "with_anon_vma": 1,
        "avcs": 2,
        "anon_vmas": 1,
        "bytes": 232,
    }
    assert "(no name)" in text_of(StatsReport(FACTS, tables))


def test_stats_of_slabs() -> None:
    totals = (
        CacheTotals(192, 2, 8192, 40, 30, 1, 25),
        CacheTotals(64, 1, 4096, 64, 60, 0, 50),
        CacheTotals(104, 1, 4096, 39, 20, 0, 20),
    )
    allocation = Model().finish().tables().allocation
    assert allocation is not None
    assert allocation.unreached is not None
    unreached = dataclasses.replace(
        allocation.unreached, avcs=words(*range(10)), avc_linked=flags(*[True] * 3, *[False] * 7)
    )
    known = dataclasses.replace(allocation, totals=totals, unreached=unreached)
    tables = dataclasses.replace(make_tables(), allocation=known)
    vmas, avcs, _ = json_of(StatsReport(FACTS, tables))["slabs"]["caches"]
    assert (vmas["free"], vmas["unreached"], vmas["name"]) == (10, 6, "vm_area_struct")
    assert (avcs["free"], avcs["unreached"], avcs["strangers"]) == (4, 10, 7)
    text = text_of(StatsReport(FACTS, tables))
    assert "7 do not look like AVCs: others share it" in text
    for changes, why in (
        ({"totals": (), "unreached_not_read": "a word"}, "a word"),
        ({"not_read": "another"}, "another"),
    ):
        lacking: Any = dataclasses.replace(known, **changes)
        tables = dataclasses.replace(make_tables(), allocation=lacking)
        assert json_of(StatsReport(FACTS, tables))["slabs"]["missing"] == why


def test_stats_text() -> None:
    assert text_of(StatsReport(FACTS, make_tables())).startswith(
        "2 processes, 2 mms, 3 VMAs, 3 AVCs, 2 anon_vmas, 1 root\n"
        "\n"
        "STRUCT            OBJECTS    SIZE    BYTES\n"
        "vm_area_struct          3     176      528\n"
        "anon_vma_chain          3      64      192\n"
        "anon_vma                2     104      208\n"
        "\n"
        "KSM: 0 merged pages, 0 stable rmap_items, which hold 0 anon_vmas, 0 without VMAs\n"
        "\n"
        "AVCs in a VMA's chain: median 1, p90 2, p99 2, max 2\n"
        "    0  1  ########################################\n"
        "    1  1  ########################################\n"
        "2 - 3  1  ########################################\n"
    )


# The root's tree is empty in these, as if only KSM held it.
def with_ksm(missing: str | None = None) -> Tables:
    tables = make_tables()
    items = RmapItems(
        address=words(BASE + 0x70040, BASE + 0x70080, BASE + 0x700C0),
        anon_vma=words(ROOT, ROOT, LEAF),
        mm=words(MM_A, MM_A, MM_B),
        head=words(BASE + 0x70000, BASE + 0x70000, BASE + 0x70000),
        page=words(0x1200, 0x2200, 0x1200),
        linear_page_index=words(0, 0, 0),
        node=numbers(0, 0, 0),
        anon_vma_row=numbers(0, 0, 1),
        mm_row=numbers(0, 0, 1),
        settled=flags(True, True, True),
    )
    return dataclasses.replace(
        tables,
        anon_vmas=dataclasses.replace(tables.anon_vmas, rb_root=words(0, AVC_L + RB)),
        stable_nodes=StableNodes(
            words(BASE + 0x70000), numbers(3), np.zeros(1, dtype=np.uint8), numbers(3)
        ),
        rmap_items=items,
        ksm=Ksm(None, missing),
    )


def test_stats_of_ksm() -> None:
    assert json_of(StatsReport(FACTS, with_ksm()))["ksm"] == {
        "stable_nodes": 1,
        "rmap_items": 3,
        "anon_vmas": 2,
        "without_vmas": 1,
        "missing": None,
    }
    line = "1 merged page, 3 stable rmap_items, which hold 2 anon_vmas, 1 without VMAs"
    assert f"\nKSM: {line}\n" in text_of(StatsReport(FACTS, with_ksm()))
    assert f"\nKSM: at least (a word) {line}\n" in text_of(StatsReport(FACTS, with_ksm("a word")))
    unknown = dataclasses.replace(make_tables(), ksm=Ksm(None, "a word"))
    assert "\nKSM: not known (a word)\n" in text_of(StatsReport(FACTS, unknown))


def test_tree_of_ksm() -> None:
    report = TreeReport(FACTS, with_ksm(), 0)
    assert (
        text_of(report)
        .splitlines()[0]
        .endswith(" nodes in 2 levels, held by 2 rmap_items of KSM's")
    )
    assert json_of(report)["anon_vma"]["rmap_items"] == 2
    unknown = dataclasses.replace(make_tables(), ksm=Ksm(None, "a word"))
    assert json_of(TreeReport(FACTS, unknown, 0))["anon_vma"]["rmap_items"] is None


def test_snapshot() -> None:
    report = SnapshotReport(FACTS, make_tables(), "a.core", 12345, False)
    assert text_of(report).splitlines()[1:] == [
        "names of commands and files are in it: --anonymize leaves them out",
        "Wrote a.core: 12,345 bytes; see: anonvma-inspect -c a.core audit",
    ]
    assert json_of(report) == {
        "schema": "anonvma-inspect/snapshot/1",
        "target": TARGET,
        "path": "a.core",
        "bytes": 12345,
        "anonymized": False,
        "counts": COUNTS,
        "complete": True,
    }


def test_explain() -> None:
    report = ExplainReport([OK.invariant, WARNED.invariant], False)
    assert text_of(report) == (
        "CODE    SLUG           SEVERITY    STATEMENT\n"
        "AV401   num-children   error       The rule of num-children.\n"
        "AV404   refcount-high  warning     The rule of refcount-high.\n"
        "\n"
        "anonvma-inspect explain CODE says why, since when, and what a violation leads to.\n"
    )
    assert text_of(ExplainReport([OK.invariant], True)) == (
        "AV401 num-children (error)\n"
        "  The rule of num-children.\n"
        "  why         It is so.\n"
        "  leads to    An oops.\n"
        "  lock        None.\n"
        "  eras        All.\n"
        "  schemes     In force under each.\n"
        "  source      mm/rmap.c\n"
        "  checked on  anon_vmas\n"
    )
    document = json_of(report)
    assert document["schema"] == "anonvma-inspect/explain/1"
    assert document["target"] is None
    assert document["invariants"][0] == {
        "code": "AV401",
        "slug": "num-children",
        "severity": "error",
        "statement": "The rule of num-children.",
        "why": "It is so.",
        "consequence": "An oops.",
        "lock": "None.",
        "source": "mm/rmap.c",
        "eras": "All.",
        "schemes": "In force under each.",
        "objects": "anon_vmas",
    }


# --- all of them ---------------------------------------------------------------------------------

REPORTS: list[Report] = [
    report_of(OK, BAD, WARNED, NOT_CHECKED),
    vma_report(),
    ChainReport(FACTS, make_tables(), 2),
    TreeReport(FACTS, make_tables(), 0),
    StatsReport(FACTS, make_tables()),
    SnapshotReport(FACTS, make_tables(), "a.core", 1, True),
    ExplainReport([OK.invariant], False),
    ExplainReport([OK.invariant], True),
]


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_json_keys_are_sorted_and_colours_change_nothing(report: Report) -> None:
    text = "".join(render(report, "json", PLAIN))
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=1) + "\n"
    for format in ("table", "json", "jsonl"):
        plain = "".join(render(report, format, PLAIN))
        assert "\x1b" not in plain
        coloured = "".join(render(report, format, Style(color=True)))
        assert "\x1b" in coloured or format == "table"
        assert _without_codes(coloured) == plain


def _without_codes(text: str) -> str:
    return re.sub("\x1b\\[[0-9;]*m", "", text)


def test_a_release_that_is_no_release() -> None:
    facts = dataclasses.replace(FACTS, release="6.1\x1b[2J")
    assert facts.document()["release"] == r"6.1\x1b[2J"


def test_words_lie_where_the_tables_say() -> None:
    assert (BASE, ROOT, LEAF) == (0xFFFF888000000000, 0xFFFF888000040000, 0xFFFF888000040080)
