"""Putting what was written where it was asked to go: whole, and nothing replaced unasked.

What is written begins beside its target, hidden, and one rename puts it in place. Whether the
target is free is looked at before anything is computed and once more by that rename, which
refuses to replace what has come into being meanwhile: of two writers the second loses.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from planish.reference.errors import OutputError

AT_FDCWD, RENAME_NOREPLACE, RENAME_EXCHANGE = -100, 1, 2
MOST_LINKS = 40  # as Linux
DESCRIPTORS = re.compile(r"/proc/\d+(/task/\d+)?/fd|/dev/fd")


def hidden_beside(target: Path) -> Path:
    """A name in the same directory that nobody else uses; long names are cut."""
    return target.with_name(f".{target.name[:50]}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


def check_directory(target: Path, overwrite: bool, there: Path | None = None) -> None:
    """Refuse what must not be replaced: all but a model that is asked to be, or nothing at all.

    `there` is what was found at the target and has been moved aside.
    """
    there = there or target
    if there.is_symlink():
        problem = "is a symbolic link and not a directory; it is neither followed nor replaced"
        raise OutputError(problem, path=target, expected="the name of a directory")
    if not os.path.lexists(there):
        return
    if not there.is_dir():
        raise OutputError("exists and is not a directory", path=target)
    if not overwrite:
        raise OutputError("exists; give --overwrite to replace it", path=target)
    if any(there.iterdir()) and not (there / "config.json").exists():
        raise OutputError("exists and holds no model; it is not replaced", path=target)


def put_directory(hidden: Path, target: Path, overwrite: bool) -> None:
    """Put a finished directory in place; one that it replaces is then found under `hidden`.

    Raises OutputError for what has appeared since the start, unless it may be replaced.
    """
    if overwrite and os.path.lexists(target):
        check_directory(target, overwrite)
        return exchange_directory(hidden, target, partial(check_directory, target, overwrite))
    try:
        place_directory(hidden, target)
    except FileExistsError:
        problem = "came into being while this was computed, and is not replaced"
        raise OutputError(problem, path=target, expected="a free name") from None


def place_directory(hidden: Path, target: Path) -> None:
    """Rename a finished directory; FileExistsError where there is anything already."""
    if _rename(hidden, target, RENAME_NOREPLACE):
        return
    target.mkdir()  # claims the name where a rename cannot: it refuses whatever is there
    try:
        hidden.rename(target)  # onto an empty directory, or not at all
    except BaseException as problem:
        with contextlib.suppress(OSError):
            target.rmdir()
        if isinstance(problem, OSError) and problem.errno == errno.ENOTEMPTY:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        raise


def exchange_directory(hidden: Path, target: Path, check: Callable[[Path], None]) -> None:
    """Put a finished directory in the place of another, which is then found under `hidden`.

    `check` raises for what must not be replaced. It judges what was really taken away, and what
    it refuses goes back.
    """
    if not _rename(hidden, target, RENAME_EXCHANGE):
        return _exchange_in_steps(hidden, target, check)
    try:
        check(hidden)
    except BaseException:
        if not _rename(hidden, target, RENAME_EXCHANGE):
            aside = _aside(hidden)  # what is found under `hidden` may be removed
            hidden.rename(aside)
            raise _not_put_back(target, aside) from None
        raise


def _exchange_in_steps(hidden: Path, target: Path, check: Callable[[Path], None]) -> None:
    """For a file system that cannot exchange: the old state is moved aside first."""
    aside = _aside(hidden)
    try:
        target.rename(aside)
        check(aside)
        place_directory(hidden, target)
    except BaseException:
        _put_back(aside, target)
        raise
    aside.rename(hidden)


def _aside(hidden: Path) -> Path:
    return hidden.with_name(hidden.name + "-old")


def _put_back(aside: Path, target: Path) -> None:
    """Undo a move, whatever was moved; its name may be taken again, which is said."""
    if not os.path.lexists(aside):
        return None
    try:
        if aside.is_dir() and not aside.is_symlink():
            return place_directory(aside, target)
        os.link(aside, target, follow_symlinks=False)
        aside.unlink()
    except OSError:
        raise _not_put_back(target, aside) from None


def _not_put_back(target: Path, aside: Path) -> OutputError:
    problem = "could not be replaced, nor what was there be put back; it is kept"
    return OutputError(problem, path=target, found=aside)


def _rename(source: Path, target: Path, flag: int) -> bool:
    """Linux's renameat2: False where it does not exist or failed, so that plain calls may try.

    Raises FileExistsError where RENAME_NOREPLACE finds something.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # another system, or an old C library
        return False
    done: bool = rename(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flag) == 0
    if not done and ctypes.get_errno() == errno.EEXIST:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    return done


def check_file(path: Path) -> None:
    """Refuse a path to which no file can be written, before anything is computed.

    Links are followed. What is no regular file, as a pipe or /dev/null, is written to as it is.
    """
    with _said_of(path):
        target = _follow(path)
        if not target.parent.is_dir():
            raise OutputError("cannot be written: no such directory", path=path)
        descriptor = _is_descriptor(target)
        mode = target.stat().st_mode if descriptor or target.exists() else 0
        if stat.S_ISDIR(mode) or stat.S_ISBLK(mode):
            kind = "directory" if stat.S_ISDIR(mode) else "disk"
            raise OutputError(f"is a {kind}", path=path, expected="the name of a file")
        needed = [target] * bool(mode) + [target.parent] * (not mode or stat.S_ISREG(mode))
        if not descriptor and not all(os.access(one, os.W_OK) for one in needed):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextlib.contextmanager
def write_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file whose content appears under `path` when the block is left without an error.

    A regular file is replaced by a whole one or keeps its content, its permissions in either
    case. What is no regular file takes the bytes as they come. Raises OutputError, and
    BrokenPipeError where a reader has gone away.
    """
    with _said_of(path):
        target = _follow(path)
        if _is_descriptor(target) or (target.exists() and not target.is_file()):
            with _open_as_it_is(target) as file:
                yield file
            return
        hidden = hidden_beside(target)
        try:
            with hidden.open("xb") as file:
                if target.exists():
                    hidden.chmod(stat.S_IMODE(target.stat().st_mode))
                yield file
                file.flush()
                os.fsync(file.fileno())
            hidden.replace(target)
        finally:
            hidden.unlink(missing_ok=True)


def _is_descriptor(target: Path) -> bool:
    return DESCRIPTORS.fullmatch(str(target.parent)) is not None


def _open_as_it_is(target: Path) -> BinaryIO:
    """Open a device or a pipe; of a descriptor of ours a copy, which shares its position."""
    ours = str(target.parent) in ("/dev/fd", f"/proc/{os.getpid()}/fd") and target.name.isdigit()
    return os.fdopen(os.dup(int(target.name)), "wb") if ours else target.open("wb")


def _follow(path: Path) -> Path:
    """Where links lead, be it a name that is still free; the name of a descriptor is kept."""
    for _ in range(MOST_LINKS):
        path = Path(os.path.realpath(path.parent), path.name)
        if DESCRIPTORS.fullmatch(str(path.parent)) or not path.is_symlink():
            return path
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


@contextlib.contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """What the system has to say becomes one line on the path as the user wrote it."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as problem:
        raise OutputError(f"cannot be written: {problem.strerror}", path=path) from None
