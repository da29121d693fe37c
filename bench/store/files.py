"""Files that survive a crash and belong to the person who typed `sudo`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bench.errors import ResultsError


def give_to_caller(path: Path) -> None:
    """Give `path` to the user behind sudo (SUDO_UID, SUDO_GID); nothing happens without sudo or without root."""
    if os.geteuid() != 0:
        return
    uid, gid = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if uid.isdecimal() and gid.isdecimal():
        os.chown(path, int(uid), int(gid), follow_symlinks=False)  # an instance may have left a link to anywhere


def give_tree_to_caller(folder: Path) -> None:
    """`give_to_caller` for `folder` and all it holds; links are given, never followed."""
    give_to_caller(folder)
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            give_to_caller(Path(parent, name))


def make_folder(folder: Path) -> None:
    """Make `folder` and its missing parents; those we made belong to the caller. Raises OSError."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        give_to_caller(path)


def draft_of(folder: Path) -> Path:
    """Where `folder` is made, until it is whole; nobody takes that for a run."""
    return folder.with_name(f".{folder.name}.tmp")


def drop_draft(folder: Path) -> Path | None:
    """Remove what whoever was killed while making `folder` had of it: the draft, or None if there is none.

    Raises ResultsError if it can't be removed.
    """
    draft = draft_of(folder)
    if draft.is_symlink() or not draft.is_dir():
        return None
    try:
        shutil.rmtree(draft)
    except OSError as error:
        raise not_writable(draft, error) from error
    return draft


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: whoever reads it sees the old or the new file, also after a power cut.

    Raises ResultsError if it can't be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        give_to_caller(draft)
        draft.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise not_writable(path, error) from error


def sync_folder(folder: Path) -> None:
    """Make a rename or a new name in `folder` durable; fsync of the file alone does not."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def not_writable(path: Path, error: OSError) -> ResultsError:
    """The error for a file or folder of ours that the kernel refused."""
    reason = error.strerror or str(error)
    return ResultsError(f"{path}: {reason}", hint="name a place that has room and can be written: --results, -o")
