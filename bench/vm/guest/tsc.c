/* Prints how many kHz the time stamp counter runs at, against the kernel's clock: what an emulated guest sees of it. */
#include <linux/time_types.h>

struct moment {
    unsigned long ticks;
    long nanoseconds;
};

static unsigned long stamp_counter(void) {
    unsigned low, high;
    __asm__ volatile("lfence\n rdtsc" : "=a"(low), "=d"(high));
    return (unsigned long)high << 32 | low;
}

/* Both clocks at once: the closest of several looks, because one may be interrupted. */
static struct moment look(void) {
    struct moment best = {0, 0};
    unsigned long shortest = ~0ul;
    for (int i = 0; i < 50; i++) {
        struct __kernel_timespec at;
        unsigned long before = stamp_counter(), after;
        SYS2(clock_gettime, 4 /* CLOCK_MONOTONIC_RAW */, &at);
        after = stamp_counter();
        if (after - before >= shortest) continue;
        shortest = after - before;
        best = (struct moment){before + shortest / 2, at.tv_sec * 1000000000 + at.tv_nsec};
    }
    return best;
}

int run_program(char **environment) {
    struct moment from = look(), to;
    char text[32];
    (void)environment;
    nap(100);
    to = look();
    *decimal(text, (to.ticks - from.ticks) * 1000000 / (to.nanoseconds - from.nanoseconds), '\n') = 0;
    write_all(1, text, length(text));
    return 0;
}
