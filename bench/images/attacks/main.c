/* /bin/attack NAME WORDS...: one attack from inside an instance. See attack.h. */
#include "attack.h"

int scratch = -1;

static void print_escaped(const char *text) {
    for (int at = 0; text[at] && at < 400; at++) {
        unsigned char one = text[at];
        putchar(one < 32 || one > 126 || one == '"' || one == '\\' ? ' ' : one);
    }
}

static int tell(int done, int number, const char *step, const char *said) {
    printf("{\"done\":%s,\"errno\":%d,\"step\":\"", done ? "true" : "false", number);
    print_escaped(step);
    printf("\",\"said\":\"");
    print_escaped(said);
    printf("\"}\n");
    fflush(stdout);
    return 0;
}

int yes(const char *step, const char *said) { return tell(1, 0, step, said); }

int no(const char *step) {
    int number = errno;
    return tell(0, number, step, strerror(number));
}

int slurp(const char *path, char *text, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return -1;
    ssize_t got = 0, length = 0;
    while (length < (ssize_t)size - 1 && (got = read(fd, text + length, size - 1 - length)) > 0) length += got;
    int number = errno;
    close(fd);
    errno = number;
    text[length] = 0;
    return got < 0 && !length ? -1 : (int)length;
}

int has(const char *text, int length, const char *wanted) {
    return memmem(text, length, wanted, strlen(wanted)) != NULL;
}

int reopened(const char *name, const char *text) {
    int fd = open(name, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t wrote = write(fd, text, strlen(text));
    int number = errno;
    close(fd);
    errno = number;
    return wrote < 0 ? -1 : 0;
}

/* Out of a chroot, for who may chroot: a folder held open, a root below it, and up. Where the root is the top of a
 * mount namespace this ends where it began. */
static void climb(void) {
    int held = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (held < 0) return;
    if (!chroot("/tmp") && !fchdir(held)) {
        for (int at = 0; at < 64 && !chdir(".."); at++) {}
        if (chroot(".")) (void)!fchdir(held);
    }
    close(held);
    (void)!chdir("/");
}

static int open_scratch(void) {
    const char *names[] = {"/tmp", "/dev/shm", "/run"};
    for (unsigned at = 0; at < sizeof names / sizeof *names; at++) {
        int fd = open(names[at], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd >= 0 && !faccessat(fd, ".", W_OK, 0)) return fd;
        if (fd >= 0) close(fd);
    }
    return -1;
}

/* Which kernel this is, and whose view of the mounts. */
static int where(char **words) {
    (void)words;
    char boot[64] = "", mounts[64] = "", said[160];
    if (slurp("/proc/sys/kernel/random/boot_id", boot, sizeof boot) < 0) return no("read /proc/sys/kernel/random/boot_id");
    if (readlink("/proc/self/ns/mnt", mounts, sizeof mounts - 1) < 0) return no("read /proc/self/ns/mnt");
    boot[strcspn(boot, "\n")] = 0;
    snprintf(said, sizeof said, "%s %s", boot, mounts);
    return yes("read /proc/self/ns/mnt", said);
}

static const struct attack general[] = {{"where", 0, where}, {NULL, 0, NULL}};

int main(int count, char **words) {
    static const struct attack *tables[] = {general, processes, files, kernel, network, bombs};
    if (count < 2) return 2;
    if (!strcmp(words[1], "canary")) return count == 4 ? canary(words + 2) : 2;
    scratch = open_scratch();
    if (strcmp(words[1], "descriptors")) climb();
    for (unsigned at = 0; at < sizeof tables / sizeof *tables; at++)
        for (const struct attack *one = tables[at]; one->name; one++)
            if (!strcmp(one->name, words[1])) return count - 2 < one->words ? 2 : one->run(words + 2);
    return 2;
}
