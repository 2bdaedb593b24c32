/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A storm that never ends: processes, pages, threads, ksm, seed. Each process forks, execs itself,
 * protects, unmaps, maps, moves and discards for ever, and its children do some of that and exit;
 * a few processes do it with several threads on one mm. With ksm=1, KSM merges their pages as fast as
 * it can, and is told to take it all back, again and again. Whoever dumps the guest at a random moment
 * finds operations half done. The log says READY once all have started, and nothing after.
 */
#include "lab.h"
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>

static long pages, ksm;
static char *area;
static __thread sigjmp_buf faulted;

static void on_fault(int number)
{
    (void)number;
    siglongjmp(faulted, 1);
}

static void operate(uint64_t *state)
{
    unsigned from, count, to;
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
    switch (lab_random(8)) {
    case 0:
    case 1:
    case 2:
        if (!sigsetjmp(faulted, 1))
            for (unsigned i = 0; i < count; i++)
                lab_write(start + i * LAB_PAGE);
        break;
    case 3:
    case 4:
        mprotect(start, count * LAB_PAGE, lab_chance(30) ? PROT_READ : PROT_READ | PROT_WRITE);
        break;
    case 5:
        if (from + count <= to || to + count <= from)
            mremap(start, count * LAB_PAGE, count * LAB_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target);
        break;
    case 6:
        mmap(start, count * LAB_PAGE, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        if (ksm)
            madvise(start, count * LAB_PAGE, MADV_MERGEABLE);
        break;
    default:
        munmap(start, count * LAB_PAGE);
    }
    *state = lab_random_state;
}

static void child_life(uint64_t *state, char *self)
{
    pid_t pid = fork();

    if (pid < 0)
        return;
    if (!pid) {
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
}

static void *racer(void *argument)
{
    uint64_t state = (uint64_t)(uintptr_t)argument;

    for (;;)
        operate(&state);
    return NULL;
}

static void process_life(uint32_t index, long seed, long threads, char *self)
{
    uint64_t state;
    char comm[16];

    snprintf(comm, sizeof(comm), "storm-%u", index);
    lab_name(comm);
    lab_seed(seed, index);
    state = lab_random_state;
    area = mmap(NULL, pages * LAB_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        lab_fail("mmap");
    if (ksm && madvise(area, pages * LAB_PAGE, MADV_MERGEABLE))
        lab_fail("MADV_MERGEABLE");
    for (long i = 0; i < pages; i += 2) { /* many VMAs: forks, execs and exits take their time */
        lab_write(area + i * LAB_PAGE);
        mprotect(area + i * LAB_PAGE, LAB_PAGE, PROT_READ);
    }
    for (long i = 0; index % 4 == 0 && i < threads; i++) {
        pthread_t ignored;

        pthread_create(&ignored, NULL, racer, (void *)(uintptr_t)(state + i));
    }
    lab_post(index);
    for (;;) {
        for (unsigned i = lab_random(20); i > 0; i--)
            operate(&state);
        child_life(&state, self);
        lab_random_state = state;
        while (waitpid(-1, NULL, lab_chance(20) ? 0 : WNOHANG) > 0)
            ;
    }
}

static void set(const char *name, const char *value)
{
    char path[64];
    int file;

    snprintf(path, sizeof(path), "/sys/kernel/mm/ksm/%s", name);
    file = open(path, O_WRONLY | O_CLOEXEC);
    if (file < 0)
        lab_fail(path);
    if (write(file, value, strlen(value)) < 0 && errno != EBUSY)
        lab_fail(path);
    close(file);
}

/* Merges for a while, then takes back all that was merged; only then it may be merged otherwise. */
static void ksm_life(long seed)
{
    lab_name("storm-ksm");
    lab_seed(seed, 1000);
    set("pages_to_scan", "100000");
    set("sleep_millisecs", "0");
    for (;;) {
        set("run", "1");
        usleep(300000 + lab_random(2000000));
        if (lab_chance(50)) {
            set("run", "2");
            set("max_page_sharing", lab_chance(50) ? "2" : "256");
            set("merge_across_nodes", lab_chance(50) ? "1" : "0");
        }
    }
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
    long processes = lab_parameter(argc, argv, "processes", 24);
    long threads = lab_parameter(argc, argv, "threads", 2);
    long seed = lab_parameter(argc, argv, "seed", 1);

    if (lab_parameter(argc, argv, "brief", 0))
        return 0;
    pages = lab_parameter(argc, argv, "pages", 160);
    ksm = lab_parameter(argc, argv, "ksm", 0);
    sigaction(SIGSEGV, &action, NULL);
    lab_name("storm-main");
    lab_board_make();
    for (long i = 0; i < processes; i++) {
        uint32_t index = lab_index();

        if (!lab_fork())
            process_life(index, seed, threads, argv[0]);
        lab_await(index);
    }
    if (ksm && !lab_fork())
        ksm_life(seed);
    lab_ready();
    lab_sleep_for_ever();
}
