"""What the methods of a recipe did to a float block before it was rounded: scales, found again.

SmoothQuant, AWQ and TEQ only move scales between a module and its readers (reference/model/folds),
and AWQ also clips INT4 weights:

    W' [n, k] = clip(W [n, k] s [k] / a [n])        s of the inputs, a of a source's outputs

A norm's scale is the quotient of its weights before and after; that of a linear is the median of
the quotients of its row, nearly all of which are not clipped. So one linear can be quantized again
under a wider scheme, in the place of the narrow one, without the clipping that was meant for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from planish.reference.linear import Linear, float_weight
from planish.reference.model.config import ModelConfig
from planish.reference.model.folds import block_folds
from planish.reference.model.layers import Norm
from planish.reference.model.weights import Block, block_linears, block_norms, replace_modules


@dataclass(frozen=True, kw_only=True)
class Rescaling:
    """The scales of one linear: inputs [K] are multiplied, outputs [N] divided; None for ones."""

    inputs: np.ndarray | None = None
    outputs: np.ndarray | None = None

    def apply(self, layer: Linear) -> Linear:
        """W * s / a, float32 [N, K], and the bias / a."""
        weight, bias = float_weight(layer), layer.bias
        if self.inputs is not None:
            weight = weight * self.inputs
        if self.outputs is not None:
            weight = weight / self.outputs[:, None]
            bias = None if bias is None else bias / self.outputs
        return replace(layer, weight=weight, bias=bias)


NOTHING = Rescaling()
Rescalings = Mapping[str, Rescaling]  # by a linear's name in its block


def find_rescalings(config: ModelConfig, before: Block, after: Block) -> dict[str, Rescaling]:
    """The scales that lead from one float block to another that computes the same function."""
    old, new = block_linears(before), block_linears(after)
    norms, new_norms = block_norms(before), block_norms(after)
    found: dict[str, Rescaling] = {}
    for fold in block_folds(config, before):  # in the order of execution: sources before readers
        if fold.source in norms:
            s = norm_scale(norms[fold.source], new_norms[fold.source])
        else:
            own = found.get(fold.source, NOTHING)
            s = output_scale(own.apply(old[fold.source]), new[fold.source])
            found[fold.source] = replace(own, outputs=s)
        for part in fold.linears:
            found[part] = replace(found.get(part, NOTHING), inputs=fold.by_input(s))
    return found


def norm_scale(before: Norm, after: Norm) -> np.ndarray | None:
    """s [D] of a norm: weight before / weight after, 1 where both are 0; None if unchanged."""
    if after.weight is None or before.weight is after.weight:
        return None
    weight = np.ones_like(after.weight) if before.weight is None else before.weight
    with np.errstate(all="ignore"):
        s = weight / after.weight
    return np.where(np.isfinite(s) & (s > 0), s, np.float32(1)).astype(np.float32)


def output_scale(before: Linear, after: Linear) -> np.ndarray:
    """a [N] of a linear: the median of its row's quotients; 1 for a row of zeros."""
    old, new = float_weight(before), float_weight(after)
    with np.errstate(all="ignore"):
        quotients = np.where(new != 0, old / new, np.nan)
    rows = [row[np.isfinite(row) & (row > 0)] for row in quotients]
    return np.array([np.median(row) if len(row) else 1 for row in rows], np.float32)


def rescale_block(before: Block, norms: Mapping[str, Norm], rescalings: Rescalings) -> Block:
    """The float block with these norms, and its linears rescaled but not clipped."""
    linears = block_linears(before)
    changed = {part: one.apply(linears[part]) for part, one in rescalings.items()}
    return replace_modules(before, {**changed, **norms})
