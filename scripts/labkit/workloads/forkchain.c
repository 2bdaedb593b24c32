/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Chains of forks whose parents exit: chains, length, slots, pages, percent, seed.
 *
 * A link waits until its parent has gone, writes to some slots, may map a slot of its own, may
 * leave a branch behind (a child that stays), forks the next link and exits; one in five stays
 * instead. So roots outlive their processes, and a fork finds anon_vmas without a VMA of their own
 * that it can take over. The orphans fall to process 1, which reaps.
 *
 * Log: arena, map, link, branch, touch, exit or stay, in the order in which they happened: enough
 * to work out each anon_vma's parent and which ones are used again.
 */
#include "lab.h"
#include <signal.h>

static struct lab_arena arena;
static long length, percent, seed;
static uint32_t chain, finished;

static void map_slot(uint32_t index, unsigned slot)
{
    lab_arena_map(&arena, slot);
    lab_log("map index=%u slot=%u", index, slot);
}

static void name(const char *kind, uint32_t index)
{
    char comm[16];

    snprintf(comm, sizeof(comm), "c%u-%s-%u", chain, kind, index);
    lab_name(comm);
}

static void leave_branch(uint32_t index)
{
    uint32_t born = lab_index();

    if (!lab_fork()) {
        name("branch", born);
        lab_seed(seed, born);
        lab_log("branch chain=%u index=%u pid=%d parent=%u", chain, born, getpid(), index);
        lab_arena_touch(&arena, born, percent);
        lab_post(born);
        lab_sleep_for_ever();
    }
    lab_await(born);
}

/* The life of one link; the process of the next one returns from here as that link. */
static uint32_t live(uint32_t index, long position)
{
    int stays;
    uint32_t born;
    pid_t parent = getpid();

    lab_seed(seed, index);
    lab_arena_touch(&arena, index, percent);
    for (unsigned slot = 0; slot < arena.slots && lab_chance(30); slot++)
        if (!lab_arena_has(&arena, slot)) {
            map_slot(index, slot);
            lab_arena_touch(&arena, index, 50);
            break;
        }
    if (lab_chance(30))
        leave_branch(index);
    if (position == length) {
        lab_log("stay index=%u", index);
        lab_post(finished);
        lab_sleep_for_ever();
    }
    stays = lab_chance(20);
    lab_log("%s index=%u", stays ? "stay" : "exit", index);
    born = lab_index();
    if (lab_fork()) {
        if (!stays)
            _exit(0);
        lab_sleep_for_ever();
    }
    while (!stays && getppid() == parent)
        usleep(1000);
    name("link", born);
    lab_log("link chain=%u index=%u pid=%d parent=%u position=%ld", chain, born, getpid(), index,
            position + 1);
    return born;
}

int main(int argc, char **argv)
{
    long chains = lab_parameter(argc, argv, "chains", 8);
    long slots = lab_parameter(argc, argv, "slots", 6);
    long pages = lab_parameter(argc, argv, "pages", 4);

    length = lab_parameter(argc, argv, "length", 12);
    percent = lab_parameter(argc, argv, "percent", 50);
    seed = lab_parameter(argc, argv, "seed", 1);
    lab_name("chain-main");
    signal(SIGCHLD, SIG_IGN); /* a link whose parent stays leaves no zombie */
    lab_board_make();
    for (chain = 0; chain < (uint32_t)chains; chain++) {
        uint32_t index;

        finished = lab_index();
        index = lab_index();
        if (!lab_fork()) {
            name("start", index);
            lab_seed(seed, index + 5000);
            lab_arena_make(&arena, slots, pages);
            lab_log("arena chain=%u index=%u pid=%d base=%p slots=%ld pages=%ld stride=%ld", chain,
                    index, getpid(), (void *)arena.base, slots, pages, pages + 1);
            for (long slot = 0; slot < (slots + 1) / 2; slot++)
                map_slot(index, slot);
            for (long position = 0;; position++)
                index = live(index, position);
        }
        lab_await(finished);
    }
    lab_ready();
    lab_sleep_for_ever();
}
