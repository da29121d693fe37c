/* The first instruction: the kernel leaves argc, argv and the environment on the stack. */
__attribute__((used, noreturn)) static void begin(long *stack) __asm__("begin");
static void begin(long *stack) {
    SYS1(exit_group, run_program((char **)(stack + stack[0] + 2)));
    __builtin_unreachable();
}

__attribute__((naked, noreturn)) void _start(void) { __asm__("mov %rsp, %rdi\n and $-16, %rsp\n call begin\n"); }
