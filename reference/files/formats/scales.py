"""Check the scales of quantized linears, which come from untrusted files."""

from __future__ import annotations

import numpy as np

from planish.reference.files.entries import Directory, bad_value


def require_positive(directory: Directory, name: str, scale: np.ndarray) -> None:
    """Raise CheckpointError unless every scale is finite and positive."""
    good = np.isfinite(scale) & (scale > 0)
    if not good.all():
        raise bad_value(directory, name, "positive finite scales", scale[~good][0])


def require_usable(directory: Directory, name: str, scale: np.ndarray) -> None:
    """Raise CheckpointError unless every scale is finite and not 0."""
    unusable = unusable_scales(scale)
    if unusable.any():
        raise bad_value(directory, name, "finite scales other than 0", scale[unusable][0])


def unusable_scales(scale: np.ndarray) -> np.ndarray:
    """Which scales are 0, Inf or NaN, by their bits: NumPy's isfinite of float16 is slow.

    The bits of |x| as an unsigned integer are 0 for 0, grow with |x|, and are at least those of Inf
    for Inf and NaN. Subtracting 1 wraps 0 around to the largest integer.
    """
    word = np.dtype(f"u{scale.dtype.itemsize}")
    infinity, sign = np.array([np.inf, -0.0], scale.dtype).view(word)
    one = word.type(1)
    unusable: np.ndarray = (scale.view(word) & ~sign) - one >= infinity - one
    return unusable
