"""Read a whole file that a user or a checkpoint names, if it is one and not too large."""

from __future__ import annotations

import stat
from pathlib import Path

from planish.reference.errors import PlanishError

PIECE, MIB = 2**16, 2**20
LARGEST_JSON = 64 * MIB  # a larger one is not a config
LARGEST_TEXT = 256 * MIB  # of prompts, calibration and evaluation; also of tokenizer.json
ENDLESS = {  # not files: open() may block for ever, and they have no size
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_file(path: Path, error: type[PlanishError], most: int = LARGEST_TEXT) -> bytes:
    """The bytes of a file; raises `error` if it is no file or has more than `most` bytes.

    Raises OSError if it cannot be opened or read. It is read in pieces, because read(n) allocates
    n, and the files of /proc have no size.
    """
    require_file(path, error)
    data = bytearray()
    with path.open("rb") as file:
        while len(data) <= most and (piece := file.read(min(PIECE, most + 1 - len(data)))):
            data += piece
    if len(data) > most:
        limit = f"{most // MIB} MiB" if most >= MIB else f"{most} bytes"
        raise error("is too large", path=path, expected=f"at most {limit}")
    return bytes(data)


def require_file(path: Path, error: type[PlanishError]) -> None:
    """Raise `error` for a pipe, a socket or a device, before anything waits for it.

    A directory is left to open(), which refuses it.
    """
    try:
        kind = ENDLESS.get(stat.S_IFMT(path.stat().st_mode))
    except OSError:  # opening it reports that
        return
    if kind is not None:
        raise error("is not a file", path=path, expected="a file", found=kind)
