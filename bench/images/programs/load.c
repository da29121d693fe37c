/* bench-load: what neighbours do to each other, every verb bounded in time and in amount. One line of JSON each.
 *
 *   work KIND MS                          units of a victim's work, one after the other: nanoseconds each took
 *   press KIND MS AMOUNT [ADDRESS PORT]   an aggressor's load: how much of it there was
 *   serve MS ADDRESS MARK                 the host's end of network loads; MARK is for those who look for it
 *
 * Everything it starts ends with it, and by an alarm of its own if nobody ends it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB (1L << 20)
#define BLOCK (64L << 10)
#define HALF (32 * MIB)
#define MOST_UNITS 5000
#define MOST_MS 60000 /* of any load */
#define TMPFS 0x01021994

static long ends; /* ms of CLOCK_MONOTONIC */

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int over(void) { return now_ns() / 1000000 >= ends; }

static long bounded(const char *text, long most) {
    long value = atol(text);
    return value < 1 ? 1 : value > most ? most : value;
}

/* Nobody outlives whoever started it, nor its time by more than two seconds. */
static void mortal(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm((unsigned)((ends - now_ns() / 1000000) / 1000 + 3));
}

static int missing(const char *why) {
    printf("{\"missing\":\"%s: %s\"}\n", why, strerror(errno));
    return 0;
}

/* Shared by a load's processes. */
struct counts {
    long done, refused, most;
};

static struct counts *counts;

static int amount(double value, const char *unit) {
    printf("{\"amount\":%.3f,\"unit\":\"%s\",\"refused\":%ld}\n", value, unit, counts->refused);
    return 0;
}

/* An unnamed file where instances write, on a disk: on a tmpfs it would be a load of memory. */
static int scratch_file(void) {
    static const char *folders[] = {"/", "/var/tmp", "/tmp", "/run"};
    for (unsigned at = 0; at < sizeof folders / sizeof *folders; at++) {
        struct statfs where;
        char name[64];
        if (statfs(folders[at], &where) || where.f_type == TMPFS) continue;
        snprintf(name, sizeof name, "%s/bench-load-%d", folders[at], getpid());
        int fd = open(name, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
        if (fd < 0) continue;
        unlink(name);
        return fd;
    }
    errno = EROFS;
    return -1;
}

/* --- units of work --- */

static char *buffer;
static int file = -1;
static long turn;

/* Longer than a scheduler's slice: who has to share a processor is interrupted within most units. */
static void unit_cpu(void) {
    uint64_t value = 88172645463325252ULL + (uint64_t)turn;
    for (long at = 0; at < 8000000; at++) {
        value ^= value << 13;
        value ^= value >> 7;
        value ^= value << 17;
    }
    __asm__ volatile("" : : "r"(value));
}

/* Four times from one half of the buffer to the other: more than caches hold. */
static void unit_memory(void) {
    for (long at = 0; at < 4; at++) {
        memcpy(buffer + (at & 1) * HALF, buffer + (~at & 1) * HALF, HALF);
        __asm__ volatile("" ::: "memory");
    }
}

/* Four times 64 KiB to the disk, not only to the page cache. */
static void unit_disk(void) {
    for (long at = 0; at < 4; at++)
        if (pwrite(file, buffer, BLOCK, (turn * 4 + at) % 64 * BLOCK) != BLOCK || fdatasync(file)) exit(3);
}

static int work(char **words) {
    static int64_t took[MOST_UNITS];
    long made = 0;
    const char *kind = words[0];
    void (*unit)(void) = !strcmp(kind, "cpu") ? unit_cpu : !strcmp(kind, "memory") ? unit_memory
                       : !strcmp(kind, "disk") ? unit_disk : NULL;
    if (!unit) return 2;
    long size = unit == unit_memory ? 2 * HALF : BLOCK; /* a small guest grants no more than it has */
    buffer = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED) return missing("no memory");
    if (unit == unit_memory) memset(buffer, 1, size);
    if (unit == unit_disk && (file = scratch_file()) < 0) return missing("no file on a disk can be written");
    unit(); /* the first one faults pages in */
    for (; made < MOST_UNITS && !over(); made++, turn++) {
        int64_t began = now_ns();
        unit();
        took[made] = now_ns() - began;
    }
    printf("{\"took\":[");
    for (long at = 0; at < made; at++) printf(at ? ",%lld" : "%lld", (long long)took[at]);
    printf("]}\n");
    return 0;
}

/* --- loads --- */

static int press_cpu(char **words) {
    long processes = bounded(words[0], 64);
    int64_t began = now_ns();
    for (long at = 0; at < processes; at++) {
        pid_t pid = fork();
        if (pid < 0) counts->refused++;
        if (pid) continue;
        mortal();
        while (!over()) {}
        _exit(0);
    }
    while (wait(NULL) > 0) {}
    struct rusage used;
    getrusage(RUSAGE_CHILDREN, &used);
    double busy = used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    return amount(busy / ((now_ns() - began) / 1e9), "CPUs");
}

/* Touches so many MiB, then writes to all of them again and again. Whoever is killed for it is started again. */
static int press_memory(char **words) {
    long most = bounded(words[0], 4096);
    while (!over()) {
        pid_t pid = fork();
        if (pid < 0) return missing("fork");
        if (!pid) {
            mortal();
            int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
            if (fd >= 0 && write(fd, "1000", 4) < 0) {}
            char *held = mmap(NULL, most * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (held == MAP_FAILED) _exit(1);
            for (long round = 0; !over(); round++)
                for (long at = 0; at < most && !over(); at++) {
                    memset(held + at * MIB, (int)round, MIB);
                    counts->done++;
                    if (at >= counts->most) counts->most = at + 1;
                }
            _exit(0);
        }
        int status = 0;
        waitpid(pid, &status, 0);
        if (WIFEXITED(status) && WEXITSTATUS(status)) return missing("allocate memory");
        counts->refused += WIFSIGNALED(status);
    }
    return amount(counts->done, "MiB written to memory");
}

/* Processes that end after 5 ms, as fast as they can be made, at most so many at once. */
static int press_fork(char **words) {
    long most = bounded(words[0], 1024), alive = 0;
    while (!over()) {
        pid_t pid = alive < most ? fork() : -1;
        if (!pid) {
            mortal();
            usleep(5000);
            _exit(0);
        }
        if (pid > 0) {
            counts->done++;
            alive++;
        } else {
            counts->refused += alive < most;
            usleep(500);
        }
        while (alive && waitpid(-1, NULL, WNOHANG) > 0) alive--;
    }
    while (wait(NULL) > 0) {}
    return amount(counts->done, "processes");
}

/* Writes one file of so many MiB over and over, each MiB brought to the disk. */
static int press_disk(char **words) {
    long most = bounded(words[0], 256);
    if ((file = scratch_file()) < 0) return missing("no file on a disk can be written");
    char *block = malloc(MIB);
    if (!block) return missing("allocate memory");
    memset(block, 7, MIB);
    for (; !over(); counts->done++)
        if (pwrite(file, block, MIB, counts->done % most * MIB) != MIB || fdatasync(file)) return missing("write a file");
    return amount(counts->done, "MiB written to disk");
}

static double stream(int link, int sends) {
    static char block[BLOCK];
    double bytes = 0;
    struct timeval wait = {0, 100000};
    setsockopt(link, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    setsockopt(link, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait);
    while (!over()) {
        ssize_t moved = sends ? send(link, block, sizeof block, MSG_NOSIGNAL) : recv(link, block, sizeof block, 0);
        if (moved > 0) bytes += moved;
        else if (!moved || (errno != EAGAIN && errno != EINTR)) break;
    }
    return bytes;
}

static int press_network(char **words, int sends) {
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(words[2]))};
    int link = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (link < 0 || inet_pton(AF_INET, words[1], &there.sin_addr) != 1) return missing("socket");
    if (connect(link, (struct sockaddr *)&there, sizeof there)) return missing("connect to the host");
    if (send(link, sends ? "s" : "r", 1, MSG_NOSIGNAL) != 1) return missing("send");
    return amount(stream(link, sends) / MIB, sends ? "MiB sent" : "MiB received");
}

static int press(int count, char **words) {
    counts = mmap(NULL, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (counts == MAP_FAILED) return missing("mmap");
    const char *kind = words[0];
    int network = !strcmp(kind, "send") || !strcmp(kind, "receive");
    if (count < (network ? 5 : 3)) return 2;
    if (network) return press_network(words + 2, !strcmp(kind, "send"));
    if (!strcmp(kind, "cpu")) return press_cpu(words + 2);
    if (!strcmp(kind, "memory")) return press_memory(words + 2);
    if (!strcmp(kind, "fork")) return press_fork(words + 2);
    if (!strcmp(kind, "disk")) return press_disk(words + 2);
    return 2;
}

/* --- the host's end --- */

static int serve(char **words) {
    struct sockaddr_in here = {.sin_family = AF_INET};
    socklen_t size = sizeof here;
    int door = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (door < 0 || inet_pton(AF_INET, words[1], &here.sin_addr) != 1) return missing("socket");
    if (bind(door, (struct sockaddr *)&here, sizeof here) || listen(door, 16)) return missing("listen");
    if (getsockname(door, (struct sockaddr *)&here, &size)) return missing("getsockname");
    printf("{\"port\":%d}\n", ntohs(here.sin_port));
    fflush(stdout);
    signal(SIGCHLD, SIG_IGN);
    while (!over()) {
        struct pollfd waits = {door, POLLIN, 0};
        if (poll(&waits, 1, 100) < 1) continue;
        int link = accept4(door, NULL, NULL, SOCK_CLOEXEC);
        if (link < 0) continue;
        if (!fork()) {
            char first = 0;
            mortal();
            if (recv(link, &first, 1, 0) == 1) stream(link, first == 'r');
            _exit(0);
        }
        close(link);
    }
    return 0;
}

int main(int count, char **words) {
    if (count < 4) return 2;
    int serves = !strcmp(words[1], "serve");
    ends = now_ns() / 1000000 + bounded(words[serves ? 2 : 3], MOST_MS);
    mortal();
    if (serves) return count == 5 ? serve(words + 2) : 2;
    if (!strcmp(words[1], "work")) return work(words + 2);
    if (!strcmp(words[1], "press")) return press(count - 2, words + 2);
    return 2;
}
