"""What a container is made from: an OCI bundle's folder, or an image of ours as one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from bench.container import profile
from bench.container.adjust import Options, adjusted, with_env
from bench.container.spec import default_spec, load
from bench.container.spec_records import Resources, Spec, User
from bench.errors import UsageError
from bench.images.store import ImageStore
from bench.model import Image

_AS_IT_IS = Options()
_MAX_BYTES = 1 << 20  # of a passwd or group file


class Account(Struct, frozen=True):
    """Who a process is, and the home folder that goes with that."""

    user: User
    home: str


class Bundle(Struct, frozen=True):
    """`folder`: of config.json, for hooks and relative paths. With an `image` its root comes from a storage, else from
    the folder."""

    spec: Spec
    folder: Path
    image: Image | None = None


def of_folder(folder: Path, options: Options = _AS_IT_IS, *, user: str = "") -> Bundle:
    """`user`: as for `of_image`. Raises ConfigError naming the file and the key, UsageError naming the option."""
    where = folder.absolute()
    spec = load(where)
    root = where / spec.root.path
    if not root.is_dir():
        raise UsageError(f"{root}: the bundle's root is no folder", hint="root.path of config.json says where it is")
    if user:
        options = replace(options, user=user_of([root], user))
    return Bundle(adjusted(spec, options, str(where / "config.json")), where)


def of_image(images: ImageStore, reference: str, options: Options = _AS_IT_IS, *, user: str = "") -> Bundle:
    """An image as Docker runs it: its entrypoint, command, environment, working folder and user, unless told otherwise.

    `user`: `NAME|UID[:GROUP|GID]`, names by the image's /etc/passwd and /etc/group. Raises ImageError, UsageError.
    """
    image = images.resolve(reference)
    said = images.execution(image)
    trees = images.layer_trees(image)
    who = _Accounts(trees).user(user or said.user or "")
    argv = (*(said.entrypoint or ()), *(options.argv or said.cmd or ()))
    if not argv:
        raise UsageError(f"image {image.name} has no command", hint="say what to run after the image's name")
    env = with_env((f"PATH={profile.PATH}", f"HOME={who.home}"), said.env or ())
    spec = default_spec(argv, root="root", env=env, cwd=image.workdir, user=who.user, resources=Resources())
    return Bundle(adjusted(spec, replace(options, argv=()), f"image {image.name}"), Path("/"), image)


def user_of(trees: Sequence[Path], text: str) -> User:
    """The user that `NAME|UID[:GROUP|GID]` means in these trees, lowest first. Raises UsageError."""
    return _Accounts(trees).user(text).user


def account_of(images: ImageStore, image: Image) -> Account:
    """Who the image wants its command to be. Raises UsageError for a name that it does not have."""
    return _Accounts(images.layer_trees(image)).user(images.execution(image).user or "")


# --- users by name -----------------------------------------------------------------------------------------------


class _Accounts:
    """The passwd and group files of an image: of the topmost layer that has them. A layer's symlinks are not followed:
    out here they would lead to the host's files."""

    def __init__(self, trees: Sequence[Path]) -> None:
        self._trees = trees

    def user(self, text: str) -> Account:
        name, _, group = (text or "0").partition(":")
        entry = next((one for one in self._lines("passwd", 7) if name in (one[0], one[2])), None)
        if entry is None and not name.isdecimal():
            raise UsageError(f"no user {name!r} in the image's /etc/passwd", hint="a number works without an entry")
        uid = int(entry[2]) if entry else int(name)
        gid = self._group(group) if group else int(entry[3]) if entry else 0
        more = () if group or entry is None else self._more(entry[0], gid)
        return Account(
            User(uid, gid, additional_gids=more), (entry[5] if entry else "") or ("/root" if not uid else "/")
        )

    def _group(self, text: str) -> int:
        for entry in self._lines("group", 4):
            if text in (entry[0], entry[2]):
                return int(entry[2])
        if not text.isdecimal():
            raise UsageError(f"no group {text!r} in the image's /etc/group", hint="a number works without an entry")
        return int(text)

    def _more(self, name: str, gid: int) -> tuple[int, ...]:
        found = {int(entry[2]) for entry in self._lines("group", 4) if name in entry[3].split(",")}
        return tuple(sorted(found - {gid}))

    def _lines(self, file: str, fields: int) -> Iterator[list[str]]:
        """Of well-formed entries, whose ids are numbers."""
        for line in self._text(file).splitlines():
            words = line.split(":")
            if len(words) >= fields and words[2].isdecimal() and (file == "group" or words[3].isdecimal()):
                yield words

    def _text(self, file: str) -> str:
        for tree in reversed(self._trees):
            with contextlib.suppress(OSError), _opened(tree, "etc", file) as fd:
                return os.read(fd, _MAX_BYTES).decode(errors="replace")
        return ""


@contextlib.contextmanager
def _opened(tree: Path, *names: str) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        for name in names:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
            stack.callback(os.close, fd)
        yield fd
