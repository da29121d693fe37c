/* Says `bench-ready`, then does nothing at no cost; exits 0 on SIGTERM and SIGINT, pid 1 or not. */

int run_program(char **environment) {
    unsigned long ends = 1ul << (SIGTERM - 1) | 1ul << (SIGINT - 1);
    (void)environment;
    SYS4(rt_sigprocmask, SIG_BLOCK, &ends, 0, sizeof ends);
    write_all(1, "bench-ready\n", 12);
    while (SYS4(rt_sigtimedwait, &ends, 0, 0, sizeof ends) < 0);
    return 0;
}
