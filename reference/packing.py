"""The order of codes in memory: the canonical packing, and the tiles of the native kernels.

Canonical INT4: uint8 [N, ceil(K / 2)]; the low nibble holds the even input:

    byte j of a row  =  codes[2j]  |  codes[2j + 1] << 4        (odd K: the last high nibble is 0)

Canonical INT8: int8 [N, K], one code per byte.

Tiles: the order in which the native kernels read. 16 outputs by 4 inputs of INT8, or 16 outputs
by 8 inputs of INT4, are 64 bytes: one cache line, one AVX-512 register. Each 32-bit lane belongs
to one output, as instructions that multiply four bytes at once require (x86 `vpdpbusd`, Arm
`sdot`). Tiles of the same 16 outputs follow each other along K:

    INT8  int8  [ceil(N/16), ceil(K/4), 16, 4]   byte [t, b, n, i] = codes[16t + n, 4b + i]
    INT4  uint8 [ceil(N/16), ceil(K/8), 16, 4]   byte [t, b, n, i] = codes[16t + n, 8b + i]
                                                                   | codes[16t + n, 8b + 4 + i] << 4
    scales, zero points, offsets  [ceil(N/16), G, 16]     [t, g, n] = values[16t + n, g]

Tiles are padded with zeros beyond N and K. A group of inputs is a multiple of 32, of INT8 of 16 (or
the whole row), so no tile holds two groups.
"""

from __future__ import annotations

import numpy as np

TILE_OUTPUTS = 16
TILE_INPUTS = {8: 4, 4: 8}  # by the bits of a code
TILES_TOGETHER = 4  # so many rows stay in a core's cache while they are shuffled


def pack_nibbles(codes: np.ndarray) -> np.ndarray:
    """Codes 0..15, uint8 [N, K] -> bytes uint8 [N, ceil(K / 2)]. Inverse: unpack_nibbles."""
    odd = codes.shape[1] % 2
    whole = np.pad(codes, ((0, 0), (0, 1))) if odd else np.ascontiguousarray(codes)
    pairs = whole.view("<u2")  # even | odd << 8
    packed: np.ndarray = (pairs | pairs >> 4).astype(np.uint8)
    return packed


def unpack_nibbles(packed: np.ndarray, in_features: int) -> np.ndarray:
    """Bytes uint8 [N, ceil(K / 2)] -> codes 0..15, uint8 [N, K]. Inverse: pack_nibbles."""
    pairs = np.stack([packed & 15, packed >> 4], axis=2)  # [N, ceil(K / 2), 2]
    return pairs.reshape(packed.shape[0], -1)[:, :in_features]


def tile_shape(out_features: int, in_features: int, bits: int) -> tuple[int, int, int, int]:
    """The shape of a weight's codes in tiles: [ceil(N/16), ceil(K/4 or K/8), 16, 4]."""
    return (-(-out_features // TILE_OUTPUTS), -(-in_features // TILE_INPUTS[bits]), TILE_OUTPUTS, 4)


def tile_int8(codes: np.ndarray) -> np.ndarray:
    """INT8 codes [N, K] -> tiles [ceil(N/16), ceil(K/4), 16, 4]. Inverse: untile_int8."""
    tiles, blocks, rows, inputs = tile_shape(codes.shape[0], codes.shape[1], 8)
    padded = np.zeros((tiles * rows, blocks * inputs), codes.dtype)
    padded[: codes.shape[0], : codes.shape[1]] = codes
    split = padded.reshape(tiles, rows, blocks, inputs)
    return np.ascontiguousarray(split.transpose(0, 2, 1, 3))


def untile_int8(tiled: np.ndarray, out_features: int, in_features: int) -> np.ndarray:
    """Tiles [ceil(N/16), ceil(K/4), 16, 4] -> codes [N, K]. Inverse: tile_int8."""
    tiles, blocks, rows, inputs = tiled.shape
    codes = tiled.transpose(0, 2, 1, 3).reshape(tiles * rows, blocks * inputs)
    return np.ascontiguousarray(codes[:out_features, :in_features])


def tile_int4(packed: np.ndarray, in_features: int) -> np.ndarray:
    """Canonical bytes [N, ceil(K/2)] -> tiles uint8 [ceil(N/16), ceil(K/8), 16, 4].

    Inverse: untile_int4.
    """
    shape = tiles, blocks, rows, half = tile_shape(packed.shape[0], in_features, 4)
    missing = tiles * rows - packed.shape[0], half * blocks - packed.shape[1]
    padded = np.pad(packed, [(0, size) for size in missing]) if any(missing) else packed
    if in_features % 2:  # what a last, unused nibble holds means nothing
        padded = padded.copy()
        padded[:, in_features // 2] &= 15
    words = np.ascontiguousarray(padded).view("<u4").reshape(tiles, rows, blocks)  # 8 inputs each
    tiled = np.empty((tiles, blocks, rows), "<u4")
    for some in range(0, tiles, TILES_TOGETHER):
        together = slice(some, some + TILES_TOGETHER)
        tiled[together] = pair_fours(words[together]).transpose(0, 2, 1)
    return tiled.view(np.uint8).reshape(shape)


def pair_fours(words: np.ndarray) -> np.ndarray:
    """The nibbles of uint32 words from the order 0 1 2 3 4 5 6 7, lowest first, to 0 4 1 5 2 6 3 7.

    Two swaps of neighbours, of 8 bits and of 4. Source: Hacker's Delight, section 7-2 (shuffling).
    """
    for mask, shift in ((0x0000FF00, 8), (0x00F000F0, 4)):
        swapped = (words ^ words >> shift) & np.uint32(mask)
        words = words ^ swapped ^ swapped << shift
    return words


def untile_int4(tiled: np.ndarray, out_features: int, in_features: int) -> np.ndarray:
    """Tiles uint8 [ceil(N/16), ceil(K/8), 16, 4] -> canonical bytes [N, ceil(K/2)].

    Inverse: tile_int4.
    """
    tiles, blocks, rows, half = tiled.shape
    split = np.stack([tiled & 15, tiled >> 4], axis=3)  # [tiles, blocks, 16, 2, 4]
    codes = split.transpose(0, 2, 1, 3, 4).reshape(tiles * rows, blocks * 2 * half)
    return pack_nibbles(codes[:out_features, :in_features])


def tile_groups(values: np.ndarray) -> np.ndarray:
    """Scales, zero points or offsets [N, G] -> [ceil(N/16), G, 16]. Inverse: untile_groups."""
    rows, groups = values.shape
    tiles = -(-rows // TILE_OUTPUTS)
    padded = np.zeros((tiles * TILE_OUTPUTS, groups), values.dtype)
    padded[:rows] = values
    return np.ascontiguousarray(padded.reshape(tiles, TILE_OUTPUTS, groups).transpose(0, 2, 1))


def untile_groups(tiled: np.ndarray, out_features: int) -> np.ndarray:
    """Scales, zero points or offsets [ceil(N/16), G, 16] -> [N, G]. Inverse: tile_groups."""
    tiles, groups, rows = tiled.shape
    values = tiled.transpose(0, 2, 1).reshape(tiles * rows, groups)
    return np.ascontiguousarray(values[:out_features])
