/* Gives a clone its own identity. Runs in the template: says "bench: waiting" once it listens, which is when the
 * template is saved, and so each clone begins in the middle of its read. It then takes one record (bench/vm/identity.py)
 * from the port, applies it and prints the address. No libc: a fault more or less counts here, and so does its size. */
#include <asm/unistd.h>
#include <linux/fcntl.h>
#include <linux/if.h>
#include <linux/if_arp.h>
#include <linux/in.h>
#include <linux/random.h>
#include <linux/route.h>
#include <linux/sockios.h>
#include <linux/time_types.h>

#define SEED 64
#define RESEED 1u
#define NETWORK 2u

struct record {
    char magic[8];
    unsigned flags;
    unsigned char mac[6], pad[2];
    unsigned address, mask, gateway; /* network byte order; gateway 0: none */
    unsigned char seed[SEED];
    char hostname[64], text[36]; /* ended by zeros; text: the address */
};

static long sys(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

void *memset(void *at, int value, unsigned long size) {
    for (unsigned char *byte = at; size--;) *byte++ = value;
    return at;
}

void *memcpy(void *to, const void *from, unsigned long size) {
    for (unsigned long i = 0; i < size; i++) ((char *)to)[i] = ((const char *)from)[i];
    return to;
}

static unsigned long length(const char *text) {
    unsigned long size = 0;
    while (text[size]) size++;
    return size;
}

static void say(int fd, const char *text) { sys(__NR_write, fd, (long)text, length(text)); }

static void check(long result, const char *what) {
    if (result >= 0) return;
    say(2, "bench: failed: a clone's ");
    say(2, what);
    say(2, " is refused\n");
    sys(__NR_exit, 1, 0, 0);
}

static void take(const char *port, struct record *record) {
    struct __kernel_timespec moment = {0, 1000000};
    long fd = sys(__NR_open, (long)port, O_RDWR | O_CLOEXEC, 0), got;
    check(fd, "port");
    say(2, "bench: waiting\n");
    for (unsigned long have = 0; have < sizeof *record; have += got) {
        got = sys(__NR_read, fd, (long)record + have, sizeof *record - have);
        if (got <= 0) got = 0, sys(__NR_nanosleep, (long)&moment, 0, 0);
    }
}

/* A key drawn before the template was saved is every clone's: replace it at once, not when the kernel would. */
static void reseed(const struct record *record) {
    struct { int bits, size; unsigned char data[SEED]; } entropy = {SEED * 8, SEED, {0}};
    long fd = sys(__NR_open, (long)"/dev/random", O_RDWR | O_CLOEXEC, 0);
    check(fd, "/dev/random");
    memcpy(entropy.data, record->seed, SEED);
    check(sys(__NR_ioctl, fd, RNDADDENTROPY, (long)&entropy), "seed");
    check(sys(__NR_ioctl, fd, RNDRESEEDCRNG, 0), "new random key");
}

static void set_in(struct sockaddr *where, unsigned address) {
    struct sockaddr_in *in = (struct sockaddr_in *)where;
    memset(in, 0, sizeof *in);
    in->sin_family = 2;
    in->sin_addr.s_addr = address;
}

static void join(const struct record *record) {
    long fd = sys(__NR_socket, 2, 2, 0);
    struct ifreq request = {.ifr_name = "eth0"};
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    check(fd, "socket");
    request.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    memcpy(request.ifr_hwaddr.sa_data, record->mac, 6);
    check(sys(__NR_ioctl, fd, SIOCSIFHWADDR, (long)&request), "MAC");
    set_in(&request.ifr_addr, record->address);
    check(sys(__NR_ioctl, fd, SIOCSIFADDR, (long)&request), "address");
    set_in(&request.ifr_addr, record->mask);
    check(sys(__NR_ioctl, fd, SIOCSIFNETMASK, (long)&request), "netmask");
    request.ifr_flags = IFF_UP | IFF_RUNNING | IFF_BROADCAST | IFF_MULTICAST;
    check(sys(__NR_ioctl, fd, SIOCSIFFLAGS, (long)&request), "network device");
    if (!record->gateway) return;
    set_in(&route.rt_dst, 0);
    set_in(&route.rt_genmask, 0);
    set_in(&route.rt_gateway, record->gateway);
    check(sys(__NR_ioctl, fd, SIOCADDRT, (long)&route), "route");
}

__attribute__((used, noreturn)) static void run(char **argv) __asm__("run");
static void run(char **argv) {
    struct record record;
    unsigned char drawn;
    sys(__NR_getrandom, (long)&drawn, 1, 0); /* not before the template's own generator is seeded */
    take(argv[1], &record);
    if (record.flags & RESEED) reseed(&record);
    check(sys(__NR_sethostname, (long)record.hostname, length(record.hostname), 0), "hostname");
    if (record.flags & NETWORK) join(&record);
    say(1, record.text);
    for (;;) sys(__NR_exit, 0, 0, 0);
}

__attribute__((naked, noreturn)) void _start(void) {
    __asm__("mov %rsp, %rdi\n add $8, %rdi\n and $-16, %rsp\n call run\n");
}
