"""Where a dump's symbols come from: a file, VMCOREINFO and kallsyms, or a search for their form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from anonvma_inspect.target.files import map_file
from anonvma_inspect.target.find_data import find_init_task, find_iomem_resource
from anonvma_inspect.target.find_kallsyms import find_kallsyms
from anonvma_inspect.target.image import KernelImage
from anonvma_inspect.target.kallsyms import ANCHORS, MAX_TEXT, Kallsyms, parse_system_map, relocate
from anonvma_inspect.target.layouts import Layouts

__all__ = ("SYMBOLS", "Symbols", "search_data", "symbols_of_dump", "symbols_of_map")

#: Every symbol that anything here looks up, so that it is done once.
SYMBOLS = (
    "__cpu_possible_mask",
    "__end_init_stack",
    "__end_init_task",
    "__kfence_pool",
    "__per_cpu_offset",
    "__start_BTF",
    "__stop_BTF",
    "anon_vma_cachep",
    "anon_vma_chain_cachep",
    "anon_vma_lazy_enabled",
    "anon_vma_lazy_enabled_key",
    "anon_vma_lazy_key",
    "clocksource_jiffies",
    "init_mm",
    "init_stack",
    "init_task",
    "iomem_resource",
    "jiffies_64",
    "kfence_metadata",
    "ksm_nr_node_ids",
    "migrate_nodes",
    "nr_cpu_ids",
    "nr_node_ids",
    "one_stable_tree",
    "page_offset_base",
    "root_stable_tree",
    "runqueues",
    "swap_info",
    "swapper_spaces",
    "vm_area_cachep",
    "vmemmap_base",
)


@dataclass(frozen=True)
class Symbols:
    """Addresses of the kernel's symbols.

    :ivar addresses: Of those of :data:`SYMBOLS` that were found.
    :ivar source: Where they are from: ``system-map``, ``dwarf``, ``kallsyms`` (the tables that
        VMCOREINFO names), ``kallsyms-search`` (tables found by their form) or ``search``
        (variables found by theirs).
    :ivar kallsyms: The tables, if they were found by their form.
    """

    addresses: Mapping[str, int]
    source: str
    kallsyms: Kallsyms | None = None


def symbols_of_map(path: str, vmcoreinfo: Mapping[str, str]) -> Symbols:
    """Symbols from a file in the form of ``/proc/kallsyms`` and ``System.map``.

    :param vmcoreinfo: VMCOREINFO, as key and value: tells where the kernel was loaded.
    :raises TargetError: if it is no such file, or another kernel's.
    """
    text = map_file(path)[: MAX_TEXT + 1].tobytes()
    found = relocate(parse_system_map(text, path, (*SYMBOLS, *ANCHORS)), vmcoreinfo)
    return Symbols({name: found[name] for name in SYMBOLS if name in found}, "system-map")


def symbols_of_dump(
    read: Callable[[int, int], bytes], image: KernelImage | None, vmcoreinfo: Mapping[str, str]
) -> Symbols:
    """Symbols from the kallsyms tables in the dump.

    They are where VMCOREINFO says, else where they are found.

    :param read: Reads ``(address, size)``.
    :param image: ``None`` if VMCOREINFO does not tell where it is.
    :param vmcoreinfo: VMCOREINFO, as key and value.
    :return: Without addresses if there are no tables.
    :raises TargetError: if what VMCOREINFO names is damaged, or the search has several answers.
    """
    if "SYMBOL(kallsyms_names)" in vmcoreinfo:
        return Symbols(Kallsyms(read, vmcoreinfo).lookup(SYMBOLS), "kallsyms")
    found = None if image is None else find_kallsyms(image, vmcoreinfo)
    if found is None:
        return Symbols({}, "search")
    return Symbols(found.lookup(SYMBOLS), "kallsyms-search", found)


def search_data(symbols: Symbols, image: KernelImage, layouts: Layouts) -> Symbols:
    """Add the variables without which nothing can be read, if kallsyms does not have them.

    :raises TargetError: if one could be in several places.
    """
    if "init_task" in symbols.addresses:
        return symbols
    searched = {
        "init_task": find_init_task(image, layouts),
        "iomem_resource": find_iomem_resource(image, layouts),
    }
    found = {name: address for name, address in searched.items() if address is not None}
    return replace(symbols, addresses={**found, **symbols.addresses}, source="search")
