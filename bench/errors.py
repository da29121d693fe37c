"""The error tree. An error names the thing, says what to do, and carries its exit code and outcome.

Exit codes (the same in every verb): 0 done, 1 a trial or a check failed, 2 bad usage or input, 3 this host
can't, 4 regression found, 5 not comparable or precision not reached, 130 SIGINT, 143 SIGTERM, 129 SIGHUP.
"""

from __future__ import annotations

from typing import ClassVar


class BenchError(Exception):
    """Anything `bench` reports to its user: `message` names the thing, `hint` is the remedy."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(BenchError):
    """A bad argument, or a run, image, driver or metric that does not exist."""

    exit_code = 2


class ConfigError(UsageError):
    """A scenario that does not validate; the message names the file and the key."""


class ImageError(UsageError):
    """An image that is missing, truncated, of another architecture, or unsafe to unpack."""


class ResultsError(UsageError):
    """A run folder that is missing, not writable, or not readable as one."""


class HostError(BenchError):
    """This host lacks something: root, a kernel feature, a program, memory above the reserve."""

    exit_code = 3


class CommandError(BenchError):
    """A command we ran failed; the message holds a line that can be pasted into a shell."""


class AddressesError(HostError):
    """The networks of a run have no bridge port and no address left."""


class LaunchError(BenchError):
    """An instance did not come up; the message ends with what its console or its set-up said last.

    `errno`: what the kernel refused with, where that is known and means what it says.
    """

    def __init__(self, message: str, *, hint: str | None = None, errno: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno


class ReadyTimeoutError(LaunchError):
    """An instance came up but was not ready in time."""


class StopError(BenchError):
    """An instance did not go away when told to."""


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived: unwind, keep what was measured, exit 128 + signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        return 128 + self.signum
