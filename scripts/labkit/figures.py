"""What a workload's area must come to, worked out by hand from its parameters alone.

It is the kernel's rules applied to the area that the workload's log names (`arena`), and to nothing
else that the processes have mapped.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ("figures",)


def figures(workload: str, parameters: Mapping[str, int]) -> dict[str, int | str] | None:
    """The figures of a workload, or None for one whose figures follow from its log only."""
    if workload == "many":
        return _many(parameters["children"], parameters["pages"])
    if workload == "large":
        return _large(parameters["children"], parameters["grandchildren"], parameters["pages"])
    return None


def _many(children: int, pages: int) -> dict[str, int | str]:
    return {
        "why": (
            "The parent's VMA has one anon_vma, the root. A fork gives the child's VMA one of its "
            "own, whose parent is the root, and a link to each: a chain of two. The root's tree "
            "has the VMAs of all; each child's has one."
        ),
        "vmas": children + 1,
        "anon_vmas": children + 1,
        "roots": 1,
        # The parent's one, and two of each child.
        "avcs": 2 * children + 1,
        "longest_chain": 2 if children else 1,
        "largest_tree": children + 1,
        "trees_of_one": children if children else 1,
        "root_num_children": children + 1,
        "root_num_active_vmas": 1,
        "pages_written": (children + 1) * pages,
        # How many VMAs a reverse map walk visits for one page: before 2010, now, and on average.
        "visits_2009": children + 1,
        "visits_of_a_copied_page": 1,
        "visits_of_a_page_of_the_parent": children + 1,
        "visits_all_pages": children * pages + (children + 1) * pages,
    }


def _large(children: int, grandchildren: int, pages: int) -> dict[str, int | str]:
    leaves = children * grandchildren
    return {
        "why": (
            "The root's area is split after it was written to: a VMA a page, all with the root's "
            "anon_vma. Each fork gives each VMA an anon_vma of its own and links to the parent's "
            "chain: two in a child, three in a grandchild. All are in the root's tree."
        ),
        "vmas": pages * (1 + children + leaves),
        "anon_vmas": 1 + pages * (children + leaves),
        "roots": 1,
        "avcs": pages * (1 + 2 * children + 3 * leaves),
        "longest_chain": 3 if leaves else 2 if children else 1,
        "largest_tree": pages * (1 + children + leaves),
        "root_num_children": 1 + pages * children,
        "root_num_active_vmas": pages,
    }
