"""How long a model will take, and how much memory: measured on its first block, then counted.

    seconds = blocks * (read + quantize (1 + trials) + samples observe passes + some run trials)

Everything that depends on machine, model and runner is timed here: reading a block, one of its
linears put on the grid, two samples carried through it. What is not counted is small: embeddings,
smoothing, the head.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.reference.files.load import Checkpoint, load_weights
from planish.reference.model.shapes import block_shapes
from planish.reference.model.weights import Block, Weights
from planish.reference.quantize.block import method_observer, method_statistics, quantize_block
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantize.runner import Hidden, Runner
from planish.reference.quantize.schemes import block_schemes, linear_names
from planish.reference.quantize.search import ALPHAS, SEARCH_SAMPLES

TOKENS = 1024  # at least, that are carried through the first block; one sample at least


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of a whole quantization, from here on."""

    seconds: float
    bytes: int  # resident at most


def estimate(
    checkpoint: Checkpoint, recipe: Recipe, samples: Sequence[np.ndarray] | None, runner: Runner
) -> Estimate:
    """Measure the first block and count the rest. samples: None without calibration."""
    weights = load_weights(checkpoint)
    block, reading = timed(lambda: weights.blocks[0])
    seconds = reading + quantizing_seconds(checkpoint, block, recipe) * (1 + trials(recipe))
    states = 0
    if samples:
        seconds += calibration_seconds(checkpoint, weights, block, recipe, samples, runner)
        states = sum(map(len, samples)) * checkpoint.config.hidden_size * 4  # float32
    total = checkpoint.config.num_layers * seconds
    return Estimate(seconds=total, bytes=peak_resident() + 2 * states)  # before and after a block


def trials(recipe: Recipe) -> int:
    """Candidates that a search makes of each block."""
    return len(ALPHAS) if isinstance(recipe.alpha, str) else 0


def quantizing_seconds(checkpoint: Checkpoint, block: Block, recipe: Recipe) -> float:
    """What a block's linears take on their grids: as long as the first takes, by their sizes."""
    schemes = block_schemes(checkpoint, recipe, 0)
    quantized = [part for part, scheme in schemes.items() if scheme is not None]
    if not quantized:
        return 0.0
    first, shapes = quantized[0], block_shapes(checkpoint.config, 0)
    statistics = {first: np.ones(shapes[first][0][1], np.float32)}
    one = {first: schemes[first]}
    _, seconds = timed(lambda: quantize_block(block, recipe, statistics, schemes=one))
    sizes = {part: shapes[part][0][0] * shapes[part][0][1] for part in quantized}
    return seconds * sum(sizes.values()) / sizes[first]


def calibration_seconds(
    checkpoint: Checkpoint,
    weights: Weights,
    block: Block,
    recipe: Recipe,
    samples: Sequence[np.ndarray],
    runner: Runner,
) -> float:
    """What carrying all samples through one block takes, as often as the recipe asks for it."""
    config, wanted = checkpoint.config, method_observer(recipe) is not None
    few = samples[: max(1, TOKENS // len(samples[0]))]
    hidden = runner.embed(config, weights, few)
    names = linear_names(checkpoint, 0)
    observing = steady_seconds(lambda: runner.observe(config, block, hidden, names)) / len(few)
    tried = trials(recipe) * min(len(samples), SEARCH_SAMPLES)
    passes = len(samples) * passes_of(recipe, wanted) + (tried if wanted else 0)
    return passes * observing + tried * running_seconds(checkpoint, block, recipe, hidden, runner)


def passes_of(recipe: Recipe, wanted: bool) -> int:
    """Passes of all samples through a float block: for smoothing, and as a method wants them."""
    searched = isinstance(recipe.alpha, str)
    return 1 + (2 if searched and wanted else int(wanted))


def running_seconds(
    checkpoint: Checkpoint, block: Block, recipe: Recipe, hidden: Hidden, runner: Runner
) -> float:
    """What one sample takes through a candidate of the search; 0 where nothing is searched."""
    if trials(recipe) == 0:
        return 0.0
    config = checkpoint.config
    found = method_statistics(config, block, recipe, hidden, linear_names(checkpoint, 0), runner)
    candidate = quantize_block(block, recipe, found)
    return steady_seconds(lambda: runner.run(config, candidate, hidden)) / len(hidden)


def steady_seconds(action: Callable[[], Any]) -> float:
    """The second call's time: the first may compile."""
    action()
    return timed(action)[1]


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = action()
    return result, time.perf_counter() - start


def peak_resident() -> int:
    """Bytes that this process has had in memory at most, mapped files among them."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
