"""One part of a block on both sides: its output in floats, and the codes that are made of it.

The tolerances are those that layers.py explains.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from planish.compare.conformance.check import Check, check
from planish.compare.conformance.ops import fast_codes
from planish.compare.conformance.tolerances import NOTHING, activation_scales, reference_codes
from planish.reference.grids import int8_scale
from planish.reference.linear import Linear

FLOAT_TOLERANCE = 1e-5  # of the largest magnitude, for one part
SOFTMAX_TOLERANCE = 4e-5
TIE = 1e-4  # in units of the row's activation scale
TIE_BEHIND_SOFTMAX = 2e-3


def limit(x: np.ndarray, share: float = FLOAT_TOLERANCE) -> float:
    """A share of the largest magnitude."""
    return share * float(np.abs(x).max()) + NOTHING


def check_part(
    layer: int,
    part: str,
    expected: np.ndarray,
    found: np.ndarray,
    readers: dict[str, Linear],
    native: bool = False,
) -> Iterator[Check]:
    """A part's output in floats, and the codes that each linear reading it makes of it."""
    share = SOFTMAX_TOLERANCE if part == "attention" else FLOAT_TOLERANCE
    yield check(2, layer, part, expected, found, limit(expected, share))
    for name, linear in readers.items():
        if linear.activation != "float" and np.isfinite(found).all():
            others = (reference_codes if native else fast_codes)(found, linear)[0]
            yield check_flips(layer, f"{part}, codes for {name}", linear, expected, others)


def check_flips(
    layer: int, part: str, linear: Linear, expected: np.ndarray, others: np.ndarray
) -> Check:
    """Codes that each side makes of its own floats: equal but at ties, where one off is right."""
    scales = activation_scales(expected, linear)
    row_scales = int8_scale(np.abs(expected).max(axis=1, keepdims=True))
    ratio = expected / scales
    distance = np.abs(ratio - np.floor(ratio) - np.float32(0.5))
    tie = TIE_BEHIND_SOFTMAX if part.startswith("attention,") else TIE
    allowed = np.where(distance < tie * np.maximum(1, row_scales / scales), 1.0, 0.5)
    codes = reference_codes(expected, linear)[0]
    return check(2, layer, part, codes, others, allowed, int(np.sum(codes != others)))
