/* Reaching for sockets outside. Only addresses that the host's side names are ever asked. */
#include "attack.h"
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <poll.h>
#include <stddef.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

static int greeted(int fd, const char *step) {
    char got[512] = "";
    struct pollfd wait = {fd, POLLIN, 0};
    if (poll(&wait, 1, 2000) <= 0) {
        errno = ETIMEDOUT;
        return no(step);
    }
    if (recv(fd, got, sizeof got - 1, 0) < 0) return no(step);
    return yes(step, got);
}

static int inet(const char *address, int port, struct sockaddr_in *found) {
    memset(found, 0, sizeof *found);
    found->sin_family = AF_INET;
    found->sin_port = htons(port);
    return inet_pton(AF_INET, address, &found->sin_addr) == 1;
}

static int connected(const char *address, int port) {
    struct sockaddr_in to;
    struct timeval limit = {2, 0};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || !inet(address, port, &to)) return -1;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (!connect(fd, (struct sockaddr *)&to, sizeof to)) return fd;
    int number = errno;
    close(fd);
    errno = number;
    return -1;
}

/* PORT ADDRESS...: the first that answers. */
static int tcp(char **words) {
    int number = ENETUNREACH;
    char step[96] = "connect";
    for (char **address = words + 1; *address; address++) {
        int fd = connected(*address, atoi(words[0]));
        snprintf(step, sizeof step, "connect to %s port %s", *address, words[0]);
        if (fd >= 0) return greeted(fd, step);
        number = errno;
    }
    errno = number;
    return no(step);
}

static int abstract(char **words) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    strncpy(to.sun_path + 1, words[0], sizeof to.sun_path - 2);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(words[0])))
        return no("connect to the abstract socket");
    return greeted(fd, "connect to the abstract socket");
}

/* Listen on a port of an address and greet whoever comes within some seconds, in the background. */
static int serve(char **words) {
    struct sockaddr_in at;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd < 0 || !inet(words[2], atoi(words[0]), &at) || bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 4))
        return no("bind a port");
    pid_t child = fork();
    if (child < 0) return no("fork");
    if (child) return yes("bind a port", words[0]);
    for (int stream = 0; stream < 3; stream++) close(stream);
    alarm(6);
    int peer = accept(fd, NULL, NULL);
    if (peer >= 0) (void)!write(peer, words[1], strlen(words[1]));
    _exit(0);
}

/* All frames of all interfaces in sight, for as many milliseconds: is the canary's datagram among them? */
static int sniff(char **words) {
    static char frame[65536];
    struct timespec began, now;
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL)), seen = 0;
    if (fd < 0) return no("socket(AF_PACKET)");
    clock_gettime(CLOCK_MONOTONIC, &began);
    do {
        struct pollfd wait = {fd, POLLIN, 0};
        if (poll(&wait, 1, 100) > 0) {
            ssize_t got = recv(fd, frame, sizeof frame - 1, 0);
            seen++;
            char *found = got > 0 ? memmem(frame, got, words[0], strlen(words[0])) : NULL;
            if (found && frame + got - found < 64) {
                frame[got] = 0;
                return yes("read frames through AF_PACKET", found);
            }
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - began.tv_sec) * 1000 + (now.tv_nsec - began.tv_nsec) / 1000000 < atol(words[1]));
    char step[96];
    snprintf(step, sizeof step, "socket(AF_PACKET) opened, %d frames seen, none of the host's", seen);
    errno = ENOMSG;
    return no(step);
}

static int shared_memory(char **words) {
    char *at = shmat(atoi(words[0]), NULL, SHM_RDONLY);
    if (at == (void *)-1) return no("shmat");
    char got[64] = "";
    memcpy(got, at, 24);
    shmdt(at);
    return yes("shmat", got);
}

const struct attack network[] = {
    {"tcp", 2, tcp}, {"abstract", 1, abstract}, {"serve", 3, serve}, {"sniff", 2, sniff},
    {"shared-memory", 1, shared_memory}, {NULL, 0, NULL},
};
