/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Guard regions, a case a process: what they are installed in, and what becomes of that mapping then.
 * Needs 6.15 (6.13 knows them in anonymous memory only). Parameter: the seed.
 *
 * Log: `case name= pid= at= state=`, the state that vma->anon_vma of the mapping at this address must
 * have where it can say ANON_VMA_UNFAULTED: none, unfaulted or regular; and `guard name= pid= kept=`,
 * whether a guard page of a fork's child still is one.
 */
#include "residents.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#define GUARD_INSTALL 102
#define GUARD_REMOVE 103
#define RW (PROT_READ | PROT_WRITE)
#define PAGES 12
#define FILE_NAME "/lab/guarded"

static sigjmp_buf faulted;
static int file;

static void on_fault(int number)
{
    (void)number;
    siglongjmp(faulted, 1);
}

static int is_guard(char *page)
{
    if (sigsetjmp(faulted, 1))
        return 1;
    (void)*(volatile char *)page;
    return 0;
}

/* A mapping with room around it, so that it merges with nothing else. */
static char *alone(int flags, int with)
{
    char *room = map_pages(3 * PAGES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
    char *want = room + PAGES * LAB_PAGE;

    if (munmap(room, 3 * PAGES * LAB_PAGE) ||
        mmap(want, PAGES * LAB_PAGE, RW, flags | MAP_FIXED, with, 0) != want)
        lab_fail("mapping pages alone");
    return want;
}

static char *fresh(void)
{
    return alone(MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

static void install(char *start, unsigned page, unsigned pages)
{
    advise(start + page * LAB_PAGE, pages, GUARD_INSTALL, "MADV_GUARD_INSTALL");
}

static void uninstall(char *start, unsigned page, unsigned pages)
{
    advise(start + page * LAB_PAGE, pages, GUARD_REMOVE, "MADV_GUARD_REMOVE");
}

static void protect(char *start, unsigned page, unsigned pages, int protection)
{
    if (mprotect(start + page * LAB_PAGE, pages * LAB_PAGE, protection))
        lab_fail("mprotect");
}

static char *move(char *start, unsigned pages, int flags)
{
    char *got = mremap(start, pages * LAB_PAGE, pages * LAB_PAGE, MREMAP_MAYMOVE | flags, NULL);

    if (got == MAP_FAILED)
        lab_fail("mremap");
    return got;
}

static void is(const char *name, char *at, const char *state)
{
    lab_log("case name=%s pid=%d at=%#lx state=%s", name, getpid(), (unsigned long)at, state);
}

/* Forks a child that looks at a guard page, and may write to another one. */
static void child(const char *name, char *guard, char *write, const char *state)
{
    uint32_t born = lab_index();

    if (!lab_fork()) {
        lab_log("guard name=%s pid=%d kept=%d", name, getpid(), is_guard(guard));
        if (write)
            lab_write(write);
        is(name, guard, state);
        lab_post(born);
        lab_sleep_for_ever();
    }
    lab_await(born);
}

static void installed(uint32_t index)
{
    char *anonymous = fresh(), *private = alone(MAP_PRIVATE, file), *shared = alone(MAP_SHARED, file);
    char *written = fresh();

    (void)index;
    lab_name("installed");
    lab_write(written);
    install(anonymous, 2, 3);
    install(private, 2, 3);
    install(shared, 2, 3);
    install(written, 2, 3);
    is("anonymous", anonymous, "unfaulted");
    is("private-file", private, "unfaulted");
    is("shared-file", shared, "none");
    is("written", written, "regular");
    child("forked", anonymous + 2 * LAB_PAGE, NULL, "unfaulted");
    child("forked-file", private + 2 * LAB_PAGE, NULL, "unfaulted");
    child("forked-shared", shared + 2 * LAB_PAGE, NULL, "none");
    child("forked-written-to", anonymous + 2 * LAB_PAGE, anonymous, "regular");
    is("parent-of-written-to", anonymous, "unfaulted");
}

static void faulted_in(uint32_t index)
{
    char *anonymous = fresh(), *private = alone(MAP_PRIVATE, file), *read = fresh();

    (void)index;
    lab_name("faulted");
    install(anonymous, 2, 3);
    lab_write(anonymous);
    is("write", anonymous, "regular");
    install(private, 2, 3);
    lab_write(private);
    is("write-file", private, "regular");
    install(read, 2, 3);
    (void)*(volatile char *)read; /* the page of zeroes is nobody's */
    is("read", read, "unfaulted");
    child("fork-of-read", read + 2 * LAB_PAGE, NULL, "unfaulted");
}

static void removed(uint32_t index)
{
    char *whole = fresh(), *part = fresh(), *several = alone(MAP_PRIVATE, file), *written = fresh();

    (void)index;
    lab_name("removed");
    install(whole, 2, 3);
    uninstall(whole, 0, PAGES);
    is("remove-whole", whole, "none");
    install(part, 2, 3);
    uninstall(part, 2, 3);
    is("remove-part", part, "unfaulted");
    install(several, 0, 4);
    install(several, 6, 2);
    uninstall(several, 0, PAGES);
    is("remove-file", several, "none");
    install(several, 1, 1);
    is("install-again", several, "unfaulted");
    install(written, 2, 3);
    lab_write(written);
    uninstall(written, 0, PAGES);
    is("remove-written", written, "regular");
}

/* Split by protections, and merged again. */
static void split_merged(uint32_t index)
{
    char *split = fresh(), *joined = fresh(), *dropped = fresh(), *three = fresh();

    (void)index;
    lab_name("split-merged");
    install(split, 2, 3);
    protect(split, 6, 6, PROT_READ);
    is("split-below", split, "unfaulted");
    is("split-above", split + 8 * LAB_PAGE, "unfaulted");
    protect(joined, 6, 6, PROT_READ);
    install(joined, 8, 2);
    is("joined-none", joined, "none");
    is("joined-flag", joined + 8 * LAB_PAGE, "unfaulted");
    protect(joined, 6, 6, RW);
    is("joined", joined, "unfaulted");
    child("fork-of-joined", joined + 8 * LAB_PAGE, NULL, "unfaulted");
    protect(dropped, 6, 6, PROT_READ);
    install(dropped, 8, 2);
    lab_write(dropped);
    protect(dropped, 6, 6, RW);
    is("merged-into-written", dropped, "regular");
    child("fork-of-merged", dropped + 8 * LAB_PAGE, NULL, "regular");
    protect(three, 4, 4, PROT_READ);
    install(three, 9, 2);
    protect(three, 4, 4, RW);
    is("merged-both", three, "unfaulted");
    child("fork-of-merged-both", three + 9 * LAB_PAGE, NULL, "unfaulted");
}

static void moved(uint32_t index)
{
    char *whole = fresh(), *part = fresh(), *left = fresh();

    (void)index;
    lab_name("moved");
    install(whole, 2, 3);
    whole = move(whole, PAGES, 0);
    is("moved", whole, "unfaulted");
    child("fork-of-moved", whole + 2 * LAB_PAGE, NULL, "unfaulted");
    install(part, 6, 2);
    is("moved-part", move(part + 6 * LAB_PAGE, 3, 0), "unfaulted");
    is("moved-rest", part, "unfaulted");
    install(left, 2, 3);
    is("left-new", move(left, PAGES, MREMAP_DONTUNMAP), "unfaulted");
    is("left-old", left, "none");
}

static void advised(uint32_t index)
{
    char *wiped = fresh();

    (void)index;
    lab_name("advised");
    install(wiped, 2, 3);
    advise(wiped, PAGES, MADV_WIPEONFORK, "MADV_WIPEONFORK");
    child("wiped", wiped + 2 * LAB_PAGE, NULL, "none");
    is("parent-of-wiped", wiped, "unfaulted");
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = on_fault};

    lab_seed(lab_parameter(argc, argv, "seed", 1), 0);
    lab_name("guards-main");
    lab_board_make();
    sigaction(SIGSEGV, &action, NULL);
    file = open(FILE_NAME, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, PAGES * LAB_PAGE))
        lab_fail(FILE_NAME);
    resident(installed);
    resident(faulted_in);
    resident(removed);
    resident(split_merged);
    resident(moved);
    resident(advised);
    lab_ready();
    lab_sleep_for_ever();
}
