/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The case for which chains were made in 2010: children (1,000), pages (1,000), seed.
 *
 * "In a workload with 1000 child processes and a VMA with 1000 anonymous pages per process that get
 * COWed, this leads to a system with a million anonymous pages in the same anon_vma, each of which
 * is mapped in just one of the 1000 processes." (Rik van Riel, 2010-01-28)
 *
 * The parent maps an area and writes to all of its pages; each child writes to all of its own, which
 * copies them. The children live on. Nothing else becomes of the area, so that its figures can be
 * worked out: figures.py does.
 *
 * Log: arena, then a line for each child.
 */
#include "lab.h"

int main(int argc, char **argv)
{
    long children = lab_parameter(argc, argv, "children", 1000);
    long pages = lab_parameter(argc, argv, "pages", 1000);
    char *area, *room;

    lab_seed(lab_parameter(argc, argv, "seed", 1), 0);
    lab_name("many-parent");
    lab_board_make();
    room = mmap(NULL, (pages + 2) * LAB_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    area = room + LAB_PAGE; /* with a page on either side, so that it merges with nothing */
    if (room == MAP_FAILED || mprotect(area, pages * LAB_PAGE, PROT_READ | PROT_WRITE))
        lab_fail("mapping the area");
    for (long i = 0; i < pages; i++)
        lab_write(area + i * LAB_PAGE);
    lab_log("arena pid=%d base=%p pages=%ld children=%ld", getpid(), (void *)area, pages, children);
    for (long child = 0; child < children; child++) {
        uint32_t born = lab_index();

        if (!lab_fork()) {
            lab_name("many-child");
            lab_log("child index=%u pid=%d", born, getpid());
            for (long i = 0; i < pages; i++)
                lab_write(area + i * LAB_PAGE);
            lab_post(born);
            lab_sleep_for_ever();
        }
        lab_await(born);
    }
    lab_ready();
    lab_sleep_for_ever();
}
