"""How a weight becomes codes on its grid, one method a file.

rtn    round to nearest

A method is a row of METHODS: quantize(w, scheme, rule, statistic, name) and, if it needs statistics
of a linear's inputs, an observer (observe.py). w is the weight, float32 [N, K]; scheme is the
linear's; rule says how symmetric INT4 scales are chosen; statistic is the observer's result for
this linear, or None for a method without an observer, for lm_head, and for an expert that no
calibration token selected; name is for errors. docs/adding-a-method.md adds one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from planish.reference.errors import QuantizationError
from planish.reference.grids import int8_scale
from planish.reference.linear import Linear, float_weight
from planish.reference.quantize.methods.rtn import quantize_weight as rtn
from planish.reference.quantize.observe import Observed, Observer
from planish.reference.quantized import QuantizedWeight
from planish.reference.scheme import Scheme

Quantize = Callable[[np.ndarray, Scheme, str, np.ndarray | None, str], QuantizedWeight]
NOTHING = Observed()


@dataclass(frozen=True, kw_only=True)
class Method:
    """A function from weight to codes, and the observer that it needs, if any."""

    quantize: Quantize
    observer: Observer | None = None


METHODS = {"rtn": Method(quantize=rtn)}


def quantize_linear(
    layer: Linear,
    scheme: Scheme,
    *,
    method: str = "rtn",
    rule: str = "signed",
    observed: Observed = NOTHING,
    name: str = "w",
) -> Linear:
    """Quantize a float linear under a scheme.

    Raises QuantizationError for static activations without observed.absmax.
    """
    weight = METHODS[method].quantize(float_weight(layer), scheme, rule, observed.statistic, name)
    quantized = replace(layer, weight=weight)
    if scheme.activation != "static":
        return quantized
    if observed.absmax is None:
        raise QuantizationError("static activations need a calibration", name=name)
    return replace(quantized, activation_scale=static_scale(observed.absmax))


def static_scale(absmax: np.ndarray) -> np.ndarray:
    """max(absmax over all channels, 1e-5) / 127: the scale of a linear's input, float32 [1]."""
    return int8_scale(absmax.max()).reshape(1)
