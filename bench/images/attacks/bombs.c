/* Using up what is shared, up to a bound that harms no host of the size this program is for. */
#include "attack.h"
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

/* As many processes at once as asked for; they wait, so that others can count them, then all end. */
static int processes_bomb(char **words) {
    long most = atol(words[0]), made = 0;
    int ends[2];
    char said[64], step[96];
    if (pipe(ends)) return no("pipe");
    for (; made < most; made++) {
        pid_t pid = fork();
        if (pid < 0) break;
        if (!pid) {
            char byte;
            close(ends[1]);
            alarm(20);
            _exit(read(ends[0], &byte, 1) != 0);
        }
    }
    int number = errno;
    close(ends[1]);
    while (wait(NULL) > 0) {}
    snprintf(said, sizeof said, "%ld processes at once", made);
    if (made == most) return yes("fork", said);
    snprintf(step, sizeof step, "fork, after %s", said);
    errno = number;
    return no(step);
}

/* So many MiB, written to. The child is what dies if there is a limit. */
static int memory_bomb(char **words) {
    long most = atol(words[0]);
    char said[64];
    pid_t child = fork();
    if (child < 0) return no("fork");
    if (!child) {
        reopened("/proc/self/oom_score_adj", "1000");
        for (long at = 0; at < most; at++) {
            char *block = malloc(1 << 20);
            if (!block) _exit(1);
            memset(block, 1, 1 << 20);
        }
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    snprintf(said, sizeof said, "%ld MiB", most);
    if (WIFEXITED(status) && !WEXITSTATUS(status)) return yes("write to memory", said);
    errno = ENOMEM;
    return no(WIFSIGNALED(status) ? "write to memory: killed" : "allocate memory");
}

/* So many MiB in one file of one's own, removed at once. */
static int disk_bomb(char **words) {
    static char block[1 << 20];
    long most = atol(words[0]), made = 0;
    char said[64], step[96], name[32];
    memset(block, 1, sizeof block);
    snprintf(name, sizeof name, "attack-fill-%d", getpid());
    int fd = openat(scratch, name, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600), number = errno;
    if (fd < 0) return no("create a file");
    unlinkat(scratch, name, 0);
    for (ssize_t wrote; made < most; made++)
        if ((wrote = write(fd, block, sizeof block)) != sizeof block) {
            number = wrote < 0 ? errno : ENOSPC;
            break;
        }
    snprintf(said, sizeof said, "%ld MiB written", made);
    if (made == most) return yes("fill the disk", said);
    snprintf(step, sizeof step, "fill the disk: %s", said);
    errno = number;
    return no(step);
}

/* So many files. */
static int inode_bomb(char **words) {
    long most = atol(words[0]), made = 0;
    char name[64], folder[32], said[64], step[96];
    int number = 0;
    snprintf(folder, sizeof folder, "attack-files-%d", getpid());
    mkdirat(scratch, folder, 0700);
    for (; made < most; made++) {
        snprintf(name, sizeof name, "%s/%ld", folder, made);
        int fd = openat(scratch, name, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
        if (fd < 0) break;
        close(fd);
    }
    number = errno;
    for (long at = 0; at < made; at++) {
        snprintf(name, sizeof name, "%s/%ld", folder, at);
        unlinkat(scratch, name, 0);
    }
    unlinkat(scratch, folder, AT_REMOVEDIR);
    snprintf(said, sizeof said, "%ld files", made);
    if (made == most) return yes("create files", said);
    snprintf(step, sizeof step, "create files, after %s", said);
    errno = number;
    return no(step);
}

/* So many open descriptors over several processes: the host's table of open files is one. */
static int descriptor_bomb(char **words) {
    long most = atol(words[0]), each = 0;
    char said[64], step[96];
    int ends[2];
    if (pipe(ends)) return no("pipe");
    pid_t children[8];
    for (int at = 0; at < 8; at++) {
        if ((children[at] = fork())) continue;
        alarm(20);
        long made = 0;
        while (made < most / 8 && open("/proc/self/stat", O_RDONLY) >= 0) made++;
        (void)!write(ends[1], &made, sizeof made);
        _exit(0);
    }
    long total = 0;
    for (int at = 0; at < 8; at++)
        if (children[at] > 0 && read(ends[0], &each, sizeof each) == sizeof each) total += each;
    while (wait(NULL) > 0) {}
    snprintf(said, sizeof said, "%ld open files", total);
    if (total >= most / 8 * 8) return yes("open files", said);
    snprintf(step, sizeof step, "open files: %s", said);
    errno = EMFILE;
    return no(step);
}

/* More busy loops than there are processors, for as many milliseconds: how many processors' worth did they get? */
static int processor_bomb(char **words) {
    struct timespec began, now;
    struct rusage used;
    char said[64];
    long lasts = atol(words[0]);
    clock_gettime(CLOCK_MONOTONIC, &began);
    for (int at = 0; at < 8; at++)
        if (!fork()) {
            do clock_gettime(CLOCK_MONOTONIC, &now);
            while ((now.tv_sec - began.tv_sec) * 1000 + (now.tv_nsec - began.tv_nsec) / 1000000 < lasts);
            _exit(0);
        }
    while (wait(NULL) > 0) {}
    clock_gettime(CLOCK_MONOTONIC, &now);
    getrusage(RUSAGE_CHILDREN, &used);
    double wall = now.tv_sec - began.tv_sec + (now.tv_nsec - began.tv_nsec) / 1e9;
    double busy = used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    snprintf(said, sizeof said, "%.3f", busy / wall);
    return yes("busy loops", said);
}

const struct attack bombs[] = {
    {"processes", 1, processes_bomb}, {"memory", 1, memory_bomb}, {"disk", 1, disk_bomb}, {"inodes", 1, inode_bomb},
    {"open-files", 1, descriptor_bomb}, {"processor", 1, processor_bomb}, {NULL, 0, NULL},
};
