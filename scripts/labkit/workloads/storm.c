/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A storm that never ends: processes, children (of each at a time), pages, threads, ksm, quiet,
 * nice, swap, seed. Each process forks, execs itself, protects, unmaps, maps, moves, grows, locks, advises
 * and discards for ever, and its children do some of that and exit; a few processes do it with several
 * threads on one mm. With ksm=1, KSM merges their pages and is told to take it all back, again and
 * again, and pages are moved to make room for large ones. With swap=1 there are two swap areas: MADV_PAGEOUT
 * takes pages there, and whatever the others do next brings them back. Whoever dumps the guest at a random moment
 * finds operations half done. With quiet=N there is also a family of N processes and their parent that
 * do nothing at all once they are there. The log says READY once all have started, and nothing after;
 * how many operations were done is the first word of /lab/operations.
 */
#include "lab.h"
#include "swapping.h"
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/resource.h>

/* Newer than the C library may be. */
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#define POPULATE_WRITE 23
#define GUARD_INSTALL 102
#define GUARD_REMOVE 103

#define QUIET ((char *)0x20000000) /* where the quiet family has its pages */
#define QUIET_SLOTS 4
#define CALM_PAGES 32

static long pages, ksm, children, swapping;
static char *area, *calm; /* pages that are rarely written to, and so can be merged */
static int file; /* this program's */
static uint64_t *operations;
static __thread sigjmp_buf faulted;

static void on_fault(int number)
{
    (void)number;
    siglongjmp(faulted, 1);
}

static void write_pages(char *start, unsigned count)
{
    if (!sigsetjmp(faulted, 1))
        for (unsigned i = 0; i < count; i++)
            lab_write(start + i * LAB_PAGE);
}

static void advise(char *start, size_t size)
{
    static const int advice[] = {
        MADV_DONTNEED, MADV_FREE,    MADV_DONTFORK, MADV_DOFORK,  MADV_DOFORK,  POPULATE_WRITE,
        GUARD_INSTALL, GUARD_REMOVE, GUARD_REMOVE,  MADV_PAGEOUT, MADV_COLD,    MADV_UNMERGEABLE,
    };
    int one = advice[lab_random(sizeof(advice) / sizeof(advice[0]))];

    if (swapping && lab_chance(70))
        one = MADV_PAGEOUT;
    madvise(start, size, one == MADV_UNMERGEABLE && ksm && lab_chance(80) ? MADV_MERGEABLE : one);
}

/* A mapping that faults enlarge downwards, as they do a stack. */
static void grow_down(void)
{
    char *start = mmap(NULL, LAB_PAGE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN, -1, 0);
    volatile size_t size = LAB_PAGE;

    if (start == MAP_FAILED)
        return;
    if (!sigsetjmp(faulted, 1))
        for (unsigned i = 0; i < 4; i++) {
            lab_write(start - i * LAB_PAGE);
            size = (i + 1) * LAB_PAGE;
        }
    munmap(start + LAB_PAGE - size, size);
}

static void grow_stack(unsigned frames)
{
    volatile char frame[2 * LAB_PAGE];

    frame[0] = 1;
    if (frames)
        grow_stack(frames - 1);
    frame[1] = frame[0];
}

static void operate(uint64_t *state)
{
    unsigned from, count, to;
    size_t size;
    char *start, *target;

    lab_random_state = *state + (uint64_t)(uintptr_t)state; /* threads race here: so much the better */
    from = lab_random(pages);
    count = 1 + lab_random(pages / 16 + 1);
    to = lab_random(pages);
    if (from + count > pages)
        count = pages - from;
    if (to + count > pages)
        to = pages - count;
    start = area + from * LAB_PAGE;
    target = area + to * LAB_PAGE;
    size = count * LAB_PAGE;
    switch (lab_random(16)) {
    case 0:
    case 1:
    case 2:
    case 3:
    case 4:
        write_pages(start, count);
        if (swapping && lab_chance(30))
            madvise(start, size, MADV_PAGEOUT);
        break;
    case 5:
    case 6:
        mprotect(start, size, lab_chance(30) ? PROT_READ : PROT_READ | PROT_WRITE);
        break;
    case 7:
    case 8:
        if (from + count <= to || to + count <= from)
            mremap(start, size, size,
                   MREMAP_MAYMOVE | MREMAP_FIXED | (lab_chance(40) ? MREMAP_DONTUNMAP : 0), target);
        break;
    case 9:
        if (count > 1 && mremap(start, size, LAB_PAGE, 0) != MAP_FAILED)
            mremap(start, LAB_PAGE, size, 0);
        break;
    case 10:
        mmap(start, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        if (ksm)
            madvise(start, size, MADV_MERGEABLE);
        break;
    case 11:
        mmap(start, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, from * LAB_PAGE);
        break;
    case 12:
        munmap(start, size);
        break;
    case 13:
        advise(start, size);
        break;
    case 14:
        if (lab_chance(50))
            mlock2(start, size, MLOCK_ONFAULT);
        else
            munlock(start, size);
        break;
    default:
        grow_down();
    }
    __atomic_fetch_add(operations, 1, __ATOMIC_RELAXED);
    *state = lab_random_state;
}

static void *racer(void *argument)
{
    uint64_t state = (uint64_t)(uintptr_t)argument;

    for (;;)
        operate(&state);
    return NULL;
}

static void race(uint64_t state)
{
    pthread_t ignored;

    pthread_create(&ignored, NULL, racer, (void *)(uintptr_t)state);
}

/* Whether there is a child. */
static int child_life(uint64_t *state, char *self)
{
    pid_t pid;

    if (lab_chance(10) && !vfork()) {
        execl(self, self, "brief=1", (char *)NULL);
        _exit(0);
    }
    pid = fork();
    if (!pid) {
        if (ksm && lab_chance(30))
            write_pages(calm + lab_random(CALM_PAGES - 4) * LAB_PAGE, 1 + lab_random(4));
        if (lab_chance(30))
            grow_stack(lab_random(60));
        if (lab_chance(20))
            race(*state); /* exits or execs with a thread on its mm */
        for (unsigned i = lab_random(12); i > 0; i--)
            operate(state);
        if (lab_chance(30))
            execl(self, self, "brief=1", (char *)NULL);
        if (lab_chance(30) && !fork())
            for (unsigned i = 0; i < 4; i++)
                operate(state);
        usleep(lab_random(30000)); /* so that a few generations are there at once */
        _exit(0);
    }
    return pid > 0;
}

/* Many VMAs: forks, execs and exits take their time. */
static void fragment(void)
{
    for (long i = 0; i < pages; i += 2) {
        write_pages(area + i * LAB_PAGE, 1);
        mprotect(area + i * LAB_PAGE, LAB_PAGE, PROT_READ);
    }
}

static void process_life(uint32_t index, long seed, long threads, char *self)
{
    long alive = 0;
    uint64_t state;
    char comm[16];

    snprintf(comm, sizeof(comm), "storm-%u", index);
    lab_name(comm);
    lab_seed(seed, index);
    state = lab_random_state;
    area = mmap(NULL, pages * LAB_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        lab_fail("mmap");
    if (ksm) {
        calm = mmap(NULL, CALM_PAGES * LAB_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                    -1, 0);
        if (calm == MAP_FAILED || madvise(calm, CALM_PAGES * LAB_PAGE, MADV_MERGEABLE) ||
            madvise(area, pages * LAB_PAGE, MADV_MERGEABLE))
            lab_fail("MADV_MERGEABLE");
        write_pages(calm, CALM_PAGES);
    }
    fragment();
    for (long i = 0; index % 4 == 0 && i < threads; i++)
        race(state + i);
    lab_post(index);
    for (;;) {
        for (unsigned i = lab_random(20); i > 0; i--)
            operate(&state);
        alive += child_life(&state, self);
        lab_random_state = state;
        if (lab_chance(3))
            fragment();
        while (waitpid(-1, NULL, lab_chance(20) || alive > children ? 0 : WNOHANG) > 0)
            alive--;
    }
}

static void set(const char *path, const char *value)
{
    int to = open(path, O_WRONLY | O_CLOEXEC);

    if (to < 0)
        lab_fail(path);
    if (write(to, value, strlen(value)) < 0 && errno != EBUSY)
        lab_fail(path);
    close(to);
}

#define KSM "/sys/kernel/mm/ksm/"

/* KSM's thread is polite, and would never get through in a storm. */
static void hurry_ksm(void)
{
    for (int pid = 2; pid < 300; pid++) {
        char path[32], comm[16] = "";
        int from;

        snprintf(path, sizeof(path), "/proc/%d/comm", pid);
        from = open(path, O_RDONLY | O_CLOEXEC);
        if (from >= 0 && read(from, comm, sizeof(comm) - 1) > 0 && !strcmp(comm, "ksmd\n"))
            setpriority(PRIO_PROCESS, pid, -10);
        close(from);
    }
}

/* Merges for a while, then takes back all that was merged; only then it may be merged otherwise. */
static void ksm_life(long seed)
{
    lab_name("storm-ksm");
    lab_seed(seed, 1000);
    hurry_ksm();
    set(KSM "pages_to_scan", "300");
    set(KSM "sleep_millisecs", "20"); /* the others want to run as well */
    for (;;) {
        set(KSM "run", "1");
        usleep(300000 + lab_random(5000000));
        if (lab_chance(50)) {
            set(KSM "run", "2");
            set(KSM "max_page_sharing", lab_chance(50) ? "2" : "256");
            set(KSM "merge_across_nodes", lab_chance(50) ? "1" : "0");
        }
        set("/proc/sys/vm/compact_memory", "1"); /* migration looks pages up in the reverse map */
    }
}

/* Each writes to some pages that it has from its parent, so that all have anon_vmas of their own. */
static void quiet_life(unsigned children)
{
    size_t slot = 8 * LAB_PAGE;
    char comm[16];

    lab_name("quiet-parent");
    for (unsigned i = 0; i < QUIET_SLOTS; i++) {
        char *want = QUIET + i * 2 * slot;

        if (mmap(want, slot, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != want)
            lab_fail("mmap of the quiet family");
        lab_write(want);
    }
    for (unsigned child = 0; child < children; child++) {
        uint32_t index = lab_index();

        if (!lab_fork()) {
            snprintf(comm, sizeof(comm), "quiet-%u", (uint16_t)child);
            lab_name(comm);
            for (unsigned i = 0; i < QUIET_SLOTS; i++)
                lab_write(QUIET + i * 2 * slot + (1 + child % 7) * LAB_PAGE);
            lab_post(index);
            lab_sleep_for_ever();
        }
        lab_await(index);
    }
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
    long processes = lab_parameter(argc, argv, "processes", 24);
    long threads = lab_parameter(argc, argv, "threads", 2);
    long quiet = lab_parameter(argc, argv, "quiet", 0);
    long seed = lab_parameter(argc, argv, "seed", 1);
    int counts;

    if (lab_parameter(argc, argv, "brief", 0))
        return 0;
    pages = lab_parameter(argc, argv, "pages", 160);
    ksm = lab_parameter(argc, argv, "ksm", 0);
    children = lab_parameter(argc, argv, "children", 100);
    if (nice(lab_parameter(argc, argv, "nice", 0)) < 0) /* was 0 */
        lab_fail("nice");
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL); /* behind the end of the file */
    lab_name("storm-main");
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    lab_board_make();
    file = open(argv[0], O_RDONLY | O_CLOEXEC);
    counts = open("/lab/operations", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (file < 0 || counts < 0 || ftruncate(counts, LAB_PAGE))
        lab_fail("opening files");
    operations = mmap(NULL, LAB_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, counts, 0);
    if (operations == MAP_FAILED)
        lab_fail("mmap of the count of operations");
    swapping = lab_parameter(argc, argv, "swap", 0);
    if (swapping) {
        swap_on("/dev/ram0", 1);
        swap_on("/dev/ram1", 1);
    }
    if (quiet) {
        uint32_t index = lab_index();

        if (!lab_fork()) {
            quiet_life(quiet);
            lab_post(index);
            lab_sleep_for_ever();
        }
        lab_await(index);
    }
    for (long i = 0; i < processes; i++) {
        uint32_t index = lab_index();

        if (!lab_fork())
            process_life(index, seed, threads, argv[0]);
        lab_await(index);
    }
    if (ksm && !lab_fork())
        ksm_life(seed);
    lab_ready();
    for (;;) /* of orphans too: process 1 may have other things to do */
        if (waitpid(-1, NULL, 0) < 0)
            pause();
}
