"""Every command on a real kernel, compared with the guest's own word where there is one."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anonvma_inspect.collect
import anonvma_inspect.target
from anonvma_inspect.analysis.families import find_families
from anonvma_inspect.errors import TargetError
from anonvma_inspect.invariants.catalogue import CATALOGUE, select
from anonvma_inspect.kernel.tags import AnonVmaKind
from anonvma_inspect.report.owners import Owners
from anonvma_inspect.report.style import PLAIN
from anonvma_inspect.tables import NO_ROW, ChainEnd, Tables
from anonvma_inspect.target import Target
from anonvma_inspect.target.memory import OverlayMemory

from .captures import CAPTURES
from .clirun import Cli
from .handmade import Model
from .small_tables import with_hole

CAPTURE = next(capture for capture in CAPTURES if capture.name == "forktree-6.12")
CORE = str(CAPTURE.core)
TARGET_LINE = re.compile(
    r"Linux \S+ x86_64, snapshot, layouts from btf, symbols from snapshot, not live"
)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Target, Tables | None], None]:
    """Lets the command line work on another target, and other tables, than the file's."""

    def install(target: Target, tables: Tables | None = None) -> None:
        monkeypatch.setattr(anonvma_inspect.target, "open_target", lambda options: target)
        if tables is not None:
            for name in ("collect", "collect_audit"):
                monkeypatch.setattr(
                    anonvma_inspect.collect, name, lambda *arguments, **options: tables
                )

    return install


Serve = Callable[..., None]


def replace(table: str, **columns: Any) -> Tables:
    tables = CAPTURE.tables
    changed = dataclasses.replace(getattr(tables, table), **columns)
    return dataclasses.replace(tables, **{table: changed})


def hexadecimal(word: Any) -> str:
    return f"{int(word):#x}"


def answer(cli: Cli, *arguments: str, code: int = 0) -> Any:
    ran = cli("-q", "-c", CORE, "--format", "json", *arguments)
    assert (ran.code, ran.err) == (code, "")
    return json.loads(ran.out)


def process_with_chain() -> tuple[int, int, int]:
    """PID, an address and the row of a VMA with a long chain."""
    tables = CAPTURE.tables
    row = int(np.argmax(tables.vmas.chain_length))
    task = int(tables.mms.task[tables.vmas.mm[row]])
    return int(tables.tasks.tgid[task]), int(tables.vmas.vm_start[row]), row


# --- the guest's own word ------------------------------------------------------------------------


def maps_of(process: Any) -> list[tuple[str, str, str, str]]:
    """Range, permissions, offset and name of each line of ``/proc/PID/maps``."""
    lines = []
    for line in process["maps"]:
        range_, permissions, offset, _, _, *name = line.split(maxsplit=5)
        if name != ["[vsyscall]"]:
            lines.append((range_, permissions, offset, name[0] if name else ""))
    return lines


@pytest.mark.parametrize("process", CAPTURE.processes()[:3], ids=lambda process: process["comm"])
def test_vma_reads_like_maps(cli: Cli, process: Any) -> None:
    ran = cli("-c", CORE, "vma", str(process["pid"]))
    assert ran.code == 0
    assert TARGET_LINE.fullmatch(ran.err.strip())
    title, header, *rows = ran.out.splitlines()
    maps = maps_of(process)
    assert title == f"PID {process['pid']} ({process['comm']}): {len(maps)} VMAs"
    assert header.split() == ["RANGE", "PERM", "OFFSET", "VMA", "ANON_VMA", "CHAIN", "FILE"]
    shown = []
    for row in rows:
        range_, permissions, offset, _, _, _, *name = row.split(maxsplit=6)
        shown.append((range_, permissions, offset, name[0] if name else ""))
    for ours, theirs in zip(shown, maps, strict=True):
        assert ours[:3] == theirs[:3]
        # [vvar] does not follow from the fields of the mm, and 6.1 also calls a mapping that only
        # touches the heap by its name.
        assert ours[3] == theirs[3] or (not ours[3] and theirs[3] in ("[vvar]", "[heap]"))
    names = {line[3] for line in shown}
    assert {"[heap]", "[stack]", "[vdso]"} < names


def test_vma_json(cli: Cli) -> None:
    process = CAPTURE.processes()[1]
    document = answer(cli, "vma", str(process["pid"]))
    assert (document["pid"], document["comm"]) == (process["pid"], process["comm"])
    ranges = [f"{int(vma['start'], 16):08x}-{int(vma['end'], 16):08x}" for vma in document["vmas"]]
    assert ranges == [line[0] for line in maps_of(process)]


def test_vma_at_an_address(cli: Cli) -> None:
    process = CAPTURE.processes()[0]
    start, end = (int(part, 16) for part in maps_of(process)[1][0].split("-"))
    for address in (f"{start:x}", f"{start:#x}", f"{end - 1:X}"):
        (vma,) = answer(cli, "vma", str(process["pid"]), address)["vmas"]
        assert vma["start"] == f"{start:#x}"
    pid = process["pid"]
    assert cli.fails(2, "-c", CORE, "vma", str(pid), "10").startswith(
        f"0x10 is in no VMA of PID {pid} ({process['comm']}); nearest: 00400000-"
    )
    assert cli.fails(2, "-c", CORE, "vma", "4000000") == "there is no PID 4000000 in this target"
    assert "kernel thread" in cli.fails(2, "-c", CORE, "vma", "2")


# --- chain and tree ------------------------------------------------------------------------------


def test_chain_by_address_and_by_pointer(cli: Cli) -> None:
    pid, address, row = process_with_chain()
    tables = CAPTURE.tables
    pointer = hexadecimal(tables.vmas.address[row])
    document = answer(cli, "chain", str(pid), f"{address:x}")
    assert document == answer(cli, "chain", pointer)
    assert document == answer(cli, "chain", pointer.removeprefix("0x").upper())
    assert document["vma"] == pointer
    assert len(document["avcs"]) == int(tables.vmas.chain_length[row])
    active = [entry["anon_vma"] for entry in document["avcs"] if entry["active"]]
    assert active == [hexadecimal(tables.vmas.anon_vma[row])]
    assert len({entry["root"] for entry in document["avcs"]}) == 1


def test_tree_by_address_and_by_pointer(cli: Cli) -> None:
    pid, address, row = process_with_chain()
    pointer = hexadecimal(CAPTURE.tables.vmas.anon_vma[row])
    document = answer(cli, "tree", str(pid), f"{address:x}")
    assert document == answer(cli, "tree", pointer)
    assert document["anon_vma"]["address"] == pointer


def test_trees_are_whole_and_in_order(cli: Cli) -> None:
    tables = CAPTURE.tables
    largest = int(np.argmax(np.bincount(tables.nodes.anon_vma)))
    pointer = hexadecimal(tables.anon_vmas.address[largest])
    nodes = answer(cli, "tree", pointer)["nodes"]
    assert len(nodes) > 50
    first = [int(node["first"], 16) for node in nodes]
    assert first == sorted(first)
    by_avc = {node["avc"]: node for node in nodes}
    tops = {node["avc"] for node in nodes if node["depth"] == 0}
    children = {node[side] for node in nodes for side in ("left", "right")} - {None}
    assert len(tops) == 1
    assert children | tops == set(by_avc)
    assert all(
        by_avc[child]["depth"] == node["depth"] + 1
        for node in nodes
        for child in (node["left"], node["right"])
        if child is not None
    )
    # As many lines as nodes, and the drawing's indentation is the depth.
    lines = cli("-q", "-c", CORE, "tree", pointer).out.splitlines()[1:]
    assert len(lines) == len(nodes)
    for line, node in zip(lines, nodes, strict=True):
        indent = re.match("[│┌└─ ]*", line)
        assert indent is not None
        width = 0 if node["depth"] == 0 else 2 * node["depth"] + 1
        assert indent.end() == width
        assert line[width:].startswith(node["color"])


def test_pointers_to_something_else(cli: Cli) -> None:
    tables = CAPTURE.tables
    vma = hexadecimal(tables.vmas.address[0])
    avc = hexadecimal(tables.avcs.address[0])
    anon_vma = hexadecimal(tables.anon_vmas.address[0])

    def run(*arguments: str) -> str:
        return cli.fails(2, "-c", CORE, *arguments)

    assert run("chain", avc) == (
        f"{avc} is an anon_vma_chain, not a vm_area_struct: its vma is "
        f"{hexadecimal(tables.avcs.vma[0])}"
    )
    assert run("tree", avc) == (
        f"{avc} is an anon_vma_chain, not an anon_vma: its anon_vma is "
        f"{hexadecimal(tables.avcs.anon_vma[0])}"
    )
    assert run("chain", anon_vma) == (
        f"{anon_vma} is an anon_vma, not a vm_area_struct: see tree {anon_vma}"
    )
    assert re.fullmatch(
        rf"{vma} is a vm_area_struct of PID \d+ \([\w-]+\), not an anon_vma: see chain {vma}",
        run("tree", vma),
    )
    assert run("tree", "ffff000000000000") == (
        "0xffff000000000000 is not an anon_vma: no object of the kernel's can lie there"
    )
    within = hexadecimal(int(tables.vmas.address[0]) + 8)
    assert run("chain", within) == (
        f"{within} is not a vm_area_struct that any of the {len(tables.vmas.address):,} VMAs read "
        "leads to"
    )


@pytest.mark.parametrize(
    ("name", "kind", "hint"),
    [
        ("lazy", AnonVmaKind.LAZY_VMA, r"it has none yet, but the root VMA 0x[0-9a-f]+"),
        ("lazy", AnonVmaKind.LAZY_PARENT, r"it has its parent's, see tree 0x[0-9a-f]+"),
        ("unfaulted", AnonVmaKind.UNFAULTED, "it has none yet"),
    ],
)
def test_tree_of_a_vma_with_a_tag(cli: Cli, name: str, kind: AnonVmaKind, hint: str) -> None:
    """The chain would tell no more; what is named can be asked for."""
    capture = next(one for one in CAPTURES if one.name == f"vmaops-7.3-{name}")
    vmas, core = capture.tables.vmas, str(capture.core)
    kinds = capture.tables.era.tags.kinds(vmas.anon_vma_pointer, vmas.anon_vma_tag)
    vma = hexadecimal(vmas.address[kinds == kind][0])
    sentence = cli.fails(2, "-c", core, "tree", vma)
    assert re.fullmatch(
        rf"{vma} is a vm_area_struct of PID \d+ \([\w-]+\), not an anon_vma: {hint}", sentence
    )
    named = re.search("(tree|root VMA) (0x[0-9a-f]+)$", sentence)
    if named is not None:
        command = "tree" if named[1] == "tree" else "chain"
        assert cli("-c", core, command, named[2]).code == 0


def test_tree_of_a_vma_without_anon_vma(cli: Cli) -> None:
    process = CAPTURE.processes()[0]
    sentence = cli.fails(2, "-c", CORE, "tree", str(process["pid"]), "400000")
    assert sentence.endswith("has no anon_vma: nothing anonymous was ever faulted in there")


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (0xDEAD000000000100, "0xdead000000000100, cannot be right; see: anonvma-inspect audit"),
        (None, "leads to no anon_vma; see: anonvma-inspect audit"),
        (2, "has low bits set and is no pointer"),
    ],
)
def test_tree_of_a_vma_with_a_wrong_anon_vma(
    cli: Cli, serve: Serve, raw: int | None, sentence: str
) -> None:
    pid, address, row = process_with_chain()
    vmas = CAPTURE.tables.vmas
    words = {name: getattr(vmas, name).copy() for name in ("anon_vma", "anon_vma_pointer")}
    tags, active = vmas.anon_vma_tag.copy(), vmas.active.copy()
    word = int(vmas.address[row]) if raw is None else raw
    if raw == 2:
        word, tags[row] = int(vmas.anon_vma[row]) | 2, 2
    words["anon_vma"][row], words["anon_vma_pointer"][row] = word, word & ~7
    active[row] = NO_ROW
    serve(CAPTURE.target, replace("vmas", **words, anon_vma_tag=tags, active=active))
    assert cli.fails(2, "-c", CORE, "tree", str(pid), f"{address:x}").endswith(sentence)


@pytest.mark.parametrize(
    ("end", "code", "why"),
    [
        (ChainEnd.HOLE, 4, "the target does not have the next entry"),
        (ChainEnd.LOOP, 0, "it comes back to an entry that is not its head"),
        (ChainEnd.WILD, 0, "a next pointer cannot be right"),
        (ChainEnd.STRANGER, 0, "the next entry is no anon_vma_chain of this VMA"),
    ],
)
def test_chains_that_break_off(cli: Cli, serve: Serve, end: ChainEnd, code: int, why: str) -> None:
    pid, address, row = process_with_chain()
    ends = CAPTURE.tables.vmas.chain_end.copy()
    ends[row] = end
    serve(CAPTURE.target, replace("vmas", chain_end=ends))
    ran = cli("-c", CORE, "chain", str(pid), f"{address:x}")
    assert ran.code == code
    assert ran.err.splitlines()[1] == f"the list breaks off: {why}; see: anonvma-inspect audit"


def test_a_tree_that_is_not_whole(cli: Cli, serve: Serve) -> None:
    tables = CAPTURE.tables
    pointer = hexadecimal(tables.anon_vmas.address[0])
    broken = replace("anon_vmas", tree_whole=np.zeros_like(tables.anon_vmas.tree_whole))
    serve(CAPTURE.target, broken)
    ran = cli("-c", CORE, "tree", pointer)
    assert ran.code == 0
    assert "the tree could not be walked whole" in ran.err
    serve(CAPTURE.target, with_hole(broken))
    assert cli("-c", CORE, "tree", pointer).code == 4


def test_an_mm_that_is_not_whole(cli: Cli, serve: Serve) -> None:
    tables = CAPTURE.tables
    broken = replace("mms", whole=np.zeros_like(tables.mms.whole))
    serve(CAPTURE.target, broken)
    ran = cli("-c", CORE, "vma", "1")
    assert ran.code == 0
    assert "not all VMAs of PID 1 (witness) could be read" in ran.err
    serve(CAPTURE.target, with_hole(broken))
    assert cli("-c", CORE, "vma", "1").code == 4


# --- audit, stats, snapshot ----------------------------------------------------------------------


def test_audit_is_clean(cli: Cli) -> None:
    ran = cli("-c", CORE, "audit")
    assert ran.code == 0
    assert TARGET_LINE.fullmatch(ran.err.strip())
    lines = ran.out.splitlines()
    processes = len({process["tgid"] for process in CAPTURE.processes()})
    assert lines[0].startswith(f"{processes} processes, ")
    assert re.fullmatch(r"clean: \d+ checks?, 0 findings", lines[-1])


def test_audit_json_is_the_same_every_time(cli: Cli) -> None:
    first = cli("-q", "-c", CORE, "audit", "--format", "json")
    assert (first.code, first.err) == (0, "")
    assert cli("-v", "--format", "json", "-c", CORE, "audit").out == first.out
    document = json.loads(first.out)
    assert document["complete"] is True
    assert document["findings"] == []
    states = {entry["state"] for entry in document["checked"]}
    # This snapshot is older than the question what KSM holds.
    assert states <= {"ok", "not applicable", "not checked"}


def test_audit_of_one_process(cli: Cli) -> None:
    everything = answer(cli, "audit")["counts"]
    pid, _, _ = process_with_chain()
    one = answer(cli, "audit", "--pid", str(pid))["counts"]
    assert 0 < one["vmas"] < everything["vmas"]
    assert cli.fails(2, "-c", CORE, "audit", "--pid", "1", "--pid", "4000000") == (
        "there is no PID 4000000 in this target"
    )


def test_audit_only_and_skip(cli: Cli) -> None:
    only = answer(cli, "audit", "--only", "tag-bits")["checked"]
    assert [entry["code"] for entry in only] == ["AV601"]
    group = answer(cli, "audit", "--only", "AV6")["checked"]
    assert [entry["code"] for entry in group] == [
        invariant.code for invariant in CATALOGUE if invariant.code.startswith("AV6")
    ]
    assert {"AV601", "AV602", "AV603"} <= {entry["code"] for entry in group}
    assert answer(cli, "audit", "--only", "AV601,AV6")["checked"] == group
    assert answer(cli, "audit", "--only", "AV6", "--skip", "AV602")["checked"] == [
        entry for entry in group if entry["code"] != "AV602"
    ]


def test_audit_finds_a_changed_word(cli: Cli, serve: Serve) -> None:
    tables, target = CAPTURE.tables, CAPTURE.target
    row = int(np.flatnonzero(tables.vmas.active != NO_ROW)[0])
    vma = int(tables.vmas.address[row])
    address = vma + tables.era.vma.offset("anon_vma")
    overlay = OverlayMemory(target.memory, {address: int(tables.vmas.anon_vma[row]) | 4})
    serve(dataclasses.replace(target, memory=overlay))
    ran = cli("-c", CORE, "audit", "--only", "tag-bits")
    assert ran.code == 1
    lines = ran.out.splitlines()
    assert f"  object    vm_area_struct {vma:#x}" in lines
    assert f"  expected  {hexadecimal(tables.vmas.anon_vma[row])}" in lines
    assert lines[-1] == (
        "violated: 1 check, 1 finding (1 error, 0 warnings), see: anonvma-inspect explain AV601"
    )
    # Neither a shorter list nor another format changes the verdict.
    assert cli("-c", CORE, "audit", "--max-findings", "0").code == 1
    assert cli("-c", CORE, "--format", "jsonl", "audit").code == 1


def test_audit_of_an_incomplete_target(cli: Cli, serve: Serve) -> None:
    serve(CAPTURE.target, with_hole(CAPTURE.tables))
    ran = cli("-c", CORE, "audit")
    assert ran.code == 4
    assert ran.out.splitlines()[-1].startswith("incomplete: ")
    ran = cli("-c", CORE, "stats")
    assert ran.code == 4
    assert ran.err.splitlines()[1] == (
        "incomplete: 1 hole in the target; see: anonvma-inspect --format json audit"
    )


def test_a_check_that_fails_is_shown_as_a_bug(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(facts: Any) -> Any:
        raise ZeroDivisionError("zero")

    failing = tuple(dataclasses.replace(rule, check=fail) for rule in select(["AV601"]))
    monkeypatch.setattr("anonvma_inspect.cli.audit.select", lambda only, skip: failing)
    ran = cli("-c", CORE, "audit")
    assert ran.code == 4
    assert "AV601 failed: a bug in this tool, please report it: ZeroDivisionError: zero" in ran.err
    assert ran.out.splitlines()[-1] == "incomplete: 0 checks, 0 findings, AV601 not checked"
    assert "Traceback" not in ran.err
    assert "Traceback" in cli("-vv", "-c", CORE, "audit").err


def test_stats(cli: Cli) -> None:
    document = answer(cli, "stats")
    tables = CAPTURE.tables
    assert document["distributions"]["chain_length"]["sum"] == len(tables.links.vma)
    assert document["distributions"]["tree_size"]["sum"] == len(tables.nodes.avc)
    assert document["bytes"]["anon_vma_chain"]["bytes"] == 64 * len(tables.avcs.address)
    word = CAPTURE.manifest["word"]
    for cache in document["slabs"]["caches"]:
        figure = word["slab"][cache["struct"]]
        assert cache["objects"] == int(figure["total_objects"].split()[0])
        assert cache["slabs"] == int(figure["slabs"].split()[0])
    processes = document["owners"]["processes"]
    assert {process["pid"] for process in processes} == {
        process["pid"] for process in CAPTURE.processes()
    }
    commands = document["owners"]["commands"]
    assert sum(command["processes"] for command in commands) == len(processes)


def test_stats_without_slabs(cli: Cli) -> None:
    without = answer(cli, "stats", "--no-slabs")
    assert without["slabs"] == {"missing": "not asked for: --slabs", "caches": []}
    everything = answer(cli, "stats")
    assert {**everything, "slabs": None} == {**without, "slabs": None}


def test_stats_of_a_process(cli: Cli) -> None:
    pid, _, _ = process_with_chain()
    document = answer(cli, "stats", "--pid", str(pid))
    assert document["slabs"]["missing"] == "not asked for: --slabs"
    assert document["counts"]["anon_vmas"] < answer(cli, "stats")["counts"]["anon_vmas"]
    message = cli.fails(2, "-c", CORE, "stats", "--pid", str(pid), "--slabs")
    assert message == "--slabs is of all processes: leave out --pid"


def test_stats_of_a_process_with_children(cli: Cli) -> None:
    """What other processes' next forks cost is not known: most of their VMAs are not read."""
    (first,) = [each for each in CAPTURE.processes() if each["comm"] == "tree-root"]
    pid = first["pid"]
    forks = {each["pid"]: each["fork"] for each in answer(cli, "stats")["owners"]["processes"]}
    assert None not in forks.values()
    own = {
        each["pid"]: each["fork"]
        for each in answer(cli, "stats", "--pid", str(pid))["owners"]["processes"]
    }
    assert len(own) == 121
    assert {other: fork for other, fork in own.items() if fork is not None} == {pid: forks[pid]}
    # But for the gate page, all of its VMAs are copied; an AVC more for each that is linked.
    maps = [line for line in first["maps"] if not line.endswith("[vsyscall]")]
    assert (forks[pid]["vmas"], forks[pid]["locked"], forks[pid]["avcs"]) == (len(maps), 11, 22)
    lines = cli("-q", "-c", CORE, "stats", "--pid", str(pid)).out.splitlines()
    at = lines.index("what the next fork of a process allocates")
    assert lines[at + 2].startswith(f"PID {pid} (tree-root) ")
    assert lines[at + 3].startswith("not known of 120 other processes, ")


def test_stats_by_process(cli: Cli) -> None:
    """The largest first: their names, and how many VMAs they have, are the guest's word."""
    lines = cli("-q", "-c", CORE, "stats").out.splitlines()
    at = lines.index("objects by process")
    headers = ["PROCESS", "VMAS", "WITH ANON_VMA", "AVCS", "ANON_VMAS", "BYTES"]
    assert re.split(r"  +", lines[at + 1]) == headers
    word = {f"PID {each['pid']} ({each['comm']})": each["maps"] for each in CAPTURE.processes()}
    sizes = []
    for line in lines[at + 2 : at + 12]:
        name, *figures = re.split(r"  +", line)
        vmas, linked, avcs, anon_vmas, size = (int(each.replace(",", "")) for each in figures)
        maps = [each for each in word[name] if not each.endswith("[vsyscall]")]
        assert vmas == len(maps) >= linked == anon_vmas
        assert size == 64 * avcs + 96 * anon_vmas
        sizes.append(size)
    assert sizes == sorted(sizes, reverse=True)
    assert lines[at + 12] == f"... {len(word) - 10} more processes; --format json lists all"


@pytest.mark.parametrize(
    ("count", "line"),
    [
        (10, []),
        (11, ["... 1 more process; --format json lists all"]),
        (12, ["... 2 more processes; --format json lists all"]),
    ],
)
def test_how_many_more(count: int, line: list[str]) -> None:
    model = Model()
    for number in range(count):
        model.map(model.mm(f"process-{number}"), 16, 4)
    tables = model.finish().tables()
    lines = list(Owners(tables, find_families(tables)).text(PLAIN))
    assert [each for each in lines if "more process" in each] == line * 2


def test_snapshot_of_a_snapshot(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "again.core"
    ran = cli("-c", CORE, "snapshot", "-o", str(path))
    assert ran.code == 0
    assert ran.out.splitlines()[-1] == (
        f"Wrote {path}: {path.stat().st_size:,} bytes; see: anonvma-inspect -c {path} audit"
    )
    original = cli("-q", "-c", CORE, "--format", "json", "audit").out
    assert cli("-q", "-c", str(path), "--format", "json", "audit").out == original
    assert "exists already" in cli.fails(2, "-c", CORE, "snapshot", "-o", str(path))
    ran = cli("-c", CORE, "snapshot", "-o", str(path), "--force", "--anonymize")
    assert ran.code == 0
    ran = cli("-c", str(path), "vma", "1")
    assert ran.out.startswith("PID 1: ")
    assert "/" not in ran.out
    assert "names of files are not in this snapshot" in ran.err
    # One made of it does not pretend to have them.
    again = str(tmp_path / "anonymous.core")
    answer = json.loads(cli("-c", str(path), "--format", "json", "snapshot", "-o", again).out)
    assert answer["anonymized"] is True
    assert "names of files are not in this snapshot" in cli("-c", again, "vma", "1").err


def test_where_a_snapshot_is_written(cli: Cli, tmp_path: Path) -> None:
    """Through a symbolic link, but not in place of a device: that would be gone for everybody."""
    link, file, pipe = tmp_path / "link", tmp_path / "file", tmp_path / "pipe"
    link.symlink_to(file)
    assert cli("-c", CORE, "snapshot", "-o", str(link)).code == 0
    assert link.is_symlink()
    assert file.stat().st_size
    os.mkfifo(pipe)
    for path in (str(pipe), "/dev/null"):
        message = cli.fails(2, "-c", CORE, "snapshot", "--force", "-o", path)
        assert "a device or a pipe" in message
    assert "needs the name" in cli.fails(2, "-c", CORE, "snapshot", "-o", "")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "link", "pipe"]


def test_audit_with_a_huge_limit(cli: Cli) -> None:
    assert cli("-c", CORE, "audit", "--max-findings", "9" * 30).code == 0


# --- options -------------------------------------------------------------------------------------


def test_the_later_option_wins(cli: Cli) -> None:
    ran = cli("-c", "/nonexistent", "--format", "json", "stats", "-c", CORE, "--format", "table")
    assert ran.code == 0
    assert " processes, " in ran.out.splitlines()[0]
    assert cli("-q", "stats", "-c", CORE, "-v").err.count(" in ") == 2
    assert cli("-v", "stats", "-c", CORE, "-q").err == ""


def test_quiet_and_verbose(cli: Cli) -> None:
    assert cli("-q", "-c", CORE, "audit").err == ""
    lines = cli("-v", "-c", CORE, "audit").err.splitlines()
    assert [re.sub(r"\d+\.\d\d", "#", line) for line in lines if " in " in line] == [
        "opened in # s",
        "read in # s",
        "checked in # s",
    ]


def test_color(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in cli("-c", CORE, "audit").out
    assert "\x1b[32mclean:\x1b[0m" in cli("-c", CORE, "audit", "--color", "always").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32mclean:\x1b[0m" in cli("-c", CORE, "audit", "--color", "always").out


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("division by zero"), RecursionError("too deep"), KeyError("anon_vma")],
)
def test_bugs_ask_for_a_report(cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(options: Any) -> Any:
        raise error

    monkeypatch.setattr(anonvma_inspect.target, "open_target", fail)
    assert cli.fails(3, "-c", CORE, "audit") == (
        f"a bug in this tool, please report it: {type(error).__name__}: {error} (-vv shows where)"
    )
    ran = cli("-vv", "-c", CORE, "audit")
    assert ran.code == 3
    assert ran.err.startswith("Traceback (most recent call last):\n")
    assert ran.err.endswith(f"please report it: {type(error).__name__}: {error}\n")


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (TargetError("that is no dump"), 3, "that is no dump"),
        (MemoryError(), 3, "out of memory: "),
        (OSError(5, "Input/output error"), 3, "cannot go on: Input/output error"),
    ],
)
def test_errors_of_the_machine_and_of_the_target(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, sentence: str
) -> None:
    def fail(options: Any) -> Any:
        raise error

    monkeypatch.setattr(anonvma_inspect.target, "open_target", fail)
    assert cli.fails(code, "-c", CORE, "audit").startswith(sentence)


def test_interrupted(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(anonvma_inspect.target, "open_target", fail)
    ran = cli("-c", CORE, "audit")
    assert (ran.code, ran.out, ran.err.strip()) == (130, "", "")


def test_a_target_that_is_missing(cli: Cli) -> None:
    assert cli.fails(3, "-c", "/nonexistent", "audit") == "/nonexistent: no such file"
