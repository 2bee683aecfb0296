"""AWQ in the layout gemm, as AutoAWQ and GPTQModel write it: 4 bits.

For a linear P of N outputs, K inputs and G groups, W[n, k] = scale * (q - z):

    P.qweight   int32 [K, N / 8]    eight columns a word, in the order 0 2 4 6 1 3 5 7
    P.qzeros    int32 [G, N / 8]    in the same order, z itself
    P.scales    float16 [G, N]

Groups are of 32, 64 or 128 inputs, or whole rows, and divide K: coarser ones are repeated. Linears
with other groups than most are declared as GPTQModel does (`dynamic`), which other programs do not
read. Source: AutoAWQ 0.2.9, awq/modules/linear/gemm.py and awq/utils/packing_utils.py; GPTQModel
7.7, nn_modules/qlinear/torch_awq.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from planish.reference.files.export.codes import finer_size, regrouped, unsigned_codes
from planish.reference.files.export.gptq import common_values, refuse_inputs, refuse_shape
from planish.reference.files.export.integers import float16_scales, integer_zero_points
from planish.reference.files.export.protocol import Facts, Refusal, Shape
from planish.reference.files.formats.words import pack_awq
from planish.reference.linear import Linear, quantized_weight
from planish.reference.scheme import Scheme

NAME = "awq"
SIZES = (-1, 32, 64, 128)


def refuse(scheme: Scheme, shape: Shape) -> Refusal | None:
    """Refuses quantized inputs, 8 bits, act order and odd shapes."""
    if scheme.activation != "float":
        return refuse_inputs(scheme)
    if scheme.bits != 4 or scheme.act_order:
        expected, nearest = "4 bits, inputs in their order", "mlx" if scheme.offset else "gptq_v2"
        return Refusal(expected=expected, found=str(scheme), nearest=nearest)
    return refuse_shape(scheme, shape)


def regroup(scheme: Scheme, shape: Shape) -> Scheme:
    """Groups of at most 128 that divide K."""
    size = finer_size(scheme, shape[1], SIZES)
    assert size is not None  # 32 divides K and every group size of INT4
    return regrouped(scheme, size)


def tensors(linear: Linear, scheme: Scheme) -> dict[str, np.ndarray]:  # noqa: ARG001
    """qweight, qzeros and scales."""
    weight = quantized_weight(linear)
    return {
        "qweight": pack_awq(unsigned_codes(weight).T),
        "qzeros": pack_awq(integer_zero_points(weight, "mlx").T),
        "scales": float16_scales(weight).T,
    }


def config(schemes: Mapping[str, Scheme | None], facts: Facts) -> dict[str, Any]:
    """`quantization_config`, with the linears in floats by name."""
    values = common_values(schemes, facts)
    values |= {"quant_method": "awq", "version": "gemm", "zero_point": True}
    floats = [prefix for prefix, scheme in schemes.items() if scheme is None]
    return {"quantization_config": values | {"modules_to_not_convert": floats or None}}
