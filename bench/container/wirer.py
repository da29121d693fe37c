"""A process that ties instances to their bridge while they mount: the launcher can't, for it has lent out its memory.

The child a launch is about asks, and reads the answer when it needs its interface. One question at a time.
"""

from __future__ import annotations

import errno
import os

from bench.linux import messages, netlink, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bench.container.init import Place

_DESCRIPTORS = 3  # the standard ones


class Wirer:
    """A forked copy of the launcher, which ends with it."""

    def __init__(self) -> None:
        self._fd, theirs = messages.pair()
        self.pid = os.fork()
        if not self.pid:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, syscalls.SIGKILL)
            os.closerange(_DESCRIPTORS, theirs)  # the launcher's, of which some tell by their end that it is gone
            os.closerange(theirs + 1, os.sysconf("SC_OPEN_MAX"))
            _serve(theirs)
        os.close(theirs)

    def ask(self, pid: int, place: Place) -> None:
        """For the veth pair of `place`, its end eth0 in the network namespace of `pid`."""
        question = [pid, place.device, place.bridge, place.address, place.prefix, place.gateway]
        try:
            os.write(self._fd, messages.encode(question))
        except OSError as error:
            raise _gone() from error

    def answer(self) -> bytes:
        """What `netlink.apply` takes inside. Raises OSError naming what could not be made."""
        said = messages.read(self._fd)
        if said is None:
            raise _gone()
        number, what, configuration = said
        if number:
            raise OSError(number, os.strerror(number), what)
        return bytes(configuration)

    def lost(self) -> None:
        """It has ended by itself and is reaped."""
        os.close(self._fd)

    def close(self) -> None:
        os.close(self._fd)
        os.kill(self.pid, syscalls.SIGKILL)
        os.waitpid(self.pid, 0)


def _gone() -> OSError:
    return OSError(errno.ECONNRESET, "the process that ties instances to their bridge is gone", "network")


def _serve(fd: int) -> None:
    link = netlink.Netlink()
    while question := messages.read(fd):
        os.write(fd, messages.encode(_tie(link, *question)))
    os._exit(0)


def _tie(
    link: netlink.Netlink, pid: int, device: str, bridge: int, address: str, prefix: int, gateway: str
) -> tuple[int, str, bytes]:
    try:
        netlink.attach(link, device, "eth0", peer_pid=pid, master=bridge)
        return 0, "", netlink.configuration(address, prefix, gateway)
    except OSError as error:
        return error.errno or errno.EINVAL, str(error.filename or address), b""
