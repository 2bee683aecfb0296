"""The slopes of linear biases (ALiBi), one for each head, in the order of two families of models.

Press et al. 2022, arXiv 2108.12409: slope h = 2 ** (-8 (h + 1) / H) for H heads, a power of two.
"""

from __future__ import annotations

import math

import numpy as np

Slopes = tuple[float, ...]


def alibi_slopes(heads: int) -> Slopes:
    """The slopes of BLOOM and Falcon.

    If the number of heads is not a power of two: the slopes of the next smaller power, then every
    second slope of the next larger one. Powers are computed in float32, as in transformers'
    build_alibi_tensor.
    """
    small = 2 ** math.floor(math.log2(heads))
    slopes = _powers(2 ** -(2 ** -(math.log2(small) - 3)), np.arange(1, small + 1))
    base = 2 ** -(2 ** -(math.log2(2 * small) - 3))
    return slopes + _powers(base, np.arange(1, 1 + 2 * (heads - small), 2))


def _powers(base: float, exponents: np.ndarray) -> Slopes:
    return tuple(float(x) for x in np.power(np.float32(base), exponents.astype(np.float32)))


def mpt_slopes(heads: int, bias_max: float) -> Slopes:
    """The slopes of MPT: 2 ** (-bias_max (h + 1) / H), H the next larger power of two.

    If the number of heads is not H, every second slope comes first, then the others, as in
    transformers' build_mpt_alibi_tensor.
    """
    large = 2 ** math.ceil(math.log2(heads))
    exponents = np.arange(1, large + 1, dtype=np.float32) * np.float32(bias_max / large)
    slopes = tuple(float(x) for x in np.float32(1) / np.power(np.float32(2), exponents))
    return slopes if large == heads else (slopes[1::2] + slopes[::2])[:heads]
