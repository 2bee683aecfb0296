"""MLX affine, as mlx-lm loads it: 4 and 8 bits with a float offset for each group.

    P.weight   uint32 [N, K b / 32]   codes, lowest bits first along K
    P.scales   [N, G]                 w = scales * q + biases
    P.biases   [N, G]                 not P.bias, the linear's own

A zero point z is the bias -z * scale, and is written only where that and all products are exact in
float32, for scales of at most 16 significant bits: float16 and bfloat16. Scales and biases are then
float32, because MLX computes in their type. Offsets that came from a file keep the narrowest type
that holds them. Groups are of 32, 64 or 128 inputs and divide K: coarser ones are repeated.
An embedding that has codes keeps them. Source: ops.cpp of MLX (affine_quantize), utils.py of mlx-lm
0.32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from planish.reference.files.export.codes import (
    finer_size,
    regrouped,
    unsigned_codes,
    zero_points,
)
from planish.reference.files.export.gptq import refuse_inputs
from planish.reference.files.export.protocol import CannotHoldError, Facts, Refusal, Shape
from planish.reference.files.formats.offsets import is_short, to_float16
from planish.reference.files.formats.words import pack_fields
from planish.reference.linear import Linear, quantized_weight
from planish.reference.quantized import QuantizedWeight
from planish.reference.scheme import Scheme

NAME = "mlx"
SIZES = (32, 64, 128)


def refuse(scheme: Scheme, shape: Shape) -> Refusal | None:
    """Refuses quantized inputs, act order, groups of 16 and inputs that have no groups."""
    if scheme.activation != "float":
        return refuse_inputs(scheme)
    if scheme.act_order:
        expected = "inputs in their order"
        return Refusal(expected=expected, found=str(scheme), nearest="gptq_v2")
    if finer_size(scheme, shape[1], SIZES) is None:
        found = f"{shape[1]} inputs, {scheme}"
        nearest = "planish" if scheme.offset else "compressed-tensors"
        return Refusal(expected="groups of 32, 64 or 128 inputs", found=found, nearest=nearest)
    return None


def regroup(scheme: Scheme, shape: Shape) -> Scheme:
    """Groups of at most 128 that divide K."""
    size = finer_size(scheme, shape[1], SIZES)
    assert size is not None
    return regrouped(scheme, size)


def tensors(linear: Linear, scheme: Scheme) -> dict[str, np.ndarray]:
    """weight, scales and biases."""
    weight = quantized_weight(linear)
    scales, biases = affine(weight) if weight.offset is None else narrow(weight)
    codes = pack_fields(unsigned_codes(weight), scheme.bits).view(np.uint32)
    return {"weight": codes, "scales": scales, "biases": biases}


def affine(weight: QuantizedWeight) -> tuple[np.ndarray, np.ndarray]:
    """Scale and -zero * scale, float32 [N, G]; CannotHoldError where products are rounded."""
    scale = weight.scale.astype(np.float32)
    long = scale[~is_short(scale)]
    if long.size:
        expected, found = "scales of at most 16 significant bits", str(long[0])
        nearest = "compressed-tensors"
        raise CannotHoldError(Refusal(expected=expected, found=found, nearest=nearest))
    return scale, -scale * zero_points(weight).astype(np.float32)


def narrow(weight: QuantizedWeight) -> tuple[np.ndarray, np.ndarray]:
    """Scales and offsets [N, G] in float16 or bfloat16 if it holds all of them, else float32."""
    assert weight.offset is not None
    if weight.scale.dtype == np.float16:
        offset = to_float16(weight.offset)
        if offset is not None:
            return weight.scale, offset
    wide = weight.scale.astype(np.float32), weight.offset.astype(np.float32)
    scale, offset = (values.astype(ml_dtypes.bfloat16) for values in wide)
    exact = np.array_equal(scale, wide[0]) and np.array_equal(offset, wide[1])
    return (scale, offset) if exact else wide


def config(schemes: Mapping[str, Scheme | None], facts: Facts) -> dict[str, Any]:  # noqa: ARG001
    """`quantization`, and the same as `quantization_config`: no quant_method, exact names."""
    found = {prefix: settings(scheme) for prefix, scheme in schemes.items() if scheme is not None}
    usual = Counter(found.values()).most_common(1)[0][0]
    values: dict[str, Any] = {**dict(usual), "mode": "affine"}
    values |= {prefix: dict(own) for prefix, own in found.items() if own != usual}
    values |= {prefix: False for prefix, scheme in schemes.items() if scheme is None}
    return {"quantization": values, "quantization_config": values}


def settings(scheme: Scheme) -> tuple[tuple[str, int], tuple[str, int]]:
    """The group size and the bits of a linear."""
    return ("group_size", scheme.group_size), ("bits", scheme.bits)
