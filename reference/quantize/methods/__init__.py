"""How a weight is put on its grid, one method a file.

rtn    round to nearest

A method is a row of METHODS: a function quantize(w, scheme, rule, statistic, name) and, if it has
to know what a linear reads, an observer (observe.py). w is float32 [N, K]; scheme the linear's;
rule that of symmetric INT4 scales; statistic what the observer found at this linear's input, or
None for a method without one, for lm_head, and for an expert that no calibration token chose; name
is for errors. docs/adding-a-method.md adds one.
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
    """How a weight becomes codes, and what has to be observed for that."""

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
    """A float linear -> one of the scheme.

    Static activations need observed.absmax; QuantizationError without it.
    """
    weight = METHODS[method].quantize(float_weight(layer), scheme, rule, observed.statistic, name)
    quantized = replace(layer, weight=weight)
    if scheme.activation != "static":
        return quantized
    if observed.absmax is None:
        raise QuantizationError("static activations need a calibration", name=name)
    return replace(quantized, activation_scale=static_scale(observed.absmax))


def static_scale(absmax: np.ndarray) -> np.ndarray:
    """max(absmax over every channel, 1e-5) / 127: one float32 for a linear's whole input."""
    return int8_scale(absmax.max()).reshape(1)
