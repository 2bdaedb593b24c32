/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Scripts of operations on mappings, done exactly as they are written: what the model of the
 * kernel (tests/model) does as well, to be compared with it.
 *
 * /lab/scripts has the scripts, one after the other; each begins with a line `script NAME` and is
 * lines `PROCESS OPERATION PAGE PAGES TO ARGUMENT`, in the order in which they are done, as
 * tests/model/script.py explains. Each script has processes of its own, called NAME-PROCESS; the
 * first has an arena at a fixed address, which nothing else is near to, and the others come by
 * forks. They take turns, one operation at a time, and in the end sleep.
 *
 * Log: for each script its name and how each operation ended, 0 or an errno.
 */
#include "../workloads/lab.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

#define SCRIPTS "/lab/scripts"
#define FILE_NAME "/lab/data"
#define LOCK_NAME "/lab/lives"
#define BASE ((char *)0x10000000) /* Player.base, in pages */
#define MAX_OPERATIONS 400
#define MAX_PROCESSES 64

struct operation {
    unsigned process, page, pages, to, argument;
    char name[12];
};

/* Shared by all processes of a script. */
struct stage {
    uint32_t turn; /* the operation that is next */
    int32_t result[MAX_OPERATIONS];
};

static struct operation operations[MAX_OPERATIONS];
static unsigned count;
static char script[10];
static unsigned scripts_done;
static struct stage *stage;
static int file, lives;
static sigjmp_buf faulted;

static void on_fault(int number)
{
    (void)number;
    siglongjmp(faulted, 1);
}

/*
 * Each process has a record lock on a byte of its own. The kernel lets go of it when it closes the
 * process's files, and that is after it has taken down its address space.
 */
static void lock(unsigned process, int command, int type)
{
    struct flock range = {.l_type = type, .l_whence = SEEK_SET, .l_len = 1};

    range.l_start = scripts_done * MAX_PROCESSES + process;
    if (fcntl(lives, command, &range))
        lab_fail("fcntl");
}

static void await_end_of(unsigned process)
{
    lock(process, F_SETLKW, F_WRLCK);
    lock(process, F_SETLK, F_UNLCK);
}

static void await_turn(unsigned turn)
{
    struct timespec patience = {.tv_sec = 60};
    uint32_t now;

    while ((now = __atomic_load_n(&stage->turn, __ATOMIC_SEQ_CST)) < turn)
        if (syscall(SYS_futex, &stage->turn, FUTEX_WAIT, now, &patience, NULL, 0) &&
            errno == ETIMEDOUT)
            lab_fail("waiting for another process of the script");
    if (turn && !strcmp(operations[turn - 1].name, "exit"))
        await_end_of(operations[turn - 1].process);
}

static void pass_turn(unsigned turn, int result)
{
    stage->result[turn] = result;
    __atomic_store_n(&stage->turn, turn + 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &stage->turn, FUTEX_WAKE, MAX_PROCESSES, NULL, NULL, 0);
}

static int write_pages(char *start, unsigned pages)
{
    volatile unsigned done = 0;

    if (sigsetjmp(faulted, 1))
        return EFAULT;
    for (; done < pages; done++)
        *(volatile char *)(start + done * LAB_PAGE) = 1;
    return 0;
}

static int map_pages(char *start, size_t size, int from, unsigned page)
{
    /* Without a reservation, so that accounting decides nothing about what merges. */
    int flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE | (from < 0 ? MAP_ANONYMOUS : 0);

    return mmap(start, size, PROT_READ | PROT_WRITE, flags, from, page * LAB_PAGE) == MAP_FAILED;
}

/* Everything but fork and exit; returns 0 or an errno. */
static int operate(const struct operation *what)
{
    char *start = BASE + what->page * LAB_PAGE, *to = BASE + what->to * LAB_PAGE;
    size_t size = what->pages * LAB_PAGE;
    int fixed = MREMAP_MAYMOVE | MREMAP_FIXED, failed;

    if (!strcmp(what->name, "write"))
        return write_pages(start, what->pages);
    if (!strcmp(what->name, "map"))
        failed = map_pages(start, size, -1, 0);
    else if (!strcmp(what->name, "map-file"))
        failed = map_pages(start, size, file, what->to);
    else if (!strcmp(what->name, "unmap"))
        failed = munmap(start, size);
    else if (!strcmp(what->name, "protect"))
        failed = mprotect(start, size, what->argument);
    else if (!strcmp(what->name, "advise"))
        failed = madvise(start, size, what->argument);
    else if (!strcmp(what->name, "move"))
        failed = mremap(start, size, what->argument * LAB_PAGE, fixed, to) == MAP_FAILED;
    else if (!strcmp(what->name, "leave"))
        failed = mremap(start, size, size, fixed | MREMAP_DONTUNMAP, to) == MAP_FAILED;
    else if (!strcmp(what->name, "resize"))
        failed = mremap(start, size, what->to * LAB_PAGE, 0) == MAP_FAILED;
    else
        lab_fail(what->name);
    return failed ? errno : 0;
}

/* What a process does from one turn on; it does not return. */
__attribute__((noreturn)) static void live(unsigned process, unsigned turn)
{
    char comm[16];

    snprintf(comm, sizeof(comm), "%s-%u", script, process);
    lab_name(comm);
    lock(process, F_SETLK, F_WRLCK);
    for (; turn < count; turn++) {
        const struct operation *what = &operations[turn];

        if (what->process != process)
            continue;
        await_turn(turn);
        if (!strcmp(what->name, "exit")) {
            pass_turn(turn, 0);
            _exit(0);
        }
        if (strcmp(what->name, "fork")) {
            pass_turn(turn, operate(what));
        } else {
            if (!lab_fork())
                live(what->to, turn + 1);
            pass_turn(turn, 0);
        }
    }
    lab_sleep_for_ever();
}

static void tell_results(void)
{
    char list[4 * MAX_OPERATIONS];
    size_t used = 0;

    list[0] = 0;
    for (unsigned i = 0; i < count; i++)
        used += snprintf(list + used, sizeof(list) - used, "%s%d", i ? "," : "", stage->result[i]);
    lab_log("script name=%s results=%s", script, list);
}

static void play(void)
{
    stage->turn = 0;
    if (!lab_fork())
        live(0, 0);
    await_turn(count);
    tell_results();
    scripts_done++;
}

static void play_all(FILE *scripts)
{
    char line[80];

    while (fgets(line, sizeof(line), scripts)) {
        struct operation *next = &operations[count];
        char name[sizeof(script)];

        if (sscanf(line, "script %9s", name) == 1) {
            if (count)
                play();
            memcpy(script, name, sizeof(script));
            count = 0;
        } else if (count == MAX_OPERATIONS ||
                   sscanf(line, "%u %11s %u %u %u %u", &next->process, next->name, &next->page,
                          &next->pages, &next->to, &next->argument) != 6 ||
                   next->process >= MAX_PROCESSES) {
            errno = EINVAL;
            lab_fail(line);
        } else {
            count++;
        }
    }
    if (count)
        play();
}

int main(void)
{
    struct sigaction action = {.sa_handler = on_fault};
    FILE *scripts = fopen(SCRIPTS, "re");

    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    lab_name("model-main");
    stage = mmap(NULL, sizeof(*stage), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (stage == MAP_FAILED)
        lab_fail("mmap of the stage");
    if (!scripts)
        lab_fail(SCRIPTS);
    file = open(FILE_NAME, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    lives = open(LOCK_NAME, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || lives < 0 || ftruncate(file, 4096 * LAB_PAGE))
        lab_fail(FILE_NAME);
    play_all(scripts);
    lab_ready();
    lab_sleep_for_ever();
}
