/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Swap areas, for workloads: on RAM disks, so that what is written is written at once.
 */
#ifndef SWAPPING_H
#define SWAPPING_H

#include "lab.h"
#include <fcntl.h>
#include <sys/swap.h>

/* union swap_header in include/linux/swap.h, on a disk that is zero otherwise. */
static inline void swap_on(const char *disk, int priority)
{
    static char header[4096];
    uint32_t numbers[] = {1, 4095}; /* version, last page */
    int file = open(disk, O_RDWR | O_CLOEXEC);

    memset(header, 0, sizeof(header));
    memcpy(header + 1024, numbers, sizeof(numbers));
    memcpy(header + sizeof(header) - 10, "SWAPSPACE2", 10);
    if (file < 0 || write(file, header, sizeof(header)) != sizeof(header) || fsync(file))
        lab_fail(disk);
    close(file);
    if (swapon(disk, SWAP_FLAG_PREFER | priority))
        lab_fail("swapon");
}

#endif
