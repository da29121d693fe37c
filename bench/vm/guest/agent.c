/* Runs commands in the guest's root for the host (bench/vm/agent.py), one after the other, and minds the payload.
 *   run ID MILLISECONDS SIZE\n  and SIZE bytes, the arguments, each ended by a zero
 *   -> ID STATUS OUT ERR\n      and OUT + ERR bytes: what it wrote to stdout and stderr
 *   stop MILLISECONDS\n         ends the payload, by force after that time; init then powers off */
#define LONGEST (1 << 17)
#define POLLIN 1

struct pollfd {
    int fd;
    short events, revents;
};

struct command {
    char *argv[MEMBERS];
    unsigned long id, limit, size;
};

static char request[LONGEST + 128];
static long payload, payload_status = -1, children; /* children: a descriptor that tells of their ends */

/* Takes every child that has ended; the status of `wanted`, or -1. */
static int reap(long wanted) {
    char told[128];
    int status, found = -1;
    long pid;
    while (SYS3(read, children, told, sizeof told) > 0);
    while ((pid = SYS4(wait4, -1, &status, WNOHANG, 0)) > 0) {
        if (pid == wanted) found = status_of(status);
        if (pid == payload) payload_status = status_of(status);
    }
    return found;
}

/* Waits until one of the descriptors has something, at most so long; negative: for ever. */
static void wait_for(struct pollfd *fds, int count, long milliseconds) {
    SYS3(poll, fds, count, milliseconds < 0 ? -1 : milliseconds);
}

/* Kills it and all of its session's group when its time is over, or the payload's. */
static int status_within(long pid, long milliseconds) {
    struct pollfd ends = {children, POLLIN, 0};
    long deadline = now() + milliseconds, left;
    int status;
    while ((status = reap(pid)) < 0) {
        left = deadline - now();
        if (left <= 0 || payload_status >= 0) SYS2(kill, -pid, SIGKILL), SYS2(kill, pid, SIGKILL), left = 1000;
        wait_for(&ends, 1, left);
    }
    return status;
}

static unsigned long size_of(int fd) { return SYS3(lseek, fd, 0, 1 /* the offset shared with who wrote */); }

static void send_file(int port, int from, unsigned long size) {
    static char block[1 << 14];
    SYS3(lseek, from, 0, 0);
    for (long got; size && (got = SYS3(read, from, block, size < sizeof block ? size : sizeof block)) > 0; size -= got)
        write_all(port, block, got);
}

static void run(int port, struct command *command) {
    int out = SYS2(memfd_create, "out", MFD_CLOEXEC), err = SYS2(memfd_create, "err", MFD_CLOEXEC);
    char head[96], *end;
    long pid = start(command->argv, out, err);
    int status = pid < 0 ? 126 : status_within(pid, command->limit);
    end = decimal(decimal(head, command->id, ' '), status, ' ');
    end = decimal(decimal(end, size_of(out), ' '), size_of(err), '\n');
    write_all(port, head, end - head);
    send_file(port, out, size_of(out));
    send_file(port, err, size_of(err));
    SYS1(close, out), SYS1(close, err);
}

static void stop(long grace) {
    struct pollfd ends = {children, POLLIN, 0};
    long deadline = now() + grace, left;
    SYS2(kill, payload, SIGTERM);
    while (reap(0), payload_status < 0 && (left = deadline - now()) > 0) wait_for(&ends, 1, left);
    if (payload_status < 0) SYS2(kill, payload, SIGKILL);
}

/* The bytes of the request at the buffer's beginning, 0 if it is not whole yet. */
static size_t take_request(int port, size_t have) {
    static struct command command;
    const char *at = request;
    char *body;
    size_t line = 0, count = 0;
    while (line < have && request[line] != '\n') line++;
    if (line == have) return 0;
    if (begins(at, "stop ")) {
        at += 5;
        stop(number(&at));
        return line + 1;
    }
    if (!begins(at, "run ")) return line + 1;
    at += 4, command.id = number(&at);
    at++, command.limit = number(&at);
    at++, command.size = number(&at);
    if (command.size > LONGEST) return line + 1; /* the host does not send these */
    if (line + 1 + command.size > have) return 0;
    for (body = request + line + 1; body < request + line + 1 + command.size && count < MEMBERS - 1;)
        command.argv[count++] = body, body += length(body) + 1;
    command.argv[count] = NULL;
    run(port, &command);
    return line + 1 + command.size;
}

/* Until the payload has ended; its status. */
static int serve(int port) {
    struct pollfd fds[] = {{children, POLLIN, 0}, {port, POLLIN, 0}};
    size_t have = 0, used;
    while (reap(0), payload_status < 0) {
        long got;
        wait_for(fds, 2, -1);
        if (!(fds[1].revents & POLLIN)) {
            if (fds[1].revents) fds[1].fd = -1; /* the host has closed its end */
            continue;
        }
        got = SYS3(read, port, request + have, sizeof request - 1 - have);
        if (got <= 0) {
            fds[1].fd = -1; /* it has closed its end, and its poll would not wait any more */
            continue;
        }
        have += got;
        while (payload_status < 0 && (used = take_request(port, have))) {
            have -= used;
            memcpy(request, request + used, have);
        }
    }
    return payload_status;
}
