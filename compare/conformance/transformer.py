"""Level 3: the whole model, where errors may add up.

    logits    of every token of the prompt, in the same chunks
    chunks    a prompt one token longer than a chunk
    steps     a prefill, then single steps up to the last slot of the cache: compared with the
              reference, and with the subject's own prefill of the same tokens
    cache     after these steps, slot by slot: a slot that is not written, or written twice, may
              move the logits by less than a flipped code
    batch     prompts of different lengths in one batch, with steps, each row compared with the
              reference on that prompt only
    greedy    the tokens that the subject generates for that batch

If a subject has no steps, only its logits are judged.

Tolerances are relative to the range (largest minus smallest) of the compared logits. In floats only
summation errors add up: 1e-4. With INT8 activations a code at a tie may flip (level 2), which
changes every value downstream; perturbation.py measures how much. A code of an INT8 cache may flip
too, an error of one step of the scale in one entry of a key or value. In float models that moved
the logits by up to 3e-3 of their range and a slot by up to 1 % of its norm; perturbation.py
measures it in the same way. Mean errors are far below the largest, so they have separate
tolerances: a small error in every logit would pass a tolerance sized for the single worst logit.

The cache is compared as floats, in each form that a subject stores it in (kv_cache.py).

A greedy token that differs is a failure unless the reference's margin is within the tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from planish.compare.conformance.check import Check, check
from planish.compare.conformance.kv_cache import dequantize_slots
from planish.compare.conformance.perturbation import ReferenceRun, Tolerances, measure_slot_errors
from planish.compare.subject import Slots, Steps, Subject
from planish.reference.model import transformer as reference_transformer
from planish.reference.model.attention import dequantize_heads, first_heads
from planish.reference.model.config import ModelConfig
from planish.reference.model.transformer import PREFILL_CHUNK, KVCache
from planish.reference.model.weights import Weights
from planish.reference.text.evaluate import agreement

STEPS = 6  # single steps at the end of the cache
FEW_TOKENS = 100  # a mean over fewer has the tolerance of a row
BATCH = (9, 5, 8)  # prompt lengths: one fills its chunk exactly, the others do not
NEW_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class ModelCase:
    """The model, and the subject under test.

    chunk_scales: activation scales depend on which tokens share a chunk (per_tensor)
    """

    config: ModelConfig
    weights: Weights
    subject: Subject
    tolerances: Tolerances
    chunk_scales: bool


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """Level 3 in numbers."""

    tokens: int
    max_error: float
    mean_error: float
    range: float
    mean_kl: float
    max_kl: float
    top1: float


def check_model(case: ModelCase, run: ReferenceRun) -> tuple[list[Check], ModelFigures]:
    """Every check of level 3, and the figures of the prompt's logits."""
    found = case.subject.model.forward(run.tokens)
    figures = measure_logits(run.logits, found)
    kl = np.array([figures.mean_kl])
    checks = [
        *check_logits(case, "logits", run.logits, found),
        check(3, None, "logits, mean KL", np.zeros(1), kl, case.tolerances.mean_kl),
    ]
    if case.subject.steps is not None:
        checks += check_boundary(case, case.subject.steps, run)
        checks += check_steps(case, case.subject.steps, run, found)
        checks += check_batch(case, case.subject.steps, run.tokens)
    return checks, figures


def measure_logits(expected: np.ndarray, found: np.ndarray) -> ModelFigures:
    """Errors, KL and agreement of logits [T, V]."""
    tokens, span, nan = len(expected), float(np.ptp(expected)), float("nan")
    if expected.shape != found.shape or not np.isfinite(found).all():
        unknown = dict.fromkeys(("max_error", "mean_error", "mean_kl", "max_kl"), nan)
        return ModelFigures(tokens=len(found), range=span, top1=0.0, **unknown)
    difference, same = np.abs(expected - found), agreement(expected, found)
    return ModelFigures(
        tokens=tokens,
        max_error=float(difference.max()),
        mean_error=float(difference.mean()),
        range=span,
        mean_kl=same.mean_kl,
        max_kl=same.max_kl,
        top1=same.top1,
    )


def check_logits(
    case: ModelCase, part: str, expected: np.ndarray, found: np.ndarray
) -> Iterator[Check]:
    """Each logit, and the mean difference of all."""
    span = float(np.ptp(expected))
    yield check(3, None, part, expected, found, case.tolerances.largest * span)
    if expected.shape == found.shape:
        share = case.tolerances.row if len(found) < FEW_TOKENS else case.tolerances.mean
        mean = np.abs(found.astype(np.float64) - expected).mean(keepdims=True)
        yield check(3, None, f"{part}, mean error", np.zeros((1, 1)), mean, share * span)


def check_boundary(case: ModelCase, steps: Steps, run: ReferenceRun) -> Iterator[Check]:
    """A prompt of one chunk and one token, so that the second chunk is as short as possible."""
    if len(run.tokens) <= PREFILL_CHUNK:
        return
    tokens = list(run.tokens[: PREFILL_CHUNK + 1])
    expected, _ = reference_transformer.decode_step(
        case.config, case.weights, tokens[-1], run.cache
    )
    found, _ = steps.prefill(tokens, len(tokens))
    yield from check_logits(case, f"prefill of {len(tokens)}", expected[None], found[-1:])


def check_steps(
    case: ModelCase, steps: Steps, run: ReferenceRun, prefilled: np.ndarray
) -> Iterator[Check]:
    """Prefill, then single steps; the last one fills the last slot of the longest cache."""
    slots = min(case.config.max_positions, PREFILL_CHUNK)
    tokens = np.resize(run.tokens, slots)
    split = slots - min(STEPS, slots - 1)
    cache = find_cache(case, run, tokens[:split])
    _, state = steps.prefill(tokens[:split].tolist(), slots)
    for position in range(split, slots):
        token = int(tokens[position])
        row, cache = reference_transformer.decode_step(case.config, case.weights, token, cache)
        found, state = steps.step(np.array([token]), np.array([position]), state)
        name = f"decode at slot {position} of {steps.capacity(state)}"
        yield from check_logits(case, name, row[None], found)
        if position < len(prefilled) and not case.chunk_scales:
            name += ", against its own prefill"
            yield from check_logits(case, name, prefilled[position][None], found)
    yield from check_slots(case, cache, steps.slots(state))


def check_slots(case: ModelCase, expected: KVCache, found: Sequence[Slots]) -> Iterator[Check]:
    """|found - expected| / |expected| of the keys (values) in each slot; the index is the slot."""
    layers = [dequantize_slots(layer) for layer in found]  # [1, G, more slots, Hd] each
    for number, kind in enumerate(("keys", "values")):
        pairs = zip(getattr(expected, kind), layers, strict=True)
        for layer, (known, slots) in enumerate(pairs):  # known: [S, G, Hd]
            written = slots[number][0].transpose(1, 0, 2)[: len(known)]
            share = measure_slot_errors(dequantize_heads(known), written)
            name, zeros = f"{kind} in the cache", np.zeros(len(known))
            yield check(3, layer, name, zeros, share, case.tolerances.slot)


def find_cache(case: ModelCase, run: ReferenceRun, tokens: np.ndarray) -> KVCache:
    """The reference's cache after some tokens, cut from the first chunk's where that is equal."""
    count = len(tokens)
    if case.chunk_scales or run.cache.length < count:
        return reference_transformer.prefill(case.config, case.weights, tokens.tolist())[1]
    both = run.cache.keys, run.cache.values
    keys, values = (tuple(first_heads(x, count) for x in heads) for heads in both)
    return KVCache(keys, values)


def check_batch(case: ModelCase, steps: Steps, tokens: Sequence[int]) -> Iterator[Check]:
    """A batch that is fed the reference's greedy tokens, then one that generates freely."""
    room = case.config.max_positions
    prompts = [list(tokens[:length]) for length in BATCH if length <= min(room, len(tokens))]
    prompts = prompts or [list(tokens)]
    new = min(NEW_TOKENS, room - max(map(len, prompts)) + 1)
    alone = [continue_greedily(case, prompt, new) for prompt in prompts]
    fed = np.stack([logits.argmax(axis=1) for logits in alone])  # [B, new]
    found = run_forced_batch(steps, prompts, fed)
    for row, expected in enumerate(alone):
        name = f"row {row} of a batch of {len(prompts)}"
        yield from check_logits(case, name, expected, found[row])
    yield from check_greedy(case, steps.generate(prompts, new), alone)


def continue_greedily(case: ModelCase, prompt: Sequence[int], new: int) -> np.ndarray:
    """The reference's logits [new, V] of a greedy continuation of one prompt."""
    logits, cache = reference_transformer.prefill(case.config, case.weights, prompt)
    rows = [logits[-1]]
    while len(rows) < new:
        token = int(rows[-1].argmax())
        row, cache = reference_transformer.decode_step(case.config, case.weights, token, cache)
        rows.append(row)
    return np.stack(rows)


def run_forced_batch(steps: Steps, prompts: list[list[int]], fed: np.ndarray) -> np.ndarray:
    """The subject's logits [B, new, V] for a batch that is fed the given tokens [B, new]."""
    new = fed.shape[1]
    logits, state = steps.prefill_batch(prompts, new)
    lengths, rows = np.array([len(prompt) for prompt in prompts]), [logits]
    for number in range(new - 1):
        logits, state = steps.step(fed[:, number], lengths + number, state)
        rows.append(logits)
    return np.stack(rows, axis=1)


def check_greedy(
    case: ModelCase, generated: list[list[int]], alone: list[np.ndarray]
) -> Iterator[Check]:
    """Generated tokens must be equal up to a token where the reference is near a tie itself."""
    for row, logits in enumerate(alone):
        found, expected = np.array(generated[row]), logits.argmax(axis=1)
        if len(found) == len(logits):
            known = count_comparable(logits, expected, found, case.tolerances.largest)
            expected, found = expected[:known], found[:known]
        if len(expected):
            yield check(3, None, f"greedy tokens of row {row}", expected, found, 0.0)


def count_comparable(
    logits: np.ndarray, expected: np.ndarray, found: np.ndarray, share: float
) -> int:
    """How many tokens to compare: all, or those before a difference within tolerance."""
    differing = np.flatnonzero(expected != found)
    if len(differing) == 0:
        return len(expected)
    first = int(differing[0])
    row = logits[first]
    margin = row[expected[first]] - row[found[first]]
    return first if margin <= 2 * share * np.ptp(row) else len(expected)
