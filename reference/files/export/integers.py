"""What formats with integer zero points and float16 scales hold exactly: GPTQ and AWQ."""

from __future__ import annotations

import numpy as np

from planish.reference.files.export.codes import zero_points
from planish.reference.files.export.protocol import CannotHoldError, Refusal
from planish.reference.files.formats.offsets import to_float16, whole_zero_points
from planish.reference.quantized import QuantizedWeight


def integer_zero_points(weight: QuantizedWeight, nearest: str) -> np.ndarray:
    """Zero points of unsigned codes, uint8 [N, G], also for offsets that are multiples of scales.

    Raises CannotHoldError for other offsets, with the nearest format that holds them.
    """
    if weight.offset is None:
        return zero_points(weight)
    zeros = whole_zero_points(weight.scale, weight.offset, weight.scheme.bits)
    if zeros is None:
        found = "offsets that are no multiples of their scales"
        raise CannotHoldError(Refusal(expected="zero points", found=found, nearest=nearest))
    return zeros


def float16_scales(weight: QuantizedWeight) -> np.ndarray:
    """The scales, float16 [N, G]; raises CannotHoldError for one that is no float16."""
    scale = to_float16(weight.scale)
    if scale is None:
        wide = weight.scale.ravel()
        with np.errstate(over="ignore"):
            other = wide[wide.astype(np.float16) != wide][0]
        nearest = "planish" if weight.offset is not None else "compressed-tensors"
        raise CannotHoldError(Refusal(expected="float16 scales", found=str(other), nearest=nearest))
    return scale
