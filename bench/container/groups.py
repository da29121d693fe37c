"""Where an instance's cgroups are, and how they are made: v1, hybrid and v2.

A limit that this host can't enforce is refused: half of it, unnoticed, would be worse than none.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from bench.container import profile
from bench.container.limits import WITHOUT, Settings, refuse_idle, v1_settings, v2_settings
from bench.container.spec_records import Resources
from bench.errors import HostError, StopError
from bench.linux import cgroups, devices
from bench.model import Leftover, RunId, token_of

_ALWAYS = ("memory", "cpu", "cpuacct", "pids")
_REMOVE_TIMEOUT = 5.0  # seconds until killed processes have left their groups
CONTROLLERS = ("memory", "cpu", "pids", "cpuset", "io")
"""Those of v2 that are handed down, where there."""


class Groups(Struct, frozen=True):
    """One kind of instances' groups: controller -> parent folder ("unified" alone on a pure v2 host), and settings.

    Each instance has a folder of its own name in each parent.
    """

    parents: dict[str, str]
    settings: dict[str, Settings]
    unified: bool

    def of(self, name: str) -> dict[str, str]:
        """Controller -> the folder of the instance `name`."""
        return {controller: f"{parent}/{name}" for controller, parent in self.parents.items()}

    def recipe(self) -> list[tuple[str, Settings]]:
        """As a recipe has them; a hierarchy that several controllers share is there once."""
        merged: dict[str, Settings] = {}
        for controller, parent in self.parents.items():
            merged.setdefault(parent, []).extend(self.settings[controller])
        return list(merged.items())


class CgroupLayout(Struct, frozen=True):
    """How this host mounts its controllers; or, `delegated`, where an ordinary user's groups of them are."""

    v1: dict[str, str]  # controller -> mount point
    v2: str | None
    delegated: bool = False

    @property
    def kind(self) -> str:
        return ("hybrid" if self.v2 else "v1") if self.v1 else ("v2" if self.v2 else "none")

    def tops(self) -> list[str]:
        """Mount points of the hierarchies in use, each once."""
        tops = list(self.v1.values()) if self.v1 else [self.v2] if self.v2 else []
        return list(dict.fromkeys(tops))

    def parents(self, run: RunId) -> list[str]:
        """The run's own group in each hierarchy."""
        return [f"{top}/{run_group(run)}" for top in self.tops()]

    def groups(self, parent: str, resources: Resources, *, pausable: bool = False, ruled: bool = False) -> Groups:
        """Groups below `parent` (a relative path) with these limits. Raises HostError for what can't be enforced.

        `ruled`: for instances with device rules, which on v2 have a group in between; see `device_group`.
        """
        refuse_idle(resources)
        if self.v1:
            return self._v1(parent, resources, pausable)
        if self.v2:
            settings = v2_settings(resources, Path(self.v2))
            self._refuse_unavailable(settings, Path(self.v2))
            folder = f"{parent}/{_rules_name(resources)}" if ruled else parent
            return Groups({"unified": f"{self.v2}/{folder}"}, {"unified": settings}, True)
        raise HostError("no cgroup hierarchy is mounted", hint="mount -t cgroup2 none /sys/fs/cgroup")

    def _v1(self, parent: str, resources: Resources, pausable: bool) -> Groups:
        wanted = {name: Settings() for name in _ALWAYS if name in self.v1}
        for controller, file, value in v1_settings(resources):
            if controller not in self.v1:
                raise self._without(controller, file)
            wanted.setdefault(controller, []).append((file, value))
        if pausable and "freezer" in self.v1:
            wanted.setdefault("freezer", [])
        self._refuse_missing(wanted)
        if "cpuset" in wanted:
            wanted["cpuset"] = _whole_cpuset(wanted["cpuset"], self.v1["cpuset"])
        return Groups({name: f"{self.v1[name]}/{parent}" for name in wanted}, wanted, False)

    def _refuse_missing(self, wanted: dict[str, Settings]) -> None:
        """Files of every group are there in the ones the host has already, save for a hierarchy's root."""
        for controller, settings in wanted.items():
            top = Path(self.v1[controller])
            below = top if self.delegated else next((one for one in top.glob("*/")), None)
            for file, _ in settings:
                if below is not None and not (below / file).exists():
                    raise HostError(f"this kernel can't enforce {file}", hint=WITHOUT.get(file, "leave it out"))

    def _refuse_unavailable(self, settings: Settings, top: Path) -> None:
        """What can be asked of v2 before any group is there: whether its root has the files' controllers."""
        file = top / "cgroup.controllers"
        there = file.read_text().split() if file.exists() else CONTROLLERS
        for name, _ in settings:
            if (controller := name.partition(".")[0]) not in there:
                raise self._without(controller, name)

    def _without(self, controller: str, file: str) -> HostError:
        if self.delegated:
            hint = "have it delegated as well, or leave it out"
            return HostError(f"no {controller} cgroups are delegated to you, so {file} can't be set", hint=hint)
        return HostError(f"no {controller} controller on this host, so {file} can't be set", hint="leave it out")

    def prepare(self, parent: str) -> None:
        """Make the groups that instances' groups are below; on v2 hand the controllers down, which only then arrive."""
        for top in self.tops():
            os.makedirs(f"{top}/{parent}", exist_ok=True)
        if "cpuset" in self.v1:
            _open_cpusets(Path(self.v1["cpuset"]), parent)
        if not self.v1 and self.v2:
            for folder in (self.v2, *(f"{self.v2}/{one}" for one in _and_above(parent))):
                _delegate(folder, () if self.delegated else CONTROLLERS[:3])


def run_group(run: RunId) -> str:
    """The folder of a run's groups, in each hierarchy."""
    return f"bench-{token_of(run)}"


def layout() -> CgroupLayout:
    """This host's layout, from /proc/self/mountinfo."""
    return CgroupLayout(*cgroups.current_mounts())


def _and_above(parent: str) -> list[str]:
    """`a`, `a/b` of `a/b`."""
    parts = parent.split("/")
    return ["/".join(parts[: end + 1]) for end in range(len(parts))]


def _delegate(folder: str, needed: Sequence[str] = CONTROLLERS[:3]) -> None:
    with open(f"{folder}/cgroup.controllers") as file:
        there = file.read().split()
    for name in needed:
        if name not in there:
            raise HostError(
                f"the {name} controller is not available in {folder}", hint="cgroup_enable, or systemd's Delegate="
            )
    for name in CONTROLLERS:
        if name in there:
            _hand_down(folder, name)


def _hand_down(folder: str, name: str) -> None:
    try:
        cgroups.write(f"{folder}/cgroup.subtree_control", f"+{name}")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        # The root of a cgroup namespace looks like the host's, but is a group like others: with processes in it, it
        # hands nothing down.
        raise HostError(
            f"{folder} can't hand the {name} controller down: processes are in it",
            hint="run bench on the host itself, or in a container with the host's cgroup namespace",
        ) from error


def _open_cpusets(top: Path, parent: str) -> None:
    """A new v1 cpuset has no CPU and takes in nobody: give each on the way what the one above has."""
    above = top
    for folder in _and_above(parent):
        for file in ("cpuset.cpus", "cpuset.mems"):
            if not (top / folder / file).read_text().strip():
                cgroups.write(str(top / folder / file), (above / file).read_text().strip())
        above = top / folder


def _whole_cpuset(settings: Settings, top: str) -> Settings:
    given = dict(settings)
    return [(file, given.get(file) or Path(top, file).read_text().strip()) for file in ("cpuset.cpus", "cpuset.mems")]


# --- device rules ---


def device_group(layout: CgroupLayout, parent: str, resources: Resources, groups: Groups) -> str | None:
    """The v1 group of these device rules, made and filled: one for all instances that have the same rules.

    A group for each would cost every launch a dozen writes. On a pure v2 host it is the one that `groups` are in, and
    there is none to join: None. Raises HostError for what this host can't enforce.
    """
    if not layout.v1:
        _rule(groups.parents["unified"], resources)
        return None
    if "devices" not in layout.v1:
        raise HostError("no devices cgroups here: mknod could open any disk", hint="mount the devices hierarchy")
    try:
        lines = devices.v1_lines(_rules(resources))
    except ValueError as error:
        hint = "name what is allowed one by one, or boot with cgroup v2"
        raise HostError(f"linux.resources.devices: cgroup v1 can't enforce that {error}", hint=hint) from error
    folder = f"{layout.v1['devices']}/{parent}/{_rules_name(resources)}"
    if not os.path.isdir(folder):
        os.makedirs(folder)
        for allow, line in lines:
            cgroups.write(f"{folder}/devices.{'allow' if allow else 'deny'}", line)
    return folder


def _rule(folder: str, resources: Resources) -> None:
    """A v2 group with these rules; all below it are under them too."""
    os.makedirs(folder, exist_ok=True)
    _delegate(folder)
    try:
        devices.attach(folder, _rules(resources))
    except OSError as error:
        hint = "a kernel with CONFIG_CGROUP_BPF"
        raise HostError(f"device rules of {folder}: {error.strerror}", hint=hint) from error


def _rules_name(resources: Resources) -> str:
    """The same for the same rules."""
    return f"rules-{zlib.crc32(repr(_rules(resources)).encode()):08x}"


def _rules(resources: Resources) -> list[devices.Rule]:
    """The usual devices may be used unless a rule is about them, as with other runtimes: "deny all" means the rest."""
    rules = [
        devices.Rule(rule.allow, rule.type or "a", _any(rule.major), _any(rule.minor), rule.access)
        for rule in resources.devices
    ]
    whole = [at for at, rule in enumerate(rules) if rule.kind == "a" and set(rule.access) == set("rwm")]
    if whole and rules[whole[-1]].allow:
        return rules
    after = whole[-1] + 1 if whole else 0
    return [*rules[:after], *_USUAL, *rules[after:]]


_USUAL = (
    *(devices.Rule(True, kind, None, None, "m") for kind in "cb"),
    *(devices.Rule(True, "c", major, minor, "rwm") for major, minor in profile.USABLE_DEVICES),
)


def _any(number: int | None) -> int | None:
    return None if number is None or number < 0 else number


# --- what is in them ---


def members(paths: Sequence[str]) -> tuple[int, ...]:
    """Host pids in any of the groups, each once."""
    return tuple(sorted({pid for path in paths for pid in cgroups.pids(path)}))


def leftovers(run: RunId, host: CgroupLayout | None = None) -> list[str]:
    """Groups of the run that still exist, the run's own folders included. `host`: where they were, if not as root's."""
    return [path for path in (host or layout()).parents(run) if os.path.isdir(path)]


def reap_groups(run: RunId, host: CgroupLayout | None = None) -> list[Leftover]:
    """Kill what is left in the run's groups, frozen or not, and remove them; what that was."""
    paths = leftovers(run, host)
    found = [Leftover("process", f"pid {pid}") for pid in members(paths)]
    found += [Leftover("cgroup", path) for path in paths]
    for path in paths:
        _thaw(Path(path))
    remove_all(run, host)
    return found


def _thaw(group: Path) -> None:
    """A frozen process can't be killed."""
    for file in (*group.rglob("freezer.state"), *group.rglob("cgroup.freeze")):
        file.write_text("THAWED" if file.name == "freezer.state" else "0")


def remove_all(run: RunId, host: CgroupLayout | None = None) -> None:
    """Kill what is left in the run's groups and remove them. For a run whose launcher is gone.

    Raises StopError naming what even SIGKILL does not end: frozen, or held in the kernel.
    """
    for path in leftovers(run, host):
        deadline = time.monotonic() + _REMOVE_TIMEOUT
        while (left := cgroups.pids(path)) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
        if left:
            raise StopError(
                f"killed and not gone: {', '.join(f'pid {pid}' for pid in left)} in {path}",
                hint="thaw it if it is frozen, or look at /proc/PID/stack; then: bench clean",
            )
        cgroups.remove(path)
