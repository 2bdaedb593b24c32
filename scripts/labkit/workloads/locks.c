/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Locks that are held and waited for, and stay so: depth, members, vmas, tries, seed. A process on the
 * second CPU forks for ever, and so has its mmap_lock, for which its other threads wait, and now and
 * then the lock of a root anon_vma, for which all of its family wait. In some moment a real-time task
 * takes that CPU and does not give it back: where a kernel can be preempted anywhere, whoever holds a
 * lock then keeps it, and everybody else ends up waiting. If nobody waits for a root anon_vma, the CPU
 * is given back for another try. (A kernel that is preempted in few places only is never in one that
 * has a root anon_vma's lock: there, members=0 makes do with the mmap_lock.)
 *
 * The log says of every thread in the end where it is: TASK pid tid comm state blocked stack. `blocked`
 * is for how many milliseconds at least it has been there, `stack` what /proc/PID/stack says, from the
 * innermost function. Nothing comes to rest: READY means that it goes on for ever like this.
 */
#include "lab.h"
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>

#define MAX_TASKS 256
#define STACK 400

struct task {
    int pid, tid;
    char comm[20], state, stack[STACK];
};

static long depth, members, vmas, tries;
static char *area;
static uint32_t hog;          /* the board's word that the CPU's new owner spins on */
static struct task before[MAX_TASKS], now[MAX_TASKS];

static void pin(pid_t pid, int cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(pid, sizeof(set), &set))
        lab_fail("sched_setaffinity (two CPUs are needed)");
}

static void be_first(int priority)
{
    struct sched_param how = {.sched_priority = priority};

    if (sched_setscheduler(0, SCHED_FIFO, &how))
        lab_fail("sched_setscheduler");
}

/* 0 if there is no such file, which not every kernel has. */
static int set(const char *path, const char *value)
{
    int file = open(path, O_WRONLY | O_CLOEXEC), good;

    if (file < 0)
        return 0;
    good = write(file, value, strlen(value)) > 0;
    close(file);
    return good;
}

static void *fault(void *argument)
{
    lab_name("locks-fault");
    for (long i = 0;; i = (i + 7) % vmas) {
        char *page = area + 2 * i * LAB_PAGE;

        lab_write(page);
        if (i % 3 == 0)
            madvise(page, LAB_PAGE, MADV_DONTNEED);
    }
    return argument;
}

static void *map(void *argument)
{
    lab_name("locks-map");
    for (;;) {
        char *page = mmap(NULL, LAB_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (page != MAP_FAILED)
            munmap(page, LAB_PAGE);
    }
    return argument;
}

static void thread(void *(*life)(void *))
{
    pthread_t ignored;

    if (pthread_create(&ignored, NULL, life, NULL))
        lab_fail("pthread_create");
}

__attribute__((noreturn)) static void fork_for_ever(void)
{
    for (;;) {
        pid_t pid = fork();

        if (!pid)
            _exit(0);
        if (pid > 0)
            waitpid(pid, NULL, 0);
    }
}

__attribute__((noreturn)) static void hog_life(void)
{
    volatile uint32_t *word = &lab_board->word[hog];

    lab_name("locks-hog");
    pin(0, 1);
    be_first(1); /* below the threads that serve interrupts, which the witness needs */
    for (;;) {
        while (!*word)
            syscall(SYS_futex, word, FUTEX_WAIT, 0, NULL, NULL, 0);
        while (*word)
            ;
    }
}

static void family(uint32_t ready)
{
    lab_name("locks-owner");
    pin(0, 0);
    area = mmap(NULL, 2 * vmas * LAB_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        lab_fail("mmap");
    for (long i = 0; i < 2 * vmas; i++)
        lab_write(area + i * LAB_PAGE);
    for (long i = 0; i < vmas; i++)
        if (mprotect(area + (2 * i + 1) * LAB_PAGE, LAB_PAGE, PROT_READ))
            lab_fail("mprotect");
    /* Long chains: most of a fork, and of an exit, is then under the root anon_vma's lock. */
    for (long i = 0; i < depth; i++)
        if (lab_fork()) {
            lab_name("locks-ancestor");
            lab_sleep_for_ever();
        }
    for (long i = 0; i < members; i++)
        if (!lab_fork()) {
            char comm[32];

            snprintf(comm, sizeof(comm), "locks-%ld", i);
            lab_name(comm);
            if (i % 4 == 0)
                thread(fault);
            fork_for_ever();
        }
    thread(fault);
    thread(fault);
    thread(map);
    pin(0, 1);
    lab_post(ready);
    fork_for_ever();
}

static size_t slurp(char *to, size_t size, const char *path)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = file < 0 ? -1 : read(file, to, size - 1);

    if (file >= 0)
        close(file);
    to[got > 0 ? got : 0] = 0;
    return got > 0 ? got : 0;
}

/* "[<0>] down_read+0x1d/0xa0" a line becomes "down_read,". */
static void functions(char *to, size_t size, const char *text)
{
    size_t used = 0;

    for (const char *line = text; (line = strstr(line, "] ")); line++) {
        size_t length = strcspn(line + 2, "+\n");

        if (used + length + 2 > size)
            break;
        memcpy(to + used, line + 2, length);
        used += length;
        to[used++] = ',';
    }
    to[used ? used - 1 : 0] = 0;
}

static int look_at(struct task *task, int pid, int tid)
{
    static char path[64], text[4096];
    char *end;

    snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", pid, tid);
    if (!slurp(text, sizeof(text), path) || !(end = strrchr(text, ')')) || strncmp(strchr(text, '(') + 1, "locks", 5))
        return 0;
    task->pid = pid;
    task->tid = tid;
    task->state = end[2];
    *end = 0;
    snprintf(task->comm, sizeof(task->comm), "%.15s", strchr(text, '(') + 1);
    snprintf(path, sizeof(path), "/proc/%d/task/%d/stack", pid, tid);
    slurp(text, sizeof(text), path);
    functions(task->stack, sizeof(task->stack), text);
    return 1;
}

static int look(struct task *tasks)
{
    DIR *processes = opendir("/proc");
    struct dirent *entry;
    int count = 0;

    while (processes && (entry = readdir(processes))) {
        char path[32];
        DIR *threads;
        int pid = atoi(entry->d_name);

        if (!isdigit(entry->d_name[0]) || pid == getpid())
            continue;
        snprintf(path, sizeof(path), "/proc/%d/task", pid);
        threads = opendir(path);
        while (threads && (entry = readdir(threads)) && count < MAX_TASKS)
            if (isdigit(entry->d_name[0]))
                count += look_at(&tasks[count], pid, atoi(entry->d_name));
        if (threads)
            closedir(threads);
    }
    if (processes)
        closedir(processes);
    return count;
}

/* The functions of a lock itself are left out of /proc/PID/stack: the first is who called them. */
static int waits(const struct task *task)
{
    return task->state == 'D';
}

/* Whether nobody has moved but those who always can, and enough of them wait. */
static int held(int count, int count_before)
{
    int for_anon_vma = 0, for_mmap = 0;

    if (count != count_before)
        return 0;
    for (int i = 0; i < count; i++) {
        if (now[i].tid != before[i].tid || now[i].state != before[i].state ||
            (now[i].state != 'R' && strcmp(now[i].stack, before[i].stack)))
            return 0;
        if (waits(&now[i]) && strstr(now[i].stack, "anon_vma"))
            for_anon_vma++;
        else if (waits(&now[i]))
            for_mmap++;
    }
    return (for_anon_vma >= 2 || !members) && for_mmap >= 2;
}

int main(int argc, char **argv)
{
    uint32_t ready;
    long seed = lab_parameter(argc, argv, "seed", 1);

    depth = lab_parameter(argc, argv, "depth", 10);
    members = lab_parameter(argc, argv, "members", 6);
    vmas = lab_parameter(argc, argv, "vmas", 30);
    tries = lab_parameter(argc, argv, "tries", 200);
    lab_name("locks-main");
    lab_seed(seed, 0);
    lab_board_make();
    hog = lab_index();
    ready = lab_index();
    /* Nobody takes the CPU back: neither the brake on real-time tasks nor the server for the others. */
    set("/proc/sys/kernel/sched_rt_runtime_us", "-1");
    set("/sys/kernel/debug/sched/fair_server/cpu1/runtime", "0");
    pin(1, 0);
    pin(0, 0);
    if (!lab_fork())
        hog_life();
    if (!lab_fork())
        family(ready);
    lab_await(ready);
    be_first(2);
    for (long attempt = 1; attempt <= tries; attempt++) {
        int count, count_before;

        usleep(30000 + lab_random(60000));
        lab_post(hog);
        usleep(400000);
        count_before = look(before);
        usleep(200000);
        count = look(now);
        if (held(count, count_before)) {
            lab_log("HELD attempt=%ld", attempt);
            for (int i = 0; i < count; i++)
                lab_log("TASK pid=%d tid=%d comm=%s state=%c blocked=%d stack=%s", now[i].pid,
                        now[i].tid, now[i].comm, now[i].state, waits(&now[i]) ? 200 : 0, now[i].stack);
            lab_ready();
            lab_sleep_for_ever();
        }
        __atomic_store_n(&lab_board->word[hog], 0, __ATOMIC_SEQ_CST);
    }
    errno = 0;
    lab_fail("nobody holds what others wait for");
}
