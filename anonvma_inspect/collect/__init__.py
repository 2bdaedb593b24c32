"""From a target to tables."""

from __future__ import annotations

from anonvma_inspect.collect.audit import collect_audit
from anonvma_inspect.collect.collector import collect, collect_from, collect_tag_scheme
from anonvma_inspect.collect.locks import collect_locks
from anonvma_inspect.collect.pages import collect_pages
from anonvma_inspect.collect.paths import file_paths
from anonvma_inspect.collect.rmap import Rmap, find_frame, frame_at, read_rmap
from anonvma_inspect.collect.slabs import collect_slabs
from anonvma_inspect.collect.snapshot import Saved, check_output, save_snapshot
from anonvma_inspect.collect.stacks import functions_on_stacks
from anonvma_inspect.collect.tasks import broken_threads

__all__ = (
    "Rmap",
    "Saved",
    "broken_threads",
    "check_output",
    "collect",
    "collect_audit",
    "collect_from",
    "collect_locks",
    "collect_pages",
    "collect_slabs",
    "collect_tag_scheme",
    "file_paths",
    "find_frame",
    "frame_at",
    "functions_on_stacks",
    "read_rmap",
    "save_snapshot",
)
