"""Round to nearest (RTN): each weight independently of the others and of the inputs."""

from __future__ import annotations

import numpy as np

from planish.reference.linear import Linear, float_weight
from planish.reference.model.weights import Block, block_linears, replace_modules
from planish.reference.quantize.grid import grid_codes, grid_parameters
from planish.reference.quantize.job import BlockJob, with_weight
from planish.reference.quantized import QuantizedWeight, from_codes
from planish.reference.scheme import Scheme


def quantize_block(job: BlockJob, block: Block) -> Block:
    """Quantize every linear of a block that has a scheme."""
    linears = block_linears(block)
    changed = {
        part: quantize_linear(
            linears[part],
            scheme,
            rule=job.rule,
            absmax=job.absmax.get(part),
            name=job.name(part),
        )
        for part, scheme in job.schemes.items()
        if scheme is not None
    }
    return replace_modules(block, changed)


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
