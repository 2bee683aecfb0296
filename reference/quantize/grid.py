"""The grid of one weight under its scheme: parameters, codes and values, for every method.

    scale, zero = grid_parameters(w, scheme, rule)      from the range of the weights
    codes = grid_codes(w, scale, zero, scheme)          round to nearest
    w_hat = grid_values(codes, scale, zero, scheme)     what the codes stand for

N outputs, K inputs, G groups of inputs that share a scale.
"""

from __future__ import annotations

import numpy as np

from planish.reference.grids import (
    expand_groups,
    int4_codes,
    int4_parameters,
    int8_codes,
    int8_scale,
    require_finite,
)
from planish.reference.scheme import Scheme


def grid_parameters(
    w: np.ndarray, scheme: Scheme, rule: str = "signed", name: str = "w"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scale and zero point of w [N, K] under a scheme.

    INT8: float32 [N, 1] or [1, 1], and None. INT4: [N, G] in the scheme's type, and uint8 [N, G]
    (grids.int4_parameters); rule is for symmetric schemes. Raises QuantizationError naming the
    tensor.
    """
    if scheme.bits == 4:
        rule, dtype = rule if scheme.symmetric else "minmax", np.dtype(scheme.scale_dtype)
        return int4_parameters(w, scheme.group_size, rule, dtype, name)
    require_finite(w, name)
    axis = (0, 1) if scheme.granularity == "per_tensor" else (1,)
    return int8_scale(np.abs(w).max(axis=axis, keepdims=True)), None


def grid_codes(
    w: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, scheme: Scheme
) -> np.ndarray:
    """The nearest codes of w [N, K]: int8, or uint8 0..15."""
    if zero is None:
        return int8_codes(w, scale)
    return int4_codes(w, scale, zero, scheme.group_size)


def grid_values(
    codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, scheme: Scheme
) -> np.ndarray:
    """What codes [N, K] stand for: (q - z) * scale, float32 [N, K]."""
    if zero is None:
        values: np.ndarray = codes.astype(np.float32) * scale
        return values
    cols, size = codes.shape[1], scheme.group_size
    wide = expand_groups(scale.astype(np.float32), cols, size)
    centred = codes.astype(np.float32) - expand_groups(zero.astype(np.float32), cols, size)
    wide_values: np.ndarray = centred * wide
    return wide_values
