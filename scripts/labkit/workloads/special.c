/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What moves or withholds anonymous memory in ways of its own, each case in a process of its own:
 * mremap() that leaves the old mapping, private file mappings split and moved, threads that fork,
 * vfork with exec, advice about forks, guard regions, userfaultfd. Parameter: the seed.
 *
 * Log: `CASE pid=...` with the addresses that matter; `refused what=... errno=...` for what this
 * kernel does not have.
 */
#include "residents.h"
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/ioctl.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#define GUARD_INSTALL 102 /* MADV_GUARD_INSTALL, since 6.13 */
#define GUARD_REMOVE 103

/* UFFDIO_MOVE, since 6.8: newer than the headers that this may be compiled with. */
#define MOVE_FEATURE ((__u64)1 << 16)
#define MOVE_ALLOW_HOLES ((__u64)1 << 1)
struct uffd_move {
    __u64 dst, src, len, mode;
    __s64 move;
};
#define UFFD_MOVE _IOWR(UFFDIO, 0x05, struct uffd_move)

static void write_pages(char *start, size_t pages)
{
    for (size_t i = 0; i < pages; i++)
        lab_write(start + i * LAB_PAGE);
}

/* A mapping of pages all written to, with unmapped room behind it. */
static char *written_pages(size_t pages)
{
    char *got = map_pages(pages + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);

    if (munmap(got + pages * LAB_PAGE, LAB_PAGE))
        lab_fail("munmap");
    write_pages(got, pages);
    return got;
}

/* Moves pages, leaving the old mapping where `flags` say so; NULL if the kernel refuses. */
static char *move(char *start, size_t pages, int flags, const char *what)
{
    char *got = mremap(start, pages * LAB_PAGE, pages * LAB_PAGE, MREMAP_MAYMOVE | flags, NULL);

    if (got != MAP_FAILED)
        return got;
    lab_log("refused what=%s errno=%d", what, errno);
    return NULL;
}

static void child_that_writes(char *start, size_t pages, const char *comm)
{
    uint32_t born = lab_index();

    if (!lab_fork()) {
        lab_name(comm);
        lab_log("child comm=%s pid=%d ppid=%d", comm, getpid(), getppid());
        write_pages(start, pages);
        lab_post(born);
        lab_sleep_for_ever();
    }
    lab_await(born);
}

/* The pages go, the mapping stays, with its anon_vma; then both ends fill again, and are forked. */
static void leave_behind(uint32_t index)
{
    char *old = written_pages(12), *whole, *part;

    (void)index;
    lab_name("dontunmap");
    whole = move(old, 12, MREMAP_DONTUNMAP, "MREMAP_DONTUNMAP");
    if (!whole)
        return;
    write_pages(old, 3);
    child_that_writes(whole, 2, "dontunmap-child");
    part = move(whole + 4 * LAB_PAGE, 4, MREMAP_DONTUNMAP, "MREMAP_DONTUNMAP");
    if (part)
        write_pages(whole + 5 * LAB_PAGE, 1);
    lab_log("dontunmap pid=%d old=%p whole=%p part=%p", getpid(), (void *)old, (void *)whole,
            (void *)part);
}

/* A private mapping of a file has both: a place in the file's tree, and an anon_vma once written. */
static void file_pages(uint32_t index)
{
    int file = open("/lab/private", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    char *start, *moved;

    (void)index;
    lab_name("file-private");
    if (file < 0 || ftruncate(file, 32 * LAB_PAGE))
        lab_fail("/lab/private");
    start = mmap(NULL, 16 * LAB_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 8 * LAB_PAGE);
    if (start == MAP_FAILED)
        lab_fail("mapping the file");
    write_pages(start, 10);
    if (mprotect(start + 4 * LAB_PAGE, 4 * LAB_PAGE, PROT_READ))
        lab_fail("mprotect");
    moved = move(start + 9 * LAB_PAGE, 3, MREMAP_DONTUNMAP, "MREMAP_DONTUNMAP-of-a-file");
    if (!moved)
        moved = written_pages(3);
    child_that_writes(start, 2, "file-child");
    if (mremap(start + 12 * LAB_PAGE, 4 * LAB_PAGE, 4 * LAB_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
               start + 64 * LAB_PAGE) == MAP_FAILED)
        lab_log("refused what=MREMAP_FIXED errno=%d", errno);
    /* Joined again, where the kernel sees that both sides have one anon_vma. */
    if (mprotect(start + 4 * LAB_PAGE, 4 * LAB_PAGE, PROT_READ | PROT_WRITE))
        lab_fail("mprotect");
    lab_log("file-private pid=%d base=%p moved=%p", getpid(), (void *)start, (void *)moved);
}

static uint32_t thread_index[3];

static void *thread(void *argument)
{
    long number = (long)(intptr_t)argument;
    char comm[16], *own = written_pages(4);

    snprintf(comm, sizeof(comm), "forker-%ld", number);
    lab_name(comm);
    child_that_writes(own, 1 + number, "thread-child");
    lab_post(thread_index[number]);
    lab_sleep_for_ever();
}

/* Threads fork, one after the other: each child has one thread, and the mappings of all. */
static void threads_fork(uint32_t index)
{
    pthread_attr_t attributes;
    pthread_t ignored;

    (void)index;
    lab_name("threads-fork");
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 64 * 1024);
    for (long i = 0; i < 3; i++) {
        thread_index[i] = lab_index();
        if (pthread_create(&ignored, &attributes, thread, (void *)(intptr_t)i))
            lab_fail("pthread_create");
        lab_await(thread_index[i]);
    }
    lab_log("threads-fork pid=%d count=4", getpid());
}

/* vfork, then a program of another kind: the parent has its mm to itself again. */
static void vfork_exec(uint32_t index)
{
    char *own = written_pages(4);
    pid_t pid;

    (void)index;
    lab_name("vfork-exec");
    pid = vfork();
    if (!pid) {
        close(LAB_LOG_FD);
        execl("/bin/busybox", "sleep", "1000000", (char *)NULL);
        _exit(127);
    }
    write_pages(own, 4);
    lab_log("vfork-exec pid=%d child=%d", getpid(), pid);
}

/* What a child does not get, or gets empty; both are split, and one is taken back. */
static void fork_advice(uint32_t index)
{
    char *gone = written_pages(6), *wiped = written_pages(6), *both = written_pages(6);

    (void)index;
    lab_name("fork-advice");
    advise(gone + LAB_PAGE, 4, MADV_DONTFORK, "MADV_DONTFORK");
    advise(wiped + LAB_PAGE, 4, MADV_WIPEONFORK, "MADV_WIPEONFORK");
    advise(both, 6, MADV_DONTFORK, "MADV_DONTFORK");
    advise(both, 6, MADV_DOFORK, "MADV_DOFORK");
    child_that_writes(wiped, 3, "advice-child");
    lab_log("fork-advice pid=%d dontfork=%p wipeonfork=%p both=%p", getpid(), (void *)gone,
            (void *)wiped, (void *)both);
}

/* Guard pages are marks in the page table: they need an anon_vma, but split nothing. */
static void guard_regions(uint32_t index)
{
    char *fresh = map_pages(8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    char *used = written_pages(8);

    (void)index;
    lab_name("guards");
    advise(fresh + 2 * LAB_PAGE, 2, GUARD_INSTALL, "MADV_GUARD_INSTALL");
    advise(used + 2 * LAB_PAGE, 4, GUARD_INSTALL, "MADV_GUARD_INSTALL");
    advise(used + 3 * LAB_PAGE, 1, GUARD_REMOVE, "MADV_GUARD_REMOVE");
    child_that_writes(used, 2, "guards-child");
    lab_log("guards pid=%d fresh=%p used=%p", getpid(), (void *)fresh, (void *)used);
}

static int user_fault(__u64 features)
{
    struct uffdio_api api = {.api = UFFD_API, .features = features};
    int file = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

    if (file < 0 || !ioctl(file, UFFDIO_API, &api))
        return file;
    close(file);
    return -1;
}

/* Pages moved, or copied, into a mapping that has never faulted by itself. */
static void user_faults(uint32_t index)
{
    struct uffdio_register area = {.mode = UFFDIO_REGISTER_MODE_MISSING};
    char *source = written_pages(8);
    char *target = map_pages(8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    int moves = 1, file = user_fault(MOVE_FEATURE), done;

    (void)index;
    lab_name("userfaults");
    if (file < 0) {
        lab_log("refused what=UFFD_FEATURE_MOVE errno=%d", errno);
        moves = 0;
        file = user_fault(0);
    }
    area.range.start = (uintptr_t)target;
    area.range.len = 8 * LAB_PAGE;
    if (file < 0 || ioctl(file, UFFDIO_REGISTER, &area)) {
        lab_log("refused what=UFFDIO_REGISTER errno=%d", errno);
        return;
    }
    for (done = 0; done < 4; done++) {
        unsigned long at = 2 * done * LAB_PAGE;
        struct uffd_move one = {.dst = (uintptr_t)target + at, .src = (uintptr_t)source + at,
                                .len = LAB_PAGE, .mode = MOVE_ALLOW_HOLES};
        struct uffdio_copy other = {.dst = one.dst, .src = one.src, .len = LAB_PAGE};

        if (moves ? ioctl(file, UFFD_MOVE, &one) : ioctl(file, UFFDIO_COPY, &other)) {
            lab_log("refused what=%s errno=%d", moves ? "UFFDIO_MOVE" : "UFFDIO_COPY", errno);
            break;
        }
    }
    child_that_writes(target, 1, "uffd-child");
    lab_log("userfaults pid=%d source=%p target=%p moves=%d done=%d", getpid(), (void *)source,
            (void *)target, moves, done);
}

int main(int argc, char **argv)
{
    lab_seed(lab_parameter(argc, argv, "seed", 1), 0);
    lab_name("special-main");
    lab_board_make();
    private_pages(8);
    resident(leave_behind);
    resident(file_pages);
    resident(threads_fork);
    resident(vfork_exec);
    resident(fork_advice);
    resident(guard_regions);
    resident(user_faults);
    lab_ready();
    lab_sleep_for_ever();
}
