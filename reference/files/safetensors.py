"""Read and write one safetensors file: check its header, map its tensors, align them.

    8 bytes   length n of the header, little endian
    n bytes   JSON: name -> {dtype, shape, data_offsets}, padded with spaces
    the rest  the tensors, without holes

The safetensors library checks the file (sizes, overlaps, holes, truncation); we read its header
again only for the offsets, which the library does not expose and a zero-copy mapping needs. We
write every tensor at a multiple of 64 bytes. The format allows no holes, so the gaps are filled
with tensors named `__padding__.*`, which readers skip. Other programs' readers need not, so a
file for them has none: tensors of wide types come first and each is at a multiple of its type.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors

from planish.reference.errors import CheckpointError
from planish.reference.reading import require_file

ALIGNMENT = 64  # bytes: one cache line, one AVX-512 register, and what XLA wants for zero copies
FLUSHED_TOGETHER = 64 * 2**20  # bytes
LARGEST_HEADER = 100_000_000  # the limit of the safetensors library
PADDING = "__padding__."

DTYPES = {  # those that we compute with; the format has more
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "I32": np.dtype(np.int32),  # of other programs: packed codes, zero points, indices
    "U32": np.dtype(np.uint32),
    "I64": np.dtype(np.int64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor is: `size` bytes at `offset` of `file`, whose bytes are `data`.

    The size is that in the header, so that types of less than a byte have one.

    The file is mapped once for all of its tensors: a mapping holds a file descriptor, and a
    process has about a thousand.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    data: np.ndarray = field(repr=False, compare=False)

    def map(self) -> np.ndarray:
        """The tensor as a read-only view of the file; nothing is read until it is used.

        Raises CheckpointError for a type that we do not compute with.
        """
        if self.dtype not in DTYPES:
            expected, what = f"one of {', '.join(DTYPES)}", f"{self.dtype} {list(self.shape)}"
            raise CheckpointError("wrong type", path=self.file, expected=expected, found=what)
        found = self.data[self.offset : self.offset + self.size]
        tensor: np.ndarray = found.view(DTYPES[self.dtype]).reshape(self.shape)
        return tensor


def read_entries(path: Path) -> dict[str, TensorEntry]:
    """Name -> entry of a safetensors file; raises CheckpointError for anything damaged."""
    header, start = _read_header(path)
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except (safetensors.SafetensorError, OSError) as problem:
        raise CheckpointError(f"is damaged: {problem}", path=path) from None
    entries, data = {}, np.memmap(path, np.uint8, "r")
    for name, info in header.items():
        if name != "__metadata__" and not name.startswith(PADDING):
            first, end = info["data_offsets"]
            place = (start + first, end - first, data)
            entries[name] = TensorEntry(path, info["dtype"], tuple(info["shape"]), *place)
    return entries


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header's JSON and the offset of the data; checks what the library reports poorly."""
    text = _header_text(path)
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as problem:
        raise CheckpointError(f"its header is not JSON: {problem}", path=path) from None
    except _DuplicateKeyError as problem:
        raise CheckpointError(
            "is a duplicate key of the header", path=path, name=str(problem)
        ) from None
    return header, 8 + len(text)


def _header_text(path: Path) -> bytes:
    require_file(path, CheckpointError)
    try:
        with path.open("rb") as file:
            head, size = file.read(8), path.stat().st_size
            if (head + file.read(64)).startswith(b"version https://git-lfs"):
                hint = "is a Git-LFS pointer, not the weights; run `git lfs pull`"
                raise CheckpointError(hint, path=path)
            length = int.from_bytes(head, "little")
            if len(head) == 8 and length <= min(size - 8, LARGEST_HEADER):
                file.seek(8)
                return file.read(length)
    except OSError as problem:
        raise CheckpointError(f"cannot be read: {problem.strerror}", path=path) from None
    expected = f"a header within the file's {size} bytes"
    wrong = "is truncated or not a safetensors file"
    raise CheckpointError(wrong, path=path, expected=expected, found=length)


class _DuplicateKeyError(Exception):
    """A key occurs twice in one JSON object."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without duplicate keys; parsers disagree on which of two values counts."""
    seen: dict[str, Any] = {}
    for name, value in pairs:
        if name in seen:
            raise _DuplicateKeyError(name)
        seen[name] = value
    return seen


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], padded: bool = True) -> None:
    """Write tensors in order, each at a 64-byte offset of the file; the caller syncs, renames.

    padded: whether `__padding__.*` may fill the gaps; else there are none.
    """
    if not padded:
        tensors = dict(sorted(tensors.items(), key=lambda one: -one[1].dtype.itemsize))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for index, (name, tensor) in enumerate(tensors.items()):
        header[name], end = _header_entry(tensor.dtype, tensor.shape, end)
        if gap := padded * (-end % ALIGNMENT):
            header[f"{PADDING}{index}"], end = _header_entry(np.dtype(np.uint8), (gap,), end)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        _write_data(file, tensors, padded)


def _write_data(file: BinaryIO, tensors: Mapping[str, np.ndarray], padded: bool) -> None:
    """Write the tensors' bytes; what is written goes to the disk, on a thread, while more is."""
    flushed, flushes = file.tell(), list[Future[None]]()
    with ThreadPoolExecutor(1) as pool:
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).view(np.uint8).data)
            file.write(bytes(padded * (-tensor.nbytes % ALIGNMENT)))
            forget_pages(tensor)
            if file.tell() - flushed >= FLUSHED_TOGETHER:
                flushed = file.tell()
                flushes.append(pool.submit(os.fsync, file.fileno()))
        for flush in flushes:
            flush.result()


def forget_pages(tensor: np.ndarray) -> None:
    """Take a mapped file's pages out of this process's memory; the next access reads them again.

    Without this a process that has read a model once seems to need all of its bytes.
    """
    mapped = getattr(tensor, "_mmap", None)  # of a view, too, as long as it is a memmap
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def forget_entries(entries: Mapping[str, TensorEntry]) -> None:
    """The same for every file that these tensors are in."""
    for data in _files_of(entries):
        forget_pages(data)


def ask_huge_pages(entries: Mapping[str, TensorEntry]) -> None:
    """Have the files that these tensors are in mapped in huge pages, where the system and the file
    system have them: weights in them are read faster (docs/benchmarks.md).

    For a process that needs all of them: one that reads a part of a file gets what is around it,
    too. What was in the page cache before stays in the pages that it is in.
    """
    for data in _files_of(entries):
        mapped = getattr(data, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without them
                mapped.madvise(mmap.MADV_HUGEPAGE)


def _files_of(entries: Mapping[str, TensorEntry]) -> Iterable[np.ndarray]:
    return {id(entry.data): entry.data for entry in entries.values()}.values()


def _header_entry(
    dtype: np.dtype, shape: tuple[int, ...], start: int
) -> tuple[dict[str, object], int]:
    end = start + int(np.prod(shape)) * dtype.itemsize
    entry: dict[str, object] = {
        "dtype": DTYPE_NAMES[dtype],
        "shape": list(shape),
        "data_offsets": [start, end],
    }
    return entry, end
