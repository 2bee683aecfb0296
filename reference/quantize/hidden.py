"""Hidden states of the samples: in memory up to a budget, the rest in a file on the disk.

    store = Store(budget=2 * 2**30, directory=where)
    states = store.new()                   # a sequence of arrays [T, D]
    states.append(x)                       # kept, or written to the file once the budget is used up
    states[3]                              # the array, or a copy that is read from the file

One budget is shared by all sequences of a store; what a sequence takes is returned when it is
deleted. The file has no name from the start, so that even kill -9 leaves nothing of it.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np

Place = tuple[int, tuple[int, ...]]  # offset in the file, shape


class Store:
    """Where hidden states go. budget: bytes in memory, None for no limit."""

    def __init__(self, budget: int | None = None, directory: Path | None = None):
        self.budget, self.directory, self.used = budget, directory, 0

    def new(self) -> States:
        """An empty sequence."""
        return States(self)

    def take(self, size: int) -> bool:
        """Take so many bytes of the budget, if it has them."""
        if self.budget is not None and self.used + size > self.budget:
            return False
        self.used += size
        return True

    def release(self, taken: list[int], files: list[BinaryIO]) -> None:
        """Return what a sequence has taken, and close its file, which removes it."""
        self.used -= sum(taken)
        for file in files:
            file.close()


class States(Sequence[np.ndarray]):
    """Hidden states float32 [T, D] of each sample. An array from the file is a copy of it."""

    def __init__(self, store: Store):
        self.store = store
        self.kept: list[np.ndarray | Place] = []
        self.taken: list[int] = []
        self.files: list[BinaryIO] = []  # none or one
        self.end = 0
        weakref.finalize(self, store.release, self.taken, self.files)

    def append(self, x: np.ndarray) -> None:
        """Add one sample's states; OSError if the disk is full."""
        if self.store.take(x.nbytes):
            self.taken.append(x.nbytes)
            self.kept.append(x)
            return
        if not self.files:
            self.files.append(tempfile.TemporaryFile(dir=self.store.directory))  # noqa: SIM115
        self.files[0].write(np.ascontiguousarray(x, np.float32).data)
        self.kept.append((self.end, x.shape))
        self.end += x.nbytes

    def extend(self, samples: Iterable[np.ndarray]) -> None:
        """Add several samples."""
        for x in samples:
            self.append(x)

    def __len__(self) -> int:
        return len(self.kept)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        found = self.kept[index]
        return found if isinstance(found, np.ndarray) else self._read(*found)

    def _read(self, offset: int, shape: tuple[int, ...]) -> np.ndarray:
        file = self.files[0]
        file.flush()
        x = np.empty(shape, np.float32)
        rest = x.data.cast("B")
        while rest and (count := os.preadv(file.fileno(), [rest], offset)):
            offset, rest = offset + count, rest[count:]
        if rest:
            raise OSError("hidden states on the disk are cut off")
        return x


UNLIMITED = Store()
