/* What is open to a program inside an instance: `calls FIRST LAST` tries system calls, `read WHAT...` reads facts.
 *
 * Every call is made by a child of its own, so that a filter that kills is seen and nothing lasts. Its arguments are all
 * -1, which is no address, descriptor, process, size or set of flags, so that a call that gets through fails without
 * having done anything; those for which -1 would mean something, block or end the child are listed in `chosen`.
 * bench/probes/exposure judges what is printed here. */
#include <linux/utsname.h>

#define NOWHERE (-1l)
#define WAIT_NO_HANG 1
#define LONGEST 65536

static long sys6(long call, const long *a) {
    register long r10 __asm__("r10") = a[3];
    register long r8 __asm__("r8") = a[4];
    register long r9 __asm__("r9") = a[5];
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(call), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* The same for calls that return twice. The copy, which may share our stack, ends without having touched it. */
static long twice(long call, const long *a) {
    register long r10 __asm__("r10") = a[3];
    register long r8 __asm__("r8") = a[4];
    long result;
    __asm__ volatile("syscall\n test %%rax, %%rax\n jnz 1f\n mov %6, %%eax\n xor %%edi, %%edi\n syscall\n 1:"
                     : "=a"(result), "+D"((long){a[0]})
                     : "0"(call), "S"(a[1]), "d"(a[2]), "r"(r10), "i"(__NR_exit_group), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

/* --- calls -------------------------------------------------------------------------------------------------------- */

struct outcome {
    long returned;
    int done;
    char zeros[128]; /* an attribute that names nothing */
    int word;        /* a futex nobody waits on */
};

#define NO_KEY 0x7ffffff1l     /* of System V objects: never made, for no call asks to make one */
#define NO_PROCESS 0x7ffffffel /* beyond the largest pid */

/* Arguments other than -1, and why. */
static void chosen(long call, long *a, struct outcome *page) {
    static const struct {
        int call;
        long a[4];
    } table[] = {
        {__NR_kill, {NO_PROCESS, 0, 0, 0}},          /* -1 is every process; signal 0 only asks */
        {__NR_shmget, {NO_KEY, 0, 0, 0}},            /* -1 as flags would create */
        {__NR_semget, {NO_KEY, 0, 0, 0}},
        {__NR_msgget, {NO_KEY, 0, 0, 0}},
        {__NR_exit, {42, 0, 0, 0}},                  /* the status tells that it worked */
        {__NR_exit_group, {42, 0, 0, 0}},
        {__NR_clone, {SIGCHLD, 0, 0, 0}},            /* as fork; filters look at the flags */
        {__NR_unshare, {0x400, 0, 0, 0}},            /* CLONE_FILES: the child's own anyway */
        {__NR_personality, {0xffffffffl, 0, 0, 0}},  /* asks; filters compare it */
        {__NR_socket, {1, NOWHERE, 0, 0}},           /* unix, no such type; filters look at the family */
        {__NR_socketpair, {1, NOWHERE, 0, NOWHERE}},
        {__NR_syslog, {10, 0, 0, 0}},                /* the log's size; it has no number -1 to refuse */
        {__NR_reboot, {1, 2, 3, 0}},                 /* no such magic numbers: refused after the rights */
        {__NR_init_module, {NOWHERE, 0, NOWHERE, 0}}, /* -1 bytes would be asked of the allocator */
        {__NR_modify_ldt, {0, 0, 0, 0}},             /* reads nothing; -1 is answered like a missing call */
    };
    for (size_t at = 0; at < SIZE(table); at++)
        if (table[at].call == call) {
            memcpy(a, table[at].a, sizeof table[at].a);
            return;
        }
    if (call == __NR_futex) { /* wakes nobody; -1 is answered like a missing call */
        a[0] = (long)&page->word, a[1] = 1, a[2] = 0;
    }
    if (call == __NR_bpf) { /* no such command, asked with a size that is looked at */
        a[1] = (long)page->zeros, a[2] = 48;
    }
}

__attribute__((noreturn)) static void attempt(long call, struct outcome *page) {
    long a[6] = {NOWHERE, NOWHERE, NOWHERE, NOWHERE, NOWHERE, NOWHERE};
    chosen(call, a, page);
    if (call == __NR_fork || call == __NR_vfork || call == __NR_clone) {
        page->returned = twice(call, a);
        if (page->returned > 0) SYS4(wait4, page->returned, 0, 0, 0);
    } else
        page->returned = sys6(call, a);
    page->done = 1;
    SYS1(exit_group, 0);
    __builtin_unreachable();
}

/* Longest wait for one child, in milliseconds; pause(2) is meant to take all of it. */
static long patience(long call) { return call == __NR_pause ? 500 : 5000; }

/* Ends with the child's status, or -1 if it had to be killed. */
static int await(long child, long call) {
    struct __kernel_timespec moment = {0, 100000};
    int status = 0;
    for (long until = now() + patience(call); now() < until; SYS2(nanosleep, &moment, 0))
        if (SYS4(wait4, child, &status, WAIT_NO_HANG, 0) == child) return status;
    SYS2(kill, child, SIGKILL);
    SYS4(wait4, child, &status, 0, 0);
    return -1;
}

/* `NUMBER HOW VALUE`: returned (0, or the errno), exited (status), signal, blocked, or unborn (errno of fork). */
static void try(long call, struct outcome *page) {
    char line[64], *end = decimal(line, call, ' ');
    page->done = 0;
    long child = SYS5(clone, SIGCHLD, 0, 0, 0, 0);
    if (!child) attempt(call, page);
    int status = child < 0 ? 0 : await(child, call);
    const char *how = "exited ";
    unsigned long value = status >> 8 & 0xff;
    if (child < 0)
        how = "unborn ", value = -child;
    else if (status == -1)
        how = "blocked ", value = 0;
    else if (page->done)
        how = "returned ", value = page->returned < 0 && page->returned > -4096 ? -page->returned : 0;
    else if (status & 0x7f)
        how = "signal ", value = status & 0x7f;
    end = decimal(append(end, how), value, '\n');
    write_all(1, line, end - line);
}

static int try_all(const char *first, const char *last) {
    /* PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS */
    long a[6] = {0, sizeof(struct outcome), 3, 0x21, -1, 0}, at = sys6(__NR_mmap, a);
    if (at < 0 && at > -4096) return 1;
    /* A session without a terminal, in which vhangup finds none. A leader of a group can't have one: be a child. */
    long child = SYS5(clone, SIGCHLD, 0, 0, 0, 0);
    int status = 0;
    if (child > 0) return SYS4(wait4, child, &status, 0, 0) == child && !status ? 0 : 1;
    if (child < 0 || SYS1(setsid, 0) < 0) return 1;
    for (long call = number(&first), end = number(&last); call <= end; call++) try(call, (struct outcome *)at);
    return 0;
}

/* --- facts -------------------------------------------------------------------------------------------------------- */

static char text[LONGEST], escaped[2 * LONGEST + 32];

static long names_in(const char *path) {
    static char entries[32768];
    long fd = SYS3(open, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0), got, have = 0;
    if (fd < 0) return fd;
    while ((got = SYS3(getdents64, fd, entries, sizeof entries)) > 0)
        for (long at = 0; at < got; at += *(unsigned short *)(entries + at + 16)) {
            const char *name = entries + at + 19;
            if (same(name, ".") || same(name, "..") || have + length(name) + 2 > LONGEST) continue;
            have = append(text + have, name) - text;
            text[have++] = '\n';
        }
    SYS1(close, fd);
    return got < 0 ? got : have;
}

static long name_of_machine(const char *field) {
    struct new_utsname names;
    long result = SYS1(uname, &names);
    if (result < 0) return result;
    const char *value = same(field, "nodename") ? names.nodename : same(field, "release") ? names.release : names.version;
    return append(text, value) - text;
}

/* Into `text`: its length, or -errno. WHAT is KIND:ARGUMENT. */
static long fact(const char *what) {
    if (begins(what, "file:")) return read_file(what + 5, text, LONGEST);
    if (begins(what, "link:")) return SYS3(readlink, what + 5, text, LONGEST - 1);
    if (begins(what, "list:")) return names_in(what + 5);
    if (begins(what, "uname:")) return name_of_machine(what + 6);
    if (begins(what, "log:")) return SYS3(syslog, 3, text, LONGEST - 1); /* the end of the kernel's log, which stays there */
    return -EINVAL;
}

/* One line each: `ok TEXT` with newlines as \n and backslashes doubled, or `no ERRNO`. */
static void tell(const char *what) {
    long got = fact(what);
    char *to = escaped;
    if (got < 0) {
        to = decimal(append(to, "no "), -got, '\n');
    } else {
        to = append(to, "ok ");
        for (long at = 0; at < got; at++) {
            unsigned char one = text[at];
            if (one == '\n' || one == '\\') *to++ = '\\';
            *to++ = one == '\n' ? 'n' : one == '\t' ? ' ' : one < 32 || one > 126 ? '?' : one;
        }
        *to++ = '\n';
    }
    write_all(1, escaped, to - escaped);
}

/* Out of a chroot, for who may chroot: a folder held open, a root below it, and up. Where the root is the top of a
 * mount namespace this ends where it began. */
static void climb(void) {
    long held = SYS3(open, "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (held < 0) return;
    if (!SYS1(chroot, "/tmp") && !SYS1(fchdir, held)) {
        for (int at = 0; at < 64 && !SYS1(chdir, ".."); at++) {}
        if (SYS1(chroot, ".")) SYS1(fchdir, held);
    }
    SYS1(close, held);
    SYS1(chdir, "/");
}

static int run_words(long count, char **words) {
    if (count == 4 && same(words[1], "calls")) return try_all(words[2], words[3]);
    if (count < 2 || !same(words[1], "read")) return 2;
    climb();
    for (long at = 2; at < count; at++) tell(words[at]);
    return 0;
}

__attribute__((used, noreturn)) static void begin(long *stack) __asm__("begin");
static void begin(long *stack) {
    SYS1(exit_group, run_words(stack[0], (char **)(stack + 1)));
    __builtin_unreachable();
}

__attribute__((naked, noreturn)) void _start(void) { __asm__("mov %rsp, %rdi\n and $-16, %rsp\n call begin\n"); }
