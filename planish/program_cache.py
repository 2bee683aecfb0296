"""Where compiled programs are stored between runs.

Stored programs are run without further checks, so we use a directory only if nobody except the user
and root can put a program there: the directory and all its parents must belong to them and must not
be writable by others. A parent may be sticky, as /tmp is: others can write there but cannot replace
what belongs to somebody else.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

from planish.reference.errors import OutputError, notice

PARTS = ("kernels", "xla")  # written by fast/native/build.py and by jax
UNMAPPED = 65534  # the owner of files, such as /, that a container's user namespace does not map


def compilation_cache(flag: str | None, tell: bool = True) -> Path | None:
    """The directory of --compilation_cache, or the user's cache; None if nothing is stored.

    If the default directory cannot be made or trusted, none is used; if it cannot be written, it is
    only read; with `tell`, a notice says so. For a directory from the flag these are OutputErrors.
    """
    if flag in ("none", ""):
        return None
    path = Path(os.path.realpath(flag)) if flag is not None else default_cache()
    if path is None:
        give_up("no home directory is known", tell)
        return None
    unusable = make_trusted(path)
    if problem := unusable or why_not_writable(path):
        if flag is not None:
            raise OutputError(problem, path=path, name="compilation_cache")
        give_up(f"{path}: {problem}", tell)
    return None if unusable else path


def give_up(problem: str, tell: bool) -> None:
    if tell:
        notice(f"cache: {problem}; nothing that is compiled is kept")


def default_cache() -> Path | None:
    """`planish` in the user's cache directory; None if the environment names none.

    Relative paths are ignored, as the XDG specification demands: they would mean a different
    directory in every working directory, perhaps one of somebody else.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not caches.is_absolute():
        # Path.expanduser raises where no home directory is known
        home = os.environ["HOME"] if "HOME" in os.environ else os.path.expanduser("~")  # noqa: PTH111
        caches = Path(home, ".cache")
    if not caches.is_absolute():
        return None
    return Path(os.path.realpath(caches / "planish"))


def make_trusted(path: Path) -> str | None:
    """Make a directory and its PARTS, writable by the user only; returns why not, or None."""
    if problem := distrust(path):
        return problem
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        return f"cannot be written: {error.strerror}"
    return next(filter(None, map(distrust, (path, *(path / part for part in PARTS)))), None)


def why_not_writable(path: Path) -> str | None:
    """Why nothing new can be stored in a trusted directory, or None."""
    try:
        for part in PARTS:
            (path / part).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        return f"cannot be written: {error.strerror}"
    return None if os.access(path, os.W_OK) else "cannot be written"


def distrust(path: Path) -> str | None:
    """Why somebody else could put a program into a directory (resolved), or None.

    Directories that do not exist yet will be made by us.
    """
    for place in (path, *path.parents):
        try:
            status = place.stat()
        except OSError:
            continue
        above = place != path
        owners = {os.geteuid(), 0} | ({UNMAPPED} if above else set())
        if status.st_uid not in owners:
            return f"cannot be trusted: {place} belongs to another user ({status.st_uid})"
        if others_write(status) and not (above and status.st_mode & stat.S_ISVTX):
            return f"cannot be trusted: others can write into {place} (chmod go-w)"
    return None


def others_write(status: os.stat_result) -> bool:
    """Whether users other than its owner and root may change a directory."""
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not is_private_group(status.st_gid)


def is_private_group(gid: int) -> bool:
    """Whether a group is the user's (or root's) alone: it has that name and no other members."""
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return False
    return group.gr_name in (user, "root") and set(group.gr_mem) <= {user, "root"}
