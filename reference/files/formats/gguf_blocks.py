"""The blocks of GGUF's types: codes, scales and offsets of 32 or 256 weights (ggml-quants.c).

    type   bytes / weights   block                                       weight
    Q4_0   18 / 32           f16 d, 16 bytes: nibbles j and j + 16       (q - 8) * d
    Q4_1   20 / 32           f16 d, f16 m, nibbles                       q * d + m
    Q8_0   34 / 32           f16 d, int8                                 q * d
    Q4_K   144 / 256         f16 d, f16 dmin, 12 bytes sc and mn of 6    (d * sc) * q - (dmin * mn)
                             bits for 8 groups of 32, nibbles
    Q6_K   210 / 256         128 bytes of low nibbles, 64 of high pairs, (d * sc) * (q - 32)
                             int8 sc of 16 groups of 16, f16 d

d * sc and dmin * mn are exact in float32. A group with scale 0 gets scale 1 and the code that means
zero: the weights are the same, and planish has no scale 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planish.reference.grids import SYMMETRIC_ZERO


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Codes [R, K], and scales and offsets [R, G], of R rows."""

    codes: np.ndarray
    scale: np.ndarray
    offset: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class BlockType:
    """bits of planish's codes, group size, and how blocks [R, B, bytes] are decoded."""

    bits: int
    group_size: int
    scale_dtype: str
    decode: Callable[[np.ndarray], Blocks]
    offset: bool = False


def floats(blocks: np.ndarray, start: int) -> np.ndarray:
    """The float16 at byte `start` of each block, [R, B]."""
    return np.ascontiguousarray(blocks[:, :, start : start + 2]).view("<f2")[:, :, 0]


def halves(packed: np.ndarray) -> np.ndarray:
    """Bytes [..., n] -> codes [..., 2 n]: all low nibbles, then all high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def rows_of(values: np.ndarray) -> np.ndarray:
    """[R, B, ...] -> [R, everything]."""
    return values.reshape(len(values), -1)


def without_dead(
    codes: np.ndarray, scale: np.ndarray, zero: int, offset: np.ndarray | None = None
) -> Blocks:
    """The blocks with scale 1 and the code for zero where the scale is 0."""
    dead = scale == 0
    if dead.any():
        grouped = codes.reshape(*scale.shape, -1)
        grouped = np.where(dead[:, :, None], codes.dtype.type(zero), grouped)
        codes, scale = rows_of(grouped), np.where(dead, scale.dtype.type(1), scale)
    return Blocks(codes=codes, scale=scale, offset=offset)


def decode_q4_0(blocks: np.ndarray) -> Blocks:
    return without_dead(rows_of(halves(blocks[:, :, 2:])), floats(blocks, 0), SYMMETRIC_ZERO)


def decode_q4_1(blocks: np.ndarray) -> Blocks:
    offset = floats(blocks, 2).astype(np.float32)
    return without_dead(rows_of(halves(blocks[:, :, 4:])), floats(blocks, 0), 0, offset)


def decode_q8_0(blocks: np.ndarray) -> Blocks:
    codes = np.ascontiguousarray(blocks[:, :, 2:]).view(np.int8)
    return without_dead(rows_of(codes), floats(blocks, 0), 0)


def decode_q4_k(blocks: np.ndarray) -> Blocks:
    packed = blocks[:, :, 4:16]
    low, high, rest = packed[:, :, :4], packed[:, :, 4:8], packed[:, :, 8:]
    scales = np.concatenate([low & 63, rest & 15 | low >> 6 << 4], axis=2)  # [R, B, 8]
    minima = np.concatenate([high & 63, rest >> 4 | high >> 6 << 4], axis=2)
    scale, offset = (
        rows_of(floats(blocks, start).astype(np.float32)[:, :, None] * six)
        for start, six in ((0, scales.astype(np.float32)), (2, minima.astype(np.float32)))
    )
    codes = halves(blocks[:, :, 16:].reshape(*blocks.shape[:2], 4, 32))  # [R, B, 4, 64]
    return without_dead(rows_of(codes), scale, 0, -offset)


def decode_q6_k(blocks: np.ndarray) -> Blocks:
    shape = blocks.shape[:2]
    low = halves(blocks[:, :, :128].reshape(*shape, 2, 64)).reshape(*shape, 2, 4, 32)
    pairs = blocks[:, :, 128:192].reshape(*shape, 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    codes = (low | (pairs >> shifts & 3) << 4).astype(np.int8) - np.int8(32)  # [R, B, 2, 4, 32]
    groups = np.ascontiguousarray(blocks[:, :, 192:208]).view(np.int8).astype(np.float32)
    scale = floats(blocks, 208).astype(np.float32)[:, :, None] * groups
    return without_dead(rows_of(codes), rows_of(scale), 0)


TYPES = {
    "Q4_0": BlockType(bits=4, group_size=32, scale_dtype="float16", decode=decode_q4_0),
    "Q4_1": BlockType(
        bits=4, group_size=32, scale_dtype="float16", decode=decode_q4_1, offset=True
    ),
    "Q8_0": BlockType(bits=8, group_size=32, scale_dtype="float16", decode=decode_q8_0),
    "Q4_K": BlockType(
        bits=4, group_size=32, scale_dtype="float32", decode=decode_q4_k, offset=True
    ),
    "Q6_K": BlockType(bits=8, group_size=16, scale_dtype="float32", decode=decode_q6_k),
}
