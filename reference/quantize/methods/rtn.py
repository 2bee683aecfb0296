"""Round to nearest (RTN): each weight independently of the others.

With search_range each group takes, of the ranges 1.00, 0.99 .. 0.80 times its own, the one with
the smallest sum over its weights of m_j (w_j - value of q_j)^2. m_j = mean over tokens of x_j^2 if
the recipe has a calibration (for smoothing, static scales or a method before this one), else 1.
Source: the `mse` option of GPTQ's quantizer, https://github.com/IST-DASLab/gptq, quant.py.
"""

from __future__ import annotations

import numpy as np

from planish.reference.grids import to_groups
from planish.reference.linear import Linear, float_weight
from planish.reference.model.weights import Block, block_linears, replace_modules
from planish.reference.quantize.grid import grid_codes, grid_parameters, grid_values
from planish.reference.quantize.job import BlockJob, with_weight
from planish.reference.quantize.observe import Observer, Statistics
from planish.reference.quantized import QuantizedWeight, from_codes
from planish.reference.scheme import Scheme

RATIOS = tuple(np.float32(1 - step / 100) for step in range(21))
SQUARES = Observer(measure=lambda x: (x * x).sum(axis=0), merge=np.add)


def quantize_block(job: BlockJob, block: Block) -> Block:
    """Quantize every linear of a block that has a scheme."""
    squares = observe_squares(job, block) if job.settings.search_range else {}
    linears, changed = block_linears(block), {}
    for part, scheme in job.schemes.items():
        if scheme is None:
            continue
        given = float_weight(linears[part]), scheme, job.rule, job.name(part)
        search = job.settings.search_range
        weight = search_weight(*given, squares.get(part)) if search else quantize_weight(*given)
        changed[part] = job.with_weight(part, linears[part], weight)
    return replace_modules(block, changed)


def observe_squares(job: BlockJob, block: Block) -> Statistics:
    """The sum over tokens of x_j^2 for each linear, [K]; empty without a calibration."""
    if not job.inputs:
        return {}
    return job.runner.observe(job.config, block, job.inputs, job.names, SQUARES)[0]


def quantize_linear(
    layer: Linear,
    scheme: Scheme,
    *,
    rule: str = "signed",
    absmax: np.ndarray | None = None,
    name: str = "w",
) -> Linear:
    """Quantize a float linear; absmax [K] of its input's channels, if its scheme is static."""
    weight = quantize_weight(float_weight(layer), scheme, rule, name)
    return with_weight(layer, weight, absmax, name)


def quantize_weight(
    w: np.ndarray, scheme: Scheme, rule: str = "signed", name: str = "w"
) -> QuantizedWeight:
    """float32 [N, K] -> codes on the scheme's grid; raises QuantizationError naming the tensor.

    rule: how symmetric INT4 scales are chosen (grids.INT4_RULES). In a symmetric scheme every zero
    point is 8, so none is stored.
    """
    scale, zero = grid_parameters(w, scheme, rule, name)
    return from_codes(grid_codes(w, scale, zero, scheme), scale, zero, scheme)


def search_weight(
    w: np.ndarray,
    scheme: Scheme,
    rule: str = "signed",
    name: str = "w",
    importance: np.ndarray | None = None,
) -> QuantizedWeight:
    """As quantize_weight, with the range of RATIOS that has the smallest error in each group.

    importance: m_j of the inputs, [K], up to a factor; None for 1. Of equal errors the larger
    range wins.
    """
    scale, zero = grid_parameters(w, scheme, rule, name)
    smallest = group_errors(w, scale, zero, scheme, importance)
    for ratio in RATIOS[1:]:
        other, other_zero = grid_parameters(w * ratio, scheme, rule, name)
        errors = group_errors(w, other, other_zero, scheme, importance)
        better = errors < smallest
        smallest, scale = np.where(better, errors, smallest), np.where(better, other, scale)
        if zero is not None and other_zero is not None:
            zero = np.where(better, other_zero, zero)
    return from_codes(grid_codes(w, scale, zero, scheme), scale, zero, scheme)


def group_errors(
    w: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray | None,
    scheme: Scheme,
    importance: np.ndarray | None,
) -> np.ndarray:
    """sum_j m_j (w_j - value of q_j)^2 of the weights that share a scale, in the scale's shape."""
    error = np.square(w - grid_values(grid_codes(w, scale, zero, scheme), scale, zero, scheme))
    error = error if importance is None else error * importance
    if scheme.granularity == "per_tensor":
        return np.asarray(error.sum(keepdims=True))
    found: np.ndarray = to_groups(error, scheme.group_size).sum(axis=2)
    return found
