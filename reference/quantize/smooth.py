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
from planish.reference.files.checkpoint import Checkpoint
from planish.reference.linear import Linear, float_weight
from planish.reference.model.config import ModelConfig
from planish.reference.model.folds import Fold, folds
from planish.reference.model.layers import Norm
from planish.reference.model.weights import (
    Block,
    Weights,
    block_linears,
    block_norms,
    replace_parts,
    split_expert,
)
from planish.reference.quantize.methods import quantize_linear
from planish.reference.quantize.observe import (
    ChannelAbsmax,
    Progress,
    embed_samples,
    no_progress,
    observe_block,
    run_block,
)
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantize.schemes import block_schemes, linear_names
from planish.reference.scheme import Scheme

FLOOR = np.float32(1e-5)
ALPHAS = tuple(round(0.3 + 0.05 * i, 2) for i in range(14))  # 0.3 .. 0.95


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
    return Norm(weight / s, None if norm.bias is None else norm.bias / s)


def scale_inputs(layer: Linear, s: np.ndarray) -> Linear:
    """Multiply a linear's input channels by s."""
    return replace(layer, weight=float_weight(layer) * s)


def scale_outputs(layer: Linear, s: np.ndarray) -> Linear:
    """Divide a linear's output channels by s."""
    bias = None if layer.bias is None else layer.bias / s
    return replace(layer, weight=float_weight(layer) / s[:, None], bias=bias)


def smooth_block(config: ModelConfig, block: Block, absmax: ChannelAbsmax, alpha: float) -> Block:
    """Fold every norm that feeds only linears: the same function, smoother activations."""
    for fold in folds(config):
        readers = fold_readers(block, fold)
        weights = [float_weight(reader) for reader in readers.values()]
        xmax = next(absmax[name] for name in readers if name in absmax)  # all read the same
        s = smoothing_scale(xmax, weights, alpha)
        scaled: dict[str, Linear | Norm] = {n: scale_inputs(r, s) for n, r in readers.items()}
        scaled[fold.norm] = scale_norm(block_norms(block)[fold.norm], s)
        block = replace_parts(block, scaled)
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
    return replace_parts(block, scaled)


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


def alpha_of(recipe: Recipe) -> float | str | None:
    """The recipe's alpha; None without smoothing."""
    return None if recipe.smoothing is None else recipe.smoothing.alpha


def search_alpha(
    checkpoint: Checkpoint,
    weights: Weights,
    samples: Sequence[np.ndarray],
    recipe: Recipe,
    alphas: Sequence[float] = ALPHAS,
    progress: Progress = no_progress,
) -> list[float]:
    """The alpha of every block that minimises its output error, or one for all blocks.

    error[block, alpha] = sum |quantized(smoothed block)(x) - block(x)|^2 / sum |block(x) - x|^2
    over the calibration's hidden states x of the float model. The alpha `search_per_block` takes
    each block's best, `search` the alpha whose errors sum to the least (SmoothQuant,
    section 5.1, searches per model; the per-block form is ours).
    """
    config = checkpoint.config
    hidden, errors = embed_samples(config, weights, samples), []
    for layer, block in enumerate(progress(weights.blocks, "search alpha")):
        names, schemes = linear_names(checkpoint, layer), block_schemes(checkpoint, recipe, layer)
        absmax, outputs = observe_block(config, block, hidden, names)
        tried = []
        for alpha in alphas:
            candidate = smoothed(config, block, absmax, recipe, alpha)
            candidate = quantize_block(config, candidate, recipe, hidden, names, schemes)
            tried.append(output_error(config, candidate, hidden, outputs))
        errors.append(tried)
        hidden = outputs
    return _best_alphas(np.array(errors), alphas, per_block=alpha_of(recipe) == "search_per_block")


def _best_alphas(errors: np.ndarray, alphas: Sequence[float], per_block: bool) -> list[float]:
    """From errors [blocks, alphas]: each block's best, or the one best in sum."""
    if per_block:
        return [alphas[i] for i in errors.argmin(axis=1)]
    return [alphas[int(errors.sum(axis=0).argmin())]] * len(errors)


def output_error(
    config: ModelConfig, block: Block, hidden: Sequence[np.ndarray], outputs: Sequence[np.ndarray]
) -> float:
    """How far a block's outputs are from the right ones, relative to what the block adds.

    Inf where a square overflows.
    """
    pairs = list(zip(hidden, outputs, strict=True))
    with np.errstate(all="ignore"):
        wrong = sum(float(np.square(run_block(config, block, x) - y).sum()) for x, y in pairs)
        moved = sum(float(np.square(y - x).sum()) for x, y in pairs)
    return wrong / max(moved, 1e-30) if np.isfinite(wrong + moved) else float("inf")


def quantize_block(
    config: ModelConfig,
    block: Block,
    recipe: Recipe,
    hidden: Sequence[np.ndarray],
    names: Mapping[str, str] | None = None,
    schemes: Mapping[str, Scheme | None] | None = None,
) -> Block:
    """Every linear of a block by its scheme; without any, all but the router by the recipe's.

    Static activation scales are calibrated here, on the block as it is given: after smoothing.
    `names` says how the block's parts are called in errors.
    """
    absmax: ChannelAbsmax = {}
    linears = block_linears(block)
    if schemes is None:
        schemes = {part: recipe.default for part in linears if part != "router"}
    if any(scheme and scheme.activation == "static" for scheme in schemes.values()):
        absmax = with_unseen_experts(block, observe_block(config, block, hidden, names)[0])
    changed = {
        part: quantize_linear(
            linears[part],
            scheme,
            method=recipe.method,
            rule=recipe.rule,
            absmax=absmax.get(part),
            name=(names or {}).get(part, part),
        )
        for part, scheme in schemes.items()
        if scheme is not None
    }
    return replace_parts(block, changed)


def with_unseen_experts(block: Block, absmax: ChannelAbsmax) -> ChannelAbsmax:
    """An expert that no calibration token chose expects what the others saw at most."""
    largest: ChannelAbsmax = {}
    for part, seen in absmax.items():
        general, _ = split_expert(part)
        largest[general] = np.maximum(largest[general], seen) if general in largest else seen
    unseen = [part for part in block_linears(block) if part not in absmax]
    return absmax | {part: largest[split_expert(part)[0]] for part in unseen}
