"""The lab, as far as it can be tested without a guest: the word, the manifest, the packages."""

from __future__ import annotations

import json
import lzma
import re
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from labkit.aim import Change
from labkit.apt import Package, newest
from labkit.build import CONFIGS, missing_options
from labkit.capture import Lab, Prepared
from labkit.console import complaints
from labkit.errors import BootError, GuestError, LabError
from labkit.faults import Operation, Step, failed_in
from labkit.figures import figures
from labkit.gdbstub import packet
from labkit.initramfs import Archive
from labkit.interpreter import compiled, dependencies, libraries
from labkit.kdump import dump_names
from labkit.kernels import KERNELS, KernelImage, config_facts, kernel
from labkit.live import History, read_round
from labkit.machines import MACHINES
from labkit.makedumpfile import Filter, compression_of
from labkit.manifest import describe_word, encode
from labkit.modules import find_modules, read_module
from labkit.poke import about
from labkit.programs import HERE, WORKLOADS
from labkit.shell import split
from labkit.specs import FIXTURES, PARAMETERS, fixture, plan
from labkit.storm import Series
from labkit.symbols import NAMES, pick, write_map
from labkit.system import Need, require
from labkit.verdict import read_verdict
from labkit.versions import compare_versions
from labkit.word import checksum, parse_event, parse_word, records


def record(kind: str, key: str, content: bytes) -> bytes:
    return f"@ {kind} {key} {len(content)}\n".encode() + content + b"\n"


def finished(data: bytes) -> bytes:
    data += record("end", "-", b"")
    return data + f"# {checksum(data):08x}\n".encode()


STAT = b"%d (%s) %s %d 1 1 0 -1 %d 0 0 0 0\n"
MAPS = b"""\
00400000-00401000 r--p 00000000 00:02 13                                 /lab/two  blanks\\012
7ffe8a7fa000-7ffe8a81b000 rw-p 00000000 00:00 0                          [stack]
7fff00000000-7fff00001000 rw-p 00000000 00:00 0\x20
"""
SMAPS = (
    b"Anonymous:             8 kB\nVmFlags: rd mr mw me \n"
    b"Anonymous:             0 kB\nVmFlags: rd wr \n"
    b"Anonymous:             4 kB\nVmFlags: rd wr dc \n"
)
WORD = finished(
    record("fact", "version", b"Linux version 0\n")
    + record("log", "-", b"fork index=1 pid=12 base=0x7f00 pages=\n")
    + record("log", "-", b"READ-NOT\n")
    + record("stat", "7", STAT % (7, b"a) Z 9 (b", b"S", 1, 0x400040))
    + record("comm", "7", b"a) Z 9 (b\n")
    + record("threads", "7", b"7 Z\n")
    + record("threads", "7", b"9 S\n")
    + record("ksm", "7", b"32\n")
    + record("maps", "7", MAPS[:30])
    + record("maps", "7", MAPS[30:])
    + record("smaps", "7", SMAPS)
    + record("stat", "2", STAT % (2, b"kthreadd", b"S", 0, 0x208040))
    + record("comm", "2", b"kthreadd\n")
    + record("stat", "8", STAT % (8, b"\xff\n@ x y 3\n", b"T", 7, 0))
    + record("comm", "8", b"\xff\n@ x y 3\n\n")
    + record(
        "slabinfo", "-", b"slabinfo - version: 2.1\n# name\nanon_vma  5 5\nanon_vmas 1 1\nx 1\n"
    )
    + record("slab", "anon_vma/objects", b"5 N0=5\n")
)


def test_word() -> None:
    word = parse_word(WORD)
    assert word.facts == {"version": "Linux version 0"}
    assert word.log == [
        {"event": "fork", "index": 1, "pid": 12, "base": "0x7f00", "pages": ""},
        {"event": "READ-NOT"},
    ]
    assert word.slabinfo == ["slabinfo - version: 2.1", "# name", "anon_vma  5 5"]
    assert word.slab == {"anon_vma": {"objects": "5 N0=5"}}
    assert [process.pid for process in word.processes] == [2, 7, 8]


def test_word_of_a_process() -> None:
    thread, process, odd = parse_word(WORD).processes
    assert thread.kernel_thread
    assert not process.kernel_thread
    assert (process.comm, process.state, process.ppid, process.tgid) == ("a) Z 9 (b", "S", 1, 7)
    assert process.threads == [(7, "Z"), (9, "S")]
    assert process.maps == [
        "00400000-00401000 r--p 00000000 00:02 13 /lab/two  blanks\\012",
        "7ffe8a7fa000-7ffe8a81b000 rw-p 00000000 00:00 0 [stack]",
        "7fff00000000-7fff00001000 rw-p 00000000 00:00 0",
    ]
    assert process.smaps == ["8 rd mr mw me", "0 rd wr", "4 rd wr dc"]
    assert (process.ksm, odd.ksm) == (32, None)
    # A command name that holds what looks like a record, and a byte that is not UTF-8.
    assert odd.comm == "\udcff\n@ x y 3\n"
    assert odd.comm.encode("utf-8", "surrogateescape") == b"\xff\n@ x y 3\n"


@pytest.mark.parametrize("length", [0, 1, 20, 100, len(WORD) // 2, len(WORD) - 1])
def test_word_cut_short(length: int) -> None:
    with pytest.raises(GuestError):
        list(records(WORD[:length]))


def test_word_with_a_lost_byte() -> None:
    at = WORD.index(b"[stack]")
    with pytest.raises(GuestError):
        list(records(WORD[:at] + WORD[at + 1 :]))


def test_word_with_a_wrong_byte() -> None:
    with pytest.raises(GuestError, match="checksum"):
        list(records(WORD.replace(b"[stack]", b"[stock]")))


def test_checksum_is_fnv1a() -> None:
    # The published test values of the 32-bit FNV-1a hash.
    assert checksum(b"") == 0x811C9DC5
    assert checksum(b"foobar") == 0xBF9CF968


def test_events() -> None:
    assert parse_event("x a=-3 b=0x10 c=1:2,3:4") == {
        "event": "x",
        "a": -3,
        "b": "0x10",
        "c": "1:2,3:4",
    }


def test_manifest_reads_back() -> None:
    described = describe_word(parse_word(WORD))
    assert [process.get("ksm") for process in described["processes"]] == [None, 32, None]
    text = encode({"word": described, "empty": [], "none": None})
    assert json.loads(text) == {"word": described, "empty": [], "none": None}
    assert text.isascii()
    # An event is a line; what is long or nested is spread.
    assert '\n   {"event": "READ-NOT"}\n' in text
    assert max(map(len, text.splitlines())) < 200


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("6.12.9-1", "6.12.117-1"),
        ("6.12.117-1~deb12u1", "6.12.117-1"),
        ("6.1.192-2", "6.1.192-10"),
        ("1.0~rc1", "1.0"),
        ("1.0", "1.0+b1"),
        ("1.0a", "1.0+"),
        ("9.9", "1:0.1"),
        ("1.0-1", "1.0-1.1"),
        ("6.12-rc1-1", "6.12.1-1"),
    ],
)
def test_version_order(lower: str, higher: str) -> None:
    assert compare_versions(lower, higher) == -1
    assert compare_versions(higher, lower) == 1
    assert compare_versions(lower, lower) == 0


def test_version_zeros() -> None:
    assert compare_versions("1.01", "1.1") == 0
    assert compare_versions("0:1.0", "1.0") == 0
    assert compare_versions("1.0", "1.0-0") == 0


def test_newest_package() -> None:
    names = ["6.12.9", "6.12.117", "6.12.100"]
    packages = [Package(f"linux-image-{name}", f"{name}-1", "amd64") for name in names]
    found = newest(packages)
    assert found is not None
    assert found.version == "6.12.117-1"
    assert newest([]) is None


def test_kernel_patterns() -> None:
    pattern = KERNELS["6.12"].pattern
    assert re.fullmatch(pattern, "linux-image-6.12.117+deb12-cloud-amd64")
    for other in (
        "linux-image-6.12-cloud-amd64",
        "linux-image-6.12.117+deb12-cloud-amd64-unsigned",
    ):
        assert not re.fullmatch(pattern, other)
    assert not re.fullmatch(KERNELS["6.1"].pattern, "linux-image-6.12.9+deb12-cloud-amd64")
    with pytest.raises(LabError, match=r"6\.1, 6\.12"):
        kernel("6.13")


def test_config_facts() -> None:
    facts = config_facts("CONFIG_KSM=y\n# CONFIG_DEBUG_VM is not set\nCONFIG_NR_CPUS=8192\n")
    assert facts["CONFIG_KSM"] == "y"
    assert facts["CONFIG_DEBUG_VM"] == "n"
    assert facts["CONFIG_NR_CPUS"] == "8192"


def test_archive() -> None:
    archive = Archive()
    archive.directory("lab")
    archive.file("lab/x", b"abcde", 0o755)
    archive.character_device("dev/console", 5, 1)
    data = archive.finish()
    members, at = {}, 0
    while at < len(data):
        magic, *fields = struct.unpack_from("6s" + "8s" * 13, data, at)
        assert magic == b"070701"
        mode, size, major, minor, name_size = (int(fields[i], 16) for i in (1, 6, 9, 10, 11))
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        at += (110 + name_size + 3) & ~3
        members[name] = (mode, data[at : at + size], (major, minor))
        at += (size + 3) & ~3
    assert members == {
        "lab": (0o040755, b"", (0, 0)),
        "lab/x": (0o100755, b"abcde", (0, 0)),
        "dev/console": (0o020600, b"", (5, 1)),
        "TRAILER!!!": (0, b"", (0, 0)),
    }


def test_module_compression(tmp_path: Path) -> None:
    plain, packed, odd = (tmp_path / name for name in ("a.ko", "a.ko.xz", "a.ko.zst"))
    plain.write_bytes(b"ELF")
    packed.write_bytes(lzma.compress(b"ELF"))
    odd.write_bytes(b"?")
    assert read_module(plain) == read_module(packed) == b"ELF"
    with pytest.raises(LabError, match=r"a\.ko\.zst"):
        read_module(odd)


def module(depends: str) -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"


def test_module_order(tmp_path: Path) -> None:
    root = tmp_path / "usr/lib/modules/7.0"
    (root / "kernel/drivers").mkdir(parents=True)
    (root / "modules.builtin").write_text("kernel/drivers/in-built.ko\n")
    files = {"disk": "ring,in_built,bus-x", "ring": "", "bus-x": "ring", "other": ""}
    for name, depends in files.items():
        (root / f"kernel/drivers/{name}.ko").write_bytes(module(depends))
    found = find_modules(tmp_path, ["in-built", "disk", "ring"])
    assert [path.name for path in found] == ["ring.ko", "bus-x.ko", "disk.ko"]
    with pytest.raises(LabError, match="no module absent"):
        find_modules(tmp_path, ["absent"])


def test_symbols(tmp_path: Path) -> None:
    lines = [
        "ffffffff88213940 D init_task",
        "ffffffff88213941 D init_task_other",
        "ffffffffc0000000 d init_mm\t[module]",
        "ffffffff87da317c R __start_BTF",
        "ffffffff880d75e6 R __stop_BTF",
    ]
    picked = pick(lines)
    assert picked == [lines[0], lines[3], lines[4]]
    write_map(picked, tmp_path / "x.map")
    assert (tmp_path / "x.map").read_text().splitlines() == picked
    with pytest.raises(LabError, match="__stop_BTF"):
        write_map(picked[:2], tmp_path / "y.map")
    assert list(NAMES) == sorted(set(NAMES))
    # The witness reads them into a buffer of 4 kB.
    assert len("\n".join(NAMES)) < 3000


def test_workloads_have_parameters_and_fixtures() -> None:
    assert set(WORKLOADS) == set(PARAMETERS)
    for name in WORKLOADS:
        source = (HERE / "workloads" / f"{name}.c").read_text()
        for parameter in (*PARAMETERS[name], "seed"):
            assert f'lab_parameter(argc, argv, "{parameter}"' in source


def test_fixtures_cover_all() -> None:
    plans = FIXTURES.values()
    # But for that which is a bug from the first process on.
    assert {one.kernel for one in plans} == set(KERNELS) - {"7.3-forgetful"}
    # The others have no end, or are too large.
    assert {one.workload for one in plans} == set(WORKLOADS) - {"storm", "large"}
    assert all(name.endswith(f"{one.workload}-{one.kernel}") for name, one in FIXTURES.items())
    assert {one.kdump.compression for one in plans if one.kdump} == {"lzo", "zstd", "zlib"}


# What 6.12.117-faults wrote on its console when an allocation of the actor's failed, shortened.
FORCED = """\
FAULT_INJECTION: forcing a failure.
name failslab, interval 1, probability 100, space 0, times 4
CPU: 0 UID: 0 PID: 36 Comm: split-1 Not tainted 6.12.117-faults #1
Call Trace:
 <TASK>
 dump_stack_lvl+0x4f/0x60
 should_fail_ex+0x144/0x150
 should_failslab+0x40/0x60
 kmem_cache_alloc_noprof+0x33/0x1d0
 ? vm_area_dup+0x1a/0x110
 vm_area_dup+0x1a/0x110
 __split_vma+0x69/0x380
 do_mprotect_pkey.constprop.0+0x226/0x3a0
 </TASK>
"""


def test_what_failed() -> None:
    assert failed_in(FORCED) == "vm_area_dup"
    # Of several failures in a row, the first.
    assert failed_in(FORCED + FORCED.replace("vm_area_dup", "mas_preallocate")) == "vm_area_dup"
    # With times in the messages.
    timed = re.sub(r"^", "[   12.345678] ", FORCED, flags=re.MULTILINE)
    assert failed_in(timed) == "vm_area_dup"
    assert failed_in("LAB-STEP number=1\n") is None
    assert complaints(FORCED) == []
    # The forms of include/asm-generic/bug.h, mm/debug.c and mm/memory.c.
    for line in (
        "WARNING: CPU: 0 PID: 36 at mm/vma.c:590 validate_mm+0x1/0x2",
        "kernel BUG at mm/rmap.c:1!",
        "BUG: Bad rss-counter state mm:0 type:MM_ANONPAGES val:1",
        "Oops: 0000 [#1] SMP",
    ):
        assert complaints(f"{FORCED}{line}\nand more\n") == [line]


def test_operation_that_left_something() -> None:
    step = Step(number=1, nth=1, row=1, failed=True, result=-12, where=None, wrong=())
    operation = Operation("fork", [step, replace(step, wrong=("AV402",))])
    assert operation.wrong == 1
    operation.left = {"anon_vma": 1}
    assert operation.wrong == 2


def test_configuration_that_is_not_taken() -> None:
    wanted = "# why\nCONFIG_A=y\nCONFIG_B=y\n"
    assert missing_options(wanted, "CONFIG_A=y\n# CONFIG_B is not set\n") == ["CONFIG_B=y"]
    for one in KERNELS.values():
        assert one.config is None or (CONFIGS / one.config).is_file()


def test_figures() -> None:
    # Two children by hand: the parent's VMA has one link, each child's two; five AVCs.
    many = figures("many", {"children": 2, "pages": 10})
    assert many is not None
    assert (many["vmas"], many["avcs"], many["anon_vmas"]) == (3, 5, 3)
    assert (many["largest_tree"], many["trees_of_one"]) == (3, 2)
    # A parent's page is looked for in three VMAs, ten of them; a child's in its own, twenty.
    assert many["visits_all_pages"] == 10 * 3 + 20
    # A child and its child with two pages, each a VMA: root 2, child 2 * 2, grandchild 2 * 3 links.
    large = figures("large", {"children": 1, "grandchildren": 1, "pages": 2, "written": 1})
    assert large is not None
    assert (large["vmas"], large["avcs"], large["anon_vmas"]) == (6, 12, 5)
    assert figures("mixed", {}) is None


def test_makedumpfile_command() -> None:
    assert Filter().command() == "makedumpfile -c -d 31 /proc/vmcore part1"
    split = Filter("zstd", level=1, parts=2).command()
    assert split == "makedumpfile -z -d 1 --split /proc/vmcore part1 part2"
    assert Filter("none").command() == "makedumpfile -d 31 /proc/vmcore part1"
    header = b"KDUMP   " + bytes(416)
    assert compression_of(header + b"\x20\0\0\0") == "zstd"
    assert compression_of(header + bytes(4)) == "none"
    with pytest.raises(LabError, match="no dump"):
        compression_of(b"makedumpfile" + bytes(4096))
    assert dump_names(Path("a/x.core"), 1) == [Path("a/x.core")]
    assert dump_names(Path("a/x.core"), 2) == [Path("a/x.core.1"), Path("a/x.core.2")]


def test_plan() -> None:
    one = plan("x", "6.1", "forktree", ["depth=2", "seed=9"], smaps=True)
    assert (one.parameters["depth"], one.parameters["fan"], one.seed, one.smaps) == (2, 3, 9, True)
    assert one.arguments()[-1] == "seed=9"
    for wrong in ("depth", "depth=x", "width=3"):
        with pytest.raises(LabError, match="NAME=NUMBER"):
            plan("x", "6.1", "forktree", [wrong])
    with pytest.raises(LabError, match="no-such"):
        plan("x", "6.1", "no-such")
    with pytest.raises(LabError, match="forktree-6"):
        fixture("no-such")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(LabError, match=r"apt-get install .* absent-package$"):
        require([Need("sh", "dash"), Need("no-such-program", "absent-package")])


def test_interpreter_of_a_guest(tmp_path: Path) -> None:
    listing = (
        "\tlinux-vdso.so.1 (0x00007f9434020000)\n"
        "\tlibpython3.11.so.1.0 => /opt/lib/libpython3.11.so.1.0 (0x00007f9433a00000)\n"
        "\tlibgone.so => not found\n"
        "\t/lib64/ld-linux-x86-64.so.2 (0x00007f9434022000)\n"
    )
    assert libraries(listing) == [
        Path("/opt/lib/libpython3.11.so.1.0"),
        Path("/lib64/ld-linux-x86-64.so.2"),
    ]
    assert libraries("\tstatically linked\n") == []
    names = {one.name.lower() for one in dependencies("anonvma-inspect")}
    assert {"drgn", "numpy", "click", "tabulate", "pygments"} <= names
    assert not {"pytest", "mypy", "anonvma-inspect"} & names
    # Without its source, as it is in the guest.
    (tmp_path / "made_here.pyc").write_bytes(compiled(b"WORD = 'said'\n", "/made_here.py"))
    sys.path.insert(0, str(tmp_path))
    try:
        assert __import__("made_here").WORD == "said"
    finally:
        sys.path.remove(str(tmp_path))
        del sys.modules["made_here"]


def test_lines_of_a_guest() -> None:
    assert split(b"one\ntwo\nthr") == (["one", "two"], 8)
    assert split(b"thr") == ([], 0)
    assert split(b"three\n\xff\n") == (["three", "\ufffd"], 8)


ANSWER = {
    "counts": {"vmas": 7},
    "findings": [
        {
            "severity": severity,
            "code": code,
            "message": "is odd",
            "object": {"type": "anon_vma", "address": "0x10"},
            "expected": "1",
            "actual": "2",
        }
        for severity, code in (("error", "AV402"), ("error", "AV402"), ("warning", "AV404"))
    ],
    "in_flight": [
        {"operation": operation, "lock": {"address": lock}}
        for operation, lock in (("fork", "0x1"), ("exit", "0x2"), ("fork", "0x3"), ("fork", "0x1"))
    ],
    "transient_total": 2,
}


def test_verdict() -> None:
    made = read_verdict(1, json.dumps(ANSWER))
    assert (made.errors, made.warnings) == ({"AV402": 2}, {"AV404": 1})
    assert made.in_flight == {"fork": 2, "exit": 1}
    assert (made.transient, made.counts, made.wrong) == (2, {"vmas": 7}, True)
    assert made.said[0] == "AV402 is odd: anon_vma 0x10, expected 1, actual 2"
    # No answer is not a clean one.
    for code, answer in ((3, "{}"), (0, ""), (0, "[]"), (-9, json.dumps(ANSWER))):
        failed = read_verdict(code, answer, "one\nno such thing\n")
        assert failed.wrong
        assert (failed.errors, failed.said) == ({"failed": 1}, ["one", "no such thing"])


def test_series_goes_on(tmp_path: Path) -> None:
    series = Series.load(tmp_path / "x.json")
    assert series.rows == []
    series.add(read_verdict(1, json.dumps(ANSWER)), seed=4, seconds=0.5)
    series.add(read_verdict(0, json.dumps({**ANSWER, "findings": []})), seed=4, seconds=1.5)
    again = Series.load(tmp_path / "x.json")
    assert again.rows == series.rows
    assert again.wrong == 1
    text = "\n".join(again.summary("x"))
    assert "2 dumps of 7 to 7 VMAs, 1 with errors, 2 with operations in flight" in text
    assert "errors: AV402 2" in text
    assert "in_flight: exit 2, fork 4" in text


ROUND = {
    "schema": "anonvma-inspect/audit-round/1",
    "outcome": "violated",
    "counts": {"vmas": 30},
    "looked": {"seconds": 2.5, "bytes_read": 1 << 20},
    "transient_total": 4,
    "findings_total": 5,
    "new_findings": ANSWER["findings"],
}


def test_rounds_go_on(tmp_path: Path) -> None:
    one = read_round(json.dumps(ROUND))
    assert one is not None
    assert (one.outcome, one.seconds, one.transient, one.vmas, one.errors) == (
        *("violated", 2.5, 4, 30, 2),
    )
    for line in ("", "reading tasks", "[1]", json.dumps({**ROUND, "schema": "another"})):
        assert read_round(line) is None
    clean = read_round(
        json.dumps({**ROUND, "outcome": "clean", "looked": None, "new_findings": []})
    )
    assert clean is not None
    path = tmp_path / "x.json"
    history = History.load(path)
    for each in (one, clean, clean):
        history.add(each)
    history.ended(1)
    history.save(path)
    again = History.load(path)
    assert again == history
    assert (again.rounds, again.errors, again.outcomes) == (3, 2, {"clean": 2, "violated": 1})
    text = "\n".join(again.summary("x"))
    assert "3 rounds in 0 boots: 2 clean, 1 violated; 2 errors" in text
    assert "exit codes 1 (1 times)" in text


def test_packet_of_the_remote_protocol() -> None:
    # The documentation's checksum: the sum of the characters, modulo 256.
    assert packet("OK") == b"$OK#9a"
    assert packet("") == b"$#00"


def test_who_finds_a_change() -> None:
    change = Change("quiet", "x.y", 0x40, 0x48, 8, 1, 2, frozenset((0x40, 0x1000)))

    def found(address: str, root: str | None, severity: str = "error") -> dict[str, object]:
        thing = {"type": "x", "address": address}
        return {"severity": severity, "code": "AV1", "object": thing, "root": root, "cause": None}

    rounds = [
        {"round": 1, "new_findings": [found("0x50", None), found("0x40", None, "warning")]},
        {"round": 2, "new_findings": [found("0x50", "0x1000")]},
    ]
    made = about(change, rounds, "-k")
    assert (made.round, made.codes, made.others) == (2, ("AV1",), ("AV1",))
    assert about(change, rounds[:1], "-k").round is None
    assert "NOT FOUND" in str(about(change, [], "-k"))


@pytest.mark.parametrize(
    ("deaths", "boots"),
    [
        ([BootError], 2),
        ([BootError, BootError], 3),
        # A kernel that never boots does not.
        ([BootError] * 3, 3),
        # One that dies later died of what it did.
        ([GuestError], 1),
        ([BootError, GuestError], 2),
    ],
)
def test_a_kernel_that_did_not_boot_is_booted_again(
    deaths: list[type[GuestError]], boots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upcoming = iter(deaths)
    begun: list[int] = []

    class Dying:
        def __enter__(self) -> Dying:
            begun.append(1)
            return self

        def __exit__(self, *rest: object) -> None:
            pass

        def wait(self, timeout: float, until: str) -> None:
            for death in upcoming:
                raise death("It died.")

    said: list[str] = []
    lab = Lab(tmp_path, said.append)
    monkeypatch.setattr(lab, "boot", lambda prepared, disk: Dying())
    image = KernelImage(Package("linux", "1", "amd64"), "6.12", tmp_path)
    prepared = Prepared(plan("x", "6.12", "forktree"), MACHINES["amd64"], image, b"", "")
    worked: list[object] = []
    if len(deaths) >= 3 or deaths[-1] is GuestError:
        with pytest.raises(deaths[-1]):
            lab.run(prepared, worked.append)
        assert not worked
    else:
        lab.run(prepared, worked.append)
        assert len(worked) == 1
    assert len(begun) == boots
    assert sum("Booting it again" in line for line in said) == boots - 1
