"""The script that one would write in drgn without this package.

    python -m benchkit.plain CORE [VMLINUX]

It walks every process's VMAs, their ``anon_vma_chain`` lists and the interval trees of the
anon_vmas, and checks two things: ``num_active_vmas``, and that each tree holds as many AVCs as the
lists say. Types come from a vmlinux, or without one from the dump's BTF (by ``open_core()``).
"""

from __future__ import annotations

import sys
from collections import Counter

import drgn
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.mm import for_each_vma
from drgn.helpers.linux.rbtree import rbtree_inorder_for_each_entry

from anonvma_inspect.helpers import open_core


def main(core: str, vmlinux: str | None = None) -> int:
    """Run the script.

    :return: 1 if a count is wrong.
    """
    if vmlinux is None:
        prog = open_core(core)
    else:
        prog = drgn.Program()
        prog.set_core_dump(core)
        prog.load_debug_info([vmlinux])
    active: Counter[int] = Counter()
    listed: Counter[int] = Counter()
    anon_vmas = {}
    mms = {}
    tasks = prog["init_task"].tasks.address_of_()
    for task in list_for_each_entry("struct task_struct", tasks, "tasks"):
        if task.mm:
            mms[task.mm.value_()] = task.mm
    vmas = avcs = 0
    for mm in mms.values():
        for vma in for_each_vma(mm):
            vmas += 1
            active[vma.anon_vma.value_()] += 1
            head = vma.anon_vma_chain.address_of_()
            for avc in list_for_each_entry("struct anon_vma_chain", head, "same_vma"):
                avcs += 1
                anon_vma = avc.anon_vma
                listed[anon_vma.value_()] += 1
                anon_vmas[anon_vma.value_()] = anon_vma
    wrong = 0
    for address, anon_vma in anon_vmas.items():
        wrong += anon_vma.num_active_vmas.value_() != active[address]
        root = anon_vma.rb_root.rb_root.address_of_()
        nodes = sum(1 for _ in rbtree_inorder_for_each_entry("struct anon_vma_chain", root, "rb"))
        wrong += nodes != listed[address]
    print(f"{vmas} VMAs, {avcs} AVCs, {len(anon_vmas)} anon_vmas, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
