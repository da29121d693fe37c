/* What the attacks go for, run on the host: one process that holds a secret in every place an attack may reach, and
 * nothing else. It says what it holds, as one line of JSON, and lives until it is killed. All of it dies with it. */
#include "attack.h"
#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ipc.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/un.h>

static char secret[32];
static int signalled = -1;

static void note(int number) {
    (void)number;
    (void)!write(signalled, "signalled\n", 10);
}

static int listening(const char *address, int *port) {
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t size = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    inet_pton(AF_INET, address, &at.sin_addr);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 8)) return -1;
    getsockname(fd, (struct sockaddr *)&at, &size);
    *port = ntohs(at.sin_port);
    return fd;
}

static int named(const char *name) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    strncpy(at.sun_path + 1, name, sizeof at.sun_path - 2);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name))) return -1;
    return listen(fd, 8) ? -1 : fd;
}

/* A segment that is removed as soon as its last user detaches; until then its number is enough to attach it. */
static int segment(void) {
    int id = shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
    char *at = id < 0 ? (void *)-1 : shmat(id, NULL, 0);
    if (at == (void *)-1) return -1;
    strcpy(at, secret);
    shmctl(id, IPC_RMID, NULL);
    return id;
}

static long key(const char *name) {
    long serial = syscall(SYS_add_key, "user", name, secret, strlen(secret), -2);
    if (serial > 0) syscall(SYS_keyctl, 5, serial, 0x3f3f0000); /* KEYCTL_SETPERM: the user's, not only the owner's */
    return serial;
}

static void print_handle(const char *path) {
    struct { struct file_handle head; unsigned char id[128]; } found = {{128, 0}, {0}};
    int mount;
    if (name_to_handle_at(AT_FDCWD, path, &found.head, &mount, 0)) {
        printf(",\"handle_type\":0,\"handle\":\"\"");
        return;
    }
    printf(",\"handle_type\":%d,\"handle\":\"", found.head.handle_type);
    for (unsigned at = 0; at < found.head.handle_bytes; at++) printf("%02x", found.head.f_handle[at]);
    printf("\"");
}

/* words: a folder that holds `file`, with the secret in it, and takes `signalled`; the secret, 16 characters. */
int canary(char **words) {
    char path[512], name[64];
    int loopback = 0, everywhere = 0;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    strncpy(secret, words[1], sizeof secret - 1);
    snprintf(path, sizeof path, "%s/signalled", words[0]);
    signalled = open(path, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
    signal(SIGUSR2, note);
    signal(SIGPIPE, SIG_IGN);
    snprintf(path, sizeof path, "%s/file", words[0]);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    snprintf(name, sizeof name, "bench-canary-%d-%s", getpid(), secret); /* others may be alive on this host */
    int sockets[] = {listening("127.0.0.1", &loopback), listening("0.0.0.0", &everywhere), named(name)};
    char datagram[64];
    snprintf(datagram, sizeof datagram, "bench-beacon-%d %s", getpid(), secret);
    int beacon = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in discard = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (file < 0 || signalled < 0 || sockets[0] < 0 || sockets[1] < 0 || sockets[2] < 0 || beacon < 0) {
        perror("canary");
        return 1;
    }
    printf("{\"pid\":%d,\"address\":\"%p\",\"descriptor\":%d,\"loopback\":%d,\"everywhere\":%d,\"segment\":%d,\"key\":%ld",
           getpid(), (void *)secret, file, loopback, everywhere, segment(), key(name));
    printf(",\"socket\":\"%s\"", name);
    print_handle(path);
    printf("}\n");
    fflush(stdout);
    for (;;) {
        struct pollfd waits[3];
        for (int at = 0; at < 3; at++) waits[at] = (struct pollfd){sockets[at], POLLIN, 0};
        poll(waits, 3, 100);
        for (int at = 0; at < 3; at++) {
            int peer = waits[at].revents & POLLIN ? accept(sockets[at], NULL, NULL) : -1;
            if (peer < 0) continue;
            (void)!write(peer, secret, strlen(secret));
            close(peer);
        }
        sendto(beacon, datagram, strlen(datagram), MSG_NOSIGNAL, (struct sockaddr *)&discard, sizeof discard);
    }
}
