"""Round to nearest: each weight to its grid, alone. The methods to come end in the same data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planish.reference.errors import QuantizationError
from planish.reference.grids import (
    SYMMETRIC_RULES,
    int4_codes,
    int4_parameters,
    int8_scale,
    quantize_int8,
)
from planish.reference.linear import Linear, QuantizedWeight, float_weight
from planish.reference.packing import pack_nibbles
from planish.reference.quantize.recipe import Recipe


def quantize_weight(w: np.ndarray, recipe: Recipe, name: str = "w") -> QuantizedWeight:
    """float32 [N, K] -> codes on the recipe's grid; raises QuantizationError naming the tensor.

    Under a symmetric rule every zero point is 8, and none is kept.
    """
    if recipe.bits == 8:
        granularity = {"per_channel": "per_row", "per_tensor": "per_tensor"}[recipe.granularity]
        codes, scale = quantize_int8(w, granularity, name)
        return QuantizedWeight(codes, scale, None, 8, w.shape[1])
    dtype = np.dtype(recipe.scale_dtype)
    scale, zero = int4_parameters(w, recipe.group_size, recipe.rule, dtype, name)
    codes = pack_nibbles(int4_codes(w, scale, zero, recipe.group_size))
    kept = None if recipe.rule in SYMMETRIC_RULES else zero
    return QuantizedWeight(codes, scale, kept, 4, w.shape[1], recipe.group_size)


def quantize_linear(
    layer: Linear, recipe: Recipe, name: str = "w", activation_absmax: np.ndarray | None = None
) -> Linear:
    """A float linear -> the recipe's linear. `activation_absmax` [K] is for static activations."""
    weight = quantize_weight(float_weight(layer), recipe, name)
    quantized = replace(layer, weight=weight, activation=recipe.activation)
    if recipe.activation != "static":
        return quantized
    if activation_absmax is None:
        raise QuantizationError("static activations need a calibration", name=name)
    return replace(quantized, activation_scale=static_scale(activation_absmax))


def static_scale(activation_absmax: np.ndarray) -> np.ndarray:
    """max(absmax over every channel, 1e-5) / 127: one float32 for a linear's whole input."""
    return int8_scale(activation_absmax.max()).reshape(1)
