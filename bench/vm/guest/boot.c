/* From nothing to a root file system with a network: what the guest is told by the bench.* words of its command line. */
#include <linux/if.h>
#include <linux/if_arp.h>
#include <linux/in.h>
#include <linux/mount.h>
#include <linux/reboot.h>
#include <linux/route.h>
#include <linux/sockios.h>
#include <linux/stat.h>

#define PATIENCE 2000 /* milliseconds for a device to appear once its driver is in */
#define TCSBRK 0x5409

struct dirent {
    unsigned long number, offset;
    unsigned short size;
    unsigned char kind;
    char name[];
};

static char words[4096]; /* of the kernel command line */
static char payload_port[32], agent_port[32];

__attribute__((noreturn)) static void power_off(void) {
    SYS3(ioctl, 2, TCSBRK, 1); /* what was said is out first */
    SYS1(sync, 0);
    SYS4(reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF, 0);
    for (;;) nap(1000);
}

__attribute__((noreturn)) static void fail(const char *what, const char *name) {
    say("bench: failed: ");
    say(what);
    say(name);
    say("\n");
    power_off();
}

static void need(long result, const char *what, const char *name) {
    if (result < 0) fail(what, name);
}

/* The value of the word that begins with `name` ("bench.root="), or "". */
static const char *word(const char *name, char *to, size_t size) {
    size_t used = 0;
    for (const char *at = words; *at; at++) {
        if ((at != words && at[-1] != ' ') || !begins(at, name)) continue;
        for (at += length(name); *at && *at != ' ' && *at != '\n' && used < size - 1; at++) to[used++] = *at;
        break;
    }
    to[used] = 0;
    return to;
}

static int there(const char *path) { return SYS2(access, path, 0) == 0; }

static void await(int (*condition)(const char *), const char *path, const char *what) {
    for (int tries = 0; !condition(path); tries++) {
        if (tries == PATIENCE) fail(what, path);
        nap(1);
    }
}

static void mount(const char *from, const char *to, const char *type, unsigned long flags, const char *options) {
    need(SYS5(mount, from, to, type, flags, options), "cannot mount ", to);
}

static void folder(const char *path) {
    long made = SYS2(mkdir, path, 0755);
    if (made != -EEXIST) need(made, "the root file system is not writable at ", path);
}

/* In the order of the list; a kernel with everything built in has an empty one. */
static void load_modules(void) {
    static char list[4096];
    if (read_file("/bench/modules.list", list, sizeof list) <= 0) return;
    for (char *name = list; *name;) {
        char path[128], *end = name;
        long fd;
        while (*end && *end != '\n') end++;
        if (*end) *end++ = 0;
        if (length(name) > sizeof path - 20) fail("too long: module ", name);
        append(append(path, "/bench/modules/"), name);
        fd = SYS3(open, path, O_RDONLY | O_CLOEXEC, 0);
        need(fd, "there is no module ", name);
        need(SYS3(finit_module, fd, "", 0), "does not load: module ", name);
        SYS1(close, fd);
        name = end;
    }
}

/* --- network ---------------------------------------------------------------------------------------------------- */

static void set_in(struct sockaddr *where, unsigned address) {
    struct sockaddr_in *in = (struct sockaddr_in *)where;
    memset(in, 0, sizeof *in);
    in->sin_family = 2;
    in->sin_addr.s_addr = address;
}

static void ask(long fd, unsigned long request, void *with, const char *what) {
    need(SYS3(ioctl, fd, request, with), "refused: ", what);
}

static long ip_socket(void) {
    long fd = SYS3(socket, 2, 2 | O_CLOEXEC, 0);
    need(fd, "no IP in this kernel", "");
    return fd;
}

static void loopback(void) {
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    long fd = ip_socket();
    ask(fd, SIOCSIFFLAGS, &request, "lo up");
    SYS1(close, fd);
}

/* All in network byte order; no mac: the card's own; gateway 0: none. */
static void join(const unsigned char *mac, unsigned address, unsigned mask, unsigned gateway) {
    struct ifreq request = {.ifr_name = "eth0"};
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    long fd = ip_socket();
    if (mac) {
        request.ifr_hwaddr.sa_family = ARPHRD_ETHER;
        memcpy(request.ifr_hwaddr.sa_data, mac, 6);
        ask(fd, SIOCSIFHWADDR, &request, "MAC of eth0");
    }
    set_in(&request.ifr_addr, address);
    ask(fd, SIOCSIFADDR, &request, "address of eth0");
    set_in(&request.ifr_addr, mask);
    ask(fd, SIOCSIFNETMASK, &request, "netmask of eth0");
    request.ifr_flags = IFF_UP | IFF_RUNNING | IFF_BROADCAST | IFF_MULTICAST;
    ask(fd, SIOCSIFFLAGS, &request, "eth0 up");
    if (gateway) {
        set_in(&route.rt_dst, 0);
        set_in(&route.rt_genmask, 0);
        set_in(&route.rt_gateway, gateway);
        ask(fd, SIOCADDRT, &route, "default route");
    }
    SYS1(close, fd);
}

/* "10.1.2.3" -> network byte order; *text is moved behind it. */
static unsigned parse_address(const char **text) {
    union { unsigned char bytes[4]; unsigned value; } address = {{0}};
    for (int i = 0; i < 4; i++) {
        address.bytes[i] = number(text);
        if (i < 3 && *(*text)++ != '.') fail("not an address", "");
    }
    return address.value;
}

static int has_device(const char *name) {
    char path[64];
    append(append(path, "/sys/class/net/"), name);
    return there(path);
}

/* "10.1.2.3/16" as bench.address says it, and bench.gateway. `address` is cut to the address alone. */
static void join_as_told(char *address) {
    char gateway[64];
    const char *at = address, *through = word("bench.gateway=", gateway, sizeof gateway);
    unsigned own = parse_address(&at), bits = *at == '/' ? (at++, number(&at)) : 32;
    await(has_device, "eth0", "no network device ");
    join(NULL, own, bits ? __builtin_bswap32(~0u << (32 - bits)) : 0, *through ? parse_address(&through) : 0);
    for (char *end = address; *end; end++)
        if (*end == '/') *end = 0;
}

/* --- root and devices ------------------------------------------------------------------------------------------- */

/* erofs goes on without DAX where the device can't, and only its mount options tell. */
static void need_dax(const char *device) {
    static char mounts[2048];
    read_file("/proc/mounts", mounts, sizeof mounts);
    for (const char *at = mounts; *at; at++)
        if (begins(at, ",dax=always")) return;
    fail("there is no DAX for the root device ", device);
}

static void mount_root(void) {
    char kind[32];
    int dax = same(word("bench.root=", kind, sizeof kind), "shared-dax");
    const char *device = dax ? "/dev/pmem0" : "/dev/vda";
    await(there, device, "no root device ");
    if (!dax && !same(kind, "shared-ro")) {
        need(SYS5(mount, device, "/root", "ext4", MS_NOATIME, 0), "cannot mount the root device ", device);
        return;
    }
    /* What all guests share below, this guest's changes in its memory above. */
    mount("changes", "/run", "tmpfs", 0, "mode=755");
    folder("/run/image"), folder("/run/upper"), folder("/run/work");
    long mounted = SYS5(mount, device, "/run/image", "erofs", MS_RDONLY, dax ? "dax" : 0);
    need(mounted, "cannot mount the root device ", device);
    if (dax) need_dax(device);
    mount("overlay", "/root", "overlay", 0, "lowerdir=/run/image,upperdir=/run/upper,workdir=/run/work");
}

static void furnish_root(void) {
    folder("/root/proc"), folder("/root/sys"), folder("/root/dev"), folder("/root/tmp");
    mount("proc", "/root/proc", "proc", 0, 0);
    mount("sysfs", "/root/sys", "sysfs", 0, 0);
    mount("/dev", "/root/dev", 0, MS_BIND, 0);
    folder("/root/dev/pts"), folder("/root/dev/shm");
    mount("devpts", "/root/dev/pts", "devpts", 0, "gid=5,mode=620,ptmxmode=666");
    mount("shm", "/root/dev/shm", "tmpfs", 0, "mode=1777");
}

static int find_ports(const char *folder) {
    static char entries[2048];
    long fd = SYS3(open, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0), got;
    if (fd < 0) return 0;
    while ((got = SYS3(getdents64, fd, entries, sizeof entries)) > 0)
        for (long at = 0; at < got; at += ((struct dirent *)(entries + at))->size) {
            const char *port = ((struct dirent *)(entries + at))->name;
            char path[96], name[32], *to;
            if (*port == '.' || length(port) > 20) continue;
            append(append(append(append(path, folder), "/"), port), "/name");
            if (read_file(path, name, sizeof name) <= 0) continue;
            to = begins(name, "bench.payload\n") ? payload_port : begins(name, "bench.agent\n") ? agent_port : NULL;
            if (to) append(append(to, "/dev/"), port);
        }
    SYS1(close, fd);
    return *payload_port && there(payload_port) && *agent_port && there(agent_port);
}
