/* Reaching for processes outside: see, signal, trace, read. The canary process is the only one that is touched. */
#include "attack.h"
#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

static char text[65536];

static int of_pid(const char *pid, const char *file) {
    char path[512];
    snprintf(path, sizeof path, "/proc/%s/%s", pid, file);
    return slurp(path, text, sizeof text);
}

/* A process, other than this one, in whose `file` of /proc the text is; its pid as text, or NULL with errno. */
static const char *find(const char *file, const char *wanted) {
    static char pid[16];
    DIR *proc = opendir("/proc");
    int seen = 0;
    if (!proc) return NULL;
    for (struct dirent *entry; (entry = readdir(proc));) {
        if (atoi(entry->d_name) <= 0 || atoi(entry->d_name) == getpid() || atoi(entry->d_name) == getppid()) continue;
        seen++;
        int length = of_pid(entry->d_name, file);
        if (length <= 0 || !has(text, length, wanted)) continue;
        if (!strcmp(file, "cmdline") && !has(text, length, "canary")) continue; /* who asks names the text as well */
        snprintf(pid, sizeof pid, "%.15s", entry->d_name);
        closedir(proc);
        return pid;
    }
    closedir(proc);
    errno = seen ? ESRCH : ENOENT;
    return NULL;
}

/* What follows the text in what `find` found. */
static const char *after(const char *wanted, int length) {
    for (int at = 0; at < length; at++) text[at] = text[at] ? text[at] : ' ';
    text[length < (int)sizeof text ? length : (int)sizeof text - 1] = 0;
    char *found = strstr(text, wanted);
    if (!found) return "";
    found += strlen(wanted);
    found[strcspn(found + 1, " ") + 1] = 0;
    return found;
}

static int see(char **words) {
    const char *pid = find("cmdline", words[0]);
    if (!pid) return no("list /proc");
    if (words[1] && kill(atoi(pid), 0)) return no("kill(pid, 0)");
    return yes("list /proc", after(words[0], of_pid(pid, "cmdline")));
}

/* The memory of a process found by its command line: the text is on its stack, where its arguments are. */
static int steal(char **words) {
    char path[64], maps[16384], *line;
    unsigned long low = 0, high = 0;
    const char *pid = find("cmdline", words[0]);
    if (!pid) return no("list /proc");
    snprintf(path, sizeof path, "/proc/%s/maps", pid);
    if (slurp(path, maps, sizeof maps) < 0) return no("read /proc/PID/maps");
    for (line = strtok(maps, "\n"); line && !strstr(line, "[stack]"); line = strtok(NULL, "\n")) {}
    if (!line || sscanf(line, "%lx-%lx", &low, &high) != 2) return no("find the stack in /proc/PID/maps");
    snprintf(path, sizeof path, "/proc/%s/mem", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return no("open /proc/PID/mem");
    ssize_t got = pread(fd, text, 8192, high - 8192);
    if (got < 0) return no("read /proc/PID/mem");
    if (!has(text, got, words[0])) {
        errno = ENOMSG;
        return no("find the text in /proc/PID/mem");
    }
    return yes("read /proc/PID/mem", words[0]);
}

/* A process for others to find by its command line, for some seconds. */
static int linger(char **words) {
    pid_t child = fork();
    if (child < 0) return no("fork");
    if (child) return yes("fork", words[0]);
    for (int fd = 0; fd < 3; fd++) close(fd);
    sleep(atoi(words[0]));
    _exit(0);
}

static int send_signal(char **words) {
    if (kill(atoi(words[0]), SIGUSR2)) return no("kill(pid, SIGUSR2)");
    return yes("kill(pid, SIGUSR2)", "sent");
}

static int trace(char **words) {
    pid_t pid = atoi(words[0]);
    unsigned long at = strtoul(words[1], NULL, 0);
    char got[64] = "";
    if (ptrace(PTRACE_SEIZE, pid, 0, 0)) return no("ptrace(PTRACE_SEIZE)");
    if (ptrace(PTRACE_INTERRUPT, pid, 0, 0) || waitpid(pid, NULL, __WALL) < 0) return no("ptrace(PTRACE_INTERRUPT)");
    for (unsigned done = 0; done < 24; done += sizeof(long)) {
        long word = ptrace(PTRACE_PEEKDATA, pid, at + done, 0);
        memcpy(got + done, &word, sizeof word);
    }
    ptrace(PTRACE_DETACH, pid, 0, 0);
    return yes("ptrace(PTRACE_PEEKDATA)", got);
}

static int read_memory(char **words) {
    char path[64], got[64] = "";
    snprintf(path, sizeof path, "/proc/%s/mem", words[0]);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return no("open /proc/PID/mem");
    if (pread(fd, got, 24, strtoul(words[1], NULL, 0)) < 0) return no("read /proc/PID/mem");
    return yes("read /proc/PID/mem", got);
}

static int read_remote(char **words) {
    char got[64] = "";
    struct iovec here = {got, 24}, there = {(void *)strtoul(words[1], NULL, 0), 24};
    if (process_vm_readv(atoi(words[0]), &here, 1, &there, 1, 0) < 0) return no("process_vm_readv");
    return yes("process_vm_readv", got);
}

static int read_environ(char **words) {
    int length = of_pid(words[0], "environ");
    if (length < 0) return no("read /proc/PID/environ");
    return yes("read /proc/PID/environ", after("BENCH_SECRET=", length));
}

static int through_root(char **words) {
    char path[512], got[128] = "";
    snprintf(path, sizeof path, "/proc/%s/root%s", words[0], words[1]);
    if (slurp(path, got, sizeof got) < 0) return no("open /proc/PID/root/...");
    return yes("read /proc/PID/root/...", got);
}

static int take_descriptor(char **words) {
    char got[64] = "";
    int pidfd = syscall(434, atoi(words[0]), 0);
    if (pidfd < 0) return no("pidfd_open");
    int fd = syscall(438, pidfd, atoi(words[1]), 0);
    if (fd < 0) return no("pidfd_getfd");
    if (pread(fd, got, 24, 0) < 0) return no("read what pidfd_getfd gave");
    return yes("read what pidfd_getfd gave", got);
}

/* Join a namespace of the canary's: done in a child, so that nothing stays. */
static int join(char **words) {
    char path[64];
    struct stat found;
    snprintf(path, sizeof path, "/proc/%s/ns/uts", words[0]);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return no("open /proc/PID/ns/uts");
    if (fstat(fd, &found)) return no("stat /proc/PID/ns/uts");
    if (setns(fd, CLONE_NEWUTS)) return no("setns(CLONE_NEWUTS)");
    char said[64];
    snprintf(said, sizeof said, "inode %lu", (unsigned long)found.st_ino);
    return yes("setns(CLONE_NEWUTS)", said);
}

/* Descriptors that this program was given beyond its standard streams, and what can be read from them. */
static int descriptors(char **words) {
    char got[64] = "", found[256] = "";
    for (int fd = 3; fd < 256; fd++) {
        struct stat about;
        if (fd == scratch || fstat(fd, &about)) continue;
        snprintf(found + strlen(found), sizeof found - strlen(found), "%d ", fd);
        if (pread(fd, got, 24, 0) > 0 && has(got, sizeof got, words[0])) return yes("read an inherited descriptor", got);
    }
    if (*found) return yes("find an inherited descriptor", found);
    errno = EBADF;
    return no("find an inherited descriptor");
}

/* Whoever turns up for some milliseconds: can its program be opened, and is it one of the image's? In the background;
 * what was reached is in the scratch folder's file. Opened for reading only. */
static int watch(char **words) {
    if (scratch < 0) return no("open a scratch folder");
    int out = openat(scratch, words[1], O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    if (out < 0) return no("create a file of one's own");
    pid_t child = fork();
    if (child < 0) return no("fork");
    if (child) return yes("watch", "in the background");
    for (int fd = 0; fd < 3; fd++) close(fd);
    struct timespec began, now;
    int last = getpid(), seen = 0, reached = 0;
    char path[64], exe[256], line[320];
    clock_gettime(CLOCK_MONOTONIC, &began);
    do {
        for (int pid = last + 1; pid < last + 6; pid++) {
            snprintf(path, sizeof path, "/proc/%d", pid);
            if (access(path, F_OK)) continue;
            seen++;
            snprintf(path, sizeof path, "/proc/%d/exe", pid);
            ssize_t length = readlink(path, exe, sizeof exe - 1);
            if (length < 0) continue;
            exe[length] = 0;
            if (!strstr(exe, "python")) {
                last = pid > last ? pid : last;
                continue;
            }
            int fd = open(path, O_RDONLY | O_CLOEXEC);
            if (fd < 0) continue;
            close(fd);
            if (!reached++) {
                int size = snprintf(line, sizeof line, "reached %s of a process that joins\n", exe);
                (void)!write(out, line, size);
            }
            last = pid;
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - began.tv_sec) * 1000 + (now.tv_nsec - began.tv_nsec) / 1000000 < atol(words[0]));
    int size = snprintf(line, sizeof line, "seen %d reached %d\n", seen, reached);
    (void)!write(out, line, size);
    _exit(0);
}

static int watched(char **words) {
    char got[512] = "";
    int fd = openat(scratch, words[0], O_RDONLY | O_CLOEXEC);
    if (fd < 0) return no("open what was watched");
    ssize_t length = read(fd, got, sizeof got - 1);
    unlinkat(scratch, words[0], 0);
    if (length > 0 && has(got, length, "reached /")) return yes("open /proc/PID/exe of a process that joins", got);
    errno = EACCES;
    return length > 0 && has(got, length, "seen") ? no(got) : no("watch: it had not ended");
}

const struct attack processes[] = {
    {"see", 1, see}, {"linger", 2, linger}, {"steal", 1, steal}, {"signal", 1, send_signal}, {"trace", 2, trace},
    {"read-memory", 2, read_memory}, {"read-remote", 2, read_remote}, {"read-environ", 1, read_environ},
    {"through-root", 2, through_root}, {"take-descriptor", 2, take_descriptor}, {"join", 1, join},
    {"descriptors", 1, descriptors}, {"watch", 2, watch}, {"watched", 1, watched}, {NULL, 0, NULL},
};
