"""SmoothQuant: move the outliers of activations into the weights, which are easier to quantize.

For a norm and the linears that read its output, divide channel j of the norm by s_j and multiply
input channel j of the linears by s_j; the product is unchanged (arXiv 2211.10438, section 4):

    s_j = max(1e-5, xmax_j ** alpha / wmax_j ** (1 - alpha))        s_j = 1 where xmax_j = 0
    norm.weight /= s     norm.bias /= s     W[:, j] *= s_j

Everything is computed in float32. For a dead channel (xmax_j = 0) the original's floor gives
s_j = 1e-5, which multiplies its norm weight by 1e5; we leave such a channel unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from planish.reference.errors import QuantizationError, RecipeError
from planish.reference.linear import float_weight
from planish.reference.model.config import ModelConfig
from planish.reference.model.folds import Fold, block_folds, folds
from planish.reference.model.weights import Block, block_linears, block_norms
from planish.reference.quantize.fold import apply_fold, find_statistic
from planish.reference.quantize.observe import ChannelAbsmax
from planish.reference.quantize.recipe import Recipe

FLOOR = np.float32(1e-5)


def smoothing_scale(xmax: np.ndarray, weights: Sequence[np.ndarray], alpha: float) -> np.ndarray:
    """s [K] from the activations' absmax xmax [K] and the weights [N, K] of all their readers."""
    wmax = np.max([np.abs(w).max(axis=0) for w in weights], axis=0)  # [K]
    wmax = np.maximum(FLOOR, wmax)
    power, rest = np.float32(alpha), np.float32(1 - alpha)
    s = np.maximum(FLOOR, xmax**power / wmax**rest)
    return np.where(xmax == 0, np.float32(1), s).astype(np.float32)


def smooth_block(
    config: ModelConfig,
    block: Block,
    absmax: ChannelAbsmax,
    alpha: float,
    outputs: bool = False,
) -> Block:
    """Smooth after every norm that feeds only linears; the block computes the same function.

    outputs: also fold v -> o and up -> down, which the paper does not.
    """
    return smooth_folds(block, block_folds(config, block, outputs), absmax, alpha)


def smooth_folds(
    block: Block, chosen: Sequence[Fold], absmax: ChannelAbsmax, alpha: float
) -> Block:
    """Smooth at some folds of a block; absmax [K] of its linears' inputs.

    Query heads that read one channel of v share the s of the largest xmax among them. The up of
    an expert that no token selected stays as it is.
    """
    for fold in chosen:
        xmax = find_statistic(absmax, fold)
        if xmax is None:
            continue
        linears = block_linears(block)
        columns = [np.abs(float_weight(linears[name])).max(axis=0) for name in fold.linears]
        xmax, *columns = (fold.by_source(each).max(axis=1) for each in (xmax, *columns))
        block = apply_fold(block, fold, smoothing_scale(xmax, [np.stack(columns)], alpha))
    return block


def apply_smoothing(
    config: ModelConfig,
    block: Block,
    absmax: ChannelAbsmax,
    recipe: Recipe,
    alpha: float,
) -> Block:
    """Smooth a block at one alpha, its outputs too if the recipe asks for that."""
    outputs = recipe.smoothing is not None and recipe.smoothing.outputs
    return smooth_block(config, block, absmax, alpha, outputs)


def require_smoothed(before: Block, after: Block, names: Mapping[str, str]) -> None:
    """Raise QuantizationError if smoothing made a weight overflow."""
    old, new = (block_linears(block) | block_norms(block) for block in (before, after))
    for part, value in new.items():
        finite = value is old.get(part) or np.isfinite(np.asarray(value.weight)).all()
        if not finite:
            problem = "overflows float32 when it is smoothed"
            expected = "a recipe without smoothing (naive, W8A16, W4A16)"
            raise QuantizationError(problem, name=names.get(part, part), expected=expected)


def require_folds(config: ModelConfig) -> None:
    """Raise RecipeError if no norm feeds only linears, as with OPT-350m's post-norms."""
    if not folds(config):
        raise RecipeError(
            "cannot smooth: the residual stream also reads the output of every norm",
            name="alpha",
            expected="a recipe without smoothing (naive, W8A16, W4A16)",
        )
