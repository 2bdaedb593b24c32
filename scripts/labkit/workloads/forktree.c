/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A tree of forks, all of it alive: depth, fan, slots, pages, percent (chance of a write), seed.
 *
 * The root maps an arena and writes to most of its slots; every process below writes to some when
 * it is born, forks its children one after the other, and then may write to more: to copy pages at
 * every level, and so that some anon_vmas start below the root. Slot 0 is split in three by
 * mprotect() after it was written to: three VMAs with one anon_vma.
 *
 * Log: arena, map, touch, split, and fork with the parent's index, in the order in which they
 * happened. From it, who inherits which anon_vma from whom can be worked out.
 */
#include "lab.h"

static struct lab_arena arena;
static long fan, percent, seed;

static void grow(uint32_t index, long depth)
{
    for (long child = 0; child < fan && depth > 0; child++) {
        uint32_t born = lab_index();
        pid_t parent = getpid();

        if (!lab_fork()) {
            char comm[16];

            snprintf(comm, sizeof(comm), "tree-%u", born);
            lab_name(comm);
            lab_seed(seed, born);
            lab_log("fork index=%u pid=%d parent=%u ppid=%d depth=%ld", born, getpid(), index,
                    parent, depth - 1);
            lab_arena_touch(&arena, born, percent);
            grow(born, depth - 1);
            lab_post(born);
            lab_sleep_for_ever();
        }
        lab_await(born);
    }
    lab_arena_touch(&arena, index, percent / 4);
}

int main(int argc, char **argv)
{
    long depth = lab_parameter(argc, argv, "depth", 4);
    long slots = lab_parameter(argc, argv, "slots", 6);
    long pages = lab_parameter(argc, argv, "pages", 6);
    uint32_t root;
    char *middle;

    fan = lab_parameter(argc, argv, "fan", 3);
    percent = lab_parameter(argc, argv, "percent", 40);
    seed = lab_parameter(argc, argv, "seed", 1);
    lab_name("tree-root");
    lab_board_make();
    lab_arena_make(&arena, slots, pages);
    root = lab_index();
    lab_seed(seed, root);
    lab_log("arena index=%u pid=%d base=%p slots=%ld pages=%ld stride=%ld", root, getpid(),
            (void *)arena.base, slots, pages, pages + 1);
    for (long slot = 0; slot < slots; slot++)
        lab_arena_map(&arena, slot);
    lab_write(lab_slot(&arena, 0));
    lab_log("touch index=%u pages=0:0", root);
    middle = lab_slot(&arena, 0) + 2 * LAB_PAGE;
    if (mprotect(middle, 2 * LAB_PAGE, PROT_READ | PROT_WRITE | PROT_EXEC))
        lab_fail("mprotect");
    lab_log("split index=%u slot=0 page=2 pages=2", root);
    lab_arena_touch(&arena, root, 70);
    grow(root, depth);
    lab_ready();
    lab_sleep_for_ever();
}
