/* Serves /srv/www on $BENCH_ADDRESS (all addresses if empty), port $BENCH_PORT (8080 if empty), and says `bench-ready`
 * once it listens. GET and HEAD, one answer a connection, all connections in one process. Exits 0 on SIGTERM and SIGINT,
 * pid 1 or not, and non-zero if it can't listen. */
#include <linux/in.h>
#include <linux/signalfd.h>
#include <linux/stat.h>

#define MOST 512 /* connections at once; more wait in the kernel's queue */
#define POLLIN 1
#define POLLOUT 4
#define SOL_SOCKET 1
#define SO_REUSEADDR 2
#define AT_EMPTY_PATH 0x1000

struct pollfd {
    int fd;
    short events, revents;
};

struct connection {
    int file; /* what is still to be sent of a file, -1 if none */
    unsigned have, sent;
    char text[1024]; /* the request, then the head of the answer */
};

static struct pollfd polled[MOST + 2]; /* signals, new connections, connections */
static struct connection connections[MOST + 2];
static int count = 2;

static const char *variable(char **environment, const char *name) {
    for (; *environment; environment++)
        if (begins(*environment, name)) return *environment + length(name);
    return "";
}

static int refuse(const char *what, long why) {
    char text[160];
    *decimal(append(append(text, what), ": error "), -why, '\n') = 0;
    say(text);
    return 1;
}

static unsigned address_of(const char *text) {
    union { unsigned char bytes[4]; unsigned value; } address = {{0}};
    for (int i = 0; i < 4; i++, text += *text == '.') address.bytes[i] = number(&text);
    return address.value;
}

static long listen_at(const char *address, const char *port) {
    struct sockaddr_in at = {.sin_family = 2};
    unsigned short wanted = *port ? number(&port) : 8080;
    int yes = 1;
    long fd = SYS3(socket, 2, 1 | O_NONBLOCK | O_CLOEXEC, 0), done;
    if (fd < 0) return fd;
    at.sin_port = wanted << 8 | wanted >> 8;
    at.sin_addr.s_addr = address_of(address);
    SYS5(setsockopt, fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if ((done = SYS3(bind, fd, &at, sizeof at)) < 0 || (done = SYS2(listen, fd, 128)) < 0) return done;
    return fd;
}

static void accept_all(void) {
    while (count < MOST + 2) {
        long fd = SYS4(accept4, polled[1].fd, 0, 0, O_NONBLOCK | O_CLOEXEC);
        if (fd < 0) break;
        connections[count].file = -1;
        connections[count].have = connections[count].sent = 0;
        polled[count++] = (struct pollfd){fd, POLLIN, 0};
    }
    polled[1].events = count < MOST + 2 ? POLLIN : 0;
}

static void end(int which) {
    SYS1(close, polled[which].fd);
    if (connections[which].file >= 0) SYS1(close, connections[which].file);
    count--;
    polled[which] = polled[count];
    memcpy(&connections[which], &connections[count], sizeof connections[0]);
    polled[1].events = POLLIN;
}

/* Opens what "/path?query" names below /srv/www; -1 for what is no file there. */
static int open_named(char *path, unsigned long *size) {
    struct statx is;
    char name[600], *to = append(name, "/srv/www");
    if (*path != '/' || length(path) > 512) return -1;
    for (const char *at = path; *at && *at != '?'; at++) {
        if (begins(at, "/..")) return -1;
        *to++ = *at;
    }
    *to = 0;
    if (to[-1] == '/') append(to, "index.html");
    long fd = SYS3(open, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0);
    if (fd < 0) return -1;
    if (SYS5(statx, fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &is) == 0 && (is.stx_mode & 0170000) == 0100000 /* a regular file */) {
        *size = is.stx_size;
        return fd;
    }
    SYS1(close, fd);
    return -1;
}

static void answer(struct connection *one) {
    int get = begins(one->text, "GET "), head = begins(one->text, "HEAD ");
    char *path = one->text + (get ? 4 : 5), *to = one->text;
    unsigned long size = 0;
    if (get || head) {
        for (to = path; *to > ' ';) to++;
        *to = 0;
        one->file = open_named(path, &size);
    }
    to = append(one->text, !get && !head ? "HTTP/1.0 501 Not Implemented" : one->file < 0 ? "HTTP/1.0 404 Not Found"
                                                                                          : "HTTP/1.0 200 OK");
    to = append(to, "\r\nConnection: close\r\nContent-Type: text/html\r\nContent-Length: ");
    to = append(decimal(to, size, '\r'), "\n\r\n");
    one->have = to - one->text;
    one->sent = 0;
    if (head && one->file >= 0) SYS1(close, one->file), one->file = -1;
}

/* False when the connection has ended. */
static int receive(int which) {
    struct connection *one = &connections[which];
    long got = SYS3(read, polled[which].fd, one->text + one->have, sizeof one->text - 1 - one->have);
    if (got == -EAGAIN) return 1;
    if (got <= 0) return 0;
    one->have += got;
    one->text[one->have] = 0;
    for (const char *at = one->text; *at; at++)
        if (begins(at, "\r\n\r\n") || begins(at, "\n\n")) {
            answer(one);
            polled[which].events = POLLOUT;
            return 1;
        }
    if (one->have < sizeof one->text - 1) return 1;
    answer(one); /* the first line is there; the rest of a long head says nothing to us */
    polled[which].events = POLLOUT;
    return 1;
}

static int send_on(int which) {
    struct connection *one = &connections[which];
    int fd = polled[which].fd;
    long done;
    while (one->sent < one->have) {
        done = SYS3(write, fd, one->text + one->sent, one->have - one->sent);
        if (done <= 0) return done == -EAGAIN;
        one->sent += done;
    }
    if (one->file >= 0) {
        done = SYS4(sendfile, fd, one->file, 0, 1 << 16);
        if (done > 0 || done == -EAGAIN) return 1;
    }
    /* What the client still says would make the kernel answer a close with a reset, and the answer be lost. */
    SYS2(shutdown, fd, 1);
    while (SYS3(read, fd, one->text, sizeof one->text) > 0);
    return 0;
}

static void serve(void) {
    for (;;) {
        if (SYS3(poll, polled, count, -1) < 0) continue;
        if (polled[0].revents) SYS1(exit_group, 0);
        for (int which = count - 1; which > 1; which--) {
            if (!polled[which].revents) continue;
            int on = polled[which].events == POLLOUT ? send_on(which) : receive(which);
            if (on && polled[which].events == POLLOUT) on = send_on(which);
            if (!on) end(which);
        }
        if (polled[1].revents) accept_all();
    }
}

int run_program(char **environment) {
    unsigned long ends = 1ul << (SIGTERM - 1) | 1ul << (SIGINT - 1) | 1ul << (SIGPIPE - 1), pipes = 1ul << (SIGPIPE - 1);
    long signals, listening;
    SYS4(rt_sigprocmask, SIG_BLOCK, &ends, 0, sizeof ends);
    ends &= ~pipes;
    signals = SYS4(signalfd4, -1, &ends, sizeof ends, SFD_CLOEXEC);
    if (signals < 0) return refuse("no signals", signals);
    listening = listen_at(variable(environment, "BENCH_ADDRESS="), variable(environment, "BENCH_PORT="));
    if (listening < 0) return refuse("cannot listen", listening);
    polled[0] = (struct pollfd){signals, POLLIN, 0};
    polled[1] = (struct pollfd){listening, POLLIN, 0};
    write_all(1, "bench-ready\n", 12);
    serve();
    return 1;
}
