"""Facts of the host that are visible inside: a catalogue, read by the same program inside and on the host."""

from __future__ import annotations

import errno
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from msgspec import Struct

from bench.errors import CommandError
from bench.model import Completed
from bench.records import Exposed, Exposure

SAME, DIFFERENT, HIDDEN, NONE = "the host's", "its own", "hidden", "none on the host"
_SHOWN = 60  # characters of a value that are kept; the rest is a digest


class Fact(Struct, frozen=True):
    """`source`: what the program reads. `view`: what in it is the fact; None where there is nothing to see.

    `near`: for figures that move, by how much two of the same may differ: a share, with at least `least`.
    `alike`: lines of sets that move are compared; most have to be in both, or, where each is unique, some.
    `private`: of the value only a digest is kept.
    """

    name: str
    source: str
    view: Callable[[str], str | None] = lambda text: text.strip() or None
    near: float | None = None
    least: float = 0.0
    private: bool = False
    alike: Literal["whole", "most", "some"] = "whole"

    def same(self, inside: str, host: str) -> bool:
        if self.alike != "whole":
            ours, theirs = set(inside.splitlines()), set(host.splitlines())
            return bool(ours & theirs) and (self.alike == "some" or 2 * len(ours & theirs) >= len(ours | theirs))
        if self.near is None:
            return inside == host
        return abs(float(inside) - float(host)) <= max(self.least, self.near * abs(float(host)))

    def tells(self, host: str) -> bool:
        """Whether that value of the host's is one to be recognised by: a figure of zero is not."""
        return self.near is None or float(host) != 0

    def between(self, inside: str, host: Sequence[str]) -> bool:
        """Whether a figure that moves was, inside, on its way from one of the host's to the other."""
        return self.near is not None and min(map(float, host)) <= float(inside) <= max(map(float, host))


# --- views -----------------------------------------------------------------------------------------------------------


def first_line(text: str) -> str | None:
    return text.partition("\n")[0].strip() or None


def line_of(start: str) -> Callable[[str], str | None]:
    """What follows `start` on the first line that begins with it."""
    return lambda text: next(
        (line[len(start) :].strip(" \t:") for line in text.splitlines() if line.startswith(start)), None
    )


def word_of(start: str, place: int) -> Callable[[str], str | None]:
    """A word of that line, counted from 0 behind `start`; None if it is no number."""

    def view(text: str) -> str | None:
        words = (line_of(start)(text) or "").split()
        return words[place] if len(words) > place and words[place].isdecimal() else None

    return view


def number_at(place: int) -> Callable[[str], str | None]:
    """A word of the first line; None if it is no number."""

    def view(text: str) -> str | None:
        words = (first_line(text) or "").split()
        return words[place] if len(words) > place and words[place].replace(".", "", 1).isdecimal() else None

    return view


def summed(place: int) -> Callable[[str], str | None]:
    """One column added up, headings left out."""

    def view(text: str) -> str | None:
        lines = (line.split() for line in text.splitlines())
        return str(sum(int(words[place]) for words in lines if len(words) > place and words[place].isdecimal()))

    return view


def total(word: str) -> Callable[[str], str | None]:
    """The sum of the numbers behind `word`."""

    def view(text: str) -> str | None:
        lines = [line.split() for line in text.splitlines()]
        found = [int(words[1]) for words in lines if len(words) == 2 and words[0] == word]
        return str(sum(found)) if found else None

    return view


def lines_with(start: str) -> Callable[[str], str | None]:
    return lambda text: str(sum(line.startswith(start) for line in text.splitlines())) if text.strip() else None


def names(text: str) -> str | None:
    return "\n".join(sorted(text.split())) or None


def column(place: int, skip: int = 0) -> Callable[[str], str | None]:
    """The words of one column, sorted; negative counts from the right. `skip`: lines of a heading."""

    def view(text: str) -> str | None:
        rows = [line.split() for line in text.splitlines()[skip:]]
        found = {words[place] for words in rows if len(words) > (place if place >= 0 else -place - 1)}
        return "\n".join(sorted(found)) or None

    return view


def sizes_of_disks(text: str) -> str | None:
    """Names alone would be `vda` in most guests and on most hosts that are guests themselves."""
    rows = [line.split() for line in text.splitlines()[1:]]
    return "\n".join(sorted(f"{row[3]} {row[2]}" for row in rows if len(row) == 4)) or None


def processes(text: str) -> str | None:
    return str(sum(name.isdecimal() for name in text.split())) or None


def tasks(text: str) -> str | None:
    """How many tasks there are, of a loadavg."""
    words = text.split()
    return words[3].partition("/")[2] if len(words) > 3 else None


def address(text: str) -> str | None:
    """Of the kernel's first symbol that has one; None where addresses are withheld."""
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 3 and words[0].strip("0") and words[1] in "tT":
            return f"{words[0]} {words[2]}"
    return None


def log_lines(text: str) -> str | None:
    """Without those of the first second, which one machine says like another, and without the cut ends."""
    return "\n".join(line for line in text.splitlines()[1:-1] if "[    0." not in line) or None


def ranges(text: str) -> str | None:
    """Of physical addresses; None where they are all shown as zero."""
    lines = [line.strip() for line in text.splitlines() if not line.strip().startswith("00000000-00000000")]
    return "\n".join(lines) or None


def now_of_timers(text: str) -> str | None:
    word = next((line.split() for line in text.splitlines() if line.startswith("now at")), [])
    return str(int(word[2]) / 1e9) if len(word) > 2 else None


def listening(text: str) -> str | None:
    """Local addresses of /proc/net/tcp's sockets that listen."""
    rows = [line.split() for line in text.splitlines()[1:]]
    return "\n".join(sorted({words[1] for words in rows if len(words) > 3 and words[3] == "0A"})) or None


def stall(text: str) -> str | None:
    """Microseconds, of /proc/pressure/*."""
    line = first_line(text) or ""
    value = line.rpartition("total=")[2]
    return value if value.isdecimal() else None


# --- the catalogue ---------------------------------------------------------------------------------------------------

_SYS_DMI = "/sys/class/dmi/id"
CATALOGUE: tuple[Fact, ...] = (
    Fact("kernel release", "uname:release"),
    Fact("kernel build", "file:/proc/version"),
    Fact("kernel command line", "file:/proc/cmdline"),
    Fact("kernel configuration", "file:/proc/config.gz"),
    Fact("kernel log", "log:", view=log_lines, private=True, alike="some"),
    Fact("kernel symbols' addresses", "file:/proc/kallsyms", view=address, private=True),
    Fact("kernel modules", "file:/proc/modules", view=column(0)),
    Fact("drivers of devices", "file:/proc/misc", view=column(1)),
    Fact("keys", "file:/proc/keys", view=column(0), private=True, alike="some"),
    Fact("boot id", "file:/proc/sys/kernel/random/boot_id", private=True),
    Fact("time of boot", "file:/proc/stat", view=word_of("btime", 0), near=0.0, least=2),
    Fact("uptime", "file:/proc/uptime", view=number_at(0), near=0.0, least=10),
    Fact("uptime in the list of timers", "file:/proc/timer_list", view=now_of_timers, near=0.0, least=10),
    Fact("host name", "uname:nodename"),
    Fact("machine id", "file:/etc/machine-id", private=True),
    Fact("accounts", "file:/etc/passwd", private=True),
    Fact("cpu model", "file:/proc/cpuinfo", view=line_of("model name")),
    Fact("cpu features", "file:/proc/cpuinfo", view=line_of("flags")),
    Fact("cpu count", "file:/proc/cpuinfo", view=lines_with("processor")),
    Fact("cpu time used", "file:/proc/stat", view=word_of("cpu ", 0), near=0.05),
    Fact("load", "file:/proc/loadavg", view=number_at(2), near=0.1, least=0.02),
    Fact("tasks", "file:/proc/loadavg", view=tasks, near=0.1),
    Fact("context switches", "file:/proc/stat", view=word_of("ctxt", 0), near=0.05),
    Fact("interrupts by device", "file:/proc/interrupts", view=column(-1, skip=1)),
    Fact("memory", "file:/proc/meminfo", view=word_of("MemTotal:", 0)),
    Fact("memory available", "file:/proc/meminfo", view=word_of("MemAvailable:", 0), near=0.05),
    Fact("memory of the nodes", "file:/sys/devices/system/node/node0/meminfo", view=word_of("Node 0 MemTotal:", 0)),
    Fact("memory by zones", "file:/proc/zoneinfo", view=total("managed")),
    Fact("map of the address space", "file:/proc/iomem", view=ranges, private=True),
    Fact("memory pressure", "file:/proc/pressure/memory", view=stall, near=0.05),
    Fact("swap", "file:/proc/swaps", view=column(0, skip=1)),
    Fact("disks", "list:/sys/block", view=names),
    Fact("partitions", "file:/proc/partitions", view=sizes_of_disks),
    Fact("disk activity", "file:/proc/diskstats", view=summed(3), near=0.05),
    Fact("mount points", "file:/proc/self/mountinfo", view=column(4), alike="most"),
    Fact("file systems known", "file:/proc/filesystems", view=column(-1)),
    Fact("file locks", "file:/proc/locks", view=column(5), alike="some"),
    Fact("open files", "file:/proc/sys/fs/file-nr", view=number_at(0), near=0.1),
    Fact("names cached", "file:/proc/sys/fs/dentry-state", view=number_at(0), near=0.1),
    Fact("network interfaces", "list:/sys/class/net", view=names, alike="most"),
    Fact("network interfaces by /proc", "file:/proc/net/dev", view=column(0, skip=2), alike="most"),
    Fact("routes", "file:/proc/net/route", view=column(1, skip=1), alike="most"),
    Fact("neighbours on the network", "file:/proc/net/arp", view=column(0, skip=1), alike="most"),
    Fact("ports listened on", "file:/proc/net/tcp", view=listening, alike="most"),
    Fact("unix sockets", "file:/proc/net/unix", view=column(7, skip=1), private=True, alike="most"),
    Fact("processes", "list:/proc", view=processes, near=0.1, least=1),
    Fact("first process", "file:/proc/1/cmdline"),
    Fact("cgroups", "file:/proc/cgroups", view=summed(2), near=0.1),
    Fact("maker", f"file:{_SYS_DMI}/sys_vendor"),
    Fact("product", f"file:{_SYS_DMI}/product_name"),
    Fact("serial number", f"file:{_SYS_DMI}/product_uuid", private=True),
    Fact("pci devices", "list:/sys/bus/pci/devices", view=names),
)  # fmt: skip


# --- reading and comparing -------------------------------------------------------------------------------------------


class Read(Struct, frozen=True):
    """What one source said: its text, or the errno that it was refused with."""

    text: str | None
    errno: int = 0


def parse(said: str, count: int) -> list[Read]:
    """`count` lines of `ok TEXT` or `no ERRNO`. Raises CommandError for anything else."""
    lines = said.splitlines()
    if len(lines) != count:
        raise CommandError(f"the reading of facts gave {len(lines)} answers to {count} questions: {said[-80:]!r}")
    return [_read(line) for line in lines]


def _read(line: str) -> Read:
    word, _, rest = line.partition(" ")
    if word == "ok":
        return Read(_unescaped(rest))
    if word == "no" and rest.isdecimal():
        return Read(None, int(rest))
    raise CommandError(f"the reading of facts said what is no answer: {line[:80]!r}")


def _unescaped(text: str) -> str:
    parts = text.split("\\\\")
    return "\\".join(part.replace("\\n", "\n") for part in parts)


def read(run: Callable[[Sequence[str]], Completed], catalogue: Sequence[Fact] = CATALOGUE) -> list[Read]:
    """All sources by the program that `run` runs, inside or on the host. Raises LaunchError, CommandError."""
    done = run(["read", *(fact.source for fact in catalogue)])
    if done.status:
        raise CommandError(f"exit status {done.status} from the reading of facts: {done.stderr.strip()[-200:]}")
    return parse(done.stdout, len(catalogue))


def exposure(
    before: Sequence[Read], inside: Sequence[Read], after: Sequence[Read], catalogue: Sequence[Fact] = CATALOGUE
) -> Exposure:
    """Fact by fact; the host, which does not stand still, was read before and after. What it has not is in no count."""
    items = tuple(_compared(*one) for one in zip(catalogue, before, inside, after, strict=True))
    counts = Counter(item.found for item in items)
    known = len(items) - counts[NONE]
    return Exposure("facts", items, {**{one: counts[one] for one in (SAME, DIFFERENT, HIDDEN)}, "looked for": known})


def _compared(fact: Fact, before: Read, inside: Read, after: Read) -> Exposed:
    theirs = [value for read in (before, after) if (value := _seen(fact, read)) is not None and fact.tells(value)]
    ours = _seen(fact, inside)
    if not theirs:
        return Exposed(fact.name, NONE)
    if ours is None:
        why = errno.errorcode.get(inside.errno, str(inside.errno)) if inside.text is None else "empty"
        return Exposed(fact.name, HIDDEN, why, _shown(fact, theirs[0]))
    like = next((value for value in theirs if fact.same(ours, value)), None)
    found = SAME if like is not None or fact.between(ours, theirs) else DIFFERENT
    return Exposed(fact.name, found, _shown(fact, ours), _shown(fact, like or theirs[0]))


def _seen(fact: Fact, read: Read) -> str | None:
    return fact.view(read.text) if read.text and read.text.strip() else None


def _shown(fact: Fact, value: str) -> str:
    if not fact.private and len(value) <= _SHOWN:
        return value.replace("\n", " ")
    digest = hashlib.sha256(value.encode()).hexdigest()[:12]
    return f"{'' if fact.private else value[:_SHOWN].replace(chr(10), ' ') + '... '}sha256:{digest}"
