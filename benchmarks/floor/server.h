/* What both floors share: a single-threaded process that starts and ends instances on request, with no library but libc.
 *
 * It is asked as bench's launcher is: a message on a SOCK_SEQPACKET socket, descriptor 3, one answer each.
 *   launch ID    -> ok, with the read end of the payload's output
 *   destroy ID   -> ok: everything of the instance is gone
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
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST 20000
#define LINK 3

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

static pid_t clone_with(uint64_t flags) {
    struct clone_args args = {.flags = flags, .exit_signal = SIGCHLD};
    return syscall(SYS_clone3, &args, sizeof args);
}

/* The two folders of an overlay, whose root is mounted over its work folder: made inside the timed window. */
static void make_folders(const char *own) {
    char path[512];
    for (const char **part = (const char *[]){"upper", "work", NULL}; *part; part++) {
        snprintf(path, sizeof path, "%s/%s", own, *part);
        must(!mkdir(path, 0755), path);
    }
}

static void mount_overlay(const char *own, char *root, size_t size) {
    char options[4096];
    snprintf(root, size, "%s/work", own);
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, own, own);
    must(!mount("none", "/", "", MS_REC | MS_PRIVATE, NULL), "private");
    must(!mount("overlay", root, "overlay", 0, options), "overlay");
}

static void remove_folders(int id) {
    char path[512];
    for (const char **part = (const char *[]){"upper", "work/work", "work", ".", NULL}; *part; part++) {
        snprintf(path, sizeof path, "%s/%d/%s", work, id, *part);
        if (!strcmp(*part, ".")) snprintf(path, sizeof path, "%s/%d", work, id);
        must(!rmdir(path) || errno == ENOENT, path);
    }
}

/* What the two floors differ in. */
static pid_t launch(int id, int output);
static void destroyed(int id);

/* A word, with a descriptor beside it if there is one. */
static void answer(const char *word, int fd) {
    char control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec data = {.iov_base = (void *)word, .iov_len = strlen(word)};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = control, message.msg_controllen = sizeof control;
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    must(sendmsg(LINK, &message, 0) > 0, "answer");
}

static void serve(void) {
    char line[64];
    int id;
    for (ssize_t size; (size = recv(LINK, line, sizeof line - 1, 0)) > 0;) {
        line[size] = 0;
        if (sscanf(line, "launch %d", &id) == 1 && id >= 0 && id < MOST) {
            int ends[2];
            must(!pipe2(ends, O_CLOEXEC), "pipe");
            pids[id] = launch(id, ends[1]);
            close(ends[1]);
            answer("ok", ends[0]);
            close(ends[0]);
        } else if (sscanf(line, "destroy %d", &id) == 1 && id >= 0 && id < MOST && pids[id] > 0) {
            must(!kill(pids[id], SIGKILL), "kill");
            must(waitpid(pids[id], NULL, 0) == pids[id], "waitpid");
            destroyed(id);
            remove_folders(id);
            pids[id] = 0;
            answer("ok", -1);
        } else {
            fprintf(stderr, "floor: what is %s?\n", line);
            exit(2);
        }
    }
}
