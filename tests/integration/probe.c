/* What tests ask the kernel from inside a container, where a shell can't: see boxes.py. One line per answer. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int told(long result) {
    if (result < 0) printf("errno %d\n", errno);
    else printf("ok %ld\n", result);
    return result < 0;
}

/* Arguments of a system call: a number, s:TEXT, or z:BYTES of zeros. */
static long argument(char *text) {
    if (!strncmp(text, "s:", 2)) return (long)(text + 2);
    if (!strncmp(text, "z:", 2)) return (long)calloc(1, strtoul(text + 2, 0, 0));
    return (long)strtoull(text, 0, 0);
}

static int call(char **words) {
    long args[7] = {0};
    for (int at = 0; at < 7 && words[at]; at++) args[at] = argument(words[at]);
    return told(syscall(args[0], args[1], args[2], args[3], args[4], args[5], args[6]));
}

/* Write to that many MiB of memory, one after the other. */
static int dirty(long mib) {
    for (long at = 1; at <= mib; at++) {
        char *block = malloc(1 << 20);
        if (!block) return told(-1);
        memset(block, 1, 1 << 20);
    }
    return told(mib);
}

/* Use a processor for that many milliseconds of wall time; says how many it got. */
static int spin(long milliseconds) {
    struct timespec began, now, used;
    clock_gettime(CLOCK_MONOTONIC, &began);
    do clock_gettime(CLOCK_MONOTONIC, &now);
    while ((now.tv_sec - began.tv_sec) * 1000 + (now.tv_nsec - began.tv_nsec) / 1000000 < milliseconds);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return told(used.tv_sec * 1000 + used.tv_nsec / 1000000);
}

/* Children alive at once, up to `most`; says how many there were. */
static int crowd(long most) {
    int ends[2];
    long made = 0;
    if (pipe(ends)) return told(-1);
    for (; made < most; made++) {
        pid_t pid = fork();
        if (pid < 0) break;
        if (!pid) {
            char byte;
            close(ends[1]);
            _exit(read(ends[0], &byte, 1) != 0);
        }
    }
    int reason = errno;
    close(ends[1]);
    while (wait(0) > 0) {}
    printf("made %ld errno %d\n", made, made < most ? reason : 0);
    return 0;
}

/* Open a new device node of these numbers. */
static int device(char kind, long major, long minor, char *path) {
    unlink(path);
    if (mknod(path, (kind == 'b' ? S_IFBLK : S_IFCHR) | 0600, (major << 8) | minor)) return told(-1);
    return told(open(path, O_RDONLY | O_NONBLOCK));
}

/* The way out of a chroot for who may chroot: a folder held open, a root below it, and up. Lists where it ends. */
static int climb(char *wanted) {
    mkdir("/tmp/below", 0700);
    int held = open("/", O_RDONLY | O_DIRECTORY);
    if (held < 0 || chroot("/tmp/below") || fchdir(held)) return told(-1);
    for (int at = 0; at < 64; at++)
        if (chdir("..")) return told(-1);
    if (chroot(".")) return told(-1);
    return told(open(wanted, O_RDONLY));
}

/* Open a file by inode number, past all mounts: the file system is that of `mount`. */
static int handle(char *mount, unsigned long inode, char *out) {
    struct { struct file_handle head; unsigned int id[2]; } wanted = {{8, 1}, {inode, 0}};
    int at = open(mount, O_RDONLY);
    int got = at < 0 ? -1 : open_by_handle_at(at, &wanted.head, O_RDONLY);
    if (got < 0) return told(-1);
    char text[64] = {0};
    if (read(got, text, sizeof text - 1) < 0) return told(-1);
    printf("%s%s\n", out, text);
    return 0;
}

/* Every process that turns up for `milliseconds`: can its program, root, folder, descriptors, memory be reached? */
static int watch(long milliseconds, char *evil) {
    const char *names[] = {"exe", "root/etc/canary", "cwd/etc/canary", "fd", "mem"};
    long seen = 0, got = 0, written = 0;
    struct timespec began, now;
    int last = getpid();
    clock_gettime(CLOCK_MONOTONIC, &began);
    do {
        for (int pid = last + 1; pid < last + 4; pid++) {
            char path[64], exe[256] = {0};
            snprintf(path, sizeof path, "/proc/%d", pid);
            if (access(path, F_OK)) continue;
            seen++;
            snprintf(path, sizeof path, "/proc/%d/exe", pid);
            if (readlink(path, exe, sizeof exe - 1) < 0) continue;
            if (!strncmp(exe, "/bin/", 5)) {
                last = pid > last ? pid : last;
                continue;
            }
            for (unsigned at = 0; at < sizeof names / sizeof *names; at++) {
                snprintf(path, sizeof path, "/proc/%d/%s", pid, names[at]);
                int fd = open(path, at == 4 ? O_RDWR : O_RDONLY);
                if (fd < 0) continue;
                got++;
                printf("reached %s of %s\n", names[at], exe);
                if (!at && *evil == 'w') {
                    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
                    for (int try = 0; try < 100000; try++) {
                        int again = open(path, O_WRONLY);
                        if (again >= 0) { written++; close(again); break; }
                    }
                }
                close(fd);
            }
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - began.tv_sec) * 1000 + (now.tv_nsec - began.tv_nsec) / 1000000 < milliseconds);
    printf("seen %ld reached %ld written %ld\n", seen, got, written);
    return 0;
}

int main(int count, char **words) {
    setvbuf(stdout, 0, _IOLBF, 0);
    if (count < 3) return 2;
    char *verb = words[1];
    if (!strcmp(verb, "call")) return call(words + 2);
    if (!strcmp(verb, "dirty")) return dirty(atol(words[2]));
    if (!strcmp(verb, "spin")) return spin(atol(words[2]));
    if (!strcmp(verb, "crowd")) return crowd(atol(words[2]));
    if (!strcmp(verb, "climb")) return climb(words[2]);
    if (!strcmp(verb, "device") && count == 6) return device(*words[2], atol(words[3]), atol(words[4]), words[5]);
    if (!strcmp(verb, "handle") && count == 4) return handle(words[2], strtoul(words[3], 0, 0), "read ");
    if (!strcmp(verb, "watch") && count == 4) return watch(atol(words[2]), words[3]);
    return 2;
}
