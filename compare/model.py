"""Level 3: the whole model, where errors may add up.

Tolerances, as shares of the logits' range (largest minus smallest):

    float activations     1e-4    summation errors through all layers
    INT8 activations      8e-2    a code that flips at a tie moves everything behind it

Both engines do the same: a prefill in the same chunks, then single steps up to the last slot of
the cache, then a greedy continuation. A greedy token that differs is a failure, unless the
reference's margin between first and second is within the tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

import reference.model
from compare.check import Check, check
from fast.engine import Engine
from reference.config import ModelConfig
from reference.evaluate import agreement
from reference.generate import Stop
from reference.model import PREFILL_CHUNK, Weights
from reference.sampling import Sampling

FLOAT_TOLERANCE = 1e-4
QUANTIZED_TOLERANCE = 0.08
LARGEST_KL = {False: 1e-6, True: 5e-3}  # mean nats per token; float activations, INT8
STEPS = 6  # single steps at the end of the cache


@dataclass(frozen=True)
class ModelFigures:
    """Level 3 in numbers."""

    tokens: int
    max_error: float
    mean_error: float
    range: float
    mean_kl: float
    max_kl: float
    top1: float


def check_model(
    config: ModelConfig, weights: Weights, engine: Engine, tokens: Sequence[int], quantized: bool
) -> tuple[list[Check], ModelFigures]:
    """Logits of a prompt, of steps to the cache's last slot and of a batch; greedy tokens."""
    share = QUANTIZED_TOLERANCE if quantized else FLOAT_TOLERANCE
    expected, _ = reference.model.prefill(config, weights, tokens)
    found = engine.forward(tokens)
    figures = measure(expected, found)
    checks = [
        check(3, None, "logits", expected, found, share * figures.range),
        check(3, None, "mean KL", np.zeros(1), np.array([figures.mean_kl]), LARGEST_KL[quantized]),
    ]
    checks += check_steps(config, weights, engine, tokens, share)
    checks += check_batch(engine, tokens, expected, share * figures.range)
    checks += check_greedy(config, weights, engine, tokens[:24], share)
    return checks, figures


def measure(expected: np.ndarray, found: np.ndarray) -> ModelFigures:
    """Errors, KL and agreement of logits [T, V]."""
    difference, same = np.abs(expected - found), agreement(expected, found)
    return ModelFigures(
        len(expected),
        float(difference.max()),
        float(difference.mean()),
        float(np.ptp(expected)),
        same.mean_kl,
        same.max_kl,
        same.top1,
    )


def check_steps(
    config: ModelConfig, weights: Weights, engine: Engine, tokens: Sequence[int], share: float
) -> Iterator[Check]:
    """Prefill, then single steps of which the last one fills the cache's last slot."""
    slots = PREFILL_CHUNK if len(tokens) >= PREFILL_CHUNK else len(tokens)
    steps = min(STEPS, slots - 1)
    split = slots - steps
    logits, cache = reference.model.prefill(config, weights, tokens[:split])
    found, fast_cache = list(engine.prefill(tokens[:split], slots))[-1]
    yield check(3, None, "prefill", logits[-1], found[-1], share * float(np.ptp(logits[-1])))
    for position in range(split, slots):
        token = tokens[position]
        row, cache = reference.model.decode_step(config, weights, token, cache)
        step = np.array([token]), np.array([position])
        found, fast_cache = engine.decode_step(*step, fast_cache)
        name = f"decode at slot {position} of {fast_cache.slots}"
        yield check(3, None, name, row, found[0], share * float(np.ptp(row)))


def check_batch(
    engine: Engine, tokens: Sequence[int], expected: np.ndarray, tolerance: float
) -> Iterator[Check]:
    """Prompts of different lengths side by side give what each gives alone."""
    lengths = [length for length in (5, 17, 11) if length <= len(tokens)]
    prompts = [tokens[:length] for length in lengths]
    logits, _ = engine.prefill_batch(prompts, Stop(1))
    for row, prompt in enumerate(prompts):
        alone = list(engine.prefill(prompt, len(prompt)))[-1][0][-1]
        name = f"row {row} of a batch"
        yield check(3, None, name, alone, logits[row], tolerance)


def check_greedy(
    config: ModelConfig, weights: Weights, engine: Engine, prompt: Sequence[int], share: float
) -> Iterator[Check]:
    """Greedy tokens: equal up to the first whose margin is within the tolerance."""
    room = config.max_positions - len(prompt) + 1
    stop = Stop(min(16, room), ignore_eos=True)
    found = [token for _, token in engine.generate([list(prompt)], stop, Sampling())]
    logits, cache = reference.model.prefill(config, weights, prompt)
    row, expected = logits[-1], []
    for step in range(stop.max_new_tokens):
        first, second = np.sort(row)[::-1][:2]
        if first - second <= 2 * share * np.ptp(row):
            break
        expected.append(int(row.argmax()))
        if step + 1 < stop.max_new_tokens:
            row, cache = reference.model.decode_step(config, weights, expected[-1], cache)
    same = np.array(found[: len(expected)], float)
    if expected:
        yield check(3, None, f"greedy tokens, {len(expected)}", np.array(expected, float), same, 0.0)
