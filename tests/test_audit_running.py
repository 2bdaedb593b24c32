"""``audit`` of a target that runs: once, and round after round."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import anonvma_inspect.target
from anonvma_inspect.cli import rounds
from anonvma_inspect.target import Target, TargetOptions, open_target

from .captures import CAPTURES
from .clirun import Cli
from .running import Words, field_words, running

CAPTURE = next(capture for capture in CAPTURES if capture.name == "forktree-6.12")
Serve = Callable[[Iterable[Words]], None]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Make any target a kernel that runs, with these views."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)

    def serve_views(views: Iterable[Words]) -> None:
        target = running(CAPTURE.target, views)

        def open_any(options: TargetOptions) -> Target:
            return target

        monkeypatch.setattr(anonvma_inspect.target, "open_target", open_any)

    return serve_views


def wrong_count(row: int = 0) -> Words:
    """A corruption of the root of a family."""
    anon_vmas = CAPTURE.tables.anon_vmas
    address = int(anon_vmas.address[anon_vmas.root_row[row]])
    return field_words(
        CAPTURE.target, CAPTURE.tables.era.anon_vma, address, "num_active_vmas", 12345
    )


def lines(out: str) -> list[Any]:
    return [json.loads(line) for line in out.splitlines()]


def test_one_audit_says_how_it_looked(cli: Cli, serve: Serve) -> None:
    serve([{}])
    ran = cli("-c", "LIVE", "audit")
    assert ran.code == 0
    looked = ran.out.splitlines()[-3]
    assert looked.startswith("looked for ")
    assert looked.endswith(": no suspicion")
    document = json.loads(cli("-c", "LIVE", "--format", "json", "audit").out)
    assert document["looked"]["seconds"] > 0
    assert document["transient_total"] == 0
    assert json.loads(cli("-c", "LIVE", "--format", "json", "vma", "1").out)


def test_a_suspicion_is_no_finding(cli: Cli, serve: Serve) -> None:
    serve([wrong_count(), {}])
    ran = cli("-c", "LIVE", "audit", "--strict")
    assert ran.code == 0
    assert ran.out.splitlines()[-3].endswith(
        "1 suspicion transient, not there or not at rest when read again (AV402 1)"
    )
    assert ran.out.splitlines()[-1].startswith("clean: ")
    serve([wrong_count(), {}])
    document = json.loads(cli("-c", "LIVE", "--format", "json", "audit").out)
    assert document["findings_total"] == 0
    assert document["transient_total"] == 1
    assert document["transient"][0]["code"] == "AV402"
    assert document["transient"][0]["actual"] == "12345"


def test_a_finding_is_one(cli: Cli, serve: Serve) -> None:
    serve([wrong_count()])
    ran = cli("-c", "LIVE", "--format", "json", "audit")
    assert ran.code == 1
    document = json.loads(ran.out)
    assert [finding["actual"] for finding in document["findings"]] == ["12345"]
    assert document["transient_total"] == 0


def test_rounds_as_lines(cli: Cli, serve: Serve) -> None:
    """A finding is told once, in the round that confirmed it; a suspicion is only counted."""
    views = [{}, wrong_count(), {}, wrong_count()]
    serve(views)
    ran = cli("-c", "LIVE", "--format", "jsonl", "audit", "--every", "0", "--count", "4")
    assert ran.code == 1
    *each, summary = lines(ran.out)
    assert [entry["round"] for entry in each] == [1, 2, 3, 4]
    assert [entry["outcome"] for entry in each] == ["clean", "clean", "violated", "violated"]
    assert [entry["transient_total"] for entry in each] == [0, 1, 0, 0]
    assert [len(entry["new_findings"]) for entry in each] == [0, 0, 1, 0]
    assert [entry["findings_total"] for entry in each] == [0, 0, 1, 1]
    assert all(entry["schema"] == "anonvma-inspect/audit-round/1" for entry in each)
    assert set(each[0]["delta"].values()) == {0}
    assert (
        each[0]["counts"]
        == json.loads(cli("-c", "LIVE", "--format", "json", "audit").out)["counts"]
    )
    assert summary["schema"] == "anonvma-inspect/audit-rounds/1"
    assert summary["rounds"] == 4
    assert not summary["interrupted"]
    assert summary["findings_total"] == summary["transient_total"] == 1
    assert summary["outcomes"] == {"clean": 2, "violated": 2, "incomplete": 0}
    vmas = summary["counts"]["vmas"]
    assert vmas == {"first": vmas["first"], "last": vmas["first"], "rounds_grown": 0}


def test_rounds_for_people(cli: Cli, serve: Serve) -> None:
    serve([{}, wrong_count()])
    ran = cli("-c", "LIVE", "audit", "--every", "0", "--count", "3")
    assert ran.code == 1
    each = [line for line in ran.out.splitlines() if line.startswith("round ")]
    assert [line.split(",")[0] for line in each] == [
        "round 1: clean",
        "round 2: violated",
        "round 3: violated",
    ]
    assert ran.out.count("AV402 num-active-vmas: ") == 1
    assert ran.out.splitlines()[-1].startswith("3 rounds: 1 clean, 2 violated; 1 finding (1 error")


def test_growth_is_told(cli: Cli, serve: Serve) -> None:
    """Fewer and fewer mms are empty, so that there are more and more VMAs."""
    tables = CAPTURE.tables
    mms = tables.mms.address[-3:].tolist()

    def without(addresses: list[int]) -> Words:
        words: dict[int, int] = {}
        for address in addresses:
            words |= field_words(CAPTURE.target, tables.era.mm, address, "ma_root", 0)
        return words

    serve([without(mms), without(mms[:2]), without(mms[:1]), {}])
    ran = cli("-c", "LIVE", "audit", "--every", "0", "--count", "4", "--only", "AV601")
    assert "grew in every round: VMAs by " in ran.out
    assert "round 2: clean" in ran.out
    assert " VMAs (+" in ran.out


def test_interrupted(cli: Cli, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    serve([{}])

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    ran = cli("-c", "LIVE", "audit", "--every", "60")
    assert ran.code == 130
    assert ran.out.splitlines()[-1].startswith("interrupted after 1 round: 1 clean; ")
    assert not [line for line in ran.err.splitlines() if not line.startswith("Linux ")]


def test_memory_does_not_grow_with_rounds() -> None:
    """What is kept of a round is counts: its tables are gone when the next one begins."""
    import gc
    import weakref

    from anonvma_inspect.confirm import audit_running
    from anonvma_inspect.report.audit import AuditReport
    from anonvma_inspect.report.facts import TargetFacts
    from anonvma_inspect.report.rounds import History

    history = History()
    facts = TargetFacts("kcore", "", "", "", "", "", "")
    kept: list[weakref.ref[object]] = []
    for _ in range(2):
        audit = audit_running(running(CAPTURE.target, [wrong_count()]))
        kept.append(weakref.ref(audit.tables))
        history.add(AuditReport(facts, audit))
        del audit
    gc.collect()
    assert [reference() for reference in kept] == [None, None]


def test_evidence(cli: Cli, serve: Serve, tmp_path: Path) -> None:
    """The snapshot shows what was confirmed, even if it is gone a moment later; one is enough."""
    serve(itertools.chain([wrong_count()] * 3, itertools.repeat({})))
    directory = f"snapshot:{tmp_path}"
    arguments = ("audit", "--every", "0", "--count", "2", "--on-finding", directory)
    ran = cli("-c", "LIVE", "--format", "jsonl", *arguments)
    assert ran.code == 1
    (path,) = tmp_path.iterdir()
    assert f"saved {path}, " in ran.err
    saved = open_target(TargetOptions(core=str(path)))
    from anonvma_inspect.collect import collect_audit
    from anonvma_inspect.invariants.catalogue import audit

    findings = list(audit(collect_audit(saved)).findings())
    assert [(finding.code, finding.actual) for finding in findings] == [("AV402", "12345")]


def test_no_more_evidence_than_the_disk_holds(
    cli: Cli, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = sorted(set(CAPTURE.tables.anon_vmas.root_row.tolist()))[:3]
    serve(wrong_count(row) for row in roots for _ in range(3))
    monkeypatch.setattr(rounds, "_MAX_SNAPSHOTS", 1)
    arguments = ("audit", "--every", "0", "--count", "3", "--on-finding", f"snapshot:{tmp_path}")
    ran = cli("-c", "LIVE", *arguments, "--only", "AV402")
    assert ran.code == 1
    assert ran.out.count("AV402 num-active-vmas: ") == 3
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--count", "3"], "--count says how many rounds: give --every SECONDS as well"),
        (["--every", "1", "--format", "json"], "--every answers a line a round: "),
        (["--on-finding", "mail"], "--on-finding mail: what it can do is snapshot:DIR"),
        (["--on-finding", "snapshot:"], "--on-finding snapshot:: what it can do is snapshot:DIR"),
        (["--on-finding", "snapshot:/nowhere"], "there is no directory /nowhere"),
    ],
)
def test_wrong_usage(cli: Cli, arguments: list[str], complaint: str) -> None:
    assert complaint in cli.fails(2, "-c", str(CAPTURE.core), "audit", *arguments)


def test_a_dump_stays_as_it_is(cli: Cli) -> None:
    core = str(CAPTURE.core)
    assert cli.fails(2, "-c", core, "audit", "--every", "1") == (
        f"--every is for a target that runs: {core} stays as it is"
    )
