"""compressed-tensors, as llm-compressor writes it and vLLM and transformers load it.

    scheme                       format           tensors of a linear P [N, K] with G groups
    W8A8, O1, O3                 int-quantized    weight int8 [N, K], weight_scale [N, 1] or [1]
    W4A8 per_token               int-quantized    weight int8 [N, K] of -8..7, weight_scale [N, G]
    W8A16, W4A16 symmetric       pack-quantized   weight_packed int32 [N, ceil(K b / 32)],
                                                  weight_scale [N, G], weight_shape int64 [2]
    W4A16 asymmetric             pack-quantized   also weight_zero_point int32 [ceil(N / 8), G]
    static inputs                                 also input_scale [1], and input_zero_point
                                                  int8 [1] if they are asymmetric

Groups are of 16 to 128 inputs, as vLLM takes them, and divide K: coarser ones are repeated. An
asymmetric W4A8 has weight_zero_point int8 [N, G], not packed. Scales keep their type; float32 ones
that bfloat16 holds, which is what llm-compressor writes, are bfloat16 again.
Source: compressed-tensors 0.20, compressors/pack_quantized/helpers.py, quantization/quant_args.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from planish.reference.files.export.codes import (
    finer_size,
    regrouped,
    signed_codes,
    unsigned_codes,
    zero_points,
)
from planish.reference.files.export.protocol import Facts, Refusal, Shape
from planish.reference.files.export.targets import name_targets
from planish.reference.files.formats.words import pack_fields
from planish.reference.grids import SYMMETRIC_ZERO
from planish.reference.linear import Linear, quantized_weight
from planish.reference.scheme import STRATEGIES, Scheme, scheme_values

NAME = "compressed-tensors"
SIZES = {4: (-1, 32, 64, 128), 8: (-1, 16, 32, 64, 128)}  # by the bits of a code
ACTIVATIONS = ("float", "per_token", "static")
PLAIN, PACKED = "int-quantized", "pack-quantized"


def refuse(scheme: Scheme, shape: Shape) -> Refusal | None:
    """Refuses offsets, act order, dynamic scales of a tensor or a group, and K without groups."""
    words = {"found": str(scheme), "nearest": "planish"}
    if scheme.offset:
        nearest = "mlx" if scheme.activation == "float" else "planish"
        return Refusal(expected="zero points", found=str(scheme), nearest=nearest)
    if scheme.act_order:
        expected = "groups of neighbouring inputs"
        return Refusal(expected=expected, found=str(scheme), nearest="gptq_v2")
    if scheme.activation not in ACTIVATIONS:
        return Refusal(expected="inputs in float, INT8 per token or static", **words)
    if finer_size(scheme, shape[1], SIZES[scheme.bits]) is None:
        found = f"{shape[1]} inputs in groups of {scheme.group_size}"
        return Refusal(expected="groups that divide the inputs", found=found, nearest="planish")
    return None


def regroup(scheme: Scheme, shape: Shape) -> Scheme:
    """Groups of at most 128 that divide K; a packed linear with one scale has it in each row."""
    if scheme.granularity == "per_tensor":
        return scheme if is_plain(scheme) else regrouped(scheme, -1)
    size = finer_size(scheme, shape[1], SIZES[scheme.bits])
    assert size is not None
    return regrouped(scheme, size)


def is_plain(scheme: Scheme) -> bool:
    """Whether codes are int8 [N, K], not packed: the format of linears with INT8 inputs."""
    return scheme.activation != "float"


def tensors(linear: Linear, scheme: Scheme) -> dict[str, np.ndarray]:
    """The tensors of a linear, by suffix."""
    weight = quantized_weight(linear)
    scale = shorten(weight.scale)
    scale = scale.reshape(1) if scheme.granularity == "per_tensor" else scale
    if not is_plain(scheme):
        found = {"weight_packed": pack_fields(unsigned_codes(weight), scheme.bits)}
        found |= {"weight_scale": scale, "weight_shape": np.array(weight.shape, np.int64)}
        if not scheme.symmetric:
            found["weight_zero_point"] = pack_fields(zero_points(weight).T, scheme.bits).T
        return found
    found = {"weight": signed_codes(weight), "weight_scale": scale}
    if not scheme.symmetric:
        found["weight_zero_point"] = zero_points(weight).view(np.int8) - np.int8(SYMMETRIC_ZERO)
    if linear.activation_scale is not None:
        found["input_scale"] = shorten(linear.activation_scale)
    if linear.activation_zero_point is not None:
        found["input_zero_point"] = linear.activation_zero_point
    return found


def shorten(scale: np.ndarray) -> np.ndarray:
    """float32 scales in bfloat16 if all are exact in it; others as they are."""
    if scale.dtype != np.float32:
        return scale
    short = scale.astype(ml_dtypes.bfloat16)
    return short if np.array_equal(short.astype(np.float32), scale) else scale


def config(schemes: Mapping[str, Scheme | None], facts: Facts) -> dict[str, Any]:
    """`quantization_config`: a group for each scheme, and the names of the linears in floats."""
    names = name_targets({prefix: scheme for prefix, scheme in schemes.items() if scheme})
    groups = {
        f"group_{number}": {"targets": targets, **describe(scheme)}
        for number, (scheme, targets) in enumerate(names.items())
    }
    if len(groups) == 1:  # as llm-compressor writes it
        groups["group_0"]["targets"] = ["Linear"]
    formats = {group["format"] for group in groups.values()}
    values: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "ignore": [prefix for prefix, scheme in schemes.items() if scheme is None],
        "kv_cache_scheme": None,
        "config_groups": groups,
        "producer": facts.program,
    }
    return {"quantization_config": values}


def describe(scheme: Scheme) -> dict[str, Any]:
    """A group without its targets."""
    weights: dict[str, Any] = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": STRATEGIES[scheme.granularity],
        "group_size": None if scheme.group_size == -1 else scheme.group_size,
        "dynamic": False,
    }
    inputs = scheme_values(scheme)["input_activations"]
    both = {"weights": weights, "input_activations": inputs, "output_activations": None}
    return both | {"format": PLAIN if is_plain(scheme) else PACKED}
