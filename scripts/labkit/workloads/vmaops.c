/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Splits, merges and moves, at random: processes, operations, pages, guards, seed.
 *
 * Each process has an anonymous area and a private mapping of a file, side by side with a free
 * area to move to, and does random operations on random ranges of them: writes, mprotect(),
 * munmap(), mapping a hole again, mremap() (move, grow, shrink, leaving the old mapping behind),
 * MADV_DONTNEED, and now and then a fork whose child goes on as well; `guards` percent of them, if
 * any, install guard regions or remove them, half of these everywhere. Operations that the kernel
 * refuses are part of the game, and logged with their errno; of writes, how many pages were written
 * before one faulted. `to` is the protection, the page moved to, or the new number of pages.
 */
#include "lab.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

#define GUARD_INSTALL 102 /* MADV_GUARD_INSTALL, since 6.13 */
#define GUARD_REMOVE 103
#define FILE_NAME "/lab/data"

static long pages, operations, guards, seed;
static char *area;
static sigjmp_buf faulted;
static volatile sig_atomic_t expecting;

static void on_fault(int number)
{
    if (!expecting) {
        signal(number, SIG_DFL); /* not ours: die of it, which the kernel's log shows */
        return;
    }
    siglongjmp(faulted, 1);
}

static long write_pages(char *start, unsigned count)
{
    volatile unsigned done = 0;

    expecting = 1;
    if (!sigsetjmp(faulted, 1))
        for (; done < count; done++)
            lab_write(start + done * LAB_PAGE);
    expecting = 0;
    return done;
}

static int random_protection(void)
{
    static const int choices[] = {
        PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE,
        PROT_READ | PROT_WRITE | PROT_EXEC,
    };

    return choices[lab_random(sizeof(choices) / sizeof(choices[0]))];
}

static long map_hole(char *start, unsigned count, int file)
{
    int flags = MAP_PRIVATE | MAP_FIXED_NOREPLACE | (file < 0 ? MAP_ANONYMOUS : 0);
    long offset = file < 0 ? 0 : start - area;

    return mmap(start, count * LAB_PAGE, PROT_READ | PROT_WRITE, flags, file, offset) == MAP_FAILED
               ? -1
               : 0;
}

/* Removed everywhere, they are gone from whole mappings, and not only from parts of them. */
static void guard(uint32_t index)
{
    unsigned total = 3 * pages, kind = lab_random(4), from = lab_random(total);
    unsigned count = 1 + lab_random(pages / 4);
    long result;

    if (kind == 3) {
        from = 0;
        count = total;
    } else if (from + count > total) {
        count = total - from;
    }
    result = madvise(area + from * LAB_PAGE, count * LAB_PAGE, kind < 2 ? GUARD_INSTALL : GUARD_REMOVE);
    lab_log("%s index=%u page=%u pages=%u errno=%d", kind < 2 ? "guard" : "unguard", index, from,
            count, result < 0 ? errno : 0);
}

/* The three parts of the area, each `pages` long: anonymous, private file, free. */
static void operate(uint32_t index, int file, int may_fork);

static void run(uint32_t index, int file, int may_fork)
{
    lab_seed(seed, index);
    for (long i = 0; i < operations; i++) {
        if (guards && lab_chance(guards))
            guard(index);
        else
            operate(index, file, may_fork);
    }
    lab_log("end index=%u", index);
}

static void operate(uint32_t index, int file, int may_fork)
{
    unsigned total = 3 * pages, choice = lab_random(100), from = lab_random(total);
    unsigned count = 1 + lab_random(pages / 4), to = lab_random(total);
    char *start, *target;
    const char *what = "write";
    long result = 0;
    void *got;

    if (from + count > total)
        count = total - from;
    if (to + count > total)
        to = total - count; /* a fixed move must not hit what lies behind the area */
    target = area + to * LAB_PAGE;
    start = area + from * LAB_PAGE;
    errno = 0;
    if (choice < 40) {
        result = write_pages(start, count);
    } else if (choice < 60) {
        int protection = random_protection();

        what = "mprotect";
        to = protection;
        result = mprotect(start, count * LAB_PAGE, protection);
    } else if (choice < 70) {
        what = "munmap";
        result = munmap(start, count * LAB_PAGE);
    } else if (choice < 78) {
        what = choice < 74 ? "map-anonymous" : "map-file";
        result = map_hole(start, count, choice < 74 ? -1 : file);
    } else if (choice < 88) {
        what = "mremap-move";
        got = mremap(start, count * LAB_PAGE, count * LAB_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
                     target);
        result = got == MAP_FAILED ? -1 : 0;
    } else if (choice < 91) {
        what = "mremap-leave";
        got = mremap(start, count * LAB_PAGE, count * LAB_PAGE,
                     MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, target);
        result = got == MAP_FAILED ? -1 : 0;
    } else if (choice < 94) {
        what = "mremap-resize";
        to = 1 + lab_random(2 * count);
        got = mremap(start, count * LAB_PAGE, to * LAB_PAGE, 0);
        result = got == MAP_FAILED ? -1 : 0;
    } else if (choice < 98) {
        what = "dontneed";
        result = madvise(start, count * LAB_PAGE, MADV_DONTNEED);
    } else if (may_fork) {
        uint32_t born = lab_index();

        if (!lab_fork()) {
            char comm[16];

            snprintf(comm, sizeof(comm), "ops-child-%u", born);
            lab_name(comm);
            lab_log("fork index=%u pid=%d parent=%u", born, getpid(), index);
            run(born, file, 0);
            lab_post(born);
            lab_sleep_for_ever();
        }
        lab_await(born);
        return;
    }
    if (result < 0)
        lab_log("%s index=%u page=%u pages=%u to=%u errno=%d", what, index, from, count, to, errno);
    else if (choice < 40)
        lab_log("%s index=%u page=%u pages=%u done=%ld", what, index, from, count, result);
    else
        lab_log("%s index=%u page=%u pages=%u to=%u", what, index, from, count, to);
}

int main(int argc, char **argv)
{
    long processes = lab_parameter(argc, argv, "processes", 10);
    struct sigaction action = {.sa_handler = on_fault};
    int file;

    pages = lab_parameter(argc, argv, "pages", 64);
    operations = lab_parameter(argc, argv, "operations", 120);
    guards = lab_parameter(argc, argv, "guards", 0);
    seed = lab_parameter(argc, argv, "seed", 1);
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    lab_name("ops-main");
    lab_board_make();
    file = open(FILE_NAME, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, 3 * pages * LAB_PAGE))
        lab_fail(FILE_NAME);
    for (long i = 0; i < processes; i++) {
        uint32_t index = lab_index();

        if (!lab_fork()) {
            char comm[16];

            snprintf(comm, sizeof(comm), "ops-%u", index);
            lab_name(comm);
            area = mmap(NULL, 3 * pages * LAB_PAGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (area == MAP_FAILED || munmap(area + pages * LAB_PAGE, 2 * pages * LAB_PAGE))
                lab_fail("mmap of the area");
            map_hole(area + pages * LAB_PAGE, pages, file);
            lab_log("area index=%u pid=%d base=%p pages=%ld", index, getpid(), (void *)area, pages);
            run(index, file, 1);
            lab_post(index);
            lab_sleep_for_ever();
        }
        lab_await(index);
    }
    lab_ready();
    lab_sleep_for_ever();
}
