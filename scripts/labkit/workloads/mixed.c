/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The odd ones: one process, or a few, for each thing that a reader of kernel memory may trip over.
 * Takes no parameter but the seed (for the touches), so it is the same zoo every time.
 *
 * Log: one line for each resident, `CASE pid=...`, with what else a test may want to know.
 */
#include "residents.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>

/* Threads; in the second case the leader exits and the others go on. */
static uint32_t threads_index;
static int threads_alive;

static void *thread(void *argument)
{
    char comm[16];

    snprintf(comm, sizeof(comm), "thread-%ld", (long)(intptr_t)argument);
    lab_name(comm);
    if (__atomic_add_fetch(&threads_alive, 1, __ATOMIC_SEQ_CST) == 3)
        lab_post(threads_index);
    lab_sleep_for_ever();
}

static void start_threads(uint32_t index)
{
    pthread_attr_t attributes;
    pthread_t ignored;

    threads_index = index;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 64 * 1024);
    for (long i = 0; i < 3; i++)
        if (pthread_create(&ignored, &attributes, thread, (void *)(intptr_t)i))
            lab_fail("pthread_create");
    lab_await(index);
}

static void threads(uint32_t index)
{
    lab_name("threads");
    private_pages(8);
    start_threads(index);
    lab_log("threads pid=%d count=4", getpid());
}

static void dead_leader(uint32_t index)
{
    lab_name("dead-leader");
    private_pages(8);
    lab_log("dead-leader pid=%d live=3", getpid());
    start_threads(index);
    syscall(SYS_exit, 0); /* this thread only */
}

/* One mm in two processes that are not threads of each other. */
static int sharer(void *argument)
{
    lab_name("shares-mm");
    lab_log("shares-mm pid=%d with=%d", getpid(), getppid());
    lab_post((uint32_t)(uintptr_t)argument);
    lab_sleep_for_ever();
}

static void shared_mm(uint32_t index)
{
    char *stack = private_pages(16);
    uint32_t other = lab_index();

    (void)index;
    lab_name("shared-mm");
    if (clone(sharer, stack + 16 * LAB_PAGE, CLONE_VM | SIGCHLD, (void *)(uintptr_t)other) < 0)
        lab_fail("clone");
    lab_await(other);
}

/* A vfork whose child never lets go: its parent waits, uninterruptibly, on the same mm. */
static void vfork_pair(uint32_t index)
{
    pid_t parent = getpid();

    lab_name("vfork-parent");
    private_pages(4);
    if (!vfork()) {
        lab_name("vfork-child");
        lab_log("vfork pid=%d with=%d", getpid(), parent);
        lab_post(index);
        lab_sleep_for_ever();
    }
}

/* Advice about forks: what the child has is not what its parent had. */
static void advice(uint32_t index)
{
    char *gone, *wiped, *kept, *merged;
    uint32_t born = lab_index();

    (void)index;
    lab_name("advice");
    gone = private_pages(4);
    map_pages(1, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
    wiped = private_pages(4);
    map_pages(1, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
    kept = private_pages(4);
    map_pages(1, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
    merged = private_pages(4);
    advise(gone, 4, MADV_DONTFORK, "MADV_DONTFORK");
    advise(wiped, 4, MADV_WIPEONFORK, "MADV_WIPEONFORK");
    advise(merged, 4, MADV_MERGEABLE, "MADV_MERGEABLE");
    lab_log("advice pid=%d dontfork=%p wipeonfork=%p kept=%p mergeable=%p", getpid(), (void *)gone,
            (void *)wiped, (void *)kept, (void *)merged);
    if (!lab_fork()) {
        lab_name("advice-child");
        lab_write(kept);
        lab_log("advice-child pid=%d ppid=%d", getpid(), getppid());
        lab_post(born);
        lab_sleep_for_ever();
    }
    lab_await(born);
    lab_write(kept + LAB_PAGE);
}

/* Kinds of mappings, one of each. */
static void mappings(uint32_t index)
{
    int zero = open("/dev/zero", O_RDWR | O_CLOEXEC), file = open("/lab/data", O_RDWR | O_CREAT, 0600);
    char *got;

    (void)index;
    lab_name("mappings");
    if (zero < 0 || file < 0 || ftruncate(file, 16 * LAB_PAGE))
        lab_fail("opening files to map");
    got = mmap(NULL, 4 * LAB_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, zero, 0);
    if (got != MAP_FAILED)
        lab_write(got);
    got = mmap(NULL, 4 * LAB_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 3 * LAB_PAGE);
    if (got != MAP_FAILED)
        lab_write(got + LAB_PAGE);
    got = mmap(NULL, 4 * LAB_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (got != MAP_FAILED)
        lab_write(got);
    got = map_pages(4, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
    lab_write(got);
    got = map_pages(4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN);
    lab_write(got + 3 * LAB_PAGE);
    got = private_pages(4);
    if (mlock(got, 2 * LAB_PAGE))
        lab_log("refused what=mlock errno=%d", errno);
    map_pages(4, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS);
    lab_log("mappings pid=%d", getpid());
}

/* A stack that has grown. */
static __attribute__((noinline)) unsigned grow_stack(unsigned depth)
{
    volatile char frame[4000];

    frame[0] = (char)depth;
    return depth ? grow_stack(depth - 1) + (unsigned char)frame[0] : 0;
}

static void stack(uint32_t index)
{
    (void)index;
    lab_name("stack");
    lab_log("stack pid=%d sum=%u", getpid(), grow_stack(100));
}

/* Command names that bite whoever prints them raw. */
static void names(void)
{
    static const char *const comms[] = {
        "\x1b[31mred\x1b[0m", "<b>&\"quoted'", "two\nlines", "\xff\xfe raw", "", " ", "a) S 1 2 (b",
        "\xc3\xa9\xe2\x82\xac\xf0\x9f\x90\xa7", "\t\r\x07\x08", "{\"json\": 1}", "$(reboot);`x`",
    };

    for (unsigned i = 0; i < sizeof(comms) / sizeof(comms[0]); i++) {
        uint32_t index = lab_index();

        if (!lab_fork()) {
            lab_name(comms[i]);
            private_pages(2);
            lab_log("name pid=%d number=%u", getpid(), i);
            lab_post(index);
            lab_sleep_for_ever();
        }
        lab_await(index);
    }
}

/* A process 1 of a PID namespace: its number inside is not its number outside. */
static void name_space(uint32_t index)
{
    uint32_t born = lab_index();
    pid_t pid;

    (void)index;
    lab_name("ns-parent");
    if (unshare(CLONE_NEWPID)) {
        lab_log("refused what=CLONE_NEWPID errno=%d", errno);
        return;
    }
    pid = lab_fork();
    if (!pid) {
        lab_name("ns-init");
        private_pages(2);
        lab_post(born);
        lab_sleep_for_ever();
    }
    lab_await(born);
    lab_log("namespace pid=%d inside=1", pid);
}

static void zombie(uint32_t index)
{
    pid_t pid = lab_fork();
    siginfo_t info;

    (void)index;
    lab_name("has-a-zombie");
    if (!pid)
        _exit(0);
    waitid(P_PID, pid, &info, WEXITED | WNOWAIT);
    lab_log("zombie pid=%d", pid);
}

static void stopped(uint32_t index)
{
    uint32_t born = lab_index();
    siginfo_t info;
    pid_t pid = lab_fork();

    (void)index;
    lab_name("stopper");
    if (!pid) {
        lab_name("stopped");
        private_pages(2);
        lab_post(born);
        lab_sleep_for_ever();
    }
    lab_await(born);
    kill(pid, SIGSTOP);
    waitid(P_PID, pid, &info, WSTOPPED | WNOWAIT);
    lab_log("stopped pid=%d", pid);
}

/* A program of another kind: what a process looks like right after exec. */
static void executed(void)
{
    pid_t pid = lab_fork();
    char comm[16] = "";

    if (!pid) {
        close(LAB_LOG_FD);
        execl("/bin/busybox", "sleep", "1000000", (char *)NULL);
        _exit(127);
    }
    while (strncmp(comm, "busybox", 7)) {
        char name[32];
        int file;

        usleep(20000);
        snprintf(name, sizeof(name), "/proc/%d/comm", pid);
        file = open(name, O_RDONLY | O_CLOEXEC);
        if (file < 0 || read(file, comm, sizeof(comm) - 1) < 0)
            lab_fail("starting busybox");
        close(file);
    }
    lab_log("executed pid=%d", pid);
}

int main(int argc, char **argv)
{
    long seed = lab_parameter(argc, argv, "seed", 1);

    lab_seed(seed, 0);
    lab_name("mixed-main");
    lab_board_make();
    private_pages(8);
    resident(threads);
    resident(dead_leader);
    resident(shared_mm);
    resident(vfork_pair);
    resident(advice);
    resident(mappings);
    resident(stack);
    resident(name_space);
    resident(zombie);
    resident(stopped);
    names();
    executed();
    lab_ready();
    lab_sleep_for_ever();
}
