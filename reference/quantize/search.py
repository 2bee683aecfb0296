"""The search for SmoothQuant's alpha, by the error of each block's outputs.

    error[block, alpha] = sum |quantized(smoothed block)(x) - block(x)|^2 / sum |block(x) - x|^2

x are the float model's hidden states, of at most SEARCH_SAMPLES samples, evenly spaced among all of
them: fourteen candidates on a sixteenth of the default samples cost about one pass over all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planish.reference.files.checkpoint import Checkpoint
from planish.reference.model.weights import Block, Weights
from planish.reference.quantize.block import quantize_block
from planish.reference.quantize.job import BlockJob
from planish.reference.quantize.observe import ChannelAbsmax, spread
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantize.runner import Hidden, Runner
from planish.reference.quantize.runtime import NUMPY, Runtime
from planish.reference.quantize.schemes import block_schemes, linear_names
from planish.reference.quantize.smooth import apply_smoothing

ALPHAS = tuple(round(0.3 + 0.05 * i, 2) for i in range(14))  # 0.3 .. 0.95
SEARCH_SAMPLES = 32


@dataclass(frozen=True, kw_only=True)
class BlockAlphas:
    """The alpha of each block; after a search also the errors and the absmax that it measured."""

    alphas: list[float]
    errors: np.ndarray | None = None  # [blocks, alphas tried]
    observed: list[ChannelAbsmax] | None = None  # absmax of each block, on all samples


def search_alpha(
    checkpoint: Checkpoint,
    weights: Weights,
    samples: Sequence[np.ndarray],
    recipe: Recipe,
    alphas: Sequence[float] = ALPHAS,
    runtime: Runtime = NUMPY,
) -> BlockAlphas:
    """Search for the alpha that minimises the output error, for each block or for the model.

    recipe.alpha `search_per_block` takes each block's best alpha, `search` the one with the least
    sum of errors (arXiv 2211.10438, section 5.1, searches per model; the per-block form is ours).
    """
    runner, config = runtime.runner, checkpoint.config
    hidden, some = runner.embed(config, weights, samples), spread(len(samples), SEARCH_SAMPLES)
    errors, observed = [], []
    for layer, block in enumerate(runtime.progress(weights.blocks, "search alpha")):
        absmax, outputs = runner.observe(config, block, hidden, linear_names(checkpoint, layer))
        few, expected = ([states[i] for i in some] for states in (hidden, outputs))
        trial = Trial(checkpoint=checkpoint, layer=layer, recipe=recipe, runner=runner, hidden=few)
        candidates = (trial.candidate(block, absmax, alpha) for alpha in alphas)
        found = (runner.run(config, candidate, few) for candidate in candidates)
        errors.append([output_error(few, outcome, expected) for outcome in found])
        observed.append(absmax)
        hidden = outputs
    table = np.array(errors)
    best = choose_best_alphas(table, alphas, per_block=recipe.alpha == "search_per_block")
    return BlockAlphas(alphas=best, errors=table, observed=observed)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One block under one recipe, to try at several alphas."""

    checkpoint: Checkpoint
    layer: int
    recipe: Recipe
    runner: Runner
    hidden: Hidden  # the block's input

    def candidate(self, block: Block, absmax: ChannelAbsmax, alpha: float) -> Block:
        """Smooth the block at one alpha and round it to nearest, whatever the recipe's method.

        Static scales are not clipped: that would take longer than all else.
        """
        checkpoint, recipe, config = self.checkpoint, self.recipe, self.checkpoint.config
        block = apply_smoothing(config, block, absmax, recipe, alpha)
        job = BlockJob(
            config=config,
            schemes=block_schemes(checkpoint, recipe, self.layer),
            rule=recipe.rule,
            names=linear_names(checkpoint, self.layer),
            runner=self.runner,
            float_inputs=self.hidden,
        )
        plain = replace(recipe, method="rtn", clip_inputs=False)
        return quantize_block(job, block, plain)[0]


def choose_best_alphas(errors: np.ndarray, alphas: Sequence[float], per_block: bool) -> list[float]:
    """From errors [blocks, alphas]: the best alpha of each block, or of their sum."""
    if per_block:
        return [alphas[i] for i in errors.argmin(axis=1)]
    return [alphas[int(errors.sum(axis=0).argmin())]] * len(errors)


def output_error(hidden: Hidden, found: Hidden, expected: Hidden) -> float:
    """Squared error of a block's outputs, relative to what the float block adds to its input.

    Inf if a square overflows.
    """
    with np.errstate(all="ignore"):
        wrong = sum(_square_distance(y, right) for y, right in zip(found, expected, strict=True))
        moved = sum(_square_distance(y, x) for y, x in zip(expected, hidden, strict=True))
    return wrong / max(moved, 1e-30) if np.isfinite(wrong + moved) else float("inf")


def _square_distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.square(a - b).sum())
