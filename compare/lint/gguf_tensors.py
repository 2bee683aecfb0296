"""Quantized tensors of a GGUF file, each of its own type, in the order of the file's rows."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from planish.compare.lint.linear import Readable, StoredLinear
from planish.compare.lint.opened import Opened
from planish.reference.files.formats.gguf import plain_name
from planish.reference.files.formats.gguf_blocks import TYPES, floats
from planish.reference.gguf import KNOWN, GgufTensor
from planish.reference.grids import SYMMETRIC_ZERO

BLOCKS = {name: block for name, block, _ in KNOWN.values()}
SCALE_AT = {"Q6_K": 208}  # the byte of a block at which its float16 scale begins, else 0
GRIDS = {"Q4_0": (4, 0, 15, SYMMETRIC_ZERO), "Q8_0": (8, -128, 127, 0), "Q6_K": (6, -32, 31, 0)}


def read_tensors(opened: Opened) -> Iterator[Readable]:
    """Every quantized tensor, under planish's name of it."""
    assert opened.gguf is not None
    architecture = opened.gguf.keys.get("general.architecture")
    for name, tensor in opened.gguf.tensors.items():
        if tensor.type in TYPES:
            yield read_tensor(plain_name(name, architecture).removesuffix(".weight"), tensor)


def read_tensor(prefix: str, tensor: GgufTensor) -> StoredLinear:
    """One tensor [..., K] as a matrix; a block's float16 are its scale and, in Q4_K, of minima."""
    how, cols = TYPES[tensor.type], tensor.shape[-1]
    rows = math.prod(tensor.shape[:-1])
    bits, low, high, zero = GRIDS.get(tensor.type, (4, 0, 15, 0))

    def blocks() -> np.ndarray:
        return tensor.data.reshape(rows, cols // BLOCKS[tensor.type], -1)

    def scale() -> np.ndarray:
        """As planish runs it; a block with the scale 0 has 1 and codes of zero."""
        return how.decode(blocks()).scale

    def offset() -> np.ndarray:
        found = how.decode(blocks()).offset
        assert found is not None
        return found

    return StoredLinear(
        prefix=prefix,
        format=tensor.type,
        bits=bits,
        shape=(rows, cols),
        group_size=how.group_size,
        low=low,
        high=high,
        codes=lambda: how.decode(blocks()).codes,
        scale=scale,
        file_scale=lambda: floats(blocks(), SCALE_AT.get(tensor.type, 0)),
        scale_type="F16",
        zero=zero,
        offset=offset if how.offset else None,
    )
