"""``savings`` as people and programs see it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .captures import CAPTURES
from .clirun import Cli

CAPTURE = next(capture for capture in CAPTURES if capture.name == "forktree-6.12")
CORE = str(CAPTURE.core)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def answer(cli: Cli, *arguments: str) -> Any:
    ran = cli("-q", "-c", CORE, "--format", "json", "savings", *arguments)
    assert (ran.code, ran.err) == (0, "")
    return json.loads(ran.out)


def test_json(cli: Cli) -> None:
    document = answer(cli)
    assert [entry["slug"] for entry in document["proposals"]] == [
        "lazy",
        "unfaulted",
        "merging",
        "sharing",
    ]
    lazy, unfaulted, _, sharing = document["proposals"]
    # Of the four, the kernel had one.
    gone = [entry["slug"] for entry in document["proposals"] if entry["why_gone"] is not None]
    assert gone == ["sharing"]
    assert set(sharing["figures"]) == {"shared_as_merged", "shared_as_meant"}
    # See test_fork_tree_by_hand().
    assert (lazy["anon_vmas"], lazy["avcs"]) == (1051, 1053)
    total = sum(process["bytes"] for process in lazy["processes"]) + lazy["nobody"]
    assert total == lazy["bytes"] <= document["now"]["bytes"]
    assert unfaulted["not_known"].startswith("not known without page data (not in this snapshot")
    assert (unfaulted["anon_vmas"], unfaulted["bytes"]) == (None, None)


def test_text(cli: Cli) -> None:
    lines = cli("-q", "-c", CORE, "savings").out.splitlines()
    assert lines[0].startswith("SAVED BY ")
    assert lines[2].split() == ["lazy", "0", "1,053", "1,051", "168,288", "17.1", "%"]
    assert lines[3].split()[0] == "unfaulted"
    assert any(
        line.startswith("  not told by a snapshot: children that have exited") for line in lines
    )
    assert any(line.startswith("  why it is gone: as merged, VMAs of two") for line in lines)


def test_of_a_process(cli: Cli) -> None:
    (witness,) = [process for process in CAPTURE.processes() if process["pid"] == 1]
    proposals = {
        entry["slug"]: entry for entry in answer(cli, "--pid", str(witness["pid"]))["proposals"]
    }
    lazy, sharing = proposals["lazy"], proposals["sharing"]
    # Three anon_vmas that nobody shares, of five VMAs.
    assert (lazy["anon_vmas"], lazy["avcs"]) == (3, 5)
    assert [process["pid"] for process in lazy["processes"]] == [1]
    # Nobody else is in its families: all neighbours are known.
    assert (sharing["not_known"], sharing["anon_vmas"]) == (None, 0)
    assert sharing["figures"] == {"shared_as_merged": 0, "shared_as_meant": 0}


def test_of_a_process_with_children(cli: Cli) -> None:
    """Of the children's VMAs only those in the families of the first process are read."""
    (first,) = [process for process in CAPTURE.processes() if process["comm"] == "tree-root"]
    lazy, _, merging, sharing = answer(cli, "--pid", str(first["pid"]))["proposals"]
    # As in test_fork_tree_by_hand(): the 81 of the last generation, a leaf in each of 11 trees.
    assert (lazy["anon_vmas"], lazy["avcs"]) == (81 * 11, 81 * 11)
    # In each of the 120 children, the program's data that is no file's, and the heap right behind:
    # in the first process the two have one anon_vma.
    assert merging["not_known"] is None
    assert merging["figures"]["neighbours_alike"] == 120
    # What stands before a VMA with a gap between, nobody has read: 0 would be made up.
    assert sharing["not_known"] == "neighbours of other processes' VMAs are not read with --pid"
    assert (sharing["anon_vmas"], sharing["bytes"], sharing["figures"]) == (None, None, {})
    text = cli("-q", "-c", CORE, "savings", "--pid", str(first["pid"])).out
    assert text.count("neighbours of other processes' VMAs are not read with --pid") == 2


def test_lines(cli: Cli) -> None:
    ran = cli("-q", "-c", CORE, "--format", "jsonl", "savings")
    *each, summary = [json.loads(line) for line in ran.out.splitlines()]
    assert [entry["slug"] for entry in each] == ["lazy", "unfaulted", "merging", "sharing"]
    assert (summary["proposals"], summary["schema"]) == (None, "anonvma-inspect/savings/1")
