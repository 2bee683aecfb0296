"""The finished pieces of a directory that is not complete, so that a later run can go on.

    OUT.partial/request.json          what is being made; another request may not go on with it
    OUT.partial/NAME.safetensors      the tensors of one finished piece
    OUT.partial/NAME.json             what else the run must know of it

A piece is flushed to the disk and gets its name by a rename, facts before tensors, so it is there
whole or not at all. There is no config.json, so nothing takes the directory for a model. The lock
of a running program ends with it, even with kill -9.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from planish.reference.errors import OutputError, notice
from planish.reference.files.safetensors import read_entries, write_tensors
from planish.reference.json import read_json

REQUEST = "request.json"


class Partial:
    """OUT.partial, for an output OUT. Nothing is created before `begin`."""

    noun = "finished piece"  # what it has, in messages

    def __init__(self, target: str | Path, resume: bool = False, program: str = "planish"):
        """resume: go on with what an earlier run has finished. program: name and version."""
        self.target, self.program = Path(target), program
        self.resume, self.lock = resume, -1

    @property
    def path(self) -> Path:
        """OUT.partial."""
        return self.target.with_name(f"{self.target.name}.partial")

    def check(self) -> None:
        """Raise OutputError for pieces of an earlier run without `resume`, or a foreign path."""
        if not os.path.lexists(self.path):
            return
        if self.path.is_symlink() or not self.path.is_dir() or not self._is_ours():
            expected = "a free name for the unfinished output"
            raise OutputError("exists", path=self.path, expected=expected)
        if (count := len(self.names())) and not self.resume:
            pieces = f"{self._count(count)} of an earlier run"
            expected = "--resume to go on, or its removal to begin again"
            raise OutputError("exists", path=self.path, expected=expected, found=pieces)

    def _is_ours(self) -> bool:
        files = {file.name for file in self.path.iterdir()}
        return REQUEST in files or not files

    def names(self) -> list[str]:
        """The finished pieces."""
        return sorted(file.stem for file in self.path.glob("*.safetensors"))

    def begin(self, request: Mapping[str, Any]) -> None:
        """Create the directory, or go on with it; OutputError if it was for another request."""
        self.path.mkdir(exist_ok=True)
        self._take_lock()
        said, finished = self.path / REQUEST, len(self.names())
        request = json.loads(json.dumps({"program": self.program, **request}))  # as in the file
        if finished:
            try:
                _require_same(self.path, read_json(said, OutputError), request)
            except OutputError:
                self.close()  # it is kept as it was
                raise
            notice(f"{self.path}: going on after {self._count(finished)}")
        elif self.resume:
            notice(f"{self.path}: nothing finished to go on with, so this begins at the start")
        self._write_json(REQUEST, request)

    def _take_lock(self) -> None:
        self.lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise OutputError("another program is writing it", path=self.path) from None

    def has(self, name: str) -> bool:
        """Whether a piece is finished."""
        return (self.path / f"{name}.safetensors").exists()

    def save(self, name: str, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Write a finished piece to the disk."""
        self._write_json(f"{name}.json", facts)
        hidden = self.path / f".{name}"
        write_tensors(hidden, tensors)
        self._put(hidden, f"{name}.safetensors")

    def tensors(self, name: str) -> dict[str, Any]:
        """The entries of a finished piece's tensors (safetensors.py), in their order."""
        return dict(read_entries(self.path / f"{name}.safetensors"))

    def facts(self, name: str) -> dict[str, Any]:
        """What was saved with a piece."""
        return read_json(self.path / f"{name}.json", OutputError)

    def _write_json(self, name: str, values: Mapping[str, Any]) -> None:
        hidden = self.path / f".{name}"
        hidden.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        self._put(hidden, name)

    def _put(self, hidden: Path, name: str) -> None:
        """Flush a file to the disk, then give it its name."""
        sync(hidden)
        hidden.rename(self.path / name)
        sync(self.path)

    def _count(self, pieces: int) -> str:
        return f"{pieces} {self.noun}{'s' * (pieces != 1)}"

    def close(self) -> None:
        """Let another program go on with it."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1

    def leave(self, worth: bool) -> None:
        """After a failure: keep the pieces, if going on is worth it and there is any."""
        if self.lock < 0:  # not begun, or another program's
            return
        if worth and (count := len(self.names())):
            notice(f"{self.path} keeps {self._count(count)}; --resume goes on after them")
            self.close()
        else:
            self.remove()

    def remove(self) -> None:
        """Remove the directory: the output is complete, or the pieces are of no use."""
        with contextlib.suppress(OSError):
            (self.path / REQUEST).unlink()
        shutil.rmtree(self.path, ignore_errors=True)
        self.close()


def sync(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise OutputError naming the first value that differs from that of the earlier run."""
    old, new = _flatten(before), _flatten(now)
    for key in dict.fromkeys([*new, *old]):
        if old.get(key) != new.get(key):
            problem = "was begun with another value"
            expected = f"{old.get(key)}, or its removal to begin again"
            raise OutputError(problem, path=path, name=key, expected=expected, found=new.get(key))


def _flatten(values: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = _flatten(value, f"{start}{key}.") if isinstance(value, dict) else None
        flat |= {f"{start}{key}": value} if inner is None else inner
    return flat
