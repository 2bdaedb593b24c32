"""Functions of the kernel's that tell what a task is doing to the reverse map.

They are those that change or walk it, what leads to them, and what a task that holds one of its
locks can be stuck in. A name that a kernel does not have costs nothing.
"""

from __future__ import annotations

__all__ = ("FUNCTIONS", "spellings")

# kernel/fork.c, fs/exec.c, mm/mmap.c, mm/vma.c, mm/mremap.c, mm/mprotect.c, mm/madvise.c,
# mm/memory.c, mm/rmap.c, mm/ksm.c, mm/khugepaged.c, mm/migrate.c, mm/vmscan.c and others, v5.10 to
# v7.3.
#: Names without what the compiler appends to them.
FUNCTIONS = (
    # fork
    "kernel_clone", "copy_process", "dup_mm", "dup_mmap", "anon_vma_fork", "anon_vma_clone",
    # exec
    "bprm_execve", "load_elf_binary", "begin_new_exec", "exec_mmap", "setup_arg_pages",
    "shift_arg_pages", "relocate_vma_down",
    # exit
    "do_exit", "exit_mm", "mmput", "__mmput", "exit_mmap", "unlink_anon_vmas", "free_pgtables",
    "oom_reaper", "__oom_reap_task_mm",
    # mmap, munmap, brk
    "do_mmap", "mmap_region", "__mmap_region", "vm_mmap_pgoff", "vm_brk_flags", "do_brk_flags",
    "__vm_munmap", "do_munmap", "__do_munmap", "do_mas_munmap", "do_mas_align_munmap",
    "do_vmi_munmap", "do_vmi_align_munmap", "vms_gather_munmap_vmas", "vms_complete_munmap_vmas",
    "unmap_region", "unmap_vmas", "zap_page_range_single",
    # mremap, mprotect, madvise, mlock, mempolicy
    "__do_sys_mremap", "do_mremap", "mremap_to", "move_vma", "copy_vma", "move_page_tables",
    "do_mprotect_pkey", "mprotect_fixup", "change_protection", "do_madvise",
    "madvise_vma_behavior", "apply_vma_lock_flags", "__mm_populate", "do_mbind", "do_migrate_pages",
    # VMAs
    "__vma_adjust", "__split_vma", "split_vma", "vma_merge", "vma_merge_new_range",
    "vma_merge_existing_range", "vma_modify", "vma_expand", "vma_shrink", "commit_merge",
    "vma_complete", "vma_link", "expand_downwards", "expand_stack", "expand_stack_locked",
    # locks of single VMAs
    "__vma_start_write",
    "__vma_enter_locked",
    "__vma_exclude_readers_for_detach",
    "lock_vma_under_rcu",
    # faults
    "do_user_addr_fault", "do_page_fault", "handle_mm_fault", "__handle_mm_fault",
    "lock_mm_and_find_vma", "do_anonymous_page", "do_huge_pmd_anonymous_page", "do_wp_page",
    "wp_page_copy", "do_swap_page", "do_fault", "do_cow_fault", "filemap_fault",
    "__anon_vma_prepare", "handle_userfault", "get_user_pages_remote", "__get_user_pages",
    "access_remote_vm", "__access_remote_vm", "process_vm_rw",
    # walks of the reverse map
    "rmap_walk", "rmap_walk_anon", "rmap_walk_ksm", "page_lock_anon_vma_read",
    "folio_lock_anon_vma_read", "try_to_unmap", "try_to_migrate", "page_referenced",
    "folio_referenced", "page_mkclean", "folio_mkclean", "migrate_pages", "migrate_pages_batch",
    "compact_zone", "shrink_page_list", "shrink_folio_list", "shrink_lruvec", "try_to_free_pages",
    "kswapd", "kcompactd", "kdamond_fn", "memory_failure",
    # huge pages, KSM, userfaultfd, notifiers
    "split_huge_page_to_list", "split_huge_page_to_list_to_order", "__folio_split",
    "collapse_huge_page", "khugepaged", "ksm_scan_thread", "ksm_do_scan",
    "try_to_merge_one_page", "unmerge_ksm_pages", "break_ksm", "move_pages",
    "mm_take_all_locks", "__mmu_notifier_register",
    # /proc
    "show_smap", "show_smaps_rollup", "m_start", "pagemap_read", "clear_refs_write",
    "proc_pid_cmdline_read", "environ_read",
    # waiting
    "down_read", "down_read_killable", "down_write", "down_write_killable",
    "rwsem_down_read_slowpath", "rwsem_down_write_slowpath", "rwbase_write_lock",
    "__rwbase_read_lock", "rt_mutex_slowlock", "mutex_lock", "__mutex_lock",
    "folio_wait_bit_common", "__folio_lock", "__lock_page", "io_schedule", "synchronize_rcu",
    "wait_for_completion", "__alloc_pages_slowpath", "__cond_resched", "balance_dirty_pages",
)  # fmt: skip
# What gcc appends to the names of what it has made of a function.
_SUFFIXES = (
    "",
    ".isra.0",
    ".constprop.0",
    ".part.0",
    ".cold",
    ".isra.0.cold",
    ".constprop.0.cold",
    ".part.0.cold",
    ".constprop.0.isra.0",
    ".isra.0.constprop.0",
    ".isra.0.part.0",
)


def spellings(name: str) -> tuple[str, ...]:
    """The names under which a symbol table can have a function."""
    return tuple(name + suffix for suffix in _SUFFIXES)
