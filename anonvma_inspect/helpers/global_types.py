"""C types of global variables.

BTF types no global variables but per-CPU ones (``pahole`` can be told to add the rest, and then
what it says goes first). These are the variables that drgn's own helpers read, and those of memory
management. Where the length of an array depends on the configuration, it is left open. A name that
a kernel does not have has no symbol there; one whose type it does not have is not found either.
"""

from __future__ import annotations

__all__ = ("GLOBAL_TYPES",)

_NAMES = {
    # Tasks, namespaces, modules.
    "struct task_struct": "init_task",
    "struct pid_namespace": "init_pid_ns",
    "struct uts_namespace": "init_uts_ns",
    "struct ipc_namespace": "init_ipc_ns",
    "struct time_namespace": "init_time_ns",
    "struct user_namespace": "init_user_ns",
    "struct net": "init_net",
    "struct fs_struct": "init_fs",
    "struct task_group": "root_task_group",
    "struct list_head": "modules net_namespace_list slab_caches super_blocks task_groups "
    "pci_root_buses vmap_area_list",
    "struct mod_tree_root": "mod_tree",
    "struct cgroup_root": "cgrp_dfl_root",
    # CPUs and nodes.
    "unsigned long []": "__per_cpu_offset",
    "unsigned int": "nr_cpu_ids nr_node_ids nr_swapfiles nr_vmap_nodes vmap_zone_size",
    "struct cpumask": "__cpu_online_mask __cpu_possible_mask __cpu_present_mask __cpu_active_mask",
    "nodemask_t []": "node_states",
    "struct pglist_data *[]": "node_data",
    "struct pglist_data": "contig_page_data",
    # Where memory is.
    "unsigned long": "__highest_present_section_nr jiffies max_pfn max_low_pfn min_low_pfn "
    "page_offset_base phys_base sysctl_overcommit_kbytes tainted_mask vmalloc_base vmemmap_base",
    "unsigned long [3]": "avenrun",
    "u64": "jiffies_64",
    "struct mem_section **": "mem_section",
    "struct resource": "iomem_resource ioport_resource",
    "struct memblock": "memblock",
    # Memory management.
    "struct mm_struct": "init_mm",
    "struct kmem_cache *": "anon_vma_cachep anon_vma_chain_cachep mm_cachep names_cachep "
    "task_struct_cachep vm_area_cachep",
    "struct kset *": "bus_kset class_kset slab_kset",
    "atomic_long_t": "_totalram_pages nr_swap_pages",
    "atomic_long_t []": "vm_node_stat vm_numa_event vm_zone_stat",
    "long": "total_swap_pages",
    "struct percpu_counter": "vm_committed_as",
    "struct swap_info_struct *[]": "swap_info",
    "struct hstate []": "hstates",
    "struct vmap_node *": "vmap_nodes",
    "int": "hugetlb_max_hstate ipc_mni_shift nr_irqs sections_per_block sysctl_overcommit_ratio",
    "struct rb_root": "vmap_area_root",
    "struct folio *": "huge_zero_folio",
    "struct page *": "huge_zero_page",
    "struct mem_cgroup *": "root_mem_cgroup",
    # Others that drgn's commands print.
    "struct maple_tree": "sparse_irqs",
    "struct radix_tree_root": "irq_desc_tree",
    "struct idr": "btf_idr link_idr map_idr prog_idr",
    "struct printk_ringbuffer *": "prb",
    "struct hlist_head []": "uidhash_table",
    "struct kernfs_node *": "sysfs_root_kn",
    "char *": "log_buf saved_command_line",
    "const char * const [9]": "task_state_array",
    "struct super_block *": "blockdev_superblock",
    "struct neigh_table": "arp_tbl",
    "struct kobj_map *": "cdev_map",
    "struct vmap_node": "single",
    "struct address_space *[]": "swapper_spaces",
    "unsigned int []": "nr_swapper_spaces",
    "void *[]": "stack_pools",
    "const struct file_operations": "ns_file_operations",
    "const struct bus_type": "memory_subsys pci_bus_type",
    "const struct class": "block_class",
    "const struct kobj_type": "bus_ktype class_ktype device_ktype driver_ktype module_ktype",
    "const char []": "linux_banner",
}

#: C type of each name.
GLOBAL_TYPES = {name: type_ for type_, names in _NAMES.items() for name in names.split()}
