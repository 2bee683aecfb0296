"""SmoothQuant: move the outliers of activations into the weights, where they do less harm.

For a norm and the linears that read its output, each input channel j is divided by s_j in the
norm and multiplied by s_j in the linears; the product is unchanged (SmoothQuant, section 4):

    s_j = max(1e-5, xmax_j ** alpha / wmax_j ** (1 - alpha))        s_j = 1 where xmax_j = 0
    norm.weight /= s     norm.bias /= s     W[:, j] *= s_j

Everything in float32, whatever the checkpoint's type. The original floors s at 1e-5 where a
channel is dead (xmax_j = 0), which multiplies its norm weight by 1e5; we leave it alone.
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
    """s [K] from the activations' absmax [K] and all the weights [N, K] that read them."""
    wmax = np.max([np.abs(w).max(axis=0) for w in weights], axis=0)
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
    """Fold every norm that feeds only linears: the same function, smoother activations."""
    for fold in folds(config):
        readers = fold_readers(block, fold)
        weights = [float_weight(reader) for reader in readers.values()]
        xmax = next(absmax[name] for name in readers if name in absmax)  # all read the same
        s = smoothing_scale(xmax, weights, alpha)
        scaled: dict[str, Linear | Norm] = {n: scale_inputs(r, s) for n, r in readers.items()}
        scaled[fold.norm] = scale_norm(block_norms(block)[fold.norm], s)
        block = replace_modules(block, scaled)
    return block


def fold_readers(block: Block, fold: Fold) -> dict[str, Linear]:
    """The linears of a fold by name; `experts.gate` stands for every expert's."""
    linears = block_linears(block)
    return {name: x for name, x in linears.items() if split_expert(name)[0] in fold.linears}


def smooth_block_outputs(
    config: ModelConfig, block: Block, absmax: ChannelAbsmax, alpha: float
) -> Block:
    """Beyond the original: fold v -> o, and up -> down where the MLP is linear in `up`.

    Only where nothing stands between them that a scale does not pass: values that are clipped
    are left alone. ReLU commutes with a positive scale; gelu does not.
    """
    folds_values, folds_inner = output_folds(config)
    if folds_values:
        block = smooth_values(config, block, absmax["o"], alpha)
    scaled: dict[str, Linear | Norm] = {}
    linears = block_linears(block)
    for name in linears if folds_inner else ():
        if name.endswith("down") and name in absmax:  # an expert that no token chose has none
            above = name.removesuffix("down") + "up"
            s = smoothing_scale(absmax[name], [float_weight(linears[name])], alpha)
            scaled[above] = scale_outputs(linears[above], s)
            scaled[name] = scale_inputs(linears[name], s)
    return replace_modules(block, scaled)


def output_folds(config: ModelConfig) -> tuple[bool, bool]:
    """Whether v -> o and up -> down can be folded."""
    return config.qkv_clip is None, config.gated_mlp or config.activation == "relu"


def smooth_values(config: ModelConfig, block: Block, xmax: np.ndarray, alpha: float) -> Block:
    """Fold v -> o, whose inputs have the absmax xmax [H * Hd].

    With grouped queries a channel of v is read by several query heads, so they share one s,
    from the largest xmax among them.
    """
    groups = config.num_heads // config.num_kv_heads
    shape = (config.num_kv_heads, groups, config.head_dim)
    xmax = xmax.reshape(shape).max(axis=1).reshape(-1)  # [K * Hd]
    columns = np.abs(float_weight(block.o)).max(axis=0).reshape(shape).max(axis=1).reshape(1, -1)
    s = smoothing_scale(xmax, [columns], alpha)
    wide = np.repeat(s.reshape(config.num_kv_heads, 1, -1), groups, axis=1).reshape(-1)
    return replace(block, v=scale_outputs(block.v, s), o=scale_inputs(block.o, wide))


def smoothed(
    config: ModelConfig,
    block: Block,
    absmax: ChannelAbsmax,
    recipe: Recipe,
    alpha: float,
) -> Block:
    """All the folding that a recipe asks for, at one alpha."""
    block = smooth_block(config, block, absmax, alpha)
    outputs = recipe.smoothing is not None and recipe.smoothing.outputs
    return smooth_block_outputs(config, block, absmax, alpha) if outputs else block


def require_smoothed(before: Block, after: Block, names: Mapping[str, str]) -> None:
    """Raise QuantizationError where a scale made a weight overflow."""
    old, new = (block_linears(block) | block_norms(block) for block in (before, after))
    for part, value in new.items():
        finite = value is old.get(part) or np.isfinite(np.asarray(value.weight)).all()
        if not finite:
            problem = "overflows float32 when it is smoothed"
            expected = "a recipe without smoothing (naive, W8A16, W4A16)"
            raise QuantizationError(problem, name=names.get(part, part), expected=expected)


def require_folds(config: ModelConfig) -> None:
    """Raise RecipeError where no norm feeds only linears, as after OPT-350m's post-norms."""
    if not folds(config):
        raise RecipeError(
            "cannot smooth: every norm's output is read by the residual stream too",
            name="alpha",
            expected="a recipe without smoothing (naive, W8A16, W4A16)",
        )
