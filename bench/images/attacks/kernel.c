/* Reaching for the kernel. Arguments are such that nothing changes where the boundary lets a call through: a value that
 * is there already, or one that is refused only after the rights were checked (`passed`). */
#include "attack.h"
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <linux/random.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/timex.h>
#include <sys/wait.h>
#include <time.h>

/* A call that fails for its arguments: beyond the check of rights unless it says so. */
static int passed(long result, const char *step) {
    int number = errno;
    if (result < 0 && (number == EPERM || number == EACCES || number == ENOSYS || number == EROFS)) return no(step);
    return yes(step, result < 0 ? strerror(number) : "done");
}

static int module(char **words) {
    (void)words;
    return passed(syscall(SYS_finit_module, -1, "", 0), "finit_module(no file)");
}

static int kexec(char **words) {
    (void)words;
    return passed(syscall(SYS_kexec_load, 0, 0, NULL, 0xff00), "kexec_load(no such flags)");
}

static int reboot_call(char **words) {
    (void)words;
    return passed(syscall(SYS_reboot, 1, 2, 3, NULL), "reboot(no such magic)");
}

static int accounting(char **words) {
    (void)words;
    return passed(syscall(SYS_acct, "/nosuch/folder"), "acct(no such file)");
}

static int swap(char **words) {
    (void)words;
    return passed(syscall(SYS_swapon, "/nosuch/folder", 0), "swapon(no such file)");
}

static int ports(char **words) {
    (void)words;
    return passed(syscall(SYS_iopl, 3), "iopl(3)");
}

static int user_fault(char **words) {
    (void)words;
    return passed(syscall(SYS_userfaultfd, O_CLOEXEC), "userfaultfd");
}

static int ring(char **words) {
    char parameters[120] = {0};
    (void)words;
    return passed(syscall(425, 1, parameters), "io_uring_setup");
}

static int map(char **words) {
    union bpf_attr attr = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
    (void)words;
    return passed(syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr), "bpf(BPF_MAP_CREATE)");
}

static int counters(char **words) {
    struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attr, .config = PERF_COUNT_SW_CPU_CLOCK};
    (void)words;
    return passed(syscall(SYS_perf_event_open, &attr, -1, 0, -1, 0), "perf_event_open(all processes of one CPU)");
}

static int user_namespace(char **words) {
    (void)words;
    return passed(syscall(SYS_unshare, CLONE_NEWUSER), "unshare(CLONE_NEWUSER)");
}

static int clock_rate(char **words) {
    struct timex now = {0};
    (void)words;
    if (adjtimex(&now) < 0) return no("adjtimex(0)");
    struct timex same = {.modes = ADJ_TICK, .tick = now.tick};
    return passed(adjtimex(&same), "adjtimex(ADJ_TICK), to the value it has");
}

static int host_name(char **words) {
    if (sethostname(words[0], strlen(words[0]))) return no("sethostname");
    return yes("sethostname", words[0]);
}

static int real_time(char **words) {
    struct sched_param priority = {.sched_priority = 1};
    (void)words;
    return passed(sched_setscheduler(0, SCHED_FIFO, &priority), "sched_setscheduler(SCHED_FIFO)");
}

static int nicer(char **words) {
    (void)words;
    return passed(setpriority(PRIO_PROCESS, 0, -10), "setpriority(-10)");
}

static int spared(char **words) {
    (void)words;
    return passed(reopened("/proc/self/oom_score_adj", "-1000"), "write -1000 to /proc/self/oom_score_adj");
}

static int log_read(char **words) {
    static char text[4096];
    (void)words;
    int got = syscall(SYS_syslog, 3, text, sizeof text - 1);
    if (got < 0) return no("syslog(SYSLOG_ACTION_READ_ALL)");
    char said[64];
    snprintf(said, sizeof said, "%d bytes", got);
    return yes("syslog(SYSLOG_ACTION_READ_ALL)", said);
}

/* Open for writing, write nothing. */
static int open_only(char **words) {
    if (open(words[0], O_WRONLY | O_CLOEXEC) < 0) return no("open for writing");
    return yes("open for writing", words[0]);
}

/* Write what is in it already. */
static int rewrite(char **words) {
    char value[512] = "";
    if (slurp(words[0], value, sizeof value) < 0) return no("read the setting");
    if (reopened(words[0], value)) return no("write the setting's own value");
    return yes("write the setting's own value", words[0]);
}

static int rewrite_any(char **words) {
    int number = ENOENT;
    for (; *words; words++) {
        char value[64] = "";
        if (slurp(*words, value, sizeof value) < 0) continue;
        if (!reopened(*words, value)) return yes("write the limit's own value", *words);
        number = errno;
    }
    errno = number;
    return no("write the limit's own value");
}

/* A program for the kernel to run on the host: a cgroup hierarchy of no controller, whose root names one. None is
 * named: the line that is written is empty, and no group asks for it. */
static int release_agent(char **words) {
    char path[128], at[64];
    (void)words;
    mkdirat(scratch, "attack-groups", 0700);
    snprintf(at, sizeof at, "/proc/self/fd/%d/attack-groups", scratch);
    int failed = mount("attack", at, "cgroup", 0, "none,name=bench-attack");
    if (!failed) {
        snprintf(path, sizeof path, "%s/release_agent", at);
        failed = reopened(path, "\n") ? 2 : 0;
    }
    int number = errno;
    if (failed != -1) umount2(at, MNT_DETACH);
    unlinkat(scratch, "attack-groups", AT_REMOVEDIR);
    errno = number;
    if (failed) return no(failed == 2 ? "write release_agent" : "mount(cgroup, a new hierarchy)");
    return yes("write release_agent", "of a new hierarchy");
}

/* An interpreter for files that begin with bytes no file has; taken away again. */
static int interpreter(char **words) {
    char at[64], path[128];
    (void)words;
    mkdirat(scratch, "attack-formats", 0700);
    snprintf(at, sizeof at, "/proc/self/fd/%d/attack-formats", scratch);
    const char *step = "mount(binfmt_misc)";
    int failed = mount("attack", at, "binfmt_misc", 0, NULL), mounted = !failed;
    if (!failed) {
        step = "register an interpreter";
        snprintf(path, sizeof path, "%s/register", at);
        failed = reopened(path, ":bench-attack:M::benchattack-no-such-file::/nosuch:");
        snprintf(path, sizeof path, "%s/bench-attack", at);
        if (!failed) reopened(path, "-1");
    }
    int number = errno;
    if (mounted) umount2(at, MNT_DETACH);
    unlinkat(scratch, "attack-formats", AT_REMOVEDIR);
    errno = number;
    return failed ? no(step) : yes(step, "and taken away");
}

static int key_read(char **words) {
    char got[64] = "";
    if (syscall(SYS_keyctl, 11, atol(words[0]), got, sizeof got - 1, 0) < 0) return no("keyctl(KEYCTL_READ)");
    return yes("keyctl(KEYCTL_READ)", got);
}

static int keys_listed(char **words) {
    static char text[65536];
    int length = slurp("/proc/keys", text, sizeof text);
    if (length < 0) return no("read /proc/keys");
    char *found = memmem(text, length, words[0], strlen(words[0]));
    if (found) {
        found[strlen(words[0]) + 16] = 0;
        return yes("read /proc/keys", found);
    }
    errno = ENOKEY;
    return no("find the canary in /proc/keys");
}

/* Credit the pool with no bits at all. */
static int entropy(char **words) {
    int none = 0, fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    (void)words;
    if (fd < 0) return no("open /dev/urandom");
    return passed(ioctl(fd, RNDADDTOENTCNT, &none), "ioctl(RNDADDTOENTCNT, 0)");
}

static int uptime(char **words) {
    struct timespec now;
    char said[64];
    (void)words;
    if (clock_gettime(CLOCK_BOOTTIME, &now)) return no("clock_gettime(CLOCK_BOOTTIME)");
    snprintf(said, sizeof said, "%ld", (long)now.tv_sec);
    return yes("clock_gettime(CLOCK_BOOTTIME)", said);
}

/* Only for a guest, whose host side has made sure that this is not the host's kernel. */
static int panic(char **words) {
    (void)words;
    if (reopened("/proc/sys/kernel/sysrq", "1") && errno != ENOENT) return no("write /proc/sys/kernel/sysrq");
    sync();
    if (reopened("/proc/sysrq-trigger", "c")) return no("write /proc/sysrq-trigger");
    return yes("write /proc/sysrq-trigger", "still here");
}

const struct attack kernel[] = {
    {"module", 0, module}, {"kexec", 0, kexec}, {"reboot", 0, reboot_call}, {"accounting", 0, accounting},
    {"swap", 0, swap}, {"ports", 0, ports}, {"user-fault", 0, user_fault}, {"ring", 0, ring}, {"map", 0, map},
    {"counters", 0, counters}, {"user-namespace", 0, user_namespace}, {"clock-rate", 0, clock_rate},
    {"host-name", 1, host_name}, {"real-time", 0, real_time}, {"nicer", 0, nicer}, {"spared", 0, spared},
    {"log-read", 0, log_read}, {"open-only", 1, open_only}, {"rewrite", 1, rewrite}, {"rewrite-any", 1, rewrite_any},
    {"release-agent", 0, release_agent}, {"interpreter", 0, interpreter}, {"key-read", 1, key_read},
    {"keys-listed", 1, keys_listed}, {"entropy", 0, entropy}, {"uptime", 0, uptime}, {"panic", 0, panic},
    {NULL, 0, NULL},
};
