"""What the default container may do, as data: system calls, paths, devices, mounts.

No weaker than Docker's default: tests/integration/test_docker_parity.py compares the two, call by call. It is an
allow-list: what is not named is refused. Names that exist on one architecture only are among the others. The
capabilities that root keeps are in `bench.linux.capabilities`.
"""

from __future__ import annotations

from typing import Literal

from bench.linux import oom

SYSCALLS: dict[str, str] = {
    "files: open, read, write": """
        access close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 fadvise64_64
        fallocate fcntl fcntl64 fdatasync flock fsync ftruncate ftruncate64 ioctl _llseek lseek open openat openat2
        pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readv sendfile sendfile64 splice sync
        sync_file_range syncfs tee truncate truncate64 vmsplice write writev
    """,
    "files: names, folders, attributes": """
        chdir chmod chown chown32 chroot fchdir fchmod fchmodat fchown fchown32 fchownat fgetxattr flistxattr
        fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 futimesat getcwd getdents getdents64
        getxattr lchown lchown32 lgetxattr link linkat listxattr llistxattr lremovexattr lsetxattr lstat lstat64
        mkdir mkdirat mknod mknodat newfstatat readlink readlinkat removexattr rename renameat renameat2 rmdir
        setxattr stat stat64 statfs statfs64 statx symlink symlinkat umask unlink unlinkat utime utimensat
        utimensat_time64 utimes
    """,
    "files: being told of changes": """
        fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
    """,
    "waiting for descriptors": """
        epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old
        eventfd eventfd2 _newselect pipe pipe2 poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd
        signalfd4
    """,
    "asynchronous input and output; not io_uring, which escapes filters": """
        io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit
    """,
    "memory": """
        brk madvise membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap
        msync munlock munlockall munmap remap_file_pages
    """,
    "processes": """
        execve execveat exit exit_group fork getpgid getpgrp getpid getppid getsid gettid kill pidfd_open
        pidfd_send_signal prctl process_mrelease ptrace rseq set_robust_list get_robust_list set_tid_address setpgid
        setsid tgkill tkill vfork wait4 waitid waitpid
    """,
    "threads and their registers": """
        arch_prctl futex futex_time64 futex_waitv get_thread_area modify_ldt set_thread_area
    """,
    "signals": """
        alarm pause restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
        rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn
    """,
    "users, groups, capabilities": """
        capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid
        getresgid32 getresuid getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32
        setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32
        setuid setuid32
    """,
    "scheduling and limits": """
        getcpu getpriority getrlimit getrusage ioprio_get ioprio_set prlimit64 sched_get_priority_max
        sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
        sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
        sched_setscheduler sched_yield setpriority setrlimit ugetrlimit
    """,
    "clocks and timers; setting a clock is refused by the missing capability": """
        adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
        clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create
        timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create
        timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times
    """,
    "sockets; `socket` itself is below": """
        accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64
        recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair
    """,
    "System V and POSIX inter-process communication": """
        ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64
        mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt
        shmget
    """,
    "confining oneself further": """
        landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp
    """,
    "facts": "getrandom sysinfo uname",
}
"""Purpose -> names that are allowed whatever their arguments."""

NAMESPACE_FLAGS = 0x7E020000
"""Every CLONE_NEW* that `clone` takes: a new namespace, a user namespace above all, opens the kernel up wide."""

PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""Linux, Linux 32-bit, each also with the 2.6 version number; the last one asks only."""

_VSOCK, _LAST_FAMILY = 40, 45
SOCKET_FAMILIES_BELOW = _VSOCK
SOCKET_FAMILIES = tuple(range(_VSOCK + 1, _LAST_FAMILY + 1))
"""Address families: all but AF_VSOCK, which has no network namespace and so reaches a hypervisor. "Not equal to 40"
would not do: filters compare 64 bits and the kernel takes the lower 32, so 40 with a higher bit would slip through."""

ABSENT = ("clone3",)
"""Answered with ENOSYS: its flags are in memory, where no filter sees them, and C libraries then fall back to clone."""

MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap",
    "/sys/firmware",
)  # fmt: skip
MASKED_PER_CPU = "devices/system/cpu/cpu*/thermal_throttle"
"""Below /sys: counters that tell one tenant what its neighbour on the core is doing."""

READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

MOUNTS = (
    ("/proc", "proc", "proc", "nosuid noexec nodev"),
    ("/dev", "tmpfs", "tmpfs", "nosuid strictatime mode=755 size=65536k"),
    ("/dev/pts", "devpts", "devpts", "nosuid noexec newinstance ptmxmode=0666 mode=0620 gid=5"),
    ("/sys", "sysfs", "sysfs", "nosuid noexec nodev ro"),
    ("/dev/mqueue", "mqueue", "mqueue", "nosuid noexec nodev"),
    ("/dev/shm", "tmpfs", "shm", "nosuid noexec nodev mode=1777 size=67108864"),
)
"""Destination, type, source, options, in order."""

DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
"""Character devices below /dev that every container has: name, major, minor."""

USABLE_DEVICES = (
    *((major, minor) for _, major, minor in DEVICES),
    (5, 1),  # /dev/console
    (5, 2),  # /dev/ptmx
    (136, None),  # /dev/pts/*
)
"""Character devices that may be opened; minor None: all. Any other may be made with mknod, and then not opened."""

SYSCTLS = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
"""In the container's own network namespace: any user may listen on port 80 and ping."""

NAMESPACES: tuple[Literal["mount", "network", "uts", "pid", "ipc", "cgroup"], ...] = (
    "mount", "network", "uts", "pid", "ipc", "cgroup",
)  # fmt: skip

OOM_SCORE_ADJ = oom.INSTANCE

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
