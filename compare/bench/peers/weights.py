"""Random weights that each peer packs in its format, and that a test can recompute as floats.

A weight is code * scale, with one scale for a whole tensor: entries have a standard deviation of
1 / sqrt(inputs), so that activations keep their magnitude and nothing overflows. All the peers'
formats can represent these integer codes: 8 bits as -127..127, 4 bits as 0..15 around 8.

Random bytes are slow to make and speed does not depend on them, so each layer has the codes of
layer 0 with its rows rolled. Every tensor still has separate bytes: an engine that reads seven
billion weights reads them from memory and not from a cache.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from planish.compare.bench.sizes import ModelSize

ZERO4 = 8  # zero point of the unsigned 4-bit codes
EPS = 1e-5  # of every RMSNorm; their weights are ones
THETA = 10000.0  # of the rotary embedding
STD8 = math.sqrt(np.mean(np.arange(-127.0, 128) ** 2))
STD4 = math.sqrt(np.mean((np.arange(16.0) - ZERO4) ** 2))

Pack = Callable[[np.ndarray], np.ndarray]


def list_linear_sizes(sizes: ModelSize) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of the linears of one layer."""
    hidden, ffn, kv = sizes.hidden, sizes.ffn, sizes.kv_heads * sizes.head_dim
    return {
        "q": (hidden, hidden),
        "k": (kv, hidden),
        "v": (kv, hidden),
        "o": (hidden, hidden),
        "gate": (ffn, hidden),
        "up": (ffn, hidden),
        "down": (hidden, ffn),
    }


def make_linears(sizes: ModelSize, bits: int, pack: Pack) -> Iterator[tuple[str, int, np.ndarray]]:
    """(name, layer, packed rows) of every linear and, as layer 0, of the head.

    `pack` converts codes [outputs, inputs] to what a peer stores, with outputs as the first axis.
    """
    for part, size in list_linear_sizes(sizes).items():
        packed = pack(draw_codes(part, size, bits))
        for layer in range(sizes.layers):
            yield part, layer, np.roll(packed, layer, axis=0)
    yield "head", 0, pack(draw_codes("head", (sizes.vocab, sizes.hidden), bits))


def draw_codes(part: str, size: tuple[int, int], bits: int) -> np.ndarray:
    """Codes of layer 0: int8 in -127..127, or uint8 in 0..15."""
    rng = np.random.Generator(np.random.SFC64(zlib.crc32(part.encode())))
    if bits == 4:
        return rng.integers(0, 16, size, np.uint8)
    codes: np.ndarray = np.maximum(rng.integers(-128, 128, size, np.int8), -127)
    return codes


def scale(inputs: int, bits: int) -> np.float16:
    """The scale of every weight with that many inputs; float16, which all formats can store."""
    return np.float16(1 / (math.sqrt(inputs) * (STD4 if bits == 4 else STD8)))


def dequantize(codes: np.ndarray, bits: int) -> np.ndarray:
    """The weights [outputs, inputs] of these codes, float32."""
    zero = ZERO4 if bits == 4 else 0
    w: np.ndarray = (codes.astype(np.float32) - zero) * np.float32(scale(codes.shape[1], bits))
    return w


def make_embedding(sizes: ModelSize) -> np.ndarray:
    """The embedding [vocab, hidden], float16; every value is exact in bfloat16 too."""
    return draw_codes("embed", (sizes.vocab, sizes.hidden), 8).astype(np.float16) / np.float16(64)


def count_linear_bytes(sizes: ModelSize, bits_per_weight: float) -> int:
    """Bytes of weights that one token reads: all linears and the head, but not the embedding."""
    weights = sizes.layers * sizes.weights_per_layer + sizes.vocab * sizes.hidden
    return round(weights * bits_per_weight / 8)
