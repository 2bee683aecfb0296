"""Estimate the time and memory of a quantization from its first block.

    seconds = blocks * (read + quantize (1 + trials) + samples observe passes + some run trials)

What depends on machine, model and runner is measured: reading a block, quantizing one of its
linears, running a few samples through it. Embeddings, smoothing and lm_head are small and left
out, and so is a method's own time. Its memory is counted (footprint.py).
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from planish.reference.files.load import Checkpoint, load_weights
from planish.reference.model.shapes import block_shapes
from planish.reference.model.weights import Block, Weights
from planish.reference.quantize.block import quantize_block
from planish.reference.quantize.footprint import state_bytes, work_bytes
from planish.reference.quantize.job import BlockJob
from planish.reference.quantize.methods.rtn import quantize_block as round_block
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantize.runner import Hidden, Runner
from planish.reference.quantize.runtime import Runtime
from planish.reference.quantize.schemes import block_schemes, linear_names
from planish.reference.quantize.search import ALPHAS, SEARCH_SAMPLES

TOKENS = 1024  # run through the first block, rounded to whole samples, at least one


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is still to come: seconds, and the peak resident memory."""

    seconds: float
    bytes: int


def estimate(
    checkpoint: Checkpoint, recipe: Recipe, samples: Sequence[np.ndarray] | None, runtime: Runtime
) -> Estimate:
    """Measure the first block and multiply. samples: None without calibration.

    The bytes are what this process has had so far, the samples' states, and the method's work.
    """
    weights = load_weights(checkpoint)
    block, reading = measure_time(lambda: weights.blocks[0])
    seconds = reading + measure_quantizing(checkpoint, block, recipe) * (1 + count_trials(recipe))
    if samples:
        seconds += measure_calibration(checkpoint, weights, block, recipe, samples, runtime.runner)
    total = checkpoint.config.num_layers * seconds
    states = state_bytes(checkpoint, recipe, samples, runtime.memory_budget)
    work = work_bytes(checkpoint, recipe)
    return Estimate(seconds=total, bytes=peak_resident() + states + work)


def count_trials(recipe: Recipe) -> int:
    """How many alphas a search tries for each block."""
    return len(ALPHAS) if isinstance(recipe.alpha, str) else 0


def measure_quantizing(checkpoint: Checkpoint, block: Block, recipe: Recipe) -> float:
    """Time to quantize a block: that of its first linear, scaled to the size of all."""
    schemes = block_schemes(checkpoint, recipe, 0)
    quantized = [part for part, scheme in schemes.items() if scheme is not None]
    if not quantized:
        return 0.0
    first, shapes = quantized[0], block_shapes(checkpoint.config, 0)
    job = BlockJob(
        config=checkpoint.config,
        schemes={first: schemes[first]},
        rule=recipe.rule,
        absmax={first: np.ones(shapes[first][0][1], np.float32)},
    )
    _, seconds = measure_time(lambda: round_block(job, block))
    sizes = {part: shapes[part][0][0] * shapes[part][0][1] for part in quantized}
    return seconds * sum(sizes.values()) / sizes[first]


def measure_calibration(
    checkpoint: Checkpoint,
    weights: Weights,
    block: Block,
    recipe: Recipe,
    samples: Sequence[np.ndarray],
    runner: Runner,
) -> float:
    """Time to run all samples through one block, as often as the recipe needs."""
    config = checkpoint.config
    static, heads = int(recipe.static), int(recipe.kv_cache == "int8_static")
    few = samples[: max(1, TOKENS // len(samples[0]))]
    hidden = runner.embed(config, weights, few)
    names = linear_names(checkpoint, 0)
    observing = measure_second_call(lambda: runner.observe(config, block, hidden, names)) / len(few)
    tried = count_trials(recipe) * min(len(samples), SEARCH_SAMPLES)
    passes = len(samples) * count_passes(recipe, static + heads) + tried * static
    return passes * observing + tried * measure_running(checkpoint, block, recipe, hidden, runner)


def count_passes(recipe: Recipe, wanted: int) -> int:
    """Passes of all samples through a float block: one to observe, one for each observer after
    smoothing, and one more after a search."""
    searched = isinstance(recipe.alpha, str)
    return 1 + wanted + (searched and wanted > 0)


def measure_running(
    checkpoint: Checkpoint, block: Block, recipe: Recipe, hidden: Hidden, runner: Runner
) -> float:
    """Time of one sample through a quantized candidate of the search; 0 without a search."""
    if count_trials(recipe) == 0:
        return 0.0
    config = checkpoint.config
    job = BlockJob(
        config=config,
        schemes=block_schemes(checkpoint, recipe, 0),
        rule=recipe.rule,
        names=linear_names(checkpoint, 0),
        runner=runner,
        float_inputs=hidden,
    )
    candidate, _ = quantize_block(job, block, replace(recipe, method="rtn"))
    return measure_second_call(lambda: runner.run(config, candidate, hidden)) / len(hidden)


def measure_second_call(action: Callable[[], Any]) -> float:
    """The second call's time: the first may compile."""
    action()
    return measure_time(action)[1]


def measure_time(action: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call, and how many seconds it took."""
    start = time.perf_counter()
    result = action()
    return result, time.perf_counter() - start


def peak_resident() -> int:
    """The peak resident memory of this process in bytes, mapped files included.

    Linux: VmHWM, because getrusage also counts what the parent had before this program started.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if "VmHWM" in fields:
            return int(fields["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
