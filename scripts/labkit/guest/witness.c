/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Process 1 of a lab guest: starts the workload, reaps, and when the workload is ready and all
 * processes sleep, takes the guest's own word for what is there, from /proc and /sys alone.
 *
 *     witness [smaps=1] [pages=1] [shrink=1] [symbols=1] [maps=0] [word=0] [crash=1] WORKLOAD ...
 *
 * The word must describe the memory that is dumped right after, so taking it changes no mapping:
 * no process starts, buffers are static and were written to before, nothing is allocated.
 *
 * The word goes to the second serial port as records, so that any bytes pass:
 *
 *     @ KIND KEY LENGTH \n  LENGTH bytes  \n
 *
 * Records of the same kind and key that follow each other are one text. The last record is
 * `@ end - 0`, then a line `# CHECKSUM` (FNV-1a, 32 bits, in hex) over all bytes before it.
 * The console then says LAB-DONE, or LAB-FAILED and why.
 *
 * With crash=1 it loads the capture kernel in /lab/crash before all else, and in the end the kernel
 * is made to panic; LAB-DONE then is the capture kernel's to say.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kexec.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#if defined(__aarch64__)
#define WORD_PORT "/dev/ttyS0" /* the console is ttyAMA0 */
#else
#define WORD_PORT "/dev/ttyS1"
#endif
#define LOG_FD 3 /* where the workload writes its log */
#define MAX_PIDS 8192
#define KTHREAD_FLAG 0x00200000ul /* PF_KTHREAD, in the ninth field of /proc/PID/stat */

static char buffer[64 * 1024];  /* a file's bytes */
static char entries[32 * 1024]; /* directory entries */
static char text[4 * 1024];     /* one /proc/PID/stat */
static int pids[MAX_PIDS], tids[MAX_PIDS];
static int port = -1;
static uint32_t checksum = 2166136261u;

static void say(const char *what)
{
    char line[256];
    int length = snprintf(line, sizeof(line), "%s\n", what);

    if (write(STDOUT_FILENO, line, length) < 0)
        _exit(1);
}

__attribute__((noreturn)) static void fail(const char *what)
{
    char line[200];

    snprintf(line, sizeof(line), "LAB-FAILED %s: %s", what, strerror(errno));
    say(line);
    for (;;)
        pause();
}

static void send_bytes(const char *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        checksum = (checksum ^ (unsigned char)bytes[i]) * 16777619u;
    while (size) {
        ssize_t sent = write(port, bytes, size);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            fail("writing to " WORD_PORT);
        bytes += sent;
        size -= sent;
    }
}

static void send_record(const char *kind, const char *key, const char *bytes, size_t size)
{
    char head[160];
    int length = snprintf(head, sizeof(head), "@ %s %s %zu\n", kind, key, size);

    send_bytes(head, length);
    send_bytes(bytes, size);
    send_bytes("\n", 1);
}

/* A file as records; 0 if it cannot be opened, which is no error: not every kernel has every file. */
static int send_file(const char *kind, const char *key, const char *path)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got;

    if (file < 0)
        return 0;
    while ((got = read(file, buffer, sizeof(buffer))) > 0)
        send_record(kind, key, buffer, got);
    close(file);
    return 1;
}

/* Those lines of a file that `wanted` picks. */
static void send_lines(const char *kind, const char *key, const char *path,
                       int (*wanted)(const char *line, size_t length))
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    size_t held = 0;
    ssize_t got;

    if (file < 0)
        return;
    while ((got = read(file, buffer + held, sizeof(buffer) - held)) > 0) {
        char *line = buffer, *end;
        size_t left = held + got;

        while ((end = memchr(line, '\n', left))) {
            size_t length = end + 1 - line;

            if (wanted(line, length))
                send_record(kind, key, line, length);
            line += length;
            left -= length;
        }
        memmove(buffer, line, left);
        held = left;
    }
    close(file);
}

static int starts_with(const char *line, size_t length, const char *start)
{
    return length >= strlen(start) && !memcmp(line, start, strlen(start));
}

/* Of smaps, what is anonymous or swapped and the flags: the rest is not about mappings. */
static int is_about_mappings(const char *line, size_t length)
{
    return starts_with(line, length, "Anonymous:") || starts_with(line, length, "VmFlags:") ||
           starts_with(line, length, "Swap:");
}

static int is_about_swap(const char *line, size_t length)
{
    return starts_with(line, length, "SwapCached:");
}

/* Of kallsyms, the names in /lab/symbols (one a line, a newline before the first as well). */
static int is_wanted_symbol(const char *line, size_t length)
{
    static char name[64];
    const char *space = memrchr(line, ' ', length);
    size_t size = length - (space ? space - line : 0);

    if (!space || size >= sizeof(name) || line[length - 2] == ']') /* a module's */
        return 0;
    memcpy(name, space, size);
    name[0] = '\n';
    name[size] = 0;
    return strstr(text, name) != NULL;
}

static void send_symbols(void)
{
    int file = open("/lab/symbols", O_RDONLY | O_CLOEXEC);
    ssize_t got = file < 0 ? -1 : read(file, text, sizeof(text) - 1);

    if (got <= 0)
        fail("/lab/symbols");
    text[got] = 0;
    close(file);
    send_lines("symbols", "-", "/proc/kallsyms", is_wanted_symbol);
}

static int compare(const void *left, const void *right)
{
    return *(const int *)left - *(const int *)right;
}

/* The numbers among a directory's names, sorted in place: no allocation as scandir() would do. */
static int list_numbers(const char *path, int *numbers)
{
    struct entry {
        uint64_t inode;
        int64_t offset;
        unsigned short length;
        unsigned char type;
        char name[];
    };
    int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), count = 0;
    long got;

    if (directory < 0)
        return 0;
    while ((got = syscall(SYS_getdents64, directory, entries, sizeof(entries))) > 0)
        for (long at = 0; at < got;) {
            struct entry *entry = (struct entry *)(entries + at);

            if (entry->name[0] >= '1' && entry->name[0] <= '9' && count < MAX_PIDS)
                numbers[count++] = atoi(entry->name);
            at += entry->length;
        }
    close(directory);
    for (int i = 1; i < count; i++) /* nearly sorted already; qsort() may allocate */
        for (int j = i; j > 0 && compare(&numbers[j - 1], &numbers[j]) > 0; j--) {
            int swap = numbers[j];

            numbers[j] = numbers[j - 1];
            numbers[j - 1] = swap;
        }
    return count;
}

/* Reads /proc/.../stat: the state letter (0 if gone), and whether it is a kernel thread. */
static char read_stat(const char *directory, int *kernel)
{
    char path[96], *after;
    int file;
    ssize_t got;
    unsigned long flags = 0;

    snprintf(path, sizeof(path), "%s/stat", directory);
    file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    got = read(file, text, sizeof(text) - 1);
    close(file);
    if (got <= 0)
        return 0;
    text[got] = 0;
    after = strrchr(text, ')'); /* the command name may hold anything, also parentheses */
    if (!after || strlen(after) < 4)
        return 0;
    sscanf(after + 4, "%*d %*d %*d %*d %*d %lu", &flags);
    *kernel = !!(flags & KTHREAD_FLAG);
    return after[2];
}

/* Whether every thread of every process but this one sleeps, is stopped or is dead. */
static int all_asleep(void)
{
    int count = list_numbers("/proc", pids);

    for (int i = 0; i < count; i++) {
        char directory[64];
        int threads, kernel = 0;

        if (pids[i] == 1)
            continue;
        snprintf(directory, sizeof(directory), "/proc/%d", pids[i]);
        if (!read_stat(directory, &kernel))
            return 0;
        if (kernel)
            continue;
        snprintf(directory, sizeof(directory), "/proc/%d/task", pids[i]);
        threads = list_numbers(directory, tids);
        for (int j = 0; j < threads; j++) {
            char one[96], state;

            snprintf(one, sizeof(one), "/proc/%d/task/%d", pids[i], tids[j]);
            state = read_stat(one, &kernel);
            if (!state || !strchr("SDTtZX", state))
                return 0;
        }
    }
    return 1;
}

static void reap(void)
{
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
}

static uint64_t mapped[512]; /* entries of /proc/PID/pagemap */
static int page_maps = -1, page_counts = -1, page_flags = -1;
static const char *page_key;

#define PRESENT (1ull << 63) /* Documentation/admin-guide/mm/pagemap.rst */
#define SWAPPED (1ull << 62)
#define OF_FILE (1ull << 61)
#define MOST_AREAS 22 /* of 32 types; those above are no swap areas in any configuration */
#define FRAME ((1ull << 55) - 1)
#define KPF_ANON (1ull << 12)
#define KPF_SWAPCACHE (1ull << 13)
#define KPF_HUGE (1ull << 17)

static uint64_t about_frame(int file, uint64_t frame)
{
    uint64_t word = 0;

    if (pread(file, &word, sizeof(word), frame * sizeof(word)) != sizeof(word))
        fail("/proc/kpagecount or /proc/kpageflags");
    return word;
}

static void send_run(uint64_t page, uint64_t frame, uint64_t length, uint64_t count)
{
    char line[96];
    int size = snprintf(line, sizeof(line), "%llx %llx %llu %llu\n", (unsigned long long)page,
                        (unsigned long long)frame, (unsigned long long)length,
                        (unsigned long long)count);

    if (length)
        send_record("pages", page_key, line, size);
}

/* Neighbours in swap: first page, swap area, first slot, how many. */
static struct {
    uint64_t page, area, slot, length;
} swapped;

static void send_swapped(void)
{
    char line[96];
    int size = snprintf(line, sizeof(line), "%llx %llu %llu %llu\n",
                        (unsigned long long)swapped.page, (unsigned long long)swapped.area,
                        (unsigned long long)swapped.slot, (unsigned long long)swapped.length);

    if (swapped.length)
        send_record("swapped", page_key, line, size);
    swapped.length = 0;
}

static void note_swapped(uint64_t page, uint64_t word)
{
    uint64_t area = word & 31, slot = (word & FRAME) >> 5;

    if (area >= MOST_AREAS)
        return;
    if (swapped.length && page == swapped.page + swapped.length && area == swapped.area &&
        slot == swapped.slot + swapped.length) {
        swapped.length++;
        return;
    }
    send_swapped();
    swapped.page = page;
    swapped.area = area;
    swapped.slot = slot;
    swapped.length = 1;
}

/* A mapped page that is in the swap cache as well. */
static void send_cached(uint64_t page)
{
    char line[32];
    int size = snprintf(line, sizeof(line), "%llx\n", (unsigned long long)page);

    send_record("cached", page_key, line, size);
}

/* A line of maps: which anonymous pages the mapping has, in runs: first page and page frame, how many
 * there are, how often the kernel says that each is mapped. */
static int send_pages(const char *line, size_t length)
{
    unsigned long long start, end;
    uint64_t size = getpagesize(), page, first = 0, frame = 0, run = 0, count = 0;
    char flags[8];

    (void)length;
    if (sscanf(line, "%llx-%llx %4s", &start, &end, flags) != 3 || flags[3] != 'p' ||
        start >> 63)
        return 0;
    for (page = start / size; page < end / size;) {
        uint64_t wanted = end / size - page < 512 ? end / size - page : 512;
        ssize_t got = pread(page_maps, mapped, wanted * 8, page * 8);

        if (got <= 0)
            break;
        for (ssize_t i = 0; i < got / 8; i++, page++) {
            uint64_t here = mapped[i] & FRAME, about = 0, times;

            if (!(mapped[i] & PRESENT) && (mapped[i] & SWAPPED))
                note_swapped(page, mapped[i]);
            if ((mapped[i] & PRESENT) && !(mapped[i] & OF_FILE) && here)
                about = about_frame(page_flags, here) & (KPF_ANON | KPF_HUGE | KPF_SWAPCACHE);
            if ((about & ~KPF_SWAPCACHE) != KPF_ANON)
                continue;
            if (about & KPF_SWAPCACHE)
                send_cached(page);
            times = about_frame(page_counts, here);
            if (run && page == first + run && here == frame + run && times == count) {
                run++;
                continue;
            }
            send_run(first, frame, run, count);
            first = page;
            frame = here;
            run = 1;
            count = times;
        }
    }
    send_run(first, frame, run, count);
    send_swapped();
    return 0;
}

static void send_page_map(const char *directory, const char *key)
{
    char path[160];

    snprintf(path, sizeof(path), "%s/pagemap", directory);
    page_maps = open(path, O_RDONLY | O_CLOEXEC);
    page_counts = open("/proc/kpagecount", O_RDONLY | O_CLOEXEC);
    page_flags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
    if (page_maps < 0 || page_counts < 0 || page_flags < 0)
        fail(path);
    page_key = key;
    snprintf(path, sizeof(path), "%s/maps", directory);
    send_lines("maps", key, path, send_pages);
    close(page_maps);
    close(page_counts);
    close(page_flags);
}

static void send_process(int pid, int with_maps, int with_smaps, int with_pages)
{
    char directory[64], path[128], key[32];
    int kernel = 0, threads;

    snprintf(key, sizeof(key), "%d", pid);
    snprintf(directory, sizeof(directory), "/proc/%d", pid);
    if (!read_stat(directory, &kernel))
        return;
    send_record("stat", key, text, strlen(text));
    snprintf(path, sizeof(path), "%s/comm", directory);
    send_file("comm", key, path);
    if (kernel)
        return;
    snprintf(path, sizeof(path), "%s/ksm_merging_pages", directory);
    send_file("ksm", key, path);
    snprintf(path, sizeof(path), "%s/task", directory);
    threads = list_numbers(path, tids);
    for (int i = 0; i < threads; i++) {
        char line[32], state;

        snprintf(path, sizeof(path), "%s/task/%d", directory, tids[i]);
        state = read_stat(path, &kernel);
        snprintf(line, sizeof(line), "%d %c\n", tids[i], state ? state : '?');
        send_record("threads", key, line, strlen(line));
    }
    /* A process whose leader is dead has its maps under its other threads only. */
    for (int i = 0; i < threads && with_maps; i++) {
        snprintf(path, sizeof(path), "%s/task/%d", directory, tids[i]);
        if (strchr("ZX", read_stat(path, &kernel)))
            continue;
        snprintf(path, sizeof(path), "%s/task/%d/maps", directory, tids[i]);
        send_file("maps", key, path);
        if (with_smaps) {
            snprintf(path, sizeof(path), "%s/task/%d/smaps", directory, tids[i]);
            send_lines("smaps", key, path, is_about_mappings);
        }
        if (with_pages) {
            snprintf(path, sizeof(path), "%s/task/%d", directory, tids[i]);
            send_page_map(path, key);
        }
        break;
    }
}

static const char *const caches[] = {"anon_vma", "anon_vma_chain", "vm_area_struct"};

static void shrink_caches(void)
{
    for (size_t i = 0; i < sizeof(caches) / sizeof(caches[0]); i++) {
        char path[96];
        int file;

        snprintf(path, sizeof(path), "/sys/kernel/slab/%s/shrink", caches[i]);
        file = open(path, O_WRONLY | O_CLOEXEC);
        if (file < 0 || write(file, "1", 1) != 1)
            fail(path);
        close(file);
    }
}

/* The allocator's own figures; those of the per-CPU lists bound what it counts as used too much. */
static void send_slab(void)
{
    static const char *const figures[] = {
        "aliases",       "cpu_partial", "cpu_slabs",   "object_size",       "objects",
        "objs_per_slab", "partial",     "slab_size",   "objects_partial",   "order",
        "slabs",         "min_partial", "total_objects", "slabs_cpu_partial",
    };

    send_file("slabinfo", "-", "/proc/slabinfo");
    for (size_t i = 0; i < sizeof(caches) / sizeof(caches[0]); i++)
        for (size_t j = 0; j < sizeof(figures) / sizeof(figures[0]); j++) {
            char path[128], key[64];

            snprintf(path, sizeof(path), "/sys/kernel/slab/%s/%s", caches[i], figures[j]);
            snprintf(key, sizeof(key), "%s/%s", caches[i], figures[j]);
            send_file("slab", key, path);
        }
    send_file("fact", "kfence", "/sys/kernel/debug/kfence/stats");
    send_file("fact", "anon_vma", "/sys/kernel/debug/anon_vma"); /* of the lab's own kernels */
}

/* What processors have counted by themselves comes into the sums of /proc/meminfo. */
static void sum_up(void)
{
    int file = open("/proc/sys/vm/stat_refresh", O_WRONLY | O_CLOEXEC);

    if (file < 0 || write(file, "1", 1) != 1)
        fail("/proc/sys/vm/stat_refresh");
    close(file);
}

static void send_facts(void)
{
    static const char *const merged[] = {
        "pages_shared",       "pages_sharing", "merge_across_nodes", "max_page_sharing",
        "stable_node_chains", "stable_node_dups",
    };

    for (size_t i = 0; i < sizeof(merged) / sizeof(merged[0]); i++) {
        char path[96], key[64];

        snprintf(path, sizeof(path), "/sys/kernel/mm/ksm/%s", merged[i]);
        snprintf(key, sizeof(key), "ksm_%s", merged[i]);
        send_file("fact", key, path);
    }
    send_file("fact", "swaps", "/proc/swaps");
    send_lines("fact", "swap_cached", "/proc/meminfo", is_about_swap);
    send_file("fact", "version", "/proc/version");
    send_file("fact", "cmdline", "/proc/cmdline");
    send_file("fact", "ksm", "/sys/kernel/mm/ksm/run");
    send_file("fact", "thp", "/sys/kernel/mm/transparent_hugepage/enabled");
    send_file("fact", "randomize_va_space", "/proc/sys/kernel/randomize_va_space");
}

/* The kernel that takes over when this one dies: /lab/crash holds it, its initramfs, its command. */
static void load_capture_kernel(void)
{
    static char line[512];
    int kernel = open("/lab/crash/vmlinuz", O_RDONLY | O_CLOEXEC);
    int archive = open("/lab/crash/initramfs", O_RDONLY | O_CLOEXEC);
    int command = open("/lab/crash/append", O_RDONLY | O_CLOEXEC);
    ssize_t length = command < 0 ? -1 : read(command, line, sizeof(line) - 1);

    if (kernel < 0 || archive < 0 || length < 0)
        fail("opening the capture kernel");
    line[length] = 0;
    if (syscall(SYS_kexec_file_load, kernel, archive, length + 1, line, KEXEC_FILE_ON_CRASH))
        fail("kexec_file_load (is there crashkernel= on the command line, and memory for it?)");
    close(kernel);
    close(archive);
    close(command);
}

__attribute__((noreturn)) static void crash(void)
{
    int trigger = open("/proc/sysrq-trigger", O_WRONLY | O_CLOEXEC);

    if (trigger < 0 || write(trigger, "c", 1) < 0)
        fail("/proc/sysrq-trigger");
    for (;;)
        pause();
}

__attribute__((noreturn)) static void finish(int then_crash)
{
    char line[32];

    send_facts();
    send_record("end", "-", "", 0);
    snprintf(line, sizeof(line), "# %08x\n", checksum);
    send_bytes(line, strlen(line));
    tcdrain(port);
    if (then_crash) {
        say("LAB-CRASH");
        crash();
    }
    say("LAB-DONE");
    for (;;)
        if (waitpid(-1, NULL, 0) < 0)
            pause();
}

static void open_port(void)
{
    struct termios settings;

    port = open(WORD_PORT, O_WRONLY | O_NOCTTY | O_CLOEXEC);
    if (port < 0 || tcgetattr(port, &settings))
        fail("opening " WORD_PORT);
    cfmakeraw(&settings);
    cfsetspeed(&settings, B115200);
    if (tcsetattr(port, TCSANOW, &settings))
        fail("setting up " WORD_PORT);
}

static int start(char **command)
{
    int ends[2];
    pid_t pid;

    if (pipe2(ends, O_CLOEXEC) || (pid = vfork()) < 0)
        fail("starting the workload");
    if (!pid) {
        dup2(ends[1], LOG_FD);
        if (ends[1] == LOG_FD)
            fcntl(LOG_FD, F_SETFD, 0);
        execv(command[0], command);
        _exit(127);
    }
    close(ends[1]);
    return ends[0];
}

/* Passes the log on, line by line, until the workload is ready. */
static void follow(int log)
{
    static char line[4096];
    size_t held = 0;

    for (;;) {
        struct pollfd wait = {.fd = log, .events = POLLIN};
        char *end;

        reap();
        if (poll(&wait, 1, 50) <= 0)
            continue;
        for (;;) {
            ssize_t got = read(log, line + held, sizeof(line) - held);

            if (got < 0 && errno == EINTR)
                continue;
            if (got <= 0) {
                errno = 0;
                fail("the workload ended before it was ready");
            }
            held += got;
            break;
        }
        while ((end = memchr(line, '\n', held))) {
            size_t length = end - line;

            *end = 0;
            if (!strcmp(line, "READY"))
                return;
            if (!strncmp(line, "FAILED ", 7))
                fail(line + 7);
            *end = '\n';
            send_record("log", "-", line, length + 1);
            held -= length + 1;
            memmove(line, end + 1, held);
        }
    }
}

static void settle(void)
{
    for (int quiet = 0, tries = 0; quiet < 3; tries++) {
        reap();
        quiet = all_asleep() ? quiet + 1 : 0;
        if (tries > 300)
            fail("the workload is ready, but its processes do not come to rest");
        usleep(100000);
    }
}

int main(int argc, char **argv)
{
    int with_smaps = 0, with_pages = 0, shrink = 0, symbols = 0, word = 1, with_maps = 1;
    int with_crash = 0, first = 1, log, count;

    for (; first < argc && strchr(argv[first], '='); first++) {
        if (!strcmp(argv[first], "smaps=1"))
            with_smaps = 1;
        else if (!strcmp(argv[first], "pages=1"))
            with_pages = 1;
        else if (!strcmp(argv[first], "shrink=1"))
            shrink = 1;
        else if (!strcmp(argv[first], "symbols=1"))
            symbols = 1;
        else if (!strcmp(argv[first], "maps=0"))
            with_maps = 0;
        else if (!strcmp(argv[first], "word=0"))
            word = 0;
        else if (!strcmp(argv[first], "crash=1"))
            with_crash = 1;
    }
    if (first >= argc)
        fail("no workload named");
    memset(buffer, 1, sizeof(buffer));
    memset(entries, 1, sizeof(entries));
    memset(text, 1, sizeof(text));
    memset(mapped, 1, sizeof(mapped));
    memset(pids, 1, sizeof(pids));
    memset(tids, 1, sizeof(tids));
    open_port();
    if (with_crash)
        load_capture_kernel();
    if (symbols)
        send_symbols();
    log = start(argv + first);
    follow(log);
    if (!word)
        finish(0); /* a storm: there is no state to describe */
    settle();
    if (with_pages)
        sum_up();
    if (shrink)
        shrink_caches();
    count = list_numbers("/proc", pids);
    for (int i = 0; i < count; i++)
        send_process(pids[i], with_maps, with_smaps, with_pages);
    send_slab();
    finish(with_crash);
}
