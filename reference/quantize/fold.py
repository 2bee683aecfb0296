"""Move a scale between a module and the linears that read it; the block computes the same function.

    source / s  ->  readers * s        (x / s) (W s)t = x Wt

reference/model/folds.py says where. Everything is computed in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from planish.reference.linear import Linear, float_weight
from planish.reference.model.folds import Fold
from planish.reference.model.layers import Norm
from planish.reference.model.weights import Block, block_linears, block_norms, replace_modules


def scale_norm(norm: Norm, s: np.ndarray) -> Norm:
    """Divide a norm's output channels by s."""
    weight = np.ones_like(s) if norm.weight is None else norm.weight
    bias = None if norm.bias is None else norm.bias / s
    return replace(norm, weight=weight / s, bias=bias)


def scale_inputs(layer: Linear, s: np.ndarray) -> Linear:
    """Multiply a linear's input channels by s."""
    return replace(layer, weight=float_weight(layer) * s)


def scale_outputs(layer: Linear, s: np.ndarray) -> Linear:
    """Divide a linear's output channels by s."""
    bias = None if layer.bias is None else layer.bias / s
    return replace(layer, weight=float_weight(layer) / s[:, None], bias=bias)


def apply_fold(block: Block, fold: Fold, s: np.ndarray) -> Block:
    """Divide the source's channels by s and multiply the inputs of its readers.

    fold: of this block (folds.block_folds). s: of the source's channels.
    """
    linears, norms = block_linears(block), block_norms(block)
    wide = fold.by_input(s)
    scaled: dict[str, Linear | Norm] = {
        name: scale_inputs(linears[name], wide) for name in fold.linears
    }
    if fold.source in norms:
        scaled[fold.source] = scale_norm(norms[fold.source], s)
    else:
        scaled[fold.source] = scale_outputs(linears[fold.source], s)
    return replace_modules(block, scaled)


def find_statistic(statistics: Mapping[str, Any], fold: Fold) -> Any | None:
    """What an observer found at the readers' input, the same for all of them.

    None if no token reached them, as with an expert that no token selected.
    """
    return next((statistics[name] for name in fold.linears if name in statistics), None)
