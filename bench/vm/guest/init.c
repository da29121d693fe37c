/* Pid 1 of a guest of bench. What it says on the console is read by the host: "bench: init", "bench: failed: ...".
 * Per guest: bench.* words of the kernel command line. Per payload: /bench/payload, written by bench/vm/initramfs.py. */
#include <linux/signalfd.h>

static long open_port(const char *path, int flags) {
    long fd = SYS3(open, path, flags | O_CLOEXEC, 0);
    need(fd, "cannot be opened: ", path);
    return fd;
}

static void watch_children(void) {
    unsigned long mask = 1ul << (SIGCHLD - 1);
    SYS4(rt_sigprocmask, SIG_BLOCK, &mask, 0, sizeof mask);
    children = SYS4(signalfd4, -1, &mask, sizeof mask, SFD_CLOEXEC | SFD_NONBLOCK);
    need(children, "no signalfd in this kernel", "");
}

/* "payload exited with status N" is what the host looks for where a guest ends early. */
static void tell(int status) {
    char text[64];
    *decimal(append(text, "bench: payload exited with status "), status, '\n') = 0;
    say(text);
}

__attribute__((used, noreturn)) static void run_guest(void) __asm__("run_guest");
static void run_guest(void) {
    char text[64], *address = own_address + length("BENCH_ADDRESS=");
    mount("proc", "/proc", "proc", 0, 0);
    mount("sysfs", "/sys", "sysfs", 0, 0);
    mount("dev", "/dev", "devtmpfs", 0, 0);
    say("bench: init\n");
    if (!there("/bench/payload")) say("bench: probe\n"), power_off(); /* it was only to show that a guest boots */
    SYS3(dup3, open_port("/dev/null", O_RDONLY), 0, 0);
    load_modules();
    read_file("/proc/cmdline", words, sizeof words);
    word("bench.hostname=", text, sizeof text);
    if (!*text) append(text, "bench");
    need(SYS2(sethostname, text, length(text)), "refused: hostname ", text);
    loopback();
    if (*word("bench.address=", address, sizeof own_address - length("BENCH_ADDRESS="))) join_as_told(address);
    mount_root();
    furnish_root();
    await(find_ports, "/sys/class/virtio-ports", "no ports in ");
    describe_payload();
    watch_children();
    long port = open_port(agent_port, O_RDWR);
    if (same(word("bench.start=", text, sizeof text), "clone")) warm(), become(port);
    long out = open_port(payload_port, O_WRONLY);
    payload = start(arguments, out, out);
    need(payload, "no process for the payload", "");
    SYS1(close, out);
    tell(serve(port));
    power_off();
}

__attribute__((naked, noreturn)) void _start(void) { __asm__("and $-16, %rsp\n call run_guest\n"); }
