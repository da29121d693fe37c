/* What init needs of the kernel and of a C library, and no more. Guests start under emulation, where each page that is
 * touched and each instruction seen for the first time costs: this is a hundredth of a static libc's start. */
#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <linux/time_types.h>

#define SIZE(array) (sizeof(array) / sizeof *(array))

static long sys(long number, long a, long b, long c, long d, long e) {
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

#define SYS1(name, a) sys(__NR_##name, (long)(a), 0, 0, 0, 0)
#define SYS2(name, a, b) sys(__NR_##name, (long)(a), (long)(b), 0, 0, 0)
#define SYS3(name, a, b, c) sys(__NR_##name, (long)(a), (long)(b), (long)(c), 0, 0)
#define SYS4(name, a, b, c, d) sys(__NR_##name, (long)(a), (long)(b), (long)(c), (long)(d), 0)
#define SYS5(name, a, b, c, d, e) sys(__NR_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))

/* gcc calls these two by itself. */
void *memset(void *at, int value, size_t size) {
    for (unsigned char *byte = at; size--;) *byte++ = value;
    return at;
}

void *memcpy(void *to, const void *from, size_t size) {
    for (size_t i = 0; i < size; i++) ((char *)to)[i] = ((const char *)from)[i];
    return to;
}

static size_t length(const char *text) {
    size_t size = 0;
    while (text[size]) size++;
    return size;
}

static int begins(const char *text, const char *with) {
    while (*with)
        if (*text++ != *with++) return 0;
    return 1;
}

static int same(const char *one, const char *other) { return begins(one, other) && !one[length(other)]; }

/* The number at *text, which is moved behind it. */
static unsigned long number(const char **text) {
    unsigned long value = 0;
    while (**text >= '0' && **text <= '9') value = value * 10 + (*(*text)++ - '0');
    return value;
}

/* Appends `value` in decimal and the character `after`; returns the end. */
static char *decimal(char *to, unsigned long value, char after) {
    char digits[20];
    int count = 0;
    do digits[count++] = '0' + value % 10;
    while (value /= 10);
    while (count) *to++ = digits[--count];
    *to++ = after;
    return to;
}

static char *append(char *to, const char *text) {
    while (*text) *to++ = *text++;
    *to = 0;
    return to;
}

static void write_all(int fd, const char *data, size_t size) {
    while (size) {
        long done = SYS3(write, fd, data, size);
        if (done == -EINTR) continue;
        if (done <= 0) return;
        data += done, size -= done;
    }
}

static void say(const char *text) { write_all(2, text, length(text)); }

/* At most size - 1 bytes and a zero; -errno if it can't be read. */
static long read_file(const char *path, char *to, size_t size) {
    long fd = SYS3(open, path, O_RDONLY | O_CLOEXEC, 0), got, have = 0;
    if (fd < 0) return fd;
    while ((got = SYS3(read, fd, to + have, size - 1 - have)) > 0) have += got;
    SYS1(close, fd);
    to[have] = 0;
    return got < 0 ? got : have;
}

static void nap(long milliseconds) {
    struct __kernel_timespec span = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    SYS2(nanosleep, &span, 0);
}

/* Milliseconds of the monotonic clock. */
static long now(void) {
    struct __kernel_timespec at;
    SYS2(clock_gettime, 1, &at);
    return at.tv_sec * 1000 + at.tv_nsec / 1000000;
}
