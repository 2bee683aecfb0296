"""Level 3: the whole model, where errors may add up.

    logits    of every token of the prompt, in the same chunks
    chunks    a prompt one token longer than a chunk
    steps     a prefill and then single steps, up to the last slot of the cache: against the
              reference, and against the subject's own prefill of the same tokens
    cache     after these steps, slot by slot: a slot that is not written, or written twice,
              may move the logits by less than a code that flips
    batch     prompts of different lengths in one batch, with steps, each row as if it were alone
    greedy    the tokens that the subject generates for that batch

Of a subject without steps only the logits are judged.

Tolerances are shares of the range (largest minus smallest) of the logits compared. In floats only
summation errors add up: 1e-4. With INT8 activations a code at a tie may flip (level 2), and
everything after it moves; perturbation.py measures how much. In an INT8 cache a code may flip too,
an error of one step of the scale in one entry of a key or value: it moved the logits of models
in floats by up to 3e-3 of their range, and a slot by up to 1 % of its length; perturbation.py
covers it in the same way. Means are far below the largest, so they have tolerances to themselves:
a small error in every logit would pass a tolerance sized for the single worst logit.

The cache is compared as floats, in any form that the subject holds it (kv_cache.py).

A greedy token that differs is a failure unless the reference's margin is within the tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from planish.compare.conformance.check import Check, check
from planish.compare.conformance.kv_cache import as_floats
from planish.compare.conformance.perturbation import Tolerances, Trace, slot_errors
from planish.compare.subject import Slots, Steps, Subject
from planish.reference.model import transformer as reference_transformer
from planish.reference.model.config import ModelConfig
from planish.reference.model.transformer import PREFILL_CHUNK, KVCache
from planish.reference.model.weights import Weights
from planish.reference.text.evaluate import agreement

STEPS = 6  # single steps at the end of the cache
FEW_TOKENS = 100  # a mean over fewer is judged as a row's
BATCH = (9, 5, 8)  # prompts that fill their chunk to the last place, and that do not
NEW_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class ModelCase:
    """The model under test on both sides. `together`: scales depend on the tokens of a chunk."""

    config: ModelConfig
    weights: Weights
    subject: Subject
    tolerances: Tolerances
    together: bool


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


def check_model(case: ModelCase, trace: Trace) -> tuple[list[Check], ModelFigures]:
    """Every check of level 3, and the figures of the prompt's logits."""
    found = case.subject.model.forward(trace.tokens)
    figures = measure(trace.logits, found)
    kl = np.array([figures.mean_kl])
    checks = [
        *check_logits(case, "logits", trace.logits, found),
        check(3, None, "logits, mean KL", np.zeros(1), kl, case.tolerances.mean_kl),
    ]
    if case.subject.steps is not None:
        checks += check_boundary(case, case.subject.steps, trace)
        checks += check_steps(case, case.subject.steps, trace, found)
        checks += check_batch(case, case.subject.steps, trace.tokens)
    return checks, figures


def measure(expected: np.ndarray, found: np.ndarray) -> ModelFigures:
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


def check_boundary(case: ModelCase, steps: Steps, trace: Trace) -> Iterator[Check]:
    """A prompt of one chunk and one token: the second chunk is as short as can be."""
    if len(trace.tokens) <= PREFILL_CHUNK:
        return
    tokens = list(trace.tokens[: PREFILL_CHUNK + 1])
    expected, _ = reference_transformer.decode_step(
        case.config, case.weights, tokens[-1], trace.cache
    )
    found, _ = steps.prefill(tokens, len(tokens))
    yield from check_logits(case, f"prefill of {len(tokens)}", expected[None], found[-1:])


def check_steps(
    case: ModelCase, steps: Steps, trace: Trace, prefilled: np.ndarray
) -> Iterator[Check]:
    """Prefill, then single steps; the last one fills the last slot that the cache may have."""
    slots = min(case.config.max_positions, PREFILL_CHUNK)
    tokens = np.resize(trace.tokens, slots)
    split = slots - min(STEPS, slots - 1)
    cache = cache_after(case, trace, tokens[:split])
    _, state = steps.prefill(tokens[:split].tolist(), slots)
    for position in range(split, slots):
        token = int(tokens[position])
        row, cache = reference_transformer.decode_step(case.config, case.weights, token, cache)
        found, state = steps.step(np.array([token]), np.array([position]), state)
        name = f"decode at slot {position} of {steps.capacity(state)}"
        yield from check_logits(case, name, row[None], found)
        if position < len(prefilled) and not case.together:
            name += ", against its own prefill"
            yield from check_logits(case, name, prefilled[position][None], found)
    yield from check_slots(case, cache, steps.slots(state))


def check_slots(case: ModelCase, expected: KVCache, found: Sequence[Slots]) -> Iterator[Check]:
    """|found - expected| / |expected| of the keys (values) in each slot; the index is the slot."""
    layers = [as_floats(layer) for layer in found]  # [1, G, more slots, Hd] each
    for number, kind in enumerate(("keys", "values")):
        pairs = zip(getattr(expected, kind), layers, strict=True)
        for layer, (known, slots) in enumerate(pairs):  # known: [S, G, Hd]
            written = slots[number][0].transpose(1, 0, 2)[: len(known)]
            share = slot_errors(known, written)
            name, zeros = f"{kind} in the cache", np.zeros(len(known))
            yield check(3, layer, name, zeros, share, case.tolerances.slot)


def cache_after(case: ModelCase, trace: Trace, tokens: np.ndarray) -> KVCache:
    """The reference's cache after some tokens: cut from the trace's where that is the same."""
    count = len(tokens)
    if case.together or trace.cache.length < count:
        return reference_transformer.prefill(case.config, case.weights, tokens.tolist())[1]
    keys = tuple(k[:count] for k in trace.cache.keys)
    return KVCache(keys, tuple(v[:count] for v in trace.cache.values))


def check_batch(case: ModelCase, steps: Steps, tokens: Sequence[int]) -> Iterator[Check]:
    """A batch fed with the reference's own greedy tokens, then left to generate by itself."""
    room = case.config.max_positions
    prompts = [list(tokens[:length]) for length in BATCH if length <= min(room, len(tokens))]
    prompts = prompts or [list(tokens)]
    new = min(NEW_TOKENS, room - max(map(len, prompts)) + 1)
    alone = [greedy_alone(case, prompt, new) for prompt in prompts]
    fed = np.stack([logits.argmax(axis=1) for logits in alone])  # [B, new]
    found = forced_batch(steps, prompts, fed)
    for row, expected in enumerate(alone):
        name = f"row {row} of a batch of {len(prompts)}"
        yield from check_logits(case, name, expected, found[row])
    yield from check_greedy(case, steps.generate(prompts, new), alone)


def greedy_alone(case: ModelCase, prompt: Sequence[int], new: int) -> np.ndarray:
    """The reference's logits [new, V] as it continues one prompt greedily."""
    logits, cache = reference_transformer.prefill(case.config, case.weights, prompt)
    rows = [logits[-1]]
    while len(rows) < new:
        token = int(rows[-1].argmax())
        row, cache = reference_transformer.decode_step(case.config, case.weights, token, cache)
        rows.append(row)
    return np.stack(rows)


def forced_batch(steps: Steps, prompts: list[list[int]], fed: np.ndarray) -> np.ndarray:
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
    """Generated tokens: equal, or different first where the reference could not decide either."""
    for row, logits in enumerate(alone):
        found, expected = np.array(generated[row]), logits.argmax(axis=1)
        if len(found) == len(logits):
            known = comparable(logits, expected, found, case.tolerances.largest)
            expected, found = expected[:known], found[:known]
        if len(expected):
            yield check(3, None, f"greedy tokens of row {row}", expected, found, 0.0)


def comparable(logits: np.ndarray, expected: np.ndarray, found: np.ndarray, share: float) -> int:
    """How many tokens are to be compared: all, or those before a difference within tolerance."""
    differing = np.flatnonzero(expected != found)
    if len(differing) == 0:
        return len(expected)
    first = int(differing[0])
    row = logits[first]
    margin = row[expected[first]] - row[found[first]]
    return first if margin <= 2 * share * np.ptp(row) else len(expected)
