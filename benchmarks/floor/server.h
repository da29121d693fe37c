/* What both floors share: a single-threaded process that starts and ends instances on request, with no library but libc.
 *
 * Requests are lines on stdin, answers lines on stdout:
 *   launch ID    -> ok NS     the payload's first byte came NS nanoseconds after the request was read
 *   destroy ID   -> ok NS     everything of the instance is gone
 * A step that fails ends the program with a message: a floor that skips a step would be no floor.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST 20000

static pid_t pids[MOST];
static const char *work;     /* folder of the instances' own folders */
static const char *lower;    /* overlay's lowerdir option */
static char **payload;       /* argv of the payload, as seen inside */

static void must(int ok, const char *what) {
    if (!ok) {
        fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
        _exit(1);
    }
}

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static pid_t clone_with(uint64_t flags) {
    struct clone_args args = {.flags = flags, .exit_signal = SIGCHLD};
    return syscall(SYS_clone3, &args, sizeof args);
}

/* The three folders of an overlay: made inside the timed window. */
static void make_folders(int id, char *own, size_t size) {
    char path[512];
    snprintf(own, size, "%s/%d", work, id);
    must(!mkdir(own, 0755), own);
    for (const char **part = (const char *[]){"upper", "work", "root", NULL}; *part; part++) {
        snprintf(path, sizeof path, "%s/%s", own, *part);
        must(!mkdir(path, 0755), path);
    }
}

static void mount_overlay(const char *own, char *root, size_t size) {
    char options[4096];
    snprintf(root, size, "%s/root", own);
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, own, own);
    must(!mount("none", "/", "", MS_REC | MS_PRIVATE, NULL), "private");
    must(!mount("overlay", root, "overlay", 0, options), "overlay");
}

static void remove_folders(int id) {
    char path[512];
    for (const char **part = (const char *[]){"upper", "work/work", "work", "root", ".", NULL}; *part; part++) {
        snprintf(path, sizeof path, "%s/%d/%s", work, id, *part);
        if (!strcmp(*part, ".")) snprintf(path, sizeof path, "%s/%d", work, id);
        must(!rmdir(path) || errno == ENOENT, path);
    }
}

/* What the two floors differ in. */
static pid_t launch(int id, int output);
static void destroyed(int id);

static void serve(void) {
    char line[64], byte;
    int id;
    while (fgets(line, sizeof line, stdin)) {
        long long began = now();
        if (sscanf(line, "launch %d", &id) == 1 && id >= 0 && id < MOST) {
            int ends[2];
            must(!pipe2(ends, O_CLOEXEC), "pipe");
            pids[id] = launch(id, ends[1]);
            close(ends[1]);
            must(read(ends[0], &byte, 1) == 1, "the payload's first byte");
            printf("ok %lld\n", now() - began);
            close(ends[0]);
        } else if (sscanf(line, "destroy %d", &id) == 1 && id >= 0 && id < MOST && pids[id] > 0) {
            must(!kill(pids[id], SIGKILL), "kill");
            must(waitpid(pids[id], NULL, 0) == pids[id], "waitpid");
            destroyed(id);
            remove_folders(id);
            pids[id] = 0;
            printf("ok %lld\n", now() - began);
        } else {
            fprintf(stderr, "floor: what is %s", line);
            exit(2);
        }
        fflush(stdout);
    }
}
