/* The equal floor: the same steps in the same order as bench's own runtime (docs/runtime.md), in C.
 *
 *   equal WORK LOWER NETWORK FILTER SHARED-GROUPS GROUP... -- PAYLOAD [ARG...]
 *
 * NETWORK        "none" (loopback only), or BRIDGE,BASE,PREFIX,GATEWAY[+...]: 500 instances a bridge, addresses from BASE
 * FILTER         file with the seccomp program
 * SHARED-GROUPS  tasks files to join that all instances share, comma-separated, or "none"
 * GROUP          FOLDER,FILE=VALUE,...: a group below it is made for each instance, its files written
 *
 * The parent joins a veth pair to the bridge while the child mounts: as in bench.
 */
#include "server.h"
#include <arpa/inet.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/seccomp.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sys/socket.h>

#define GROUPS 16

static char *groups[GROUPS], *shared[GROUPS];
static int group_count, shared_count;
#define BRIDGES 64
#define PORTS 500 /* of a bridge */

static struct {
    const char *name, *gateway;
    uint32_t base;
    int prefix, index;
} bridges[BRIDGES];
static int bridge_count, net_link = -1;
static struct sock_fprog filter;
static cpu_set_t processors;

/* --- netlink ------------------------------------------------------------------------------------------------ */

struct request {
    char bytes[1024];
    size_t length;
    int count;
};

static void *room(struct request *r, size_t size) {
    void *at = r->bytes + r->length;
    memset(at, 0, NLMSG_ALIGN(size));
    r->length += NLMSG_ALIGN(size);
    return at;
}

static struct rtattr *attribute(struct request *r, int type, const void *data, size_t size) {
    struct rtattr *a = room(r, RTA_LENGTH(size));
    a->rta_type = type, a->rta_len = RTA_LENGTH(size);
    if (size) memcpy(RTA_DATA(a), data, size);
    return a;
}

static void ends(struct request *r, struct rtattr *a) { a->rta_len = r->bytes + r->length - (char *)a; }

static struct nlmsghdr *message(struct request *r, int type, int flags) {
    struct nlmsghdr *h = room(r, NLMSG_HDRLEN);
    h->nlmsg_type = type, h->nlmsg_flags = NLM_F_REQUEST | flags, h->nlmsg_seq = ++r->count;
    return h;
}

static void closes(struct request *r, struct nlmsghdr *h) { h->nlmsg_len = r->bytes + r->length - (char *)h; }

/* Only the last request asks for an answer; a failure is always answered. */
static void perform(int fd, struct request *r, struct nlmsghdr *last, const char *what) {
    char answer[4096];
    last->nlmsg_flags |= NLM_F_ACK;
    must(send(fd, r->bytes, r->length, 0) == (ssize_t)r->length, what);
    must(recv(fd, answer, sizeof answer, 0) > 0, what);
    struct nlmsghdr *h = (void *)answer;
    errno = -((struct nlmsgerr *)NLMSG_DATA(h))->error;
    must(h->nlmsg_type == NLMSG_ERROR && !errno, what);
}

static struct nlmsghdr *up(struct request *r, int index, const char *name) {
    struct nlmsghdr *h = message(r, RTM_NEWLINK, 0);
    struct ifinfomsg *i = room(r, sizeof *i);
    i->ifi_index = index, i->ifi_flags = i->ifi_change = IFF_UP;
    if (name) attribute(r, IFLA_IFNAME, name, strlen(name) + 1);
    closes(r, h);
    return h;
}

/* No IPv6 address of its own. */
static void no_ipv6(struct request *r, int index, const char *name) {
    uint8_t none = IN6_ADDR_GEN_MODE_NONE;
    struct nlmsghdr *h = message(r, RTM_NEWLINK, 0);
    struct ifinfomsg *i = room(r, sizeof *i);
    i->ifi_index = index;
    if (name) attribute(r, IFLA_IFNAME, name, strlen(name) + 1);
    struct rtattr *families = attribute(r, IFLA_AF_SPEC | NLA_F_NESTED, NULL, 0);
    struct rtattr *family = attribute(r, AF_INET6 | NLA_F_NESTED, NULL, 0);
    attribute(r, IFLA_INET6_ADDR_GEN_MODE, &none, 1);
    ends(r, family), ends(r, families);
    closes(r, h);
}

static void join_bridge(int id, pid_t pid) {
    struct request r = {.length = 0};
    char name[IFNAMSIZ];
    snprintf(name, sizeof name, "bnfloor%d", id);
    struct nlmsghdr *h = message(&r, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
    struct ifinfomsg *i = room(&r, sizeof *i);
    attribute(&r, IFLA_IFNAME, name, strlen(name) + 1);
    attribute(&r, IFLA_MASTER, &bridges[id / PORTS % bridge_count].index, sizeof(int));
    struct rtattr *info = attribute(&r, IFLA_LINKINFO | NLA_F_NESTED, NULL, 0);
    attribute(&r, IFLA_INFO_KIND, "veth", 5);
    struct rtattr *data = attribute(&r, IFLA_INFO_DATA | NLA_F_NESTED, NULL, 0);
    struct rtattr *peer = attribute(&r, VETH_INFO_PEER | NLA_F_NESTED, NULL, 0);
    room(&r, sizeof *i);
    attribute(&r, IFLA_IFNAME, "eth0", 5);
    attribute(&r, IFLA_NET_NS_PID, &pid, sizeof pid);
    ends(&r, peer), ends(&r, data), ends(&r, info);
    closes(&r, h);
    no_ipv6(&r, 0, name);
    perform(net_link, &r, up(&r, 0, name), "veth");
}

static void configure(int id) {
    struct request r = {.length = 0};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    must(fd >= 0, "netlink");
    struct nlmsghdr *h = up(&r, 1, NULL);
    if (bridge_count) {
        int on = id / PORTS % bridge_count, index = if_nametoindex("eth0"), prefix = bridges[on].prefix;
        uint32_t own = bridges[on].base + id % PORTS, address = htonl(own), all = htonl(own | (0xFFFFFFFFu >> prefix));
        uint32_t via = inet_addr(bridges[on].gateway);
        must(index > 0, "eth0");
        no_ipv6(&r, index, NULL);
        up(&r, index, NULL);
        h = message(&r, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL);
        struct ifaddrmsg *a = room(&r, sizeof *a);
        a->ifa_family = AF_INET, a->ifa_prefixlen = prefix, a->ifa_index = index;
        attribute(&r, IFA_LOCAL, &address, 4);
        attribute(&r, IFA_ADDRESS, &address, 4);
        attribute(&r, IFA_BROADCAST, &all, 4);
        closes(&r, h);
        h = message(&r, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL);
        struct rtmsg *t = room(&r, sizeof *t);
        t->rtm_family = AF_INET, t->rtm_table = RT_TABLE_MAIN, t->rtm_protocol = RTPROT_BOOT, t->rtm_type = RTN_UNICAST;
        attribute(&r, RTA_GATEWAY, &via, 4);
        closes(&r, h);
    }
    perform(fd, &r, h, "address and route");
    close(fd);
}

static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    must(fd >= 0, path);
    must(write(fd, text, strlen(text)) == (ssize_t)strlen(text), path);
    close(fd);
}

/* --- groups ------------------------------------------------------------------------------------------------- */

static void group_path(char *path, size_t size, const char *group, int id, const char *file) {
    snprintf(path, size, "%.*s/%d%s%s", (int)strcspn(group, ","), group, id, *file ? "/" : "", file);
}

static void make_groups(int id) {
    char path[512], copy[512];
    for (int i = 0; i < group_count; i++) {
        group_path(path, sizeof path, groups[i], id, "");
        must(!mkdir(path, 0755), path);
        snprintf(copy, sizeof copy, "%s", groups[i]);
        strtok(copy, ",");
        for (char *setting; (setting = strtok(NULL, ","));) {
            char *value = strchr(setting, '=');
            *value++ = 0;
            group_path(path, sizeof path, groups[i], id, setting);
            put(path, value);
        }
    }
}

static void join_groups(int id) {
    char path[512];
    for (int i = 0; i < shared_count; i++) put(shared[i], "0");
    for (int i = group_count - 1; i >= 0; i--) { /* that of memory, the first, last */
        group_path(path, sizeof path, groups[i], id, "tasks");
        put(path, "0");
    }
}

static void destroyed(int id) {
    char path[512];
    for (int i = 0; i < group_count; i++) {
        group_path(path, sizeof path, groups[i], id, "");
        must(!rmdir(path), path);
    }
}

/* --- root file system ---------------------------------------------------------------------------------------- */

static void file_system(const char *type, const char *path, unsigned long flags, const char *data) {
    must(!mkdir(path, 0755) || errno == EEXIST, path);
    must(!mount(type, path, type, flags, data), path);
}

static void device(const char *name, int major, int minor) {
    char path[64];
    snprintf(path, sizeof path, "/dev/%s", name);
    must(!mknod(path, S_IFCHR | 0666, makedev(major, minor)), path);
}

static void root_file_system(const char *own) {
    static const char *const links[][2] = {
        {"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
        {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"}};
    static const char *const masked[] = {
        "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
        "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
        "/sys/devices/virtual/powercap", "/sys/firmware"};
    static const char *const frozen[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};
    const unsigned long safe = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    char root[300], path[512];
    make_folders(own);
    mount_overlay(own, root, sizeof root);
    /* What follows is after the pivot, as in bench: no symlink of an image leads out. */
    must(!chdir(root), root);
    must(!syscall(SYS_pivot_root, ".", "."), "pivot_root");
    must(!umount2(".", MNT_DETACH), "umount old root");
    must(!chdir("/"), "chdir");
    file_system("proc", "/proc", safe, NULL);
    file_system("tmpfs", "/dev", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k");
    file_system("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5");
    file_system("sysfs", "/sys", safe | MS_RDONLY, NULL);
    file_system("mqueue", "/dev/mqueue", safe, NULL);
    file_system("tmpfs", "/dev/shm", safe, "mode=1777,size=67108864");
    device("null", 1, 3), device("zero", 1, 5), device("full", 1, 7);
    device("random", 1, 8), device("urandom", 1, 9), device("tty", 5, 0);
    for (unsigned i = 0; i < sizeof links / sizeof *links; i++) {
        snprintf(path, sizeof path, "/dev/%s", links[i][1]);
        must(!symlink(links[i][0], path), path);
    }
    put("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    put("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    for (unsigned i = 0; i < sizeof frozen / sizeof *frozen; i++) {
        if (mount(frozen[i], frozen[i], "", MS_BIND | MS_REC, NULL) && errno == ENOENT) continue;
        must(!mount("none", frozen[i], "", MS_BIND | MS_REMOUNT | MS_RDONLY | safe, NULL), frozen[i]);
    }
    const char *folder = NULL; /* the first masked one: what hides it hides the others too */
    for (unsigned i = 0; i < sizeof masked / sizeof *masked; i++) {
        if (!mount("/dev/null", masked[i], "", MS_BIND, NULL) || errno == ENOENT) continue;
        must(errno == ENOTDIR, masked[i]);
        if (folder) must(!mount(folder, masked[i], "", MS_BIND, NULL), masked[i]);
        else must(!mount("tmpfs", folder = masked[i], "tmpfs", MS_RDONLY, "size=0"), masked[i]);
    }
}

/* --- rights --------------------------------------------------------------------------------------------------- */

static void give_up_rights(void) {
    static const int kept[] = {CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_KILL, CAP_SETGID, CAP_SETUID,
        CAP_SETPCAP, CAP_NET_BIND_SERVICE, CAP_NET_RAW, CAP_SYS_CHROOT, CAP_MKNOD, CAP_AUDIT_WRITE, CAP_SETFCAP};
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[2] = {{0}};
    uint64_t mask = 0;
    for (unsigned i = 0; i < sizeof kept / sizeof *kept; i++) mask |= 1ull << kept[i];
    for (int number = 0; number <= CAP_LAST_CAP; number++)
        if (!(mask >> number & 1)) must(!prctl(PR_CAPBSET_DROP, number, 0, 0, 0) || errno == EINVAL, "bounding set");
    must(!prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "ambient set");
    sets[0].effective = sets[0].permitted = mask, sets[1].effective = sets[1].permitted = mask >> 32;
    /* Before the capabilities go: without no_new_privs only CAP_SYS_ADMIN may load a filter. */
    must(!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter), "seccomp");
    must(!syscall(SYS_capset, &header, sets), "capset");
}

static pid_t launch(int id, int output) {
    char own[256], name[32], go;
    int release[2];
    must(!pipe2(release, O_CLOEXEC), "pipe");
    snprintf(own, sizeof own, "%s/%d", work, id);
    must(!mkdir(own, 0755), own);
    pid_t pid = clone_with(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET);
    must(pid >= 0, "clone3");
    if (pid) {
        close(release[0]);
        if (bridge_count) {
            cpu_set_t others = processors;
            CPU_CLR(sched_getcpu(), &others);
            if (CPU_COUNT(&others)) must(!sched_setaffinity(pid, sizeof others, &others), "processors");
            join_bridge(id, pid);
            if (CPU_COUNT(&others)) must(!sched_setaffinity(pid, sizeof processors, &processors), "processors");
        }
        must(write(release[1], "g", 1) == 1, "release");
        close(release[1]);
        return pid;
    }
    close(release[1]); /* its end is the parent's death */
    must(setsid() > 0, "setsid");
    put("/proc/self/oom_score_adj", "500");
    make_groups(id);
    join_groups(id);
    must(!unshare(CLONE_NEWCGROUP), "cgroup namespace");
    root_file_system(own);
    if (read(release[0], &go, 1) != 1) _exit(1);
    configure(id);
    snprintf(name, sizeof name, "floor-%d", id);
    must(!sethostname(name, strlen(name)), "sethostname");
    must(dup2(output, 1) == 1 && dup2(output, 2) == 2, "dup2");
    give_up_rights();
    execv(payload[0], payload);
    must(0, payload[0]);
    return 0;
}

/* --- command line ---------------------------------------------------------------------------------------------- */

static void read_network(char *text) {
    char *rest;
    if (!strcmp(text, "none")) return;
    for (char *one = strtok_r(text, "+", &rest); one; one = strtok_r(NULL, "+", &rest), bridge_count++) {
        must(bridge_count < BRIDGES, "number of bridges");
        bridges[bridge_count].name = strtok(one, ",");
        bridges[bridge_count].base = ntohl(inet_addr(strtok(NULL, ",")));
        bridges[bridge_count].prefix = atoi(strtok(NULL, ","));
        bridges[bridge_count].gateway = strtok(NULL, ",");
        bridges[bridge_count].index = if_nametoindex(bridges[bridge_count].name);
        must(bridges[bridge_count].index > 0, bridges[bridge_count].name);
    }
    must((net_link = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE)) >= 0, "netlink");
}

static void read_filter(const char *path) {
    static struct sock_filter program[4096];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    must(fd >= 0, path);
    ssize_t size = read(fd, program, sizeof program);
    must(size > 0 && size % sizeof *program == 0, path);
    close(fd);
    filter.len = size / sizeof *program, filter.filter = program;
}

int main(int argc, char **argv) {
    if (argc < 8) return 2;
    work = argv[1], lower = argv[2];
    read_network(argv[3]);
    read_filter(argv[4]);
    if (strcmp(argv[5], "none"))
        for (char *one = strtok(argv[5], ","); one; one = strtok(NULL, ",")) shared[shared_count++] = one;
    int at = 6;
    for (; at < argc && strcmp(argv[at], "--"); at++) groups[group_count++] = argv[at];
    payload = argv + at + 1;
    must(!sched_getaffinity(0, sizeof processors, &processors), "processors");
    umask(0);
    serve();
    return 0;
}
