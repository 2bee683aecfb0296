"""Random weights that every peer packs in its own way and a test can recompute as floats.

A weight is code * scale, the same scale in all of a tensor: entries of standard deviation
1 / sqrt(inputs), so that activations keep their size and nothing overflows. Integer codes are
the common ground of the peers' formats, 8 bits as -127..127 and 4 bits as 0..15 around 8.

Random bytes are slow to make and speed does not depend on them, so a layer's codes are those of
layer 0 with the rows rotated. Each tensor still has bytes of its own: an engine that reads seven
billion weights reads them from memory and not from a cache.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from planish.compare.bench.sizes import Shape

ZERO4 = 8  # of the unsigned 4-bit codes
EPS = 1e-5  # of every RMSNorm; their weights are ones
THETA = 10000.0  # of the rotary positions
STD8 = math.sqrt(np.mean(np.arange(-127.0, 128) ** 2))
STD4 = math.sqrt(np.mean((np.arange(16.0) - ZERO4) ** 2))

Pack = Callable[[np.ndarray], np.ndarray]


def part_sizes(shape: Shape) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of the linears of one layer."""
    hidden, ffn, kv = shape.hidden, shape.ffn, shape.kv_heads * shape.head_dim
    return {
        "q": (hidden, hidden),
        "k": (kv, hidden),
        "v": (kv, hidden),
        "o": (hidden, hidden),
        "gate": (ffn, hidden),
        "up": (ffn, hidden),
        "down": (hidden, ffn),
    }


def linears(shape: Shape, bits: int, pack: Pack) -> Iterator[tuple[str, int, np.ndarray]]:
    """(part, layer, packed rows) of every linear and, as layer 0, of the head.

    `pack` turns codes [outputs, inputs] into whatever a peer stores, outputs first.
    """
    for part, size in part_sizes(shape).items():
        packed = pack(codes(part, size, bits))
        for layer in range(shape.layers):
            yield part, layer, np.roll(packed, layer, axis=0)
    yield "head", 0, pack(codes("head", (shape.vocab, shape.hidden), bits))


def codes(part: str, size: tuple[int, int], bits: int) -> np.ndarray:
    """Codes of layer 0: int8 in -127..127, or uint8 in 0..15."""
    rng = np.random.Generator(np.random.SFC64(zlib.crc32(part.encode())))
    if bits == 4:
        return rng.integers(0, 16, size, np.uint8)
    return np.maximum(rng.integers(-128, 128, size, np.int8), -127)


def scale(inputs: int, bits: int) -> np.float16:
    """Of every weight with that many inputs; float16, which all formats can store."""
    return np.float16(1 / (math.sqrt(inputs) * (STD4 if bits == 4 else STD8)))


def floats(codes: np.ndarray, bits: int) -> np.ndarray:
    """The weights [outputs, inputs] that the codes stand for, float32."""
    zero = ZERO4 if bits == 4 else 0
    return (codes.astype(np.float32) - zero) * np.float32(scale(codes.shape[1], bits))


def embedding(shape: Shape) -> np.ndarray:
    """Rows of the tokens [vocab, hidden], float16, every value exact in bfloat16 too."""
    return codes("embed", (shape.vocab, shape.hidden), 8).astype(np.float16) / np.float16(64)


def linear_bytes(shape: Shape, bits_per_weight: float) -> int:
    """Bytes of weights that one token reads: all linears and the head, but not the embedding."""
    weights = shape.layers * shape.weights_per_layer + shape.vocab * shape.hidden
    return round(weights * bits_per_weight / 8)
