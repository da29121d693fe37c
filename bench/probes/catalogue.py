"""All probes, in the order they run: what destroys comes last."""

from __future__ import annotations

from bench.probes import destruction, special
from bench.probes.attacks import Attack, asks, reads
from bench.probes.base import Probe
from bench.records import Containment

_DEGRADED = Containment.DEGRADED
_SYSRQ, _PANIC = "/proc/sysrq-trigger", "/proc/sys/kernel/panic"
_CORE, _HELPER = "/proc/sys/kernel/core_pattern", "/sys/kernel/uevent_helper"

_PROCESSES: tuple[Probe, ...] = (
    reads(
        "process.list", "Processes of the host are not listed inside.", "medium",
        lambda scene: ("see", scene.world.held.folder),
    ),
    Attack(
        "process.signal", "Processes of the host can't be signalled from inside.", "critical", "process",
        special.signals,
    ),
    reads(
        "process.trace", "Processes of the host can't be traced.", "critical",
        lambda scene: ("trace", str(scene.world.held.pid), scene.world.held.address),
    ),
    reads(
        "process.memory-file", "The memory of the host's processes can't be read through /proc/PID/mem.", "critical",
        lambda scene: ("read-memory", str(scene.world.held.pid), scene.world.held.address),
    ),
    reads(
        "process.memory-call", "The memory of the host's processes can't be read by process_vm_readv.", "critical",
        lambda scene: ("read-remote", str(scene.world.held.pid), scene.world.held.address),
    ),
    reads(
        "process.environment", "The environment of the host's processes, where secrets are passed, can't be read.",
        "high", lambda scene: ("read-environ", str(scene.world.held.pid)),
    ),
    reads(
        "process.root", "No process of the host lends its root folder through /proc/PID/root.", "critical",
        lambda scene: ("through-root", str(scene.world.held.pid), scene.world.held.file),
    ),
    reads(
        "process.descriptor", "No open file of a host process can be taken over by pidfd_getfd.", "critical",
        lambda scene: ("take-descriptor", str(scene.world.held.pid), str(scene.world.held.descriptor)),
    ),
    Attack(
        "process.namespace", "The namespaces of the host's processes can't be joined.", "critical", "process",
        special.joins,
    ),
    Attack(
        "process.inherited", "Nothing of the harness is inherited: no open file beyond the three standard streams.",
        "critical", "process", special.inherits, special.inherits_bare,
    ),
    Attack(
        "process.joining", "A program of the host that runs a command inside can't be opened through /proc/PID/exe, "
        "where it could be overwritten.", "critical", "process", special.watches_joiners,
    ),
)  # fmt: skip

_FILES: tuple[Probe, ...] = (
    reads(
        "file.read", "A file of the host can't be read by its path, also from outside a chroot.", "critical",
        lambda scene: ("read-file", scene.world.held.file),
    ),
    Attack("file.write", "A file of the host can't be changed by its path.", "critical", "process", special.appends),
    reads(
        "file.handle", "A file of the host can't be opened by its handle, past all mounts.", "critical",
        lambda scene: ("by-handle", str(scene.world.held.handle_type), scene.world.held.handle),
    ),
    Attack(
        "file.disk", "The host's disk can't be opened by a device node made inside.", "critical", "guest",
        special.opens_disk,
    ),
    asks(
        "file.memory-device", "The host's physical memory can't be opened by a device node made inside.", "critical",
        "device", "c", "1", "1", "open",
    ),
    asks(
        "file.log-device", "Nothing can be written into the host's kernel log by a device node made inside.", "low",
        "device", "c", "1", "11", "write",
    ),
    Attack(
        "neighbour.file", "A file that a neighbour writes can't be read.", "critical", "process",
        special.reads_neighbours_file,
    ),
    Attack(
        "neighbour.memory", "The memory of a neighbour's processes can't be read.", "critical", "process",
        special.reads_neighbours_memory,
    ),
    Attack(
        "neighbour.process", "A neighbour's processes can be neither seen nor signalled.", "critical", "process",
        special.reaches_neighbours_process,
    ),
)  # fmt: skip

_MOUNTS: tuple[Probe, ...] = (
    asks("mount.tmpfs", "No file system can be mounted from inside.", "medium", "mount-kind", "tmpfs", reach=_DEGRADED),
    asks(
        "mount.proc", "No second /proc can be mounted, in which nothing would be masked.", "high",
        "mount-kind", "proc", reach=_DEGRADED,
    ),
    asks(
        "mount.newer-calls", "No file system can be mounted by fsopen and fsmount either.", "medium",
        "mount-newer", reach=_DEGRADED,
    ),
    Attack(
        "mount.read-only", "What is mounted read-only can't be made writable.", "high", "guest", special.remounts,
        special.remounts_own,
    ),
)  # fmt: skip

_KERNEL: tuple[Probe, ...] = (
    asks("kernel.module", "No module can be loaded into the host's kernel.", "critical", "module"),
    asks("kernel.kexec", "The host's kernel can't be replaced by kexec.", "critical", "kexec"),
    asks("kernel.reboot", "The host can't be rebooted.", "critical", "reboot"),
    asks("kernel.sysrq", "The host's SysRq file can't be opened.", "critical", "open-only", _SYSRQ, path=_SYSRQ),
    asks("kernel.sysctl", "Settings of the host's kernel can't be written.", "high", "rewrite", _PANIC, path=_PANIC),
    asks(
        "kernel.core-pattern",
        "The program that the host's kernel runs for a crash can't be chosen.",
        "critical",
        "rewrite",
        _CORE,
        path=_CORE,
    ),
    asks(
        "kernel.uevent-helper",
        "The program that the host's kernel runs for a device can't be chosen.",
        "critical",
        "rewrite",
        _HELPER,
        path=_HELPER,
    ),
    asks(
        "kernel.release-agent",
        "The program that the host's kernel runs when a cgroup empties can't be chosen.",
        "critical",
        "release-agent",
    ),
    asks(
        "kernel.interpreter",
        "No interpreter can be registered with the host's binfmt_misc.",
        "critical",
        "interpreter",
        path="/proc/sys/fs/binfmt_misc/status",
    ),
    asks("kernel.ports", "I/O ports of the host can't be opened.", "critical", "ports"),
    asks("kernel.swap", "Swap of the host can't be changed.", "high", "swap"),
    asks("kernel.accounting", "Process accounting of the host can't be switched.", "medium", "accounting"),
    asks("kernel.clock", "The host's clock can't be set.", "high", "clock-rate"),
    asks("kernel.entropy", "The host's random number pool can't be credited.", "medium", "entropy"),
    asks("kernel.log", "The host's kernel log can't be read.", "low", "log-read", place="process"),
    Attack("kernel.host-name", "The host's name can't be changed.", "high", "guest", special.renames_host),
    Attack("kernel.uptime", "Inside, the host's time since boot is not told.", "low", "process", special.tells_uptime),
)

_SURFACE: tuple[Probe, ...] = (
    asks(
        "surface.bpf", "The host kernel's BPF machine can't be reached.", "high", "map", place="process",
        reach=_DEGRADED,
    ),
    asks("surface.perf", "Other processes of the host can't be observed by perf events.", "high", "counters",
         place="process"),
    asks(
        "surface.io-uring", "The host kernel's io_uring, which no seccomp filter sees into, can't be reached.",
        "medium", "ring", place="process", reach=_DEGRADED,
    ),
    asks(
        "surface.userfaultfd", "The host kernel's userfaultfd, which widens its races, can't be reached.", "medium",
        "user-fault", place="process", reach=_DEGRADED,
    ),
    asks(
        "surface.user-namespace", "No user namespace of the host's kernel can be made, in which one is root again.",
        "medium", "user-namespace", place="process", reach=_DEGRADED,
    ),
    asks(
        "surface.set-id", "A set-id program gives nobody root in the host's kernel.", "low", "set-id",
        reach=_DEGRADED,
    ),
)  # fmt: skip

_RESOURCES: tuple[Probe, ...] = (
    Attack(
        "limit.cgroup", "An instance can't change its own limits.", "high", "process", special.raises_limits,
    ),
    asks("limit.real-time", "No process inside can get real-time priority on the host.", "high", "real-time"),
    asks("limit.nice", "No process inside can raise its priority on the host.", "low", "nicer"),
    asks("limit.oom", "No process inside can exempt itself from the host's memory shortage.", "medium", "spared"),
)  # fmt: skip

_CHANNELS: tuple[Probe, ...] = (
    reads(
        "key.read", "A key of the host's can't be read by its number.", "high",
        lambda scene: ("key-read", str(scene.world.held.key)),
    ),
    reads(
        "key.list", "Keys of the host are not listed inside.", "low",
        lambda scene: ("keys-listed", f"bench-canary-{scene.world.held.pid}-"),
    ),
    reads(
        "ipc.shared-memory", "System V shared memory of the host can't be attached.", "high",
        lambda scene: ("shared-memory", str(scene.world.held.segment)),
    ),
    reads(
        "net.loopback", "A server on the host's loopback address can't be reached.", "high",
        lambda scene: ("tcp", str(scene.world.held.loopback), "127.0.0.1"),
    ),
    reads(
        "net.host-server", "A server of the host that listens on all addresses can't be reached.", "medium",
        lambda scene: ("tcp", str(scene.world.held.everywhere), *scene.world.addresses),
    ),
    reads(
        "net.abstract-socket", "An abstract unix socket of the host can't be reached.", "high",
        lambda scene: ("abstract", scene.world.held.socket),
    ),
    Attack("net.port", "A port of the host can't be taken.", "medium", "process", special.serves),
    reads(
        "net.frames", "Frames of the host's interfaces can't be read.", "high",
        lambda scene: ("sniff", f"bench-beacon-{scene.world.held.pid} ", "700"),
    ),
    Attack("net.neighbour", "A neighbour's server can't be reached.", "low", "process", special.asks_neighbour),
)  # fmt: skip

_DESTRUCTION: tuple[Probe, ...] = (
    Attack(
        "destroy.processes", "A fork bomb gets no more processes of the host than were declared.", "high", "guest",
        destruction.bomb("processes", destruction.processes),
        destruction.without_limits("processes", destruction.processes),
    ),
    Attack(
        "destroy.processors", "Busy loops get no more of the host's processors than were declared.", "medium",
        "process", destruction.spins, destruction.spins_bare,
    ),
    Attack(
        "destroy.open-files", "Open files of the host can't be used up.", "low", "process",
        destruction.bomb("open-files", destruction.fixed(destruction.OPEN)),
    ),
    Attack(
        "destroy.inodes", "Files of the host's file system can't be used up.", "low", "process",
        destruction.bomb("inodes", destruction.fixed(destruction.FILES)),
    ),
    Attack(
        "destroy.disk", "The host's disk can't be filled.", "high", "process",
        destruction.bomb("disk", destruction.fixed(destruction.DISK)),
    ),
    Attack(
        "destroy.memory", "A memory bomb gets no more of the host's memory than was declared.", "high", "guest",
        destruction.bomb("memory", destruction.memory),
        destruction.without_limits("memory", destruction.memory),
    ),
    Attack(
        "destroy.kernel", "A panic of the kernel inside is not one of the host.", "critical", "guest",
        destruction.panics, destruction.panics_guest,
    ),
)  # fmt: skip

PROBES: tuple[Probe, ...] = (
    *_PROCESSES, *_FILES, *_MOUNTS, *_KERNEL, *_SURFACE, *_RESOURCES, *_CHANNELS, *_DESTRUCTION,
)  # fmt: skip
