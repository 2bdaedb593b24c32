"""Addresses of the kernel's symbols, for dumps that do not tell them: ``NAME.map`` beside the dump.

The file has the form of ``/proc/kallsyms`` and ``System.map``. It has only these names, of the some
hundred thousand that there are: what reading the anonymous reverse map takes, and drgn's helpers
for tasks, slabs and address translation.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .errors import LabError

__all__ = ("NAMES", "pick", "write_map")

NAMES = (
    "__cpu_online_mask",
    "__cpu_possible_mask",
    "__highest_present_section_nr",
    "__kfence_pool",
    "__per_cpu_offset",
    "__start_BTF",
    "__stop_BTF",
    "_end",
    "_etext",
    "_stext",
    "_text",
    "anon_vma_cachep",
    "anon_vma_chain_cachep",
    "high_memory",
    "init_mm",
    "init_pid_ns",
    "init_task",
    "init_top_pgt",
    "init_uts_ns",
    "iomem_resource",
    "kfence_metadata",
    "ksm_mm_head",
    "ksm_nr_node_ids",
    "linux_banner",
    "max_pfn",
    "mem_section",
    "memstart_addr",
    "migrate_nodes",
    "modules",
    "node_data",
    "node_states",
    "nr_cpu_ids",
    "nr_node_ids",
    "one_stable_tree",
    "page_offset_base",
    "phys_base",
    "root_stable_tree",
    "root_task_group",
    "root_unstable_tree",
    "runqueues",
    "saved_command_line",
    "slab_caches",
    "slab_mutex",
    "swap_info",
    "swapper_pg_dir",
    "swapper_spaces",
    "vabits_actual",
    "vm_area_cachep",
    "vmalloc_base",
    "vmcoreinfo_data",
    "vmcoreinfo_size",
    "vmemmap_base",
)


def pick(lines: Iterable[str], names: Iterable[str] = NAMES) -> list[str]:
    """Of lines such as ``ffffffff81000000 T _text`` those of these names, the kernel's own only."""
    wanted = frozenset(names)
    return [line for line in lines if len(words := line.split()) == 3 and words[2] in wanted]


def write_map(lines: list[str], path: Path) -> None:
    """Write a map, if it has what no dump can be understood without."""
    known = {line.split()[2] for line in lines}
    missing = {"init_task", "__start_BTF", "__stop_BTF"} - known
    if missing:
        raise LabError(f"The symbols of this kernel lack {', '.join(sorted(missing))}.")
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
