/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Pages that are not plain anonymous ones: KSM, transparent huge pages, hugetlb. Parameters: pages
 * (of each area that is merged), sharing (how often one page is shared at most), seed, which also
 * decides whether KSM has one tree for all nodes of the machine.
 *
 * ksmd runs until it has been through everything three times, and is stopped then; khugepaged never
 * runs, so that nothing moves while the guest gives its word.
 *
 * Log: `ksm`, `huge`, `hugetlb`, each with its pid, addresses, and what the kernel counted.
 */
#include "residents.h"
#include <fcntl.h>

#define HUGE ((size_t)2 << 20)

static long pages, sharing;

static void set(const char *path, const char *value)
{
    int file = open(path, O_WRONLY | O_CLOEXEC);

    if (file < 0 || write(file, value, strlen(value)) < 0)
        lab_log("refused what=%s errno=%d", path, errno);
    if (file >= 0)
        close(file);
}

/* The number in a file, or behind `name ` in it; -1 if there is none. */
static long get(const char *path, const char *name)
{
    static char text[16384];
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = file < 0 ? -1 : read(file, text, sizeof(text) - 1);
    const char *found = text;

    if (file >= 0)
        close(file);
    text[got < 0 ? 0 : got] = 0;
    if (name && (found = strstr(text, name)))
        found += strlen(name);
    return got <= 0 || !found ? -1 : strtol(found, NULL, 10);
}

static void sharer(uint32_t index)
{
    char *own = alike(pages);
    uint32_t born = lab_index();

    (void)index;
    lab_name("ksm-sharer");
    if (!lab_fork()) {
        lab_name("ksm-child");
        lab_write(own);
        lab_post(born);
        lab_sleep_for_ever();
    }
    lab_await(born);
    lab_log("sharer pid=%d base=%p pages=%ld", getpid(), (void *)own, pages);
}

static void merge(void)
{
    long scans = get("/sys/kernel/mm/ksm/full_scans", NULL);

    set("/sys/kernel/mm/ksm/pages_to_scan", "4000");
    set("/sys/kernel/mm/ksm/sleep_millisecs", "5");
    set("/sys/kernel/mm/ksm/run", "1");
    for (int tries = 0; get("/sys/kernel/mm/ksm/full_scans", NULL) < scans + 3; tries++) {
        if (tries > 600)
            lab_fail("waiting for ksmd");
        usleep(50000);
    }
    set("/sys/kernel/mm/ksm/run", "0");
}

/* A merged page written to is a page of its own again. */
static void breaker(uint32_t index)
{
    char *own = alike(pages);

    lab_name("ksm-breaker");
    lab_post(index);
    lab_await(index + 1);
    lab_write(own);
    lab_write(own + LAB_PAGE);
    lab_post(index + 2);
}

/* When it and its child are gone, KSM still holds the anon_vmas of both. */
static void leaver(uint32_t index)
{
    pid_t child;

    alike(pages);
    lab_name("ksm-leaver");
    child = lab_fork();
    if (child) {
        lab_post(index);
        waitpid(child, NULL, 0);
    } else {
        lab_await(index + 1);
    }
    _exit(0);
}

static void ksm(void)
{
    uint32_t breaking = lab_index(), leaving;
    char number[32];
    pid_t leaves;

    lab_index();
    lab_index();
    leaving = lab_index();
    lab_index();
    snprintf(number, sizeof(number), "%ld", sharing);
    set("/sys/kernel/mm/ksm/max_page_sharing", number);
    set("/sys/kernel/mm/ksm/merge_across_nodes", lab_random(2) ? "1" : "0");
    resident(sharer);
    resident(sharer);
    if (!lab_fork()) {
        breaker(breaking);
        lab_sleep_for_ever();
    }
    lab_await(breaking);
    leaves = lab_fork();
    if (!leaves)
        leaver(leaving);
    lab_await(leaving);
    merge();
    lab_post(breaking + 1);
    lab_await(breaking + 2);
    lab_post(leaving + 1);
    waitpid(leaves, NULL, 0);
    lab_log("ksm shared=%ld sharing=%ld unshared=%ld left=%d",
            get("/sys/kernel/mm/ksm/pages_shared", NULL),
            get("/sys/kernel/mm/ksm/pages_sharing", NULL),
            get("/sys/kernel/mm/ksm/pages_unshared", NULL), leaves);
}

/* Room for `count` huge pages, aligned to their size. */
static char *aligned(size_t count, int flags)
{
    char *got = map_pages((count + 1) * HUGE / LAB_PAGE, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | flags);
    char *start = (char *)(((uintptr_t)got + HUGE - 1) & ~(HUGE - 1));

    if (start > got)
        munmap(got, start - got);
    munmap(start + count * HUGE, got + HUGE - start);
    return start;
}

/* Huge pages whole, shared over a fork, split by a mapping's end, by a protection, by a move. */
static void huge(uint32_t index)
{
    char *area = aligned(5, MAP_NORESERVE);
    long before = get("/proc/vmstat", "thp_fault_alloc ");
    uint32_t born = lab_index();

    (void)index;
    lab_name("huge");
    advise(area, 5 * HUGE / LAB_PAGE, MADV_HUGEPAGE, "MADV_HUGEPAGE");
    for (size_t i = 0; i < 5; i++)
        lab_write(area + i * HUGE);
    if (!lab_fork()) {
        lab_name("huge-child");
        lab_write(area + LAB_PAGE);
        lab_write(area + HUGE);
        lab_post(born);
        lab_sleep_for_ever();
    }
    lab_await(born);
    if (mprotect(area + 2 * HUGE + HUGE / 2, HUGE / 4, PROT_READ))
        lab_fail("mprotect");
    if (munmap(area + 3 * HUGE + HUGE / 2, HUGE / 4))
        lab_fail("munmap");
    if (mremap(area + 4 * HUGE, HUGE / 2, HUGE / 2, MREMAP_MAYMOVE) == MAP_FAILED ||
        mremap(area + 4 * HUGE + HUGE / 2, HUGE / 2, HUGE / 2, MREMAP_MAYMOVE | MREMAP_FIXED,
               area + 64 * HUGE) == MAP_FAILED)
        lab_fail("mremap");
    lab_log("huge pid=%d base=%p allocated=%ld", getpid(), (void *)area,
            get("/proc/vmstat", "thp_fault_alloc ") - before);
}

/* Private and shared mappings of the huge pages set aside. */
static void hugetlb(uint32_t index)
{
    int flags = MAP_ANONYMOUS | MAP_HUGETLB;
    char *own = mmap(NULL, 3 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | flags, -1, 0);
    char *common = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED | flags, -1, 0);
    uint32_t born = lab_index();

    (void)index;
    lab_name("hugetlb");
    if (own == MAP_FAILED || common == MAP_FAILED) {
        lab_log("refused what=MAP_HUGETLB errno=%d", errno);
        return;
    }
    lab_write(own);
    lab_write(own + HUGE);
    lab_write(common);
    if (!lab_fork()) {
        lab_name("hugetlb-child");
        lab_write(own);
        lab_post(born);
        lab_sleep_for_ever();
    }
    lab_await(born);
    if (munmap(own + 2 * HUGE, HUGE))
        lab_fail("munmap");
    lab_log("hugetlb pid=%d private=%p shared=%p free=%ld", getpid(), (void *)own, (void *)common,
            get("/proc/meminfo", "HugePages_Free:"));
}

int main(int argc, char **argv)
{
    pages = lab_parameter(argc, argv, "pages", 32);
    sharing = lab_parameter(argc, argv, "sharing", 3);
    lab_seed(lab_parameter(argc, argv, "seed", 1), 0);
    lab_name("pages-main");
    lab_board_make();
    set("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", "1000000000");
    set("/sys/kernel/mm/transparent_hugepage/enabled", "madvise");
    set("/proc/sys/vm/nr_hugepages", "8");
    resident(huge);
    resident(hugetlb);
    ksm();
    lab_ready();
    lab_sleep_for_ever();
}
