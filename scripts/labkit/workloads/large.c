/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A large guest for benchmarks: children (61), grandchildren of each (23), pages (400), written (100),
 * seed. As it is, some 600,000 VMAs and 1,750,000 AVCs.
 *
 * The root writes to every other page of an anonymous mapping and takes all rights from those between,
 * which makes a VMA of every page. Each child writes to `written` of the pages that the root wrote
 * to, beginning at one that the seed chooses, then forks its grandchildren, which write to none.
 *
 * Log: arena, then a line for each child.
 */
#include "lab.h"

static void grandchildren(long count)
{
    for (long i = 0; i < count; i++) {
        uint32_t born = lab_index();

        if (!lab_fork()) {
            lab_name("large-leaf");
            lab_post(born);
            lab_sleep_for_ever();
        }
        lab_await(born);
    }
}

int main(int argc, char **argv)
{
    long children = lab_parameter(argc, argv, "children", 61);
    long leaves = lab_parameter(argc, argv, "grandchildren", 23);
    long pages = lab_parameter(argc, argv, "pages", 400);
    long written = lab_parameter(argc, argv, "written", 100);
    char *area;

    lab_seed(lab_parameter(argc, argv, "seed", 1), 0);
    lab_name("large-root");
    lab_board_make();
    area = mmap(NULL, pages * LAB_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        lab_fail("mapping the area");
    for (long i = 0; i < pages; i += 2)
        lab_write(area + i * LAB_PAGE);
    for (long i = 1; i < pages; i += 2)
        if (mprotect(area + i * LAB_PAGE, LAB_PAGE, PROT_NONE))
            lab_fail("splitting the area");
    lab_log("arena pid=%d base=%p pages=%ld children=%ld grandchildren=%ld", getpid(), (void *)area,
            pages, children, leaves);
    for (long child = 0; child < children; child++) {
        uint32_t born = lab_index();
        unsigned first = lab_random((pages + 1) / 2);

        if (!lab_fork()) {
            lab_name("large-child");
            lab_log("child index=%u pid=%d first=%u", born, getpid(), 2 * first);
            for (long i = 0; i < written; i++)
                lab_write(area + 2 * ((first + i) % ((pages + 1) / 2)) * LAB_PAGE);
            grandchildren(leaves);
            lab_post(born);
            lab_sleep_for_ever();
        }
        lab_await(born);
    }
    lab_ready();
    lab_sleep_for_ever();
}
