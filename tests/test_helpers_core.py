"""Programs on dumps without debugging information: drgn's own helpers find what the guest did."""

from __future__ import annotations

import os
from collections.abc import Iterable

import drgn
import numpy as np
import pytest
from drgn import Object
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.mm import for_each_vma
from drgn.helpers.linux.pid import find_task, for_each_task
from drgn.helpers.linux.slab import find_slab_cache, slab_cache_for_each_allocated_object

from anonvma_inspect.collect import collect
from anonvma_inspect.errors import TargetError
from anonvma_inspect.helpers import open_core, validate_vma_anon
from anonvma_inspect.helpers.global_types import GLOBAL_TYPES
from anonvma_inspect.target.layouts import canonical_name
from anonvma_inspect.target.program import target_of

from .captures import CAPTURES, Capture
from .programs import FULL, program

STRUCTS = (
    "anon_vma", "anon_vma_chain", "file", "folio", "kmem_cache", "list_head", "maple_node",
    "mm_struct", "page", "rb_node", "rb_root_cached", "rq", "rw_semaphore", "signal_struct",
    "slab", "task_struct", "vm_area_struct", "zone",
)  # fmt: skip
# include/linux/sched.h
PF_KTHREAD = 0x00200000

on_captures = pytest.mark.parametrize("capture", CAPTURES, ids=lambda capture: capture.name)
on_dumps = pytest.mark.parametrize("capture", FULL, ids=lambda capture: capture.name)


with_vmlinux = pytest.mark.skipif(
    "ANONVMA_VMLINUX" not in os.environ or "ANONVMA_CORE" not in os.environ,
    reason="needs a dump and its vmlinux: ANONVMA_CORE, ANONVMA_VMLINUX",
)


def _leaders(prog: drgn.Program) -> list[drgn.Object]:
    head = prog["init_task"].tasks.address_of_()
    return list(list_for_each_entry("struct task_struct", head, "tasks"))


# The guest starts and ends kernel threads between its word and the dump.
def _without_kernel_threads(tasks: Iterable[drgn.Object]) -> list[int]:
    return sorted(task.pid.value_() for task in tasks if not task.flags & PF_KTHREAD)


@on_captures
def test_tasks_are_the_guests(capture: Capture) -> None:
    theirs = [
        process["tgid"]
        for process in capture.manifest["word"]["processes"]
        if not process["kernel_thread"]
    ]
    assert _without_kernel_threads(_leaders(program(capture))) == sorted(theirs)


@on_captures
def test_vmas_are_the_guests(capture: Capture) -> None:
    mms = {task.tgid.value_(): task.mm for task in _leaders(program(capture)) if task.mm}
    for process in capture.processes():
        if process["tgid"] not in mms:
            continue  # its leader is dead
        theirs = [
            tuple(int(end, 16) for end in line.split()[0].split("-"))
            for line in process["maps"]
            if "[vsyscall]" not in line
        ]
        ours = sorted(
            (vma.vm_start.value_(), vma.vm_end.value_())
            for vma in for_each_vma(mms[process["tgid"]])
        )
        assert ours == theirs


@on_captures
def test_null_faults(capture: Capture) -> None:
    prog = program(capture)
    null = drgn.NULL(prog, "struct vm_area_struct *")
    for pointer in (null, null + 1, drgn.Object(prog, null.type_, 1 << 46)):
        with pytest.raises(drgn.FaultError):
            pointer.vm_start.value_()


@on_captures
def test_a_program_is_a_target(capture: Capture) -> None:
    prog = program(capture)
    target = target_of(prog)
    assert target.memory is not target_of(prog).memory
    assert target.release == prog["UTS_RELEASE"].string_().decode() == capture.target.release
    assert target.space is target_of(prog).space


@on_captures
def test_what_a_kernel_does_not_have_is_not_found(capture: Capture) -> None:
    prog = program(capture)
    for find in (prog.variable, prog.function, prog.constant, prog.type, prog.symbol):
        with pytest.raises(LookupError):
            find("there_is_nothing_of_this_name")
    with pytest.raises(LookupError):
        prog.type("struct vm_area_struct", "mm_types.h")
    with pytest.raises(LookupError):
        prog.variable("init_task", "init_task.c")


@pytest.mark.parametrize(
    "capture",
    [capture for capture in CAPTURES if capture not in FULL],
    ids=lambda capture: capture.name,
)
def test_words_not_captured_fault(capture: Capture) -> None:
    prog = program(capture)
    with pytest.raises(drgn.FaultError, match="not captured"):
        prog["init_task"].min_flt.value_()
    with pytest.raises(drgn.FaultError, match="not in any segment"):
        prog.read(prog["init_task"].address_ + (1 << 30), 8)


@on_dumps
def test_drgn_finds_all_tasks(capture: Capture) -> None:
    prog = program(capture)
    theirs: set[int] = set()
    for process in capture.manifest["word"]["processes"]:
        if not process["kernel_thread"]:
            theirs.add(process["tgid"])
            theirs.update(int(thread.split()[0]) for thread in process["threads"])
    assert _without_kernel_threads(for_each_task(prog)) == sorted(theirs)
    assert find_task(prog, 1).pid.value_() == 1


@on_dumps
def test_drgn_finds_all_anon_vmas(capture: Capture) -> None:
    prog = program(capture)
    cache = find_slab_cache(prog, "anon_vma")
    found = {
        anon_vma.value_()
        for anon_vma in slab_cache_for_each_allocated_object(cache, "struct anon_vma")
    }
    anon_vmas = capture.tables.anon_vmas
    assert set(anon_vmas.address[anon_vmas.reached].tolist()) <= found
    objects = capture.manifest["word"]["slab"]["anon_vma"]["objects"]
    assert len(found) <= int(objects.split()[0])


@on_dumps
def test_symbols_and_constants(capture: Capture) -> None:
    prog = program(capture)
    function = prog.function("kernel_clone")
    assert prog.symbol(function.address_).name == "kernel_clone"
    assert function.type_.kind == drgn.TypeKind.FUNCTION
    assert prog.constant("PIDTYPE_PID").type_.type_name() == "enum pid_type"
    assert len(set(for_each_possible_cpu(prog))) == prog["nr_cpu_ids"].value_()
    assert prog["runqueues"].type_.type_name() == "struct rq"


def test_a_file_that_does_not_exist() -> None:
    with pytest.raises(TargetError, match="no such file"):
        open_core("/nowhere/core")


def _members(type_: drgn.Type) -> list[object]:
    return [
        (
            member.name,
            member.bit_offset,
            member.bit_field_size,
            canonical_name(member.type.type_name()),
            _members(member.type) if "<anonymous>" in member.type.type_name() else None,
        )
        for member in (
            type_.members if type_.kind in (drgn.TypeKind.STRUCT, drgn.TypeKind.UNION) else ()
        )
        or ()
    ]


def _dwarf_program() -> drgn.Program:
    prog = drgn.Program()
    prog.set_core_dump(os.environ["ANONVMA_CORE"])
    prog.load_debug_info([os.environ["ANONVMA_VMLINUX"]])
    return prog


@with_vmlinux
def test_a_program_with_debuginfo_is_the_same_target() -> None:
    from_dwarf = collect(target_of(_dwarf_program()))
    from_btf = collect(target_of(open_core(os.environ["ANONVMA_CORE"])))
    for table in ("tasks", "mms", "vmas", "links", "avcs", "anon_vmas", "nodes"):
        one, other = getattr(from_dwarf, table), getattr(from_btf, table)
        for name in one.__dataclass_fields__:
            assert np.array_equal(getattr(one, name), getattr(other, name)), f"{table}.{name}"
    vma = Object(_dwarf_program(), "struct vm_area_struct *", int(from_dwarf.vmas.address[0]))
    validate_vma_anon(vma)


@with_vmlinux
def test_debuginfo_goes_first() -> None:
    prog = open_core(os.environ["ANONVMA_CORE"])
    prog.load_debug_info([os.environ["ANONVMA_VMLINUX"]])
    assert prog["node_states"].type_.length is not None
    assert prog.type("struct vm_area_struct", "mm_types.h").size
    validate_vma_anon(next(for_each_vma(_leaders(prog)[0].mm)))


def test_a_program_without_types_is_refused() -> None:
    with pytest.raises(TargetError, match="not a Linux kernel"):
        target_of(drgn.Program())


@with_vmlinux
def test_types_and_variables_equal_dwarf() -> None:
    ours = open_core(os.environ["ANONVMA_CORE"])
    dwarf = _dwarf_program()
    for name in STRUCTS:
        mine, theirs = ours.type(f"struct {name}"), dwarf.type(f"struct {name}")
        assert mine.size == theirs.size
        assert _members(mine) == _members(theirs), name
    compared = 0
    for name in GLOBAL_TYPES:
        try:
            mine_object, their_object = ours.variable(name), dwarf.variable(name)
        except LookupError:
            continue
        assert mine_object.address_ == their_object.address_, name
        open_length = mine_object.type_.type_name().split("[]")
        assert their_object.type_.type_name().startswith(open_length[0]), name
        compared += 1
    assert compared > 50
