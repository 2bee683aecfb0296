"""How a weight is put on its grid, one method a file.

rtn    round to nearest

A method is a function `quantize(w, scheme, rule, statistics, name)` -> QuantizedWeight: w float32
[N, K], the linear's scheme, the rule of symmetric INT4 scales, what was observed at its input
(the absmax [K] of its channels, or None), and its name for errors. A new one is one file and one
row of METHODS (docs/adding-a-method.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from planish.reference.errors import QuantizationError
from planish.reference.grids import int8_scale
from planish.reference.linear import Linear, float_weight
from planish.reference.quantize.methods.rtn import quantize_weight as rtn
from planish.reference.quantized import QuantizedWeight
from planish.reference.scheme import Scheme

Quantize = Callable[[np.ndarray, Scheme, str, np.ndarray | None, str], QuantizedWeight]
METHODS: dict[str, Quantize] = {"rtn": rtn}


def quantize_linear(
    layer: Linear,
    scheme: Scheme,
    *,
    method: str = "rtn",
    rule: str = "signed",
    absmax: np.ndarray | None = None,
    name: str = "w",
) -> Linear:
    """A float linear -> one of the scheme.

    absmax [K] of its input's channels is needed for static activations; QuantizationError
    without it.
    """
    weight = METHODS[method](float_weight(layer), scheme, rule, absmax, name)
    quantized = replace(layer, weight=weight)
    if scheme.activation != "static":
        return quantized
    if absmax is None:
        raise QuantizationError("static activations need a calibration", name=name)
    return replace(quantized, activation_scale=static_scale(absmax))


def static_scale(absmax: np.ndarray) -> np.ndarray:
    """max(absmax over every channel, 1e-5) / 127: one float32 for a linear's whole input."""
    return int8_scale(absmax.max()).reshape(1)
