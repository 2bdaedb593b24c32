/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Other workloads, one after the other in one guest: the lines of /lab/steps, a program of /lab and
 * its parameters each.
 *
 * After each, and again when all its processes were killed, the console says LAB-STEP, and a byte on
 * the second serial port ends the wait; after the last, LAB-OVER. `result` is 0, an error's number if
 * the workload said that it failed, or -1 if it ended without a word.
 */
#include "../workloads/lab.h"
#include <fcntl.h>
#include <signal.h>

#define PORT "/dev/ttyS1"

static int messages, port;
static char said[100]; /* why the workload failed */

static void step(unsigned number, const char *workload, const char *state, int result)
{
    char line[300], go;
    int length = snprintf(line, sizeof(line), "<5>LAB-STEP number=%u workload=%s state=%s result=%d"
                          " said=%s\n", number, workload, state, result, said);

    if (write(messages, line, length) < 0)
        lab_fail("/dev/kmsg");
    if (read(port, &go, 1) != 1)
        lab_fail("reading from " PORT);
}

/* Starts the line's program, whose log is the pipe that is returned. */
static int start(char *line)
{
    char *words[32], path[64];
    int ends[2], count = 0;
    pid_t pid;

    for (char *word = strtok(line, " "); word && count < 31; word = strtok(NULL, " "))
        words[count++] = word;
    words[count] = NULL;
    snprintf(path, sizeof(path), "/lab/%s", words[0]);
    if (pipe2(ends, O_CLOEXEC))
        lab_fail("pipe");
    pid = lab_fork();
    if (!pid) {
        dup2(ends[1], LAB_LOG_FD);
        if (ends[1] == LAB_LOG_FD)
            fcntl(LAB_LOG_FD, F_SETFD, 0);
        execv(path, words);
        _exit(127);
    }
    close(ends[1]);
    return ends[0];
}

/* Reads a workload's log until it is ready, fails, or all its processes are gone. */
static int follow(int log)
{
    FILE *lines = fdopen(log, "r");
    char line[4096];
    int result = -1;

    said[0] = 0;
    while (lines && result == -1 && fgets(line, sizeof(line), lines)) {
        if (!strcmp(line, "READY\n")) {
            result = 0;
        } else if (!strncmp(line, "FAILED ", 7)) {
            result = EINVAL;
            snprintf(said, sizeof(said), "%.90s", line + 7);
            for (char *at = said; *at; at++)
                if (*at == ' ' || *at == '\n')
                    *at = *at == ' ' ? '_' : 0;
        }
    }
    if (lines)
        fclose(lines);
    return result;
}

static void drain(void)
{
    kill(-1, SIGKILL); /* but process 1 and this one */
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
        ;
}

int main(void)
{
    static char lines[4096];
    int steps = open("/lab/steps", O_RDONLY | O_CLOEXEC);
    unsigned number = 0;
    char *rest;

    lab_name("matrix");
    if (steps < 0 || read(steps, lines, sizeof(lines) - 1) <= 0)
        lab_fail("/lab/steps");
    messages = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
    port = open(PORT, O_RDONLY | O_NOCTTY | O_CLOEXEC);
    if (messages < 0 || port < 0)
        lab_fail("opening /dev/kmsg and " PORT);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    signal(SIGPIPE, SIG_IGN);
    for (char *line = strtok_r(lines, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char name[32];
        int result;

        snprintf(name, sizeof(name), "%.*s", (int)strcspn(line, " "), line);
        result = follow(start(line));
        usleep(300000); /* until those that are ready sleep */
        step(number++, name, "ready", result);
        drain();
        said[0] = 0;
        step(number++, name, "ended", 0);
    }
    if (write(messages, "<5>LAB-OVER\n", 12) < 0)
        lab_fail("/dev/kmsg");
    lab_sleep_for_ever();
}
