"""One module of a block: its output in floats, and the codes made from it.

layers.py explains the tolerances.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from planish.compare.conformance.check import Check, check
from planish.compare.conformance.tolerances import TINY, activation_scales, reference_codes
from planish.compare.subject import Codes
from planish.reference.grids import int8_scale
from planish.reference.linear import Linear

FLOAT_TOLERANCE = 1e-5  # relative to the largest magnitude, for one module
SOFTMAX_TOLERANCE = 4e-5
TIE = 1e-4  # in units of the row's activation scale
TIE_AFTER_SOFTMAX = 2e-3


def share_of_largest(x: np.ndarray, share: float = FLOAT_TOLERANCE) -> float:
    """A tolerance relative to the largest magnitude of x."""
    return share * float(np.abs(x).max()) + TINY


def check_module(
    layer: int,
    part: str,
    *,
    expected: np.ndarray,
    found: np.ndarray,
    readers: dict[str, Linear],
    codes: Codes | None = None,
) -> Iterator[Check]:
    """A module's output in floats, and the activation codes of each linear that reads it.

    codes: the subject's own quantizer, where it is visible.
    """
    share = SOFTMAX_TOLERANCE if part == "attention" else FLOAT_TOLERANCE
    yield check(2, layer, part, expected, found, share_of_largest(expected, share))
    yield from check_readers(layer, part, expected, found, readers, codes)


def check_readers(
    layer: int,
    part: str,
    expected: np.ndarray,
    found: np.ndarray,
    readers: dict[str, Linear],
    codes: Codes | None,
) -> Iterator[Check]:
    """The activation codes of each linear that reads a module's output."""
    for name, linear in readers.items():
        if linear.activation != "float" and np.isfinite(found).all():
            quantize = reference_codes if codes is None else codes.activation_codes
            found_codes = quantize(found, linear)[0]
            yield check_reader_codes(
                layer, f"{part}, codes for {name}", linear, expected, found_codes
            )


def check_reader_codes(
    layer: int, part: str, linear: Linear, expected: np.ndarray, found_codes: np.ndarray
) -> Check:
    """Each side quantizes its own floats: codes are equal, or one apart near a tie."""
    scales = activation_scales(expected, linear)
    row_scales = int8_scale(np.abs(expected).max(axis=1, keepdims=True))
    ratio = expected / scales
    distance = np.abs(ratio - np.floor(ratio) - np.float32(0.5))
    tie = TIE_AFTER_SOFTMAX if part.startswith("attention,") else TIE
    allowed = np.where(distance < tie * np.maximum(1, row_scales / scales), 1.0, 0.5)
    codes = reference_codes(expected, linear)[0]
    return check(2, layer, part, codes, found_codes, allowed, int(np.sum(codes != found_codes)))
