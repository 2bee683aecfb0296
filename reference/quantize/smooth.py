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
from dataclasses import replace

import numpy as np

from planish.reference.errors import QuantizationError, RecipeError
from planish.reference.linear import Linear, float_weight
from planish.reference.model.config import ModelConfig
from planish.reference.model.folds import Fold, folds
from planish.reference.model.layers import Norm
from planish.reference.model.weights import (
    Block,
    block_linears,
    block_norms,
    replace_modules,
    split_expert,
)
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


def smooth_block(
    config: ModelConfig,
    block: Block,
    absmax: ChannelAbsmax,
    alpha: float,
) -> Block:
    """Smooth after every norm that feeds only linears; the block computes the same function."""
    for fold in folds(config):
        readers = fold_readers(block, fold)
        weights = [float_weight(reader) for reader in readers.values()]
        xmax = next(absmax[name] for name in readers if name in absmax)  # all have the same input
        s = smoothing_scale(xmax, weights, alpha)
        scaled: dict[str, Linear | Norm] = {n: scale_inputs(r, s) for n, r in readers.items()}
        scaled[fold.norm] = scale_norm(block_norms(block)[fold.norm], s)
        block = replace_modules(block, scaled)
    return block


def fold_readers(block: Block, fold: Fold) -> dict[str, Linear]:
    """The linears of a fold by name; `experts.gate` means the gate of every expert."""
    linears = block_linears(block)
    return {name: x for name, x in linears.items() if split_expert(name)[0] in fold.linears}


def smooth_block_outputs(
    config: ModelConfig, block: Block, absmax: ChannelAbsmax, alpha: float
) -> Block:
    """Fold v -> o, and up -> down if the MLP is linear in `up`; the paper has neither.

    Only if a positive scale commutes with everything in between: it does with attention and ReLU,
    not with GELU or with clipped values.
    """
    folds_values, folds_inner = output_folds(config)
    if folds_values:
        block = smooth_values(config, block, absmax["o"], alpha)
    scaled: dict[str, Linear | Norm] = {}
    linears = block_linears(block)
    for name in linears if folds_inner else ():
        if name.endswith("down") and name in absmax:  # not for an expert that no token selected
            above = name.removesuffix("down") + "up"
            s = smoothing_scale(absmax[name], [float_weight(linears[name])], alpha)
            scaled[above] = scale_outputs(linears[above], s)
            scaled[name] = scale_inputs(linears[name], s)
    return replace_modules(block, scaled)


def output_folds(config: ModelConfig) -> tuple[bool, bool]:
    """Whether v -> o and up -> down can be folded."""
    return config.qkv_clip is None, config.gated_mlp or config.activation == "relu"


def smooth_values(config: ModelConfig, block: Block, xmax: np.ndarray, alpha: float) -> Block:
    """Fold v -> o, where xmax [H * Hd] is the absmax of o's input.

    With grouped-query attention several query heads read a channel of v, so they share one s,
    computed from the largest xmax among them.
    """
    groups = config.num_heads // config.num_kv_heads
    shape = (config.num_kv_heads, groups, config.head_dim)
    xmax = xmax.reshape(shape).max(axis=1).reshape(-1)  # [K * Hd]
    columns = np.abs(float_weight(block.o)).max(axis=0).reshape(shape).max(axis=1).reshape(1, -1)
    s = smoothing_scale(xmax, [columns], alpha)
    wide = np.repeat(s.reshape(config.num_kv_heads, 1, -1), groups, axis=1).reshape(-1)  # [H * Hd]
    return replace(block, v=scale_outputs(block.v, s), o=scale_inputs(block.o, wide))


def apply_smoothing(
    config: ModelConfig,
    block: Block,
    absmax: ChannelAbsmax,
    recipe: Recipe,
    alpha: float,
) -> Block:
    """Smooth a block at one alpha, its outputs too if the recipe asks for that."""
    block = smooth_block(config, block, absmax, alpha)
    outputs = recipe.smoothing is not None and recipe.smoothing.outputs
    return smooth_block_outputs(config, block, absmax, alpha) if outputs else block


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
