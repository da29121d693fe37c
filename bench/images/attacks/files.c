/* Reaching for files, devices and mounts outside. What is mounted or made is taken away again at once. */
#include "attack.h"
#include <sched.h>
#include <sys/mount.h>
#include <sys/sysmacros.h>

static int read_file(char **words) {
    char got[128] = "";
    if (slurp(words[0], got, sizeof got) < 0) return no("open the canary's path");
    return yes("read the canary's path", got);
}

static int append(char **words) {
    int fd = open(words[0], O_WRONLY | O_APPEND | O_CLOEXEC);
    if (fd < 0) return no("open the canary's path for writing");
    if (write(fd, words[1], strlen(words[1])) < 0) return no("write to the canary's path");
    return yes("write to the canary's path", "written");
}

static int put(char **words) {
    int fd = openat(scratch, words[0], O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, words[1], strlen(words[1])) < 0) return no("write a file of one's own");
    return yes("write a file of one's own", words[0]);
}

static int take(char **words) {
    char got[128] = "";
    int fd = openat(scratch, words[0], O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, got, sizeof got - 1) < 0) return no("open the neighbour's file");
    return yes("read the neighbour's file", got);
}

static int drop(char **words) {
    if (unlinkat(scratch, words[0], 0)) return no("remove a file of one's own");
    return yes("remove a file of one's own", words[0]);
}

/* Open a file by its handle, past all mounts. */
static int by_handle(char **words) {
    struct { struct file_handle head; unsigned char id[128]; } wanted = {{0, atoi(words[0])}, {0}};
    char got[128] = "";
    unsigned length = strlen(words[1]) / 2;
    for (unsigned at = 0; at < length && at < sizeof wanted.id; at++) {
        char two[3] = {words[1][2 * at], words[1][2 * at + 1], 0};
        wanted.head.f_handle[at] = strtoul(two, NULL, 16);
    }
    wanted.head.handle_bytes = length;
    const char *mounts[] = {"/", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"};
    int number = 0;
    for (unsigned at = 0; at < sizeof mounts / sizeof *mounts; at++) {
        int mount = open(mounts[at], O_RDONLY | O_CLOEXEC);
        if (mount < 0) continue;
        int fd = syscall(SYS_open_by_handle_at, mount, &wanted.head, O_RDONLY);
        if (fd >= 0 && read(fd, got, sizeof got - 1) > 0) return yes("read what open_by_handle_at gave", got);
        number = number && number != ESTALE ? number : errno;
        close(mount);
    }
    errno = number;
    return no("open_by_handle_at");
}

/* A new device node of these numbers, opened; with `read`, 16 bytes are read. */
static int device(char **words) {
    char got[32] = "";
    unlinkat(scratch, "attack-node", 0);
    if (mknodat(scratch, "attack-node", (*words[0] == 'b' ? S_IFBLK : S_IFCHR) | 0600, makedev(atoi(words[1]), atoi(words[2]))))
        return no("mknod");
    int fd = openat(scratch, "attack-node", (*words[3] == 'w' ? O_WRONLY : O_RDONLY) | O_NONBLOCK | O_CLOEXEC);
    int number = errno;
    unlinkat(scratch, "attack-node", 0);
    errno = number;
    if (fd < 0) return no("open the new device node");
    if (*words[3] == 'r' && read(fd, got, sizeof got) < 0) return no("read the new device node");
    return yes(*words[3] == 'r' ? "read the new device node" : "open the new device node", words[1]);
}

static const char *place(void) {
    static char path[64];
    mkdirat(scratch, "attack-mount", 0700);
    snprintf(path, sizeof path, "/proc/self/fd/%d/attack-mount", scratch);
    return path;
}

static int end_mount(int failed, const char *step) {
    int number = errno;
    if (!failed) umount2(place(), MNT_DETACH);
    unlinkat(scratch, "attack-mount", AT_REMOVEDIR);
    errno = number;
    return failed ? no(step) : yes(step, "mounted and unmounted");
}

static int mount_kind(char **words) {
    int failed = mount("attack", place(), words[0], 0, NULL);
    return end_mount(failed, "mount a new file system");
}

/* The same by the newer calls: a filter may know only `mount`. */
static int mount_newer(char **words) {
    (void)words;
    int context = syscall(430, "tmpfs", 0); /* fsopen */
    if (context < 0) return no("fsopen(tmpfs)");
    if (syscall(431, context, 6, NULL, NULL, 0)) return no("fsconfig(FSCONFIG_CMD_CREATE)");
    int made = syscall(432, context, 0, 0); /* fsmount */
    if (made < 0) return no("fsmount");
    return yes("fsmount", "a mount that is attached nowhere");
}

/* Make what is mounted read-only writable, in this process's own view of it alone, then open something in it. */
static int remount(char **words) {
    (void)words;
    static char mounts[65536];
    char point[256], options[256];
    int tried = 0;
    if (slurp("/proc/self/mountinfo", mounts, sizeof mounts) < 0) return no("read /proc/self/mountinfo");
    for (char *line = strtok(mounts, "\n"); line; line = strtok(NULL, "\n")) {
        if (sscanf(line, "%*s %*s %*s %*s %255s %255s", point, options) != 2 || strncmp(options, "ro", 2)) continue;
        tried++;
        if (mount(NULL, point, NULL, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL)) continue;
        mount(NULL, point, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
        return yes("mount(MS_REMOUNT) without read-only", point);
    }
    if (!tried) errno = ENOENT; /* nothing read-only to be seen */
    return no("mount(MS_REMOUNT) without read-only");
}

/* A read-only mount of one's own, for the control of `remount`: bare processes have none. */
static int remount_own(char **words) {
    const char *at = place();
    if (mount("attack", at, "tmpfs", MS_RDONLY, NULL)) return no("mount a read-only file system");
    if (mount(NULL, at, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL)) return no("mount(MS_REMOUNT), read-only");
    int result = remount(words);
    umount2(at, MNT_DETACH);
    unlinkat(scratch, "attack-mount", AT_REMOVEDIR);
    return result;
}

/* A set-id program of one's own making: does it give root back to who gave it up? */
static int set_id(char **words) {
    static char block[65536];
    (void)words;
    if (!getuid() && words[0] == NULL) {
        int in = open("/proc/self/exe", O_RDONLY | O_CLOEXEC), out;
        if (in < 0) return no("open /proc/self/exe");
        unlinkat(scratch, "attack-raised", 0);
        if ((out = openat(scratch, "attack-raised", O_CREAT | O_WRONLY | O_CLOEXEC, 0700)) < 0) return no("create a program");
        for (ssize_t got; (got = read(in, block, sizeof block)) > 0;)
            if (write(out, block, got) != got) return no("write a program");
        if (fchmod(out, 04755)) return no("chmod 4755");
        close(out);
        int held = openat(scratch, "attack-raised", O_RDONLY | O_CLOEXEC);
        unlinkat(scratch, "attack-raised", 0);
        if (held < 0) return no("open a program");
        if (setgid(65534) || setuid(65534)) return no("setuid");
        char *argv[] = {"attack", "set-id", "raised", NULL}, *env[] = {NULL};
        fexecve(held, argv, env);
        return no("execve of a set-id program");
    }
    if (geteuid()) {
        errno = EPERM;
        return no("geteuid after a set-id program");
    }
    return yes("geteuid after a set-id program", "0");
}

const struct attack files[] = {
    {"read-file", 1, read_file}, {"append", 2, append}, {"put", 2, put}, {"take", 1, take}, {"drop", 1, drop},
    {"by-handle", 2, by_handle}, {"device", 4, device}, {"mount-kind", 1, mount_kind}, {"mount-newer", 0, mount_newer},
    {"remount", 0, remount}, {"remount-own", 0, remount_own}, {"set-id", 0, set_id}, {NULL, 0, NULL},
};
