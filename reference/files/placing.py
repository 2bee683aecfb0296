"""Put a finished file or directory in place: whole, and replacing nothing without being asked.

Output is first written under a hidden name next to its target; one rename puts it in place. The
target is checked before anything is computed, and again by that rename, which refuses to replace
what has appeared since: of two writers the second fails.
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
    """An unused hidden name in the same directory; long names are shortened."""
    return target.with_name(f".{target.name[:50]}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


def check_directory(target: Path, overwrite: bool, there: Path | None = None) -> None:
    """Raise OutputError unless the target is free, or a model and `overwrite` is set.

    there: where the target's old content is now, if it has been moved aside.
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
        raise OutputError("exists and contains no model; it is not replaced", path=target)


def put_directory(hidden: Path, target: Path, overwrite: bool) -> None:
    """Put a finished directory in place; a directory that it replaces is moved to `hidden`.

    Raises OutputError if something that must not be replaced has appeared since the start.
    """
    if overwrite and os.path.lexists(target):
        check_directory(target, overwrite)
        exchange_directory(hidden, target, partial(check_directory, target, overwrite))
        return
    with _report_taken(target):
        place_directory(hidden, target)


@contextlib.contextmanager
def _report_taken(target: Path) -> Iterator[None]:
    """Turn FileExistsError into the line that says that the name was free before."""
    try:
        yield
    except FileExistsError:
        problem = "appeared while this was computed, and is not replaced"
        raise OutputError(problem, path=target, expected="a free name") from None


def place_directory(hidden: Path, target: Path) -> None:
    """Rename a finished directory; FileExistsError if the target exists."""
    if _rename(hidden, target, RENAME_NOREPLACE):
        return
    target.mkdir()  # claims the name if renameat2 is missing: it fails if anything exists
    try:
        hidden.rename(target)  # onto an empty directory, or not at all
    except BaseException as problem:
        with contextlib.suppress(OSError):
            target.rmdir()
        if isinstance(problem, OSError) and problem.errno == errno.ENOTEMPTY:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        raise


def exchange_directory(hidden: Path, target: Path, check: Callable[[Path], None]) -> None:
    """Exchange a finished directory with another, which is then at `hidden`.

    check raises for a directory that must not be replaced. It sees the one that was really moved,
    which is put back if it raises.
    """
    if not _rename(hidden, target, RENAME_EXCHANGE):
        return _exchange_in_steps(hidden, target, check)
    try:
        check(hidden)
    except BaseException:
        if not _rename(hidden, target, RENAME_EXCHANGE):
            aside = _aside(hidden)  # the caller may remove `hidden`
            hidden.rename(aside)
            raise _not_put_back(target, aside) from None
        raise


def _exchange_in_steps(hidden: Path, target: Path, check: Callable[[Path], None]) -> None:
    """For file systems without exchange: first move the old directory aside."""
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
    """Undo a move; raises OutputError if the old name has been taken meanwhile."""
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
    problem = "could not be replaced, and the old one could not be put back; it is kept"
    return OutputError(problem, path=target, found=aside)


def _rename(source: Path, target: Path, flag: int) -> bool:
    """Linux's renameat2; False if it is missing or failed, and the caller tries plain calls.

    Raises FileExistsError if RENAME_NOREPLACE finds the target.
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
    """Raise OutputError for a path that cannot be written, before anything is computed.

    Links are followed. A pipe or a device such as /dev/null is written to directly.
    """
    with _report_errors(path):
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
    """A binary file whose content appears at `path` when the block ends without an error.

    A regular file is replaced as a whole or keeps its content, and always keeps its permissions.
    A pipe or a device gets the bytes directly. Raises OutputError, and BrokenPipeError if a pipe
    has lost its reader.
    """
    with _report_errors(path):
        target = _follow(path)
        if _is_descriptor(target) or (target.exists() and not target.is_file()):
            with _open_as_it_is(target) as file:
                yield file
            return
        with _hidden_file(target, lambda hidden: hidden.replace(target)) as file:
            if target.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
            yield file


@contextlib.contextmanager
def create_file(path: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """As write_file, for a file that is replaced only if `overwrite` is set.

    Raises OutputError if it exists, also if it appeared while the content was computed.
    """
    check_new_file(path, overwrite)
    if overwrite:
        with write_file(path) as file:
            yield file
        return
    with (
        _report_errors(path),
        _hidden_file(path, lambda hidden: place_file(hidden, path)) as file,
    ):
        yield file


@contextlib.contextmanager
def _hidden_file(target: Path, put: Callable[[Path], object]) -> Iterator[BinaryIO]:
    """A new file under a hidden name, which `put` moves to its place once it is on the disk."""
    hidden = hidden_beside(target)
    try:
        with hidden.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        put(hidden)
    finally:
        hidden.unlink(missing_ok=True)


def check_new_file(path: Path, overwrite: bool) -> None:
    """check_file, and raise OutputError for one that exists and must not be replaced."""
    check_file(path)
    if os.path.lexists(path) and not overwrite:
        raise OutputError("exists; give --overwrite to replace it", path=path)


def place_file(hidden: Path, target: Path) -> None:
    """Rename a finished file; OutputError if the target exists."""
    with _report_taken(target):
        if not _rename(hidden, target, RENAME_NOREPLACE):
            os.link(hidden, target)  # the caller removes `hidden`


def _is_descriptor(target: Path) -> bool:
    return DESCRIPTORS.fullmatch(str(target.parent)) is not None


def _open_as_it_is(target: Path) -> BinaryIO:
    """Open a device or a pipe; duplicate a descriptor of this process, to share its position."""
    ours = str(target.parent) in ("/dev/fd", f"/proc/{os.getpid()}/fd") and target.name.isdigit()
    return os.fdopen(os.dup(int(target.name)), "wb") if ours else target.open("wb")


def _follow(path: Path) -> Path:
    """The path that links lead to, which need not exist; a descriptor's name is not resolved."""
    for _ in range(MOST_LINKS):
        path = Path(os.path.realpath(path.parent), path.name)
        if DESCRIPTORS.fullmatch(str(path.parent)) or not path.is_symlink():
            return path
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


@contextlib.contextmanager
def _report_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors into one line that names the path as the user wrote it."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as problem:
        raise OutputError(f"cannot be written: {problem.strerror}", path=path) from None
