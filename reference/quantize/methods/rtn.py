"""Round to nearest (RTN): each weight independently of the others and of the inputs."""

from __future__ import annotations

import numpy as np

from planish.reference.grids import int4_codes, int4_parameters, quantize_int8
from planish.reference.packing import pack_nibbles
from planish.reference.quantized import QuantizedWeight
from planish.reference.scheme import Scheme


def quantize_weight(
    w: np.ndarray,
    scheme: Scheme,
    rule: str = "signed",
    statistic: np.ndarray | None = None,  # noqa: ARG001  (every method's signature)
    name: str = "w",
) -> QuantizedWeight:
    """float32 [N, K] -> codes on the scheme's grid; raises QuantizationError naming the tensor.

    rule: how symmetric INT4 scales are chosen (grids.INT4_RULES). statistic is not used. In a
    symmetric scheme every zero point is 8, so none is stored.
    """
    if scheme.bits == 8:
        granularity = {"per_channel": "per_row", "per_tensor": "per_tensor"}[scheme.granularity]
        codes, scale = quantize_int8(w, granularity, name)
        return QuantizedWeight(codes=codes, scale=scale, scheme=scheme, shape=w.shape)
    dtype, rule = np.dtype(scheme.scale_dtype), rule if scheme.symmetric else "minmax"
    scale, zero = int4_parameters(w, scheme.group_size, rule, dtype, name)
    return QuantizedWeight(
        codes=pack_nibbles(int4_codes(w, scale, zero, scheme.group_size)),
        scale=scale,
        zero_point=None if scheme.symmetric else zero,
        scheme=scheme,
        shape=w.shape,
    )
