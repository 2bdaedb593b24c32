/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For workloads that are a collection of cases: each case a process of its own, one after the other,
 * and short words for mappings.
 */
#ifndef RESIDENTS_H
#define RESIDENTS_H

#include "lab.h"

static inline char *map_pages(size_t pages, int protection, int flags)
{
    char *got = mmap(NULL, pages * LAB_PAGE, protection, flags, -1, 0);

    if (got == MAP_FAILED)
        lab_fail("mmap");
    return got;
}

static inline char *private_pages(size_t pages)
{
    char *got = map_pages(pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);

    for (size_t i = 0; i < pages; i += 1 + lab_random(3))
        lab_write(got + i * LAB_PAGE);
    return got;
}

static inline void advise(char *start, size_t pages, int advice, const char *what)
{
    if (madvise(start, pages * LAB_PAGE, advice))
        lab_log("refused what=%s errno=%d", what, errno);
}

/* Pages alike in pairs, so that every other one is merged within the process already. */
static inline char *alike(size_t pages)
{
    char *got = map_pages(pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);

    for (size_t i = 0; i < pages; i++)
        memset(got + i * LAB_PAGE, (int)(1 + i / 2), LAB_PAGE);
    advise(got, pages, MADV_MERGEABLE, "MADV_MERGEABLE");
    return got;
}

/* Runs a resident in a process of its own; it posts its index when it is settled. */
static inline void resident(void (*life)(uint32_t index))
{
    uint32_t index = lab_index();

    if (!lab_fork()) {
        life(index);
        lab_post(index);
        lab_sleep_for_ever();
    }
    lab_await(index);
}

#endif
