"""Codes, scales and offsets as the blocks of GGUF: the inverse of formats/gguf_blocks.py.

    Q4_0  18 bytes of 32 weights   f16 d, 16 bytes: nibbles j and j + 16         (q - 8) * d
    Q4_1  20                       f16 d, f16 m, nibbles                         q * d + m
    Q8_0  34                       f16 d, int8                                   q * d

A group that means the same under any scale has scale 1 in planish and d = 0 in a file of llama.cpp,
-0 in Q4_0, where it is max / -8.
"""

from __future__ import annotations

import numpy as np

from planish.reference.grids import SYMMETRIC_ZERO

BLOCK = 32  # weights


def encode_q4_0(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Codes 0..15 [N, K] and scales float16 [N, K / 32] as blocks, uint8 [N, K / 32 * 18]."""
    blocks = _blocks(codes)
    d = _with_dead(blocks, scale, SYMMETRIC_ZERO, np.float16(-0.0))
    return _rows(_bytes(d), _nibbles(blocks))


def encode_q4_1(codes: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Codes 0..15, scales and minima float16 as uint8 [N, K / 32 * 20]."""
    blocks = _blocks(codes)
    d = _with_dead(blocks, scale, 0, np.float16(0))
    return _rows(_bytes(d), _bytes(offset), _nibbles(blocks))


def encode_q8_0(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Codes -128..127, int8, and scales float16 as uint8 [N, K / 32 * 34]."""
    blocks = _blocks(codes)
    return _rows(_bytes(_with_dead(blocks, scale, 0, np.float16(0))), blocks.view(np.uint8))


def _blocks(codes: np.ndarray) -> np.ndarray:
    """[N, K] -> [N, K / 32, 32]."""
    return np.ascontiguousarray(codes).reshape(len(codes), -1, BLOCK)


def _with_dead(blocks: np.ndarray, scale: np.ndarray, zero: int, dead: np.float16) -> np.ndarray:
    """The scales, and `dead` for those of 1 where every code is `zero`."""
    unused = (scale == 1) & (blocks == zero).all(axis=2)
    return np.where(unused, dead, scale)


def _nibbles(blocks: np.ndarray) -> np.ndarray:
    """[N, B, 32] -> [N, B, 16]: the first half of a block in the low nibbles."""
    packed: np.ndarray = blocks[:, :, :16] | blocks[:, :, 16:] << 4
    return packed


def _bytes(halves: np.ndarray) -> np.ndarray:
    """float16 [N, B] -> uint8 [N, B, 2]."""
    return np.ascontiguousarray(halves, "<f2").view(np.uint8).reshape(*halves.shape, 2)


def _rows(*parts: np.ndarray) -> np.ndarray:
    """The parts of each block one after the other, uint8 [N, bytes]."""
    joined = np.concatenate(parts, axis=2)
    return joined.reshape(len(joined), -1)
