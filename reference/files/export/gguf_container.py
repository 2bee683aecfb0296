"""Write one GGUF file, version 3: its keys, then its tensors, one in memory at a time.

The layout is that of reference/gguf.py, which reads it. A key's type follows from its value: bool,
uint32, float32, string, and arrays of int32, float32 or strings, as llama.cpp's converter chooses.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from planish.reference.gguf import ARRAY, KNOWN, STRING

VERSION, ALIGNMENT = 3, 32
UINT32, INT32, FLOAT32, BOOL = 4, 5, 6, 7
IDS = {name: number for number, (name, *_) in KNOWN.items()}
BLOCKS = {name: (block, size) for name, block, size in KNOWN.values()}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One tensor to write. shape: slowest axis first. read: its bytes, in any dtype and shape."""

    type: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        block, size = BLOCKS[self.type]
        return math.prod(self.shape) // block * size


def write_container(file: BinaryIO, keys: Mapping[str, Any], parts: Mapping[str, Part]) -> None:
    """Write keys and tensors in the order given; each tensor is read when its turn comes.

    Raises ValueError if a tensor has other bytes than its type and shape say.
    """
    header = _header(keys, parts)
    file.write(header + bytes(-len(header) % ALIGNMENT))
    for name, part in parts.items():
        data = np.ascontiguousarray(part.read())
        if data.nbytes != part.bytes:
            raise ValueError(f"{name}: {data.nbytes} bytes for {part.type} {list(part.shape)}")
        file.write(data.reshape(-1).view(np.uint8).data)
        file.write(bytes(-data.nbytes % ALIGNMENT))


def _header(keys: Mapping[str, Any], parts: Mapping[str, Part]) -> bytes:
    pieces = [b"GGUF", struct.pack("<IQQ", VERSION, len(parts), len(keys))]
    pieces += [_string(name) + _value(value) for name, value in keys.items()]
    offset = 0
    for name, part in parts.items():
        sizes = struct.pack(f"<I{len(part.shape)}Q", len(part.shape), *part.shape[::-1])
        pieces.append(_string(name) + sizes + struct.pack("<IQ", IDS[part.type], offset))
        offset += -(-part.bytes // ALIGNMENT) * ALIGNMENT
    return b"".join(pieces)


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", errors="replace")
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    """A key's type and value."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, list):
        return struct.pack("<I", ARRAY) + _array(value)
    kinds = {bool: (BOOL, "<?"), int: (UINT32, "<I"), float: (FLOAT32, "<f")}
    kind, form = kinds[type(value)]
    return struct.pack("<I", kind) + struct.pack(form, value)


def _array(values: list[Any]) -> bytes:
    """An array's type, count and elements, which all have the type of the first."""
    first = values[0] if values else ""
    if isinstance(first, str):
        return struct.pack("<IQ", STRING, len(values)) + b"".join(map(_string, values))
    kind, dtype = (FLOAT32, "<f4") if isinstance(first, float) else (INT32, "<i4")
    return struct.pack("<IQ", kind, len(values)) + np.array(values, dtype).tobytes()
