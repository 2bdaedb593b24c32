"""What has changed from one reading to another."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import anonvma_inspect.target
from anonvma_inspect.analysis.difference import Change, changes, summarize
from anonvma_inspect.report.diff import DiffReport
from anonvma_inspect.report.render import render
from anonvma_inspect.report.style import PLAIN
from anonvma_inspect.tables import Tables
from anonvma_inspect.target.memory import AddressSpace, Memory, OverlayMemory

from .captures import CAPTURES
from .clirun import Cli
from .handmade import Model
from .small_tables import FACTS

CAPTURE = next(capture for capture in CAPTURES if capture.name == "forktree-6.12")
OTHER = next(capture for capture in CAPTURES if capture.name == "mixed-6.12")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def family() -> Model:
    """A mother with a child."""
    model = Model()
    mother = model.mm("mother")
    model.fault(model.map(mother, 16, 4))
    model.fork(mother, "child")
    return model


def grown() -> Model:
    """The same, and another child; and objects that are in use, though nothing leads to them."""
    model = family()
    model.fork(model.mms[0], "second")
    model.at(0xFFFF888000800000)
    lost = model.new_anon_vma(None)
    model.anon_vmas.remove(lost)
    model.lost_anon_vmas.append(lost)
    return model


def report(before: Tables, after: Tables, *, same_boot: bool = True) -> DiffReport:
    return DiffReport(FACTS, FACTS, summarize(before), summarize(after), same_boot, True)


def tables_of(model: Model) -> Tables:
    return model.finish().tables()


def test_what_grew() -> None:
    document: Any = report(tables_of(family()), tables_of(grown())).document()
    totals = {name: each["grown"] for name, each in document["totals"].items()}
    # A VMA of the second child's; an AVC to the mother's and one to its own; an anon_vma.
    assert totals == {
        "mms": 1,
        "vmas": 1,
        "avcs": 2,
        "anon_vmas": 1,
        "families": 0,
        "waiting": 0,
        "zombies": 0,
        "bytes": 2 * 64 + 96,
    }
    (changed,) = document["families"]
    assert changed["grown"] == {"vmas": 1, "avcs": 2, "anon_vmas": 1, "bytes": 224}
    assert (changed["pid"], changed["comm"]) == (100, "mother")
    assert changed["before"]["vmas"] == 2
    (process,) = document["processes"]
    assert (process["pid"], process["comm"], process["before"]) == (102, "second", None)
    assert process["after"] == {"vmas": 1, "avcs": 2, "anon_vmas": 1, "bytes": 224}
    (command,) = document["commands"]
    assert command["grown"]["processes"] == 1


def test_leaks_come_first() -> None:
    shown = report(tables_of(family()), tables_of(grown()))
    document: Any = shown.document()
    assert document["leaks"]["looked_for"] is True
    leaks = {leak["struct"]: leak for leak in document["leaks"]["objects"]}
    assert leaks["anon_vma"]["new"] == ["0xffff888000800000"]
    assert leaks["anon_vma"]["grown"] == 1
    assert leaks["anon_vma_chain"]["grown"] == 0
    lines = list(shown.text(PLAIN))
    assert lines[0] == (
        "leaks: anon_vma: +1 allocated objects that nothing leads to (0 before, 1 after)"
    )
    assert lines[1] == "  0xffff888000800000"


def test_leaks_of_a_kernel_that_runs() -> None:
    before, after = summarize(tables_of(family())), summarize(tables_of(grown()))
    facts = dataclasses.replace(FACTS, kind="kcore")
    lines = list(DiffReport(facts, facts, before, after, True, True).text(PLAIN))
    assert "of a kernel that runs, some may be on their way: audit --leaks confirms" in lines


def test_text() -> None:
    lines = "".join(render(report(tables_of(grown()), tables_of(family())), "table", PLAIN))
    assert lines.startswith("leaks: no more than before (0)\n")
    assert "by family: 0 grew (of them 0 new), 1 shrank (of them 0 gone)\n" in lines
    assert "by process: 0 grew (of them 0 new), 1 shrank (of them 1 gone)\n" in lines
    lines = "".join(render(report(tables_of(family()), tables_of(grown())), "table", PLAIN))
    assert "PID 102 (second)" in lines
    assert lines.count("  new\n") == 2


def test_what_is_neither_more_nor_less() -> None:
    """A process without VMAs that is new has grown, and one that is gone has shrunk."""
    nothing = (0, 0, 0, 0)
    empty, other = (
        dataclasses.replace(
            summarize(tables_of(family())), processes={(pid, b"bare"): nothing}, commands={}
        )
        for pid in (1, 2)
    )
    lines = list(DiffReport(FACTS, FACTS, empty, other, True, True).text(PLAIN))
    assert "by process: 1 grew (of them 1 new), 1 shrank (of them 1 gone)" in lines


def test_other_machines() -> None:
    """Addresses mean nothing: neither families nor single leaks are compared."""
    shown = report(tables_of(family()), tables_of(grown()), same_boot=False)
    document: Any = shown.document()
    assert document["families"] == []
    leaks = {leak["struct"]: leak for leak in document["leaks"]["objects"]}
    assert (leaks["anon_vma"]["grown"], leaks["anon_vma"]["new"]) == (1, [])
    assert "not of one boot of one kernel: families are not compared" in list(shown.text(PLAIN))


def test_leaks_that_were_not_looked_for() -> None:
    without = dataclasses.replace(tables_of(family()), allocation=None)
    shown = report(without, tables_of(grown()))
    document: Any = shown.document()
    assert document["leaks"] == {"looked_for": False, "objects": []}
    assert next(shown.text(PLAIN)) == "leaks: not looked for (--slabs)"


def test_order_of_changes() -> None:
    before = {"a": (1, 10), "b": (1, 10), "c": (5, 50), "d": (1, 1)}
    after = {"a": (2, 20), "b": (9, 90), "d": (1, 1), "e": (1, 15)}
    found = changes(before, after)
    assert [change.key for change in found] == ["b", "e", "a", "c"]
    assert found[1] == Change("e", None, (1, 15))
    assert found[-1].grown == (-5, -50)


# --- the command ---------------------------------------------------------------------------------


def answer(cli: Cli, *arguments: str) -> Any:
    ran = cli("-q", "--format", "json", "diff", *arguments)
    assert (ran.code, ran.err) == (0, "")
    return json.loads(ran.out)


def test_of_itself(cli: Cli) -> None:
    document = answer(cli, str(CAPTURE.core), str(CAPTURE.core))
    assert document["same_boot"] is True
    assert (document["families"], document["processes"], document["commands"]) == ([], [], [])
    assert all(not total["grown"] for total in document["totals"].values())
    assert all(not leak["new"] for leak in document["leaks"]["objects"])


def test_of_two_machines(cli: Cli) -> None:
    document = answer(cli, str(CAPTURE.core), str(OTHER.core))
    assert document["same_boot"] is False
    words = [
        {
            (process["pid"], process["comm"])
            for process in capture.processes()
            if process["comm"].isprintable()
        }
        for capture in (CAPTURE, OTHER)
    ]
    new = {(p["pid"], p["comm"]) for p in document["processes"] if p["before"] is None}
    gone = {(p["pid"], p["comm"]) for p in document["processes"] if p["after"] is None}
    # But for those that share an mm with another, which speaks for it.
    assert len((words[1] - words[0]) & new) > 15
    assert gone == words[0] - words[1]


def test_of_a_process(cli: Cli) -> None:
    """The witness, which both machines have."""
    document = answer(cli, str(CAPTURE.core), str(OTHER.core), "--pid", "1")
    assert {change["pid"] for change in document["processes"]} <= {1}
    assert document["totals"]["mms"] == {"before": 1, "after": 1, "grown": 0}
    assert document["leaks"]["looked_for"] is False


def test_one_file_and_a_target(cli: Cli) -> None:
    one = answer(cli, str(CAPTURE.core), str(OTHER.core))
    ran = cli("-q", "-c", str(CAPTURE.core), "--format", "json", "diff", str(OTHER.core))
    assert json.loads(ran.out) == one


def test_a_target_that_runs_is_read_twice(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time a process has another name."""
    tables = CAPTURE.tables
    address = int(tables.tasks.address[5]) + tables.era.task.offset("comm")
    changed = OverlayMemory(CAPTURE.target.memory, {address: int.from_bytes(b"renamed", "little")})

    def renew(view: Memory | None) -> tuple[Memory, AddressSpace]:
        return changed, CAPTURE.target.space

    running = dataclasses.replace(CAPTURE.target, live=True, renew=renew)
    monkeypatch.setattr(anonvma_inspect.target, "open_target", lambda options: running)
    ran = cli("-q", "-c", "x", "--format", "json", "diff", "--every", "0")
    assert ran.code == 0
    document = json.loads(ran.out)
    pid, old = int(tables.tasks.tgid[5]), tables.tasks.comm[5].decode()
    assert [(p["pid"], p["comm"], p["after"] is None) for p in document["processes"]] == [
        (pid, "renamed", False),
        (pid, old, True),
    ]
    assert document["same_boot"] is True
    assert document["leaks"]["looked_for"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "b", "c"), "diff compares two: A and B"),
        (("a",), "diff compares two: name another file, or one with -c"),
        (("a", "b", "--pid", "1", "--slabs"), "--slabs is of all processes: leave out --pid"),
        (("a", "b", "--every", "1"), "--every is for a target that runs: leave out the files"),
    ],
)
def test_wrong_usage(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    assert cli.fails(2, "diff", *arguments) == message


def test_what_stands_still_has_no_later(cli: Cli) -> None:
    message = cli.fails(2, "-c", str(CAPTURE.core), "diff")
    assert message == "diff compares two: name A and B, or say --every of one that runs"


def test_a_file_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    message = cli.fails(3, "diff", str(CAPTURE.core), str(tmp_path / "none"))
    assert "no such file" in message
