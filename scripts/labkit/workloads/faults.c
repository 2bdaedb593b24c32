/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Operations in which allocations fail: talk, only, nth, row, every, seed. Needs a kernel with
 * fault injection (6.12-faults).
 *
 * Four generations write to the same areas; the two in the middle exit, so that later forks find
 * anon_vmas to take over. The last one forks an actor for each step: it prepares the ground, lets
 * the nth allocation of one operation fail, and sleeps with what is left. nth goes up until the
 * operation ends before its nth allocation. Then comes the same with several failures in a row, for
 * what is asked for again in another way (anon_vma_clone() does); then the next operation.
 *
 * With talk=1 the console says LAB-STEP after each step, and a byte on the second serial port ends
 * it: the actor is killed. After an operation's last step, LAB-LEFT says how many objects more there
 * are than before its first, which is exact if slab caches are not merged (slab_nomerge); after the
 * last operation, LAB-OVER. Without talk, the actors of one step in `every` stay. `only` is the
 * number of one operation, `nth` of one step of each, `row` that of failures in a row.
 *
 * Log: area, then step: `failed` is whether an allocation did, `result` what the operation said.
 */
#include "lab.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

#define PORT "/dev/ttyS1"
#define FILE_NAME "/lab/data"
#define MOST 4000 /* no operation has so many allocations */
#define FAULT "/sys/kernel/debug/"

/* The room, in pages: areas with holes between them. */
enum {
    AREA = 16,    /* anonymous, written to by all generations */
    AREA_END = 40,
    FILE_AREA = 48, /* a private mapping of a file, likewise */
    FILE_END = 56,
    FRESH = 64,   /* free, for an actor's own mappings */
    TARGET = 128, /* free, to move to */
    /* Where a stack begins, with a gap below that is longer than the guard gap. */
    GROWING_END = 640,
    ROOM = 656,
};
#define RW (PROT_READ | PROT_WRITE)

struct report {
    volatile int done, failed;
    volatile long result;
};

static char *room;
static struct report *report;
static long every;
static int file, messages, times[2];
static sigjmp_buf faulted;

static char *at(unsigned page)
{
    return room + page * LAB_PAGE;
}

static long outcome(long result)
{
    return result == -1 ? -errno : 0;
}

static void must(long result, const char *what)
{
    if (result == -1)
        lab_fail(what);
}

static long protect(unsigned page, unsigned count, int protection)
{
    return outcome(mprotect(at(page), count * LAB_PAGE, protection));
}

static long unmap(unsigned page, unsigned count)
{
    return outcome(munmap(at(page), count * LAB_PAGE));
}

static long map(unsigned page, unsigned count, int protection, int flags)
{
    int from = flags & MAP_ANONYMOUS ? -1 : file;

    return outcome((long)mmap(at(page), count * LAB_PAGE, protection,
                              MAP_PRIVATE | MAP_FIXED | flags, from, 0));
}

static long fresh(unsigned page, unsigned count, int protection)
{
    return map(page, count, protection, MAP_ANONYMOUS);
}

static long move(unsigned from, unsigned count, unsigned to, unsigned new_count, int flags)
{
    return outcome((long)mremap(at(from), count * LAB_PAGE, new_count * LAB_PAGE,
                                MREMAP_MAYMOVE | MREMAP_FIXED | flags, at(to)));
}

static long resize(unsigned page, unsigned count, unsigned new_count)
{
    return outcome((long)mremap(at(page), count * LAB_PAGE, new_count * LAB_PAGE, 0));
}

static void write_pages(unsigned page, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        lab_write(at(page + i));
}

/* ---- What an operation finds. */

static void nothing(void)
{
}

/* Five VMAs of one anon_vma, one that forks leave out and one that they empty. */
static void in_pieces(void)
{
    must(protect(AREA + 4, 4, PROT_READ), "mprotect");
    must(protect(AREA + 12, 4, PROT_READ), "mprotect");
    must(madvise(at(AREA + 8), 2 * LAB_PAGE, MADV_DONTFORK), "MADV_DONTFORK");
    must(madvise(at(AREA + 20), 2 * LAB_PAGE, MADV_WIPEONFORK), "MADV_WIPEONFORK");
}

static void middle_protected(void)
{
    must(protect(AREA + 8, 8, PROT_READ), "mprotect");
}

/* Three mappings side by side, of which only the middle one keeps the others from being one. */
static void three(unsigned written)
{
    must(fresh(FRESH, 12, RW), "mmap");
    must(protect(FRESH + 4, 4, PROT_READ | PROT_WRITE | PROT_EXEC), "mprotect");
    for (unsigned part = 0; part < 3; part++)
        if (written >> part & 1)
            write_pages(FRESH + 4 * part, 2);
}

static void three_first_written(void)
{
    three(1);
}

static void three_middle_written(void)
{
    three(2);
}

static void three_last_written(void)
{
    three(4);
}

/* Two mappings with a hole between them. */
static void hole(unsigned written)
{
    must(fresh(FRESH, 4, RW), "mmap");
    must(fresh(FRESH + 8, 4, RW), "mmap");
    write_pages(FRESH + (written ? 8 : 0), 3);
}

static void hole_first_written(void)
{
    hole(0);
}

static void hole_last_written(void)
{
    hole(1);
}

/* A mapping that was moved away from between two others, so that its offsets still fit there. */
static void moved_away(int neighbours_written)
{
    must(fresh(FRESH, 4, RW), "mmap");
    must(fresh(FRESH + 4, 4, PROT_READ | PROT_WRITE | PROT_EXEC), "mmap");
    must(fresh(FRESH + 8, 4, RW), "mmap");
    write_pages(FRESH + 4, 4);
    must(move(FRESH + 4, 4, TARGET, 4, 0), "mremap");
    must(protect(TARGET, 4, RW), "mprotect");
    if (neighbours_written) {
        write_pages(FRESH, 1);
        write_pages(FRESH + 8, 1);
    }
}

static void moved_away_from_untouched(void)
{
    moved_away(0);
}

static void moved_away_from_written(void)
{
    moved_away(1);
}

static void middle_moved_away(void)
{
    must(move(AREA + 8, 8, TARGET, 8, 0), "mremap");
}

static void target_taken(void)
{
    must(fresh(TARGET, 16, RW), "mmap");
    write_pages(TARGET, 16);
}

static void untouched(void)
{
    must(fresh(FRESH, 8, RW), "mmap");
}

static void beside_written(void)
{
    must(fresh(FRESH, 8, RW), "mmap");
    write_pages(FRESH, 2);
    must(fresh(FRESH + 8, 4, PROT_READ), "mmap");
    must(protect(FRESH + 8, 4, PROT_READ | PROT_WRITE | PROT_EXEC), "mprotect");
}

static void small_stack(void)
{
    must(map(GROWING_END - 2, 2, RW, MAP_ANONYMOUS | MAP_GROWSDOWN), "mmap");
}

static void small_stack_written(void)
{
    small_stack();
    write_pages(GROWING_END - 2, 2);
}

/* ---- The operations. */

static long do_fork(void)
{
    long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);

    if (!pid)
        lab_sleep_for_ever();
    return outcome(pid);
}

static long split_middle(void)
{
    return protect(AREA + 8, 8, PROT_READ);
}

static long split_across(void)
{
    return protect(AREA + 2, 12, PROT_NONE);
}

static long split_file(void)
{
    return protect(FILE_AREA + 2, 4, PROT_READ);
}

static long unmap_middle(void)
{
    return unmap(AREA + 8, 8);
}

static long unmap_across(void)
{
    return unmap(AREA + 2, 16);
}

static long map_over(void)
{
    return fresh(AREA + 8, 8, RW);
}

static long map_over_across(void)
{
    return fresh(AREA + 2, 12, PROT_READ);
}

static long map_file_over(void)
{
    return map(AREA + 8, 8, RW, 0);
}

static long advise_dontfork(void)
{
    return outcome(madvise(at(AREA + 8), 8 * LAB_PAGE, MADV_DONTFORK));
}

static long advise_mergeable(void)
{
    return outcome(madvise(at(AREA + 8), 8 * LAB_PAGE, MADV_MERGEABLE));
}

static long lock_middle(void)
{
    return outcome(mlock(at(AREA + 8), 8 * LAB_PAGE));
}

static long name_middle(void)
{
    return outcome(prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, at(AREA + 8), 8 * LAB_PAGE, "middle"));
}

static long merge_back(void)
{
    return protect(AREA + 8, 8, RW);
}

static long merge_three(void)
{
    return protect(FRESH + 4, 4, RW);
}

static long merge_left_part(void)
{
    return protect(FRESH + 4, 2, RW);
}

static long merge_right_part(void)
{
    return protect(FRESH + 6, 2, RW);
}

static long fill_hole(void)
{
    return fresh(FRESH + 4, 4, RW);
}

static long grow_into_hole(void)
{
    return resize(FRESH, 4, 8);
}

static long grow_in_place(void)
{
    return resize(AREA, AREA_END - AREA, AREA_END - AREA + 4);
}

static long shrink(void)
{
    return resize(AREA, AREA_END - AREA, 8);
}

static long move_all(void)
{
    return move(AREA, AREA_END - AREA, TARGET, AREA_END - AREA, 0);
}

static long move_middle(void)
{
    return move(AREA + 8, 8, TARGET, 8, 0);
}

static long move_file(void)
{
    return move(FILE_AREA, FILE_END - FILE_AREA, TARGET, FILE_END - FILE_AREA, 0);
}

static long move_and_grow(void)
{
    return move(AREA, AREA_END - AREA, TARGET, AREA_END - AREA + 8, 0);
}

static long move_over(void)
{
    return move(AREA + 8, 8, TARGET + 4, 8, 0);
}

static long move_middle_back(void)
{
    return move(TARGET, 8, AREA + 8, 8, 0);
}

static long move_back_between(void)
{
    return move(TARGET, 4, FRESH + 4, 4, 0);
}

static long leave_all(void)
{
    return move(AREA, AREA_END - AREA, TARGET, AREA_END - AREA, MREMAP_DONTUNMAP);
}

static long leave_middle(void)
{
    return move(AREA + 8, 8, TARGET, 8, MREMAP_DONTUNMAP);
}

static long leave_between(void)
{
    return move(TARGET, 4, FRESH + 4, 4, MREMAP_DONTUNMAP);
}

static void on_fault(int number)
{
    (void)number;
    siglongjmp(faulted, 1);
}

static long write_to(unsigned page)
{
    if (sigsetjmp(faulted, 1))
        return -EFAULT;
    lab_write(at(page));
    return 0;
}

static long first_write(void)
{
    return write_to(FRESH + 3);
}

static long first_write_beside(void)
{
    return write_to(FRESH + 9);
}

static long copying_write(void)
{
    return write_to(AREA + 3);
}

static long file_write(void)
{
    return write_to(FILE_END - 1);
}

static long grow_stack(void)
{
    return write_to(GROWING_END - 8);
}

/* Not sbrk(): the library would do more than the kernel's part. */
static long heap_grow(void)
{
    long end = syscall(SYS_brk, 0);

    return syscall(SYS_brk, end + 16 * LAB_PAGE) == end ? -ENOMEM : 0;
}

static long heap_shrink(void)
{
    long end = syscall(SYS_brk, 0);

    return syscall(SYS_brk, end - 2 * LAB_PAGE) == end ? -ENOMEM : 0;
}

static const struct operation {
    const char *name;
    void (*prepare)(void);
    long (*run)(void);
} operations[] = {
    {"fork", nothing, do_fork},
    {"fork-pieces", in_pieces, do_fork},
    {"split", nothing, split_middle},
    {"split-across", middle_protected, split_across},
    {"split-file", nothing, split_file},
    {"split-dontfork", nothing, advise_dontfork},
    {"split-ksm", nothing, advise_mergeable},
    {"split-mlock", nothing, lock_middle},
    {"split-name", nothing, name_middle},
    {"unmap", nothing, unmap_middle},
    {"unmap-across", in_pieces, unmap_across},
    {"map-over", nothing, map_over},
    {"map-over-across", in_pieces, map_over_across},
    {"map-file-over", nothing, map_file_over},
    {"merge-back", middle_protected, merge_back},
    {"merge-1", three_first_written, merge_three},
    {"merge-2", three_middle_written, merge_three},
    {"merge-3", three_last_written, merge_three},
    {"merge-part-1", three_first_written, merge_left_part},
    {"merge-part-2", three_middle_written, merge_left_part},
    {"merge-part-2r", three_middle_written, merge_right_part},
    {"merge-part-3", three_last_written, merge_right_part},
    {"fill-1", hole_first_written, fill_hole},
    {"fill-2", hole_last_written, fill_hole},
    {"grow-into-1", hole_first_written, grow_into_hole},
    {"grow-into-2", hole_last_written, grow_into_hole},
    {"grow", nothing, grow_in_place},
    {"shrink", nothing, shrink},
    {"move", nothing, move_all},
    {"move-middle", nothing, move_middle},
    {"move-file", nothing, move_file},
    {"move-grow", nothing, move_and_grow},
    {"move-over", target_taken, move_over},
    {"move-back", middle_moved_away, move_middle_back},
    {"move-between-u", moved_away_from_untouched, move_back_between},
    {"move-between-w", moved_away_from_written, move_back_between},
    {"leave", nothing, leave_all},
    {"leave-middle", nothing, leave_middle},
    {"leave-back", middle_moved_away, move_middle_back},
    {"leave-between", moved_away_from_untouched, leave_between},
    {"write-first", untouched, first_write},
    {"write-beside", beside_written, first_write_beside},
    {"write-copy", nothing, copying_write},
    {"write-file", nothing, file_write},
    {"stack", small_stack, grow_stack},
    {"stack-written", small_stack_written, grow_stack},
    {"heap-grow", nothing, heap_grow},
    {"heap-shrink", nothing, heap_shrink},
};
#define OPERATIONS (sizeof(operations) / sizeof(operations[0]))

/* How many allocations fail in a row. Not all: a page fault would be tried again for ever. */
static const int rows[] = {1, 4};

/* ---- A step. */

static void set(int to, const char *text, const char *what)
{
    must(write(to, text, strlen(text)), what);
}

static void put(const char *path, const char *text)
{
    int to = open(path, O_WRONLY | O_CLOEXEC);

    if (to < 0 || write(to, text, strlen(text)) < 0)
        lab_fail(path);
    close(to);
}

static void say(const char *line)
{
    if (write(messages, line, strlen(line)) < 0)
        lab_fail("/dev/kmsg");
}

__attribute__((noreturn)) static void act(const struct operation *operation, unsigned nth, int row)
{
    char number[16] = "", name[48];
    int fault, more;
    long result;

    setpgid(0, 0);
    snprintf(name, sizeof(name), "%s-%u", operation->name, nth);
    lab_name(name);
    operation->prepare();
    fault = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
    more = open("/proc/thread-self/make-it-fail", O_RDWR | O_CLOEXEC);
    if (fault < 0 || more < 0)
        lab_fail("fail-nth (this kernel has no fault injection)");
    /* The nth failure is one of those that `times` counts; those behind it are random, of 100 %. */
    snprintf(number, sizeof(number), "%d", row);
    for (int i = 0; i < 2; i++)
        set(times[i], number, "times");
    snprintf(number, sizeof(number), "%u", nth);
    set(fault, number, "fail-nth");
    if (row > 1)
        set(more, "1", "make-it-fail");
    result = operation->run();
    set(more, "0", "make-it-fail");
    /* What is left to count: nothing, if an allocation failed. */
    must(pread(fault, number, sizeof(number) - 1, 0), "fail-nth");
    set(fault, "0", "fail-nth");
    report->failed = atoi(number) == 0;
    report->result = result;
    report->done = 1;
    lab_sleep_for_ever();
}

/* Ends an actor, and a child that it may have. */
static void end(pid_t pid)
{
    kill(-pid, SIGKILL);
    while (waitpid(-pid, NULL, 0) > 0)
        ;
}

/* Runs a step; returns whether an allocation failed in it. */
static int step(const struct operation *operation, unsigned nth, int row, int port)
{
    static unsigned number;
    char line[200], go;
    int status;
    pid_t pid;

    memset(report, 0, sizeof(*report));
    pid = lab_fork();
    if (!pid)
        act(operation, nth, row);
    setpgid(pid, pid);
    while (!report->done) {
        if (waitpid(pid, &status, WNOHANG) == pid) {
            report->result = -1000 - status;
            report->failed = 1;
            break;
        }
        usleep(500);
    }
    lab_log("step operation=%s nth=%u row=%d failed=%d result=%ld pid=%d", operation->name, nth, row,
            report->failed, report->result, pid);
    number++;
    if (port < 0) {
        if (number % every)
            end(pid);
        return report->failed;
    }
    snprintf(line, sizeof(line),
             "<5>LAB-STEP number=%u operation=%s nth=%u row=%d failed=%d result=%ld\n", number,
             operation->name, nth, row, report->failed, report->result);
    say(line);
    if (read(port, &go, 1) != 1)
        lab_fail("reading from " PORT);
    end(pid);
    return report->failed;
}

/* ---- How many objects there are. */

static const char *const caches[] = {
    "anon_vma", "anon_vma_chain", "vm_area_struct", "mm_struct", "maple_node",
};
#define CACHES (sizeof(caches) / sizeof(caches[0]))

static void count(long *objects)
{
    for (size_t i = 0; i < CACHES; i++) {
        char path[96], text[32] = "";
        int from;

        snprintf(path, sizeof(path), "/sys/kernel/slab/%s/shrink", caches[i]);
        put(path, "1");
        snprintf(path, sizeof(path), "/sys/kernel/slab/%s/objects", caches[i]);
        from = open(path, O_RDONLY | O_CLOEXEC);
        if (from < 0 || read(from, text, sizeof(text) - 1) < 0)
            lab_fail(path);
        close(from);
        objects[i] = strtol(text, NULL, 10);
    }
}

/* Some objects are freed a grace period later. */
static void say_left(const struct operation *operation, const long *before)
{
    char line[300];
    int length = snprintf(line, sizeof(line), "<5>LAB-LEFT operation=%s", operation->name);
    long now[CACHES];

    for (int tries = 0; tries < 40; tries++) {
        count(now);
        if (!memcmp(now, before, sizeof(now)))
            break;
        usleep(50000);
    }
    for (size_t i = 0; i < CACHES; i++)
        length += snprintf(line + length, sizeof(line) - length, " %s=%ld", caches[i],
                           now[i] - before[i]);
    snprintf(line + length, sizeof(line) - length, "\n");
    say(line);
}

/* Lets each allocation fail in turn, or only the nth. */
static void walk(const struct operation *operation, long nth, int row, int port)
{
    for (unsigned number = nth ? nth : 1; step(operation, number, row, port) && !nth; number++)
        if (number == MOST)
            lab_fail("an operation that fails for ever");
}

static void run(long only, long nth, long row, int port)
{
    for (size_t i = 0; i < OPERATIONS; i++) {
        long before[CACHES];

        if (only && (size_t)only != i + 1)
            continue;
        if (port >= 0)
            count(before);
        for (size_t j = 0; j < sizeof(rows) / sizeof(rows[0]); j++)
            if (!row || row == rows[j])
                walk(&operations[i], nth, rows[j], port);
        if (port >= 0)
            say_left(&operations[i], before);
    }
    if (port >= 0)
        say("<5>LAB-OVER\n");
}

/* ---- The generations. */

/* Forks; the parent stays or exits, the child goes on behind it and writes. */
static void next_generation(int stays, unsigned number)
{
    char name[32];
    pid_t parent = getpid();

    if (lab_fork()) {
        if (!stays)
            _exit(0);
        lab_sleep_for_ever();
    }
    while (!stays && getppid() == parent)
        usleep(1000);
    snprintf(name, sizeof(name), "generation-%u", number);
    lab_name(name);
    for (unsigned page = AREA; page < AREA_END; page++)
        if (lab_chance(50))
            write_pages(page, 1);
    write_pages(FILE_AREA + number, 1);
}

static void set_up(void)
{
    static const char *const settings[][2] = {
        {FAULT "failslab/ignore-gfp-wait", "N"},
        {FAULT "failslab/task-filter", "Y"},
        {FAULT "failslab/probability", "100"},
        {FAULT "fail_page_alloc/ignore-gfp-wait", "N"},
        {FAULT "fail_page_alloc/ignore-gfp-highmem", "N"},
        {FAULT "fail_page_alloc/min-order", "0"},
        {FAULT "fail_page_alloc/task-filter", "Y"},
        {FAULT "fail_page_alloc/probability", "100"},
    };

    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
        put(settings[i][0], settings[i][1]);
    times[0] = open(FAULT "failslab/times", O_WRONLY | O_CLOEXEC);
    times[1] = open(FAULT "fail_page_alloc/times", O_WRONLY | O_CLOEXEC);
    messages = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
    must(messages, "/dev/kmsg");
    report = mmap(NULL, LAB_PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (report == MAP_FAILED)
        lab_fail("mmap of the report");
    file = open(FILE_NAME, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, 16 * LAB_PAGE))
        lab_fail(FILE_NAME);
    room = mmap(NULL, ROOM * LAB_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED || munmap(room, ROOM * LAB_PAGE))
        lab_fail("finding room");
    must(fresh(AREA, AREA_END - AREA, RW), "mmap");
    must(map(FILE_AREA, FILE_END - FILE_AREA, RW, 0), "mmap");
    must((long)sbrk(8 * LAB_PAGE), "sbrk");
    lab_write((char *)sbrk(0) - LAB_PAGE);
    write_pages(AREA, AREA_END - AREA);
    write_pages(FILE_AREA, 1);
    lab_log("area base=%p first=%d end=%d file=%d file_end=%d", (void *)room, AREA, AREA_END,
            FILE_AREA, FILE_END);
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = on_fault};
    long talk = lab_parameter(argc, argv, "talk", 0);
    long only = lab_parameter(argc, argv, "only", 0);
    long nth = lab_parameter(argc, argv, "nth", 0);
    long row = lab_parameter(argc, argv, "row", 0);
    int port = -1;

    every = lab_parameter(argc, argv, "every", 1);
    lab_seed(lab_parameter(argc, argv, "seed", 1), 0);
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    lab_name("faults-main");
    set_up();
    if (talk) {
        port = open(PORT, O_RDONLY | O_NOCTTY | O_CLOEXEC);
        must(port, PORT);
    }
    next_generation(1, 1);
    next_generation(0, 2);
    next_generation(0, 3);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    run(only, nth, row, port);
    lab_ready();
    lab_sleep_for_ever();
}
