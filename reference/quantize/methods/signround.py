"""SignRound: learn how each weight rounds and how far each group's range shrinks.

Cheng et al. 2023, arXiv 2309.05516 (AutoRound). For each group, with learned alpha in 0..1 and V:

    range   min(w, 0) * alpha_min .. max(w, 0) * alpha_max        (equation 3)
    s, z    of that range by the scheme's rule
    q       clip(rint(w / s + V) + z, 0, 15)                      (equation 2)

A symmetric rule takes the larger side of that range, with its sign where the rule is `signed`, and
INT8 takes its absmax; INT8 codes are clip(rint(w / s + V), -127, 127). V = 0 and alpha = 1 are
round to nearest.

This file defines what learned parameters mean. fast/quantize/signround.py learns them, which needs
the gradient of a block:

    loss    mean squared error of the block's outputs, its inputs from the quantized blocks before
    step    p <- p - rate * sign(gradient), the rounding passed straight through
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planish.reference.grids import INT4_MAX, INT8_MAX, expand_groups
from planish.reference.quantize.grid import grid_parameters
from planish.reference.quantized import QuantizedWeight, from_codes
from planish.reference.scheme import Scheme


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """The learned parameters of one weight [N, K], all float32.

    v:                     [N, K], added to w / s before it is rounded
    alpha_min, alpha_max:  [N, G] of INT4 groups, [N, 1] or [1, 1] of INT8, in 0..1
    """

    v: np.ndarray
    alpha_min: np.ndarray
    alpha_max: np.ndarray


def signround_weight(
    w: np.ndarray, rounding: Rounding, scheme: Scheme, rule: str = "signed", name: str = "w"
) -> QuantizedWeight:
    """float32 [N, K] -> codes by the learned parameters; QuantizationError naming the tensor."""
    scale, zero = grid_parameters(shrink(w, rounding, scheme), scheme, rule, name)
    return from_codes(shifted_codes(w, rounding.v, scale, zero, scheme), scale, zero, scheme)


def shrink(w: np.ndarray, rounding: Rounding, scheme: Scheme) -> np.ndarray:
    """w [N, K], its negative entries times alpha_min and the others times alpha_max.

    Its range is the one of equation 3, because a product with a positive factor keeps the order.
    """
    low, high = rounding.alpha_min, rounding.alpha_max
    if scheme.bits == 4:
        low, high = (expand_groups(a, w.shape[1], scheme.group_size) for a in (low, high))
    shrunk: np.ndarray = w * np.where(w < 0, low, high)
    return shrunk


def shifted_codes(
    w: np.ndarray, v: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, scheme: Scheme
) -> np.ndarray:
    """The codes of w [N, K] with v added before rounding: int8, or uint8 0..15."""
    if zero is None:
        int8: np.ndarray = np.clip(np.rint(w / scale + v), -INT8_MAX, INT8_MAX)
        return int8.astype(np.int8)
    cols, size = w.shape[1], scheme.group_size
    wide_scale = expand_groups(scale.astype(np.float32), cols, size)
    wide_zero = expand_groups(zero.astype(np.float32), cols, size)
    codes: np.ndarray = np.clip(np.rint(w / wide_scale + v) + wide_zero, 0, INT4_MAX)
    return codes.astype(np.uint8)
