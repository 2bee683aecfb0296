"""The slopes of linear biases (ALiBi), one for each head, as two families of models draw them.

Press et al. 2022: for H heads, a power of two, slope h = 2 ** (-8 (h + 1) / H).
"""

from __future__ import annotations

import math

import numpy as np

Slopes = tuple[float, ...]


def alibi_slopes(heads: int) -> Slopes:
    """Of other counts: those of the next smaller power of two, then every second of the larger.

    Powers are taken in float32, as transformers' build_alibi_tensor of BLOOM and Falcon does.
    """
    small = 2 ** math.floor(math.log2(heads))
    slopes = _powers(2 ** -(2 ** -(math.log2(small) - 3)), np.arange(1, small + 1))
    base = 2 ** -(2 ** -(math.log2(2 * small) - 3))
    return slopes + _powers(base, np.arange(1, 1 + 2 * (heads - small), 2))


def _powers(base: float, exponents: np.ndarray) -> Slopes:
    return tuple(float(x) for x in np.power(np.float32(base), exponents.astype(np.float32)))


def mpt_slopes(heads: int, bias_max: float) -> Slopes:
    """2 ** (-bias_max (h + 1) / H), H the next larger power of two: its odd ones, then its even.

    As transformers' build_mpt_alibi_tensor.
    """
    large = 2 ** math.ceil(math.log2(heads))
    exponents = np.arange(1, large + 1, dtype=np.float32) * np.float32(bias_max / large)
    slopes = tuple(float(x) for x in np.float32(1) / np.power(np.float32(2), exponents))
    return slopes if large == heads else (slopes[1::2] + slopes[::2])[:heads]
