/* The payload and the host's commands: processes in the guest's root. */
#define MEMBERS 1024
#define MFD_CLOEXEC 1
#define WNOHANG 1

/* /bench/payload, all texts ended by zeros: working directory, number of arguments, arguments, variables. */
static char description[1 << 16];
static char *arguments[MEMBERS], *environment[MEMBERS];
static char own_address[64] = "BENCH_ADDRESS=";
static const char *workdir;

static void describe_payload(void) {
    long size = read_file("/bench/payload", description, sizeof description);
    char *at = description, *end = description + size;
    size_t count, variables = 0;
    const char *text;
    if (size <= 0 || (size_t)size == sizeof description - 1) fail("no description, or too long a one: ", "/bench/payload");
    workdir = at, at += length(at) + 1;
    text = at, count = number(&text), at += length(at) + 1;
    if (count >= MEMBERS) fail("too many arguments: ", "/bench/payload");
    for (size_t i = 0; i < count; i++) arguments[i] = at, at += length(at) + 1;
    while (at < end && variables < MEMBERS - 2) environment[variables++] = at, at += length(at) + 1;
    environment[variables] = own_address;
}

static void execute(char **argv) {
    const char *path = "PATH=";
    char name[4096];
    long why = -ENOENT, found;
    if (!*argv) return;
    for (const char *at = *argv; *at; at++)
        if (*at == '/') {
            why = SYS3(execve, *argv, argv, environment);
            path = NULL;
            break;
        }
    for (char **each = environment; path && *each; each++)
        if (begins(*each, "PATH=")) path = *each;
    for (path = path ? path + 5 : ""; *path;) {
        char *to = name;
        while (*path && *path != ':' && to < name + 2048) *to++ = *path++;
        if (*path == ':') path++;
        *to++ = '/', *to = 0;
        if (length(*argv) > 2000) break;
        append(to, *argv);
        found = SYS3(execve, name, argv, environment);
        if (found != -ENOENT && found != -ENOTDIR) why = found;
    }
    say(*argv);
    say(why == -ENOENT ? ": not found\n" : ": cannot be run\n");
    SYS1(exit_group, why == -ENOENT ? 127 : 126);
}

/* A child in the root with these descriptors as stdout and stderr, leader of a session of its own. */
static long start(char **argv, int out, int err) {
    unsigned long none = 0;
    long pid = sys(__NR_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid) return pid;
    SYS1(setsid, 0);
    SYS3(dup3, out, 1, 0);
    SYS3(dup3, err, 2, 0);
    SYS4(rt_sigprocmask, SIG_SETMASK, &none, 0, sizeof none);
    if (SYS1(chdir, "/root") < 0 || SYS1(chroot, ".") < 0 || SYS1(chdir, workdir) < 0) {
        say("no working directory ");
        say(workdir);
        say("\n");
        SYS1(exit_group, 126);
    }
    execute(argv);
    SYS1(exit_group, 127);
    __builtin_unreachable();
}

/* As a shell says it: 128 + signal if it was killed. */
static int status_of(int status) { return status & 127 ? 128 + (status & 127) : status >> 8 & 255; }
