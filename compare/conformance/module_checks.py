"""One module of a block on both sides: its output in floats, and the codes that are made of it.

The tolerances are those that layers.py explains.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from planish.compare.conformance.check import Check, check
from planish.compare.conformance.tolerances import NOTHING, activation_scales, reference_codes
from planish.compare.subject import Codes
from planish.reference.grids import int8_scale
from planish.reference.linear import Linear

FLOAT_TOLERANCE = 1e-5  # of the largest magnitude, for one module
SOFTMAX_TOLERANCE = 4e-5
TIE = 1e-4  # in units of the row's activation scale
TIE_AFTER_SOFTMAX = 2e-3


def limit(x: np.ndarray, share: float = FLOAT_TOLERANCE) -> float:
    """A share of the largest magnitude."""
    return share * float(np.abs(x).max()) + NOTHING


def check_module(
    layer: int,
    part: str,
    *,
    expected: np.ndarray,
    found: np.ndarray,
    readers: dict[str, Linear],
    codes: Codes | None = None,
) -> Iterator[Check]:
    """A module's output in floats, and the codes that each linear reading it makes of it.

    `codes`: the subject's own quantizer, where it can be seen.
    """
    share = SOFTMAX_TOLERANCE if part == "attention" else FLOAT_TOLERANCE
    yield check(2, layer, part, expected, found, limit(expected, share))
    for name, linear in readers.items():
        if linear.activation != "float" and np.isfinite(found).all():
            quantize = reference_codes if codes is None else codes.activation_codes
            others = quantize(found, linear)[0]
            yield check_reader_codes(layer, f"{part}, codes for {name}", linear, expected, others)


def check_reader_codes(
    layer: int, part: str, linear: Linear, expected: np.ndarray, others: np.ndarray
) -> Check:
    """Each side quantizes its own floats: codes are equal, or one apart near a tie."""
    scales = activation_scales(expected, linear)
    row_scales = int8_scale(np.abs(expected).max(axis=1, keepdims=True))
    ratio = expected / scales
    distance = np.abs(ratio - np.floor(ratio) - np.float32(0.5))
    tie = TIE_AFTER_SOFTMAX if part.startswith("attention,") else TIE
    allowed = np.where(distance < tie * np.maximum(1, row_scales / scales), 1.0, 0.5)
    codes = reference_codes(expected, linear)[0]
    return check(2, layer, part, codes, others, allowed, int(np.sum(codes != others)))
