"""Where 4-bit codes lie in memory: the canonical packing, and every permutation of it.

Canonical: uint8 [N, ceil(K / 2)], the low nibble holds the even input:

    byte j of a row  =  codes[2j]  |  codes[2j + 1] << 4        (odd K: the last high nibble is 0)
"""

from __future__ import annotations

import numpy as np


def pack_nibbles(codes: np.ndarray) -> np.ndarray:
    """Codes 0..15, uint8 [N, K] -> bytes uint8 [N, ceil(K / 2)]. Inverse: unpack_nibbles."""
    even = codes[:, 0::2]
    odd = np.zeros_like(even)
    odd[:, : codes.shape[1] // 2] = codes[:, 1::2]
    return even | odd << 4


def unpack_nibbles(packed: np.ndarray, in_features: int) -> np.ndarray:
    """Bytes uint8 [N, ceil(K / 2)] -> codes 0..15, uint8 [N, K]. Inverse: pack_nibbles."""
    pairs = np.stack([packed & 15, packed >> 4], axis=2)  # [N, ceil(K / 2), 2]
    return pairs.reshape(packed.shape[0], -1)[:, :in_features]
