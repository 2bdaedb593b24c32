/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Pages in swap, and in the swap cache: a case a process, or a family of them. Swap areas are two RAM
 * disks (module brd), so that what is written is written at once. Parameters: pages (of each area of
 * memory), seed.
 *
 * What happens, by case; `out` is madvise(MADV_PAGEOUT), which passes over what two processes map:
 *
 *     gone     out: only in swap
 *     both     out, then fork: parent and child have the slot; the parent reads every other page
 *     left     likewise, and the parent throws away what it has read: a folio that nobody maps
 *     inner    a fork child copies all, out, forks again: the grandchild reads every third page
 *     pinned   out while a pipe holds every other page: unmapped, and in the swap cache for ever
 *     moved    likewise, then mremap() to elsewhere, and mprotect() of a part
 *     uffd     likewise, then UFFDIO_MOVE of the first half (since 6.8)
 *     huge     out of a transparent huge page, then fork; the parent reads a few pages
 *     large    out of large folios of 64 KiB (since 6.8), then fork; the parent reads all
 *     merged   KSM's pages, swapped by the group's limit (memory.reclaim, since 5.19); one reads some
 *     second   out to another swap area than all before
 *
 * Log: `out` with how many pages of an area are swapped then, and how often that was tried. When
 * all cases stand, each process says `stay`, with where its area is and of each page what mincore()
 * has to say: r if it is in memory, in the swap cache too, - if not.
 */
#include "residents.h"
#include "swapping.h"
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
/* UFFDIO_MOVE, since 6.8: newer than the headers that this may be compiled with. */
struct uffd_move {
    uint64_t dst, src, len, mode;
    int64_t move;
};
#define UFFD_MOVE _IOWR(UFFDIO, 0x05, struct uffd_move)

#define HUGE ((size_t)2 << 20)
#define SEATS 32
#define GROUP "/tmp/group"
#define SWAPPED (1ull << 62) /* Documentation/admin-guide/mm/pagemap.rst */

static long pages;

/* Processes that have come to stay, in shared memory. */
static struct seats {
    uint32_t used;
    uint32_t turn[SEATS], done[SEATS];
} *seats;

static int set(const char *path, const char *value)
{
    int file = open(path, O_WRONLY | O_CLOEXEC);
    int failed = file < 0 || write(file, value, strlen(value)) < 0;

    if (failed)
        lab_log("refused what=%s errno=%d", path, errno);
    if (file >= 0)
        close(file);
    return !failed;
}

static long get(const char *path)
{
    char text[64] = "";
    int file = open(path, O_RDONLY | O_CLOEXEC);

    if (file < 0 || read(file, text, sizeof(text) - 1) < 0)
        return -1;
    close(file);
    return strtol(text, NULL, 10);
}

/* Each processor has slots in hand: whoever wants those of another area goes to another one. */
static void run_on(int processor)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(processor, &set);
    if (sched_setaffinity(0, sizeof(set), &set))
        lab_log("refused what=sched_setaffinity errno=%d", errno);
}

static long count_swapped(char *start, long count)
{
    static uint64_t words[1024];
    int file = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    long swapped = 0;

    if (file < 0 || pread(file, words, count * 8, (uintptr_t)start / LAB_PAGE * 8) != count * 8)
        lab_fail("/proc/self/pagemap");
    close(file);
    for (long i = 0; i < count; i++)
        swapped += !!(words[i] & SWAPPED);
    return swapped;
}

/* A page that this processor has just made is not on the lists of reclaim yet: try again. */
static void out(const char *what, char *start, long count)
{
    long swapped = 0;
    int tries = 0;

    while (swapped < count && tries++ < 50) {
        if (madvise(start, count * LAB_PAGE, MADV_PAGEOUT))
            lab_fail("MADV_PAGEOUT");
        swapped = count_swapped(start, count);
        if (swapped < count)
            usleep(20000);
    }
    lab_log("out what=%s pid=%d base=%p pages=%ld swapped=%ld tries=%d", what, getpid(),
            (void *)start, count, swapped, tries);
}

static char *filled(size_t count)
{
    char *got = map_pages(count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);

    for (size_t i = 0; i < count; i++)
        memset(got + i * LAB_PAGE, (int)(1 + i + lab_random(100)), LAB_PAGE / 2);
    return got;
}

static void look(char *start, long first, long count, long step)
{
    for (long i = first; i < count; i += step)
        (void)*(volatile char *)(start + i * LAB_PAGE);
}

/* A pipe refers to some pages from now on. */
static void pin(char *start, long count, long step)
{
    int ends[2];

    if (pipe(ends))
        lab_fail("pipe");
    for (long i = 0; i < count && i / step < 16; i += step) {
        struct iovec one = {.iov_base = start + i * LAB_PAGE, .iov_len = LAB_PAGE};

        if (vmsplice(ends[1], &one, 1, 0) != (ssize_t)LAB_PAGE)
            lab_fail("vmsplice");
    }
}

/* All is done here; when it is everywhere, say what is in memory. */
static void stay(uint32_t settled, const char *what, char *start, long count)
{
    uint32_t seat = __atomic_fetch_add(&seats->used, 1, __ATOMIC_SEQ_CST);
    static unsigned char here[1024];
    static char list[1024];

    if (seat >= SEATS || count >= (long)sizeof(list))
        lab_fail("no seat");
    lab_post(settled);
    while (!__atomic_load_n(&seats->turn[seat], __ATOMIC_SEQ_CST))
        usleep(20000);
    if (mincore(start, count * LAB_PAGE, here))
        lab_fail("mincore");
    for (long i = 0; i < count; i++)
        list[i] = here[i] & 1 ? 'r' : '-';
    list[count] = 0;
    lab_log("stay what=%s pid=%d base=%p pages=%ld memory=%s", what, getpid(), (void *)start, count,
            list);
    __atomic_store_n(&seats->done[seat], 1, __ATOMIC_SEQ_CST);
    lab_sleep_for_ever();
}

/* A child that does no more than stay. */
static void child_stays(const char *what, char *start, long count)
{
    uint32_t born = lab_index();

    if (!lab_fork()) {
        lab_name(what);
        stay(born, what, start, count);
    }
    lab_await(born);
}

static void gone(uint32_t index)
{
    char *own = filled(pages);

    lab_name("gone");
    out("gone", own, pages);
    stay(index, "gone", own, pages);
}

static void both(uint32_t index)
{
    char *own = filled(pages);

    lab_name("both");
    out("both", own, pages);
    child_stays("both-child", own, pages);
    look(own, 0, pages, 2);
    stay(index, "both", own, pages);
}

static void left(uint32_t index)
{
    char *own = filled(pages);

    lab_name("left");
    out("left", own, pages);
    child_stays("left-child", own, pages);
    look(own, 0, pages / 2, 1);
    if (madvise(own, pages / 2 * LAB_PAGE, MADV_DONTNEED))
        lab_fail("MADV_DONTNEED");
    stay(index, "left", own, pages);
}

static void inner(uint32_t index)
{
    char *own = filled(pages);
    uint32_t born = lab_index(), grown = lab_index();

    lab_name("inner-outer");
    if (!lab_fork()) {
        lab_name("inner");
        for (long i = 0; i < pages; i++)
            lab_write(own + i * LAB_PAGE);
        out("inner", own, pages);
        if (!lab_fork()) {
            lab_name("inner-child");
            look(own, 0, pages, 3);
            stay(grown, "inner-child", own, pages);
        }
        lab_await(grown);
        stay(born, "inner", own, pages);
    }
    lab_await(born);
    stay(index, "inner-outer", own, pages);
}

static void pinned(uint32_t index)
{
    char *own = filled(pages);

    lab_name("pinned");
    pin(own, pages, 2);
    out("pinned", own, pages);
    stay(index, "pinned", own, pages);
}

static void moved(uint32_t index)
{
    char *own = filled(pages), *there = filled(3 * pages);

    lab_name("moved");
    pin(own, pages, 2);
    out("moved", own, pages);
    if (mremap(own, pages * LAB_PAGE, pages * LAB_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
               there + pages * LAB_PAGE) == MAP_FAILED)
        lab_fail("mremap");
    there += pages * LAB_PAGE;
    if (mprotect(there + pages / 2 * LAB_PAGE, pages / 4 * LAB_PAGE, PROT_READ))
        lab_fail("mprotect");
    stay(index, "moved", there, pages);
}

static void uffd(uint32_t index)
{
    char *own = filled(pages);
    char *there = map_pages(pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register area = {.range = {.start = (uintptr_t)there, .len = pages * LAB_PAGE},
                                   .mode = UFFDIO_REGISTER_MODE_MISSING};
    struct uffd_move half = {.dst = (uintptr_t)there, .src = (uintptr_t)own,
                             .len = pages / 2 * LAB_PAGE};
    int file = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

    lab_name("uffd");
    pin(own, pages, 2);
    out("uffd", own, pages);
    if (file < 0 || ioctl(file, UFFDIO_API, &api) || ioctl(file, UFFDIO_REGISTER, &area) ||
        ioctl(file, UFFD_MOVE, &half))
        lab_log("refused what=UFFDIO_MOVE errno=%d moved=%lld", errno, (long long)half.move);
    else
        lab_log("move pid=%d from=%p to=%p pages=%ld", getpid(), (void *)own, (void *)there,
                pages / 2);
    stay(index, "uffd", there, pages);
}

/* Room aligned to a size, of which huge or large pages are wanted. */
static char *aligned(size_t size)
{
    size_t room = size < HUGE ? HUGE : size;
    char *got = map_pages(2 * room / LAB_PAGE, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
    char *start = (char *)(((uintptr_t)got + room - 1) & ~(room - 1));

    if (start > got)
        munmap(got, start - got);
    munmap(start + size, got + 2 * room - (start + size));
    advise(start, size / LAB_PAGE, MADV_HUGEPAGE, "MADV_HUGEPAGE");
    return start;
}

static void huge(uint32_t index)
{
    long count = HUGE / LAB_PAGE;
    char *own;

    lab_name("huge");
    set("/sys/kernel/mm/transparent_hugepage/enabled", "madvise");
    own = aligned(HUGE);
    lab_write(own);
    set("/sys/kernel/mm/transparent_hugepage/enabled", "never");
    out("huge", own, count);
    child_stays("huge-child", own, count);
    look(own, 3, count, 100);
    stay(index, "huge", own, count);
}

static void large(uint32_t index)
{
    static const char enabled[] = "/sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled";
    char *own;

    lab_name("large");
    if (!set(enabled, "madvise")) {
        lab_post(index);
        lab_sleep_for_ever();
    }
    own = aligned(32 * LAB_PAGE);
    for (long i = 0; i < 32; i++)
        lab_write(own + i * LAB_PAGE);
    out("large", own, 32);
    child_stays("large-child", own, 32);
    look(own, 0, 32, 1);
    set(enabled, "never");
    stay(index, "large", own, 32);
}

static void join(void)
{
    char number[32];

    snprintf(number, sizeof(number), "%d", getpid());
    set(GROUP "/swap/cgroup.procs", number);
}

static void merged(uint32_t index)
{
    uint32_t born = lab_index(), reclaimed = lab_index(), seen = lab_index();
    long scans, swapped = 0;
    char *own;

    lab_name("merged");
    mkdir(GROUP, 0755);
    if (mount("none", GROUP, "cgroup2", 0, NULL) ||
        !set(GROUP "/cgroup.subtree_control", "+memory") || mkdir(GROUP "/swap", 0755) ||
        access(GROUP "/swap/memory.reclaim", W_OK)) {
        lab_log("refused what=memory.reclaim errno=%d", errno);
        lab_post(index);
        lab_sleep_for_ever();
    }
    if (!lab_fork()) {
        lab_name("merged-other");
        join();
        own = alike(pages);
        lab_post(born);
        lab_await(reclaimed);
        look(own, 0, pages / 2, 1);
        stay(seen, "merged-other", own, pages);
    }
    lab_await(born);
    born = lab_index();
    if (!lab_fork()) {
        lab_name("merged-one");
        join();
        own = alike(pages);
        scans = get("/sys/kernel/mm/ksm/full_scans");
        set("/sys/kernel/mm/ksm/pages_to_scan", "4000");
        set("/sys/kernel/mm/ksm/sleep_millisecs", "5");
        set("/sys/kernel/mm/ksm/run", "1");
        for (int tries = 0; get("/sys/kernel/mm/ksm/full_scans") < scans + 3; tries++) {
            if (tries > 600)
                lab_fail("waiting for ksmd");
            usleep(50000);
        }
        set("/sys/kernel/mm/ksm/run", "0");
        /* What is not reclaimed at the first asking is no failure. */
        for (int tries = 0; tries < 30 && swapped < pages; tries++) {
            int file = open(GROUP "/swap/memory.reclaim", O_WRONLY | O_CLOEXEC);

            if (file < 0 || write(file, "4M", 2) < 0)
                usleep(20000);
            close(file);
            swapped = count_swapped(own, pages);
        }
        lab_log("out what=merged pid=%d base=%p pages=%ld swapped=%ld shared=%ld", getpid(),
                (void *)own, pages, swapped, get("/sys/kernel/mm/ksm/pages_shared"));
        stay(born, "merged-one", own, pages);
    }
    lab_await(born);
    lab_post(reclaimed);
    lab_await(seen);
    lab_post(index);
    lab_sleep_for_ever();
}

static void second(uint32_t index)
{
    char *own;

    lab_name("second");
    run_on(1);
    own = filled(pages);
    pin(own, pages, 4);
    out("second", own, pages);
    stay(index, "second", own, pages);
}

int main(int argc, char **argv)
{
    pages = lab_parameter(argc, argv, "pages", 16);
    lab_seed(lab_parameter(argc, argv, "seed", 1), 0);
    lab_name("swap-main");
    lab_board_make();
    seats = mmap(NULL, sizeof(*seats), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (seats == MAP_FAILED)
        lab_fail("mmap");
    set("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", "1000000000");
    run_on(0);
    swap_on("/dev/ram0", 1);
    resident(gone);
    resident(both);
    resident(left);
    resident(inner);
    resident(pinned);
    resident(moved);
    resident(uffd);
    resident(huge);
    resident(large);
    resident(merged);
    swap_on("/dev/ram1", 2);
    resident(second);
    for (uint32_t i = 0; i < seats->used; i++) {
        __atomic_store_n(&seats->turn[i], 1, __ATOMIC_SEQ_CST);
        while (!__atomic_load_n(&seats->done[i], __ATOMIC_SEQ_CST))
            usleep(10000);
    }
    lab_ready();
    lab_sleep_for_ever();
}
