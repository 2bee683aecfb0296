"""Read one GGUF file: its keys, and where its tensors are (llama.cpp, gguf-py).

    "GGUF"  uint32 version  uint64 tensors  uint64 keys
    key     string, uint32 type, value        string = uint64 length, bytes; array = type, count
    tensor  string, uint32 axes, uint64 sizes, fastest first, uint32 type, uint64 offset
    data    at the next multiple of general.alignment; the offsets are relative to it

A split file is several, NAME-00001-of-00003.gguf and so on; the first has the model's keys.

Versions 2 and 3, little endian. Every count and length is checked against the bytes that are left
before anything of its size is made. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from planish.reference.errors import CheckpointError
from planish.reference.reading import require_file

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"}
SCALARS |= {10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
LARGEST_HEADER = 100_000_000  # bytes, as in safetensors
MOST_AXES = 4
PART_NAME = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf")
MOST_PARTS = 1000
KNOWN = {  # type -> name, numbers in a block, bytes of a block
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
OTHERS = {6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 15: "Q8_K"}
OTHERS |= {16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S"}
OTHERS |= {22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"}


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """One tensor: shape with the slowest axis first, and its bytes, a view of the file."""

    type: str
    shape: tuple[int, ...]
    data: np.ndarray = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    path: Path
    keys: dict[str, Any]
    tensors: dict[str, GgufTensor]


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that a path names, or the only one in a directory without safetensors."""
    if path.suffix == ".gguf" and not path.is_dir():
        return path
    if not path.is_dir() or any(path.glob("*.safetensors*")):
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1 and files != split_parts(files[0])[: len(files)]:
        expected, found = "one GGUF file, or the parts of one", files[1].name
        raise CheckpointError("has several", path=path, expected=expected, found=found)
    return files[0] if files else None


def split_parts(path: Path) -> list[Path]:
    """All parts of a split file, as the name of one says; [path] for any other name."""
    found = PART_NAME.fullmatch(path.name)
    if found is None or not 1 < int(found[3]) <= MOST_PARTS:
        return [path]
    count = int(found[3])
    names = [f"{found[1]}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
    return [path.with_name(name) for name in names]


class _Bytes:
    """The bytes of a file from the beginning, with a check before each step."""

    def __init__(self, path: Path, data: np.ndarray):
        self.path, self.data, self.at = path, data, 0
        self.end = min(len(data), LARGEST_HEADER)

    def take(self, size: int, what: str) -> bytes:
        if size > self.end - self.at:
            expected = f"{what} within the {self.end} bytes of a header"
            raise CheckpointError(
                "is truncated or damaged", path=self.path, expected=expected, found=size
            )
        found = self.data[self.at : self.at + size].tobytes()
        self.at += size
        return found

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form), "a number"))[0]

    def string(self) -> str:
        text = self.take(self.number("<Q"), "a string")
        return text.decode("utf-8", errors="replace")

    def count(self, smallest: int, what: str) -> int:
        """A number of things that take at least `smallest` bytes each."""
        found = int(self.number("<Q"))
        if found * smallest > self.end - self.at:
            raise CheckpointError(
                "is truncated or damaged",
                path=self.path,
                expected=f"{what} within the {self.end} bytes of a header",
                found=found,
            )
        return found


def read_gguf(path: Path) -> GgufFile:
    """Keys and tensors of a file and its other parts; CheckpointError for damage, or a part that is
    missing or another's.

    A file that somebody still has is not parsed again, unless it was written since: a model is
    opened for its config, its tokenizer and its template.
    """
    state = _state(path)
    found = None if state is None else _OPEN.get(state)
    if found is None:
        found = _read_parts(path)
        if state is not None:
            _OPEN[state] = found
    return found


_OPEN: WeakValueDictionary[tuple[object, ...], GgufFile] = WeakValueDictionary()


def _state(path: Path) -> tuple[object, ...] | None:
    """What changes if a file or one of its parts is written; None if one cannot be found."""
    try:
        facts = [part.stat() for part in split_parts(path)]
    except OSError:
        return None
    seen = ((one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns) for one in facts)
    return (path, *seen)


def _read_parts(path: Path) -> GgufFile:
    first = _read_part(path)
    paths = split_parts(path)
    count = first.keys.get("split.count", 1)
    if count in (0, 1):
        return first
    if path != paths[0] or count != len(paths):
        expected = f"the first of {count} parts, NAME-00001-of-{count:05d}.gguf"
        raise CheckpointError("is a part", path=path, expected=expected, found=path.name)
    tensors = dict(first.tensors)
    for number, part in enumerate(paths[1:], 1):
        other = _read_part(part)
        if (other.keys.get("split.no"), other.keys.get("split.count")) != (number, count):
            expected, found = f"part {number} of {count}", other.keys.get("split.no")
            raise CheckpointError(
                "bad value", path=part, name="split.no", expected=expected, found=found
            )
        if twice := other.tensors.keys() & tensors.keys():
            raise CheckpointError("is given twice", path=part, name=min(twice))
        tensors |= other.tensors
    return GgufFile(path=path, keys=first.keys, tensors=tensors)


def _read_part(path: Path) -> GgufFile:
    """One file as it is."""
    require_file(path, CheckpointError)
    try:
        data = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"cannot be read: {problem}", path=path) from None
    header = _Bytes(path, data)
    if header.take(4, "the letters GGUF") != b"GGUF":
        raise CheckpointError("is not a GGUF file", path=path)
    version = header.number("<I")
    if version not in (2, 3):
        expected = "version 2 or 3, little endian"
        raise CheckpointError("cannot be read", path=path, expected=expected, found=version)
    tensors, keys = header.count(24, "tensors"), header.count(13, "keys")
    values = _read_keys(header, keys)
    infos = [_read_info(header) for _ in range(tensors)]
    alignment = values.get("general.alignment", 32)
    if type(alignment) is not int or alignment not in [2**power for power in range(17)]:
        name, expected = "general.alignment", "a power of two up to 65536"
        raise CheckpointError(
            "bad value", path=path, name=name, expected=expected, found=repr(alignment)
        )
    start = -(-header.at // alignment) * alignment
    return GgufFile(path=path, keys=values, tensors=_place(path, data[start:], infos, alignment))


def _read_keys(header: _Bytes, count: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for _ in range(count):
        name = header.string()
        if name in values:
            raise CheckpointError("is a duplicate key", path=header.path, name=name)
        values[name] = _read_value(header, name, header.number("<I"))
    return values


def _read_value(header: _Bytes, name: str, kind: int) -> Any:
    if kind == STRING:
        return header.string()
    if kind in SCALARS:
        return header.number(SCALARS[kind])
    if kind == ARRAY:
        return _read_array(header, name)
    raise CheckpointError("has an unknown type", path=header.path, name=name, found=kind)


def _read_array(header: _Bytes, name: str) -> list[Any]:
    kind = header.number("<I")
    if kind == STRING:
        return [header.string() for _ in range(header.count(8, "strings"))]
    if kind not in SCALARS:
        raise CheckpointError("has an unknown type", path=header.path, name=name, found=kind)
    size = struct.calcsize(SCALARS[kind])
    count = header.count(size, "numbers")
    raw = header.take(count * size, "numbers")
    found: list[Any] = np.frombuffer(raw, SCALARS[kind].replace("<?", "?")).tolist()
    return found


Info = tuple[str, tuple[int, ...], int, int]  # name, shape, type, offset


def _read_info(header: _Bytes) -> Info:
    name = header.string()
    axes = header.number("<I")
    if not 1 <= axes <= MOST_AXES:
        expected = f"1..{MOST_AXES} axes"
        raise CheckpointError(
            "wrong shape", path=header.path, name=name, expected=expected, found=axes
        )
    sizes = tuple(header.number("<Q") for _ in range(axes))
    return name, sizes[::-1], header.number("<I"), header.number("<Q")


def _place(
    path: Path, data: np.ndarray, infos: list[Info], alignment: int
) -> dict[str, GgufTensor]:
    """The tensors by name; none may overlap another or leave the file."""
    tensors: dict[str, GgufTensor] = {}
    end, last = 0, ""
    for name, shape, kind, offset in sorted(infos, key=lambda info: info[3]):
        if name in tensors:
            raise CheckpointError("is given twice", path=path, name=name)
        if kind not in KNOWN:
            found = OTHERS.get(kind, f"type {kind}")
            expected = (
                f"{', '.join(name for name, *_ in KNOWN.values())}; requantize the float model"
            )
            raise CheckpointError(
                "cannot be read", path=path, name=name, expected=expected, found=found
            )
        type_name, block, size = KNOWN[kind]
        bytes_ = math.prod(shape) // block * size
        if shape[-1] % block or 0 in shape:
            expected = f"rows of a multiple of {block}, for {type_name}"
            raise CheckpointError(
                "wrong shape", path=path, name=name, expected=expected, found=list(shape)
            )
        if offset % alignment or offset < end or offset + bytes_ > len(data):
            expected = f"{bytes_} bytes in the file, after {last or 'the header'}, aligned"
            raise CheckpointError(
                "is out of place", path=path, name=name, expected=expected, found=offset
            )
        view = data[offset : offset + bytes_]
        tensors[name] = GgufTensor(type=type_name, shape=shape, data=view)
        end, last = offset + bytes_, name
    return tensors
