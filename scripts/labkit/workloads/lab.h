/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the workloads share: parameters as key=value words, a log that goes to the witness, random
 * numbers that depend on the seed alone, and a board in shared memory on which processes wait for
 * each other. Processes take turns, so that a log read from top to bottom is the order in which
 * things happened, and so that a seed gives the same operations again.
 */
#ifndef LAB_H
#define LAB_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LAB_PAGE ((size_t)4096)
#define LAB_LOG_FD 3 /* the witness reads its other end */

/* The log: one event a line, `EVENT key=value key=value`; written whole, so lines never mix. */
__attribute__((format(printf, 1, 2))) static inline void lab_log(const char *format, ...)
{
    char line[1024];
    va_list arguments;
    int length;

    va_start(arguments, format);
    length = vsnprintf(line, sizeof(line) - 1, format, arguments);
    va_end(arguments);
    if (length < 0)
        length = 0;
    if ((size_t)length > sizeof(line) - 2)
        length = sizeof(line) - 2;
    line[length++] = '\n';
    if (write(LAB_LOG_FD, line, length) != length)
        _exit(97);
}

/* Ends the workload; the witness passes the sentence on and the capture fails. */
__attribute__((noreturn)) static inline void lab_fail(const char *what)
{
    lab_log("FAILED %s: %s", what, strerror(errno));
    _exit(98);
}

__attribute__((noreturn)) static inline void lab_sleep_for_ever(void)
{
    for (;;)
        pause();
}

/* All processes are where they shall be: the witness waits until they sleep and takes its word. */
static inline void lab_ready(void)
{
    lab_log("READY");
}

static inline long lab_parameter(int argc, char **argv, const char *name, long otherwise)
{
    size_t length = strlen(name);

    for (int i = 1; i < argc; i++)
        if (!strncmp(argv[i], name, length) && argv[i][length] == '=')
            return strtol(argv[i] + length + 1, NULL, 0);
    return otherwise;
}

static inline void lab_name(const char *comm)
{
    prctl(PR_SET_NAME, comm);
}

/* Random numbers: a multiplicative step and a mixing of the high bits. */
static uint64_t lab_random_state;

static inline void lab_seed(uint64_t seed, uint64_t stream)
{
    lab_random_state = (seed * 1000003 + stream) * 0x2545f4914f6cdd1dULL + 1;
}

static inline unsigned lab_random(unsigned below)
{
    uint64_t mixed;

    lab_random_state = lab_random_state * 0x5851f42d4c957f2dULL + 0x14057b7ef767814fULL;
    mixed = lab_random_state ^ (lab_random_state >> 29);
    return (unsigned)((mixed >> 32) % below);
}

static inline int lab_chance(unsigned percent)
{
    return lab_random(100) < percent;
}

/* The board: shared words to count on and to wait for. */
#define LAB_BOARD_WORDS 4000
struct lab_board {
    uint32_t next; /* the next process index */
    uint32_t word[LAB_BOARD_WORDS];
};
static struct lab_board *lab_board;

static inline void lab_board_make(void)
{
    lab_board = mmap(NULL, sizeof(*lab_board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                     -1, 0);
    if (lab_board == MAP_FAILED)
        lab_fail("mmap of the board");
}

static inline uint32_t lab_index(void)
{
    uint32_t index = __atomic_fetch_add(&lab_board->next, 1, __ATOMIC_SEQ_CST);

    if (index >= LAB_BOARD_WORDS)
        lab_fail("more processes than the board has words");
    return index;
}

static inline void lab_post(uint32_t index)
{
    __atomic_store_n(&lab_board->word[index], 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &lab_board->word[index], FUTEX_WAKE, 1000, NULL, NULL, 0);
}

/* Whoever is waited for may have died: better a sentence after a minute than silence. */
static inline void lab_await(uint32_t index)
{
    struct timespec patience = {.tv_sec = 60};

    while (!__atomic_load_n(&lab_board->word[index], __ATOMIC_SEQ_CST))
        if (syscall(SYS_futex, &lab_board->word[index], FUTEX_WAIT, 0, &patience, NULL, 0) &&
            errno == ETIMEDOUT)
            lab_fail("waiting for another process of the workload");
}

static inline pid_t lab_fork(void)
{
    pid_t pid = fork();

    if (pid < 0)
        lab_fail("fork");
    return pid;
}

/* An arena: slots of so many pages with unmapped room between them, so that VMAs never merge. */
struct lab_arena {
    char *base;
    unsigned slots, pages;
    uint64_t mapped; /* bit per slot */
};

static inline char *lab_slot(const struct lab_arena *arena, unsigned slot)
{
    return arena->base + slot * (arena->pages + 1) * LAB_PAGE;
}

static inline void lab_arena_make(struct lab_arena *arena, unsigned slots, unsigned pages)
{
    size_t size = slots * (pages + 1) * LAB_PAGE;

    if (slots > 64) {
        errno = EINVAL;
        lab_fail("an arena has at most 64 slots");
    }
    arena->slots = slots;
    arena->pages = pages;
    arena->mapped = 0;
    arena->base = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena->base == MAP_FAILED || munmap(arena->base, size))
        lab_fail("finding room for the arena");
}

static inline void lab_arena_map(struct lab_arena *arena, unsigned slot)
{
    char *want = lab_slot(arena, slot);

    if (mmap(want, arena->pages * LAB_PAGE, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != want)
        lab_fail("mmap in the arena");
    arena->mapped |= (uint64_t)1 << slot;
}

static inline int lab_arena_has(const struct lab_arena *arena, unsigned slot)
{
    return (arena->mapped >> slot) & 1;
}

static inline void lab_write(char *address)
{
    *(volatile char *)address = (char)(*(volatile char *)address + 1);
}

/*
 * Writes to a page in each mapped slot with the given chance, and logs SLOT:PAGE for each. The
 * first write to a slot makes its anon_vma, a later one may copy a page.
 */
static inline void lab_arena_touch(const struct lab_arena *arena, uint32_t index, unsigned percent)
{
    char list[512];
    size_t used = 0;

    list[0] = 0;
    for (unsigned slot = 0; slot < arena->slots; slot++) {
        unsigned page = lab_random(arena->pages);

        if (!lab_chance(percent) || !lab_arena_has(arena, slot))
            continue;
        lab_write(lab_slot(arena, slot) + page * LAB_PAGE);
        used += snprintf(list + used, sizeof(list) - used, "%s%u:%u", used ? "," : "", slot, page);
        if (used >= sizeof(list) - 16)
            break;
    }
    lab_log("touch index=%u pages=%s", index, list);
}

#endif
