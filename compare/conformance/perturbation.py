"""How much two correct implementations of a model differ, measured on the reference itself.

A float model hardly amplifies rounding errors, and one tolerance fits all of them. With INT8
activations a rounding error can flip a code at a tie, and the effect of one code depends on the
model: next to nothing where the activations are smooth, a tenth of the logits where an outlier
makes all other codes coarse. So the reference is run again, with every block's input perturbed by a
relative error of 2e-6, as large as level 2 sees between libraries. A correct engine may deviate as
much, and FACTOR times as much is allowed: never less than LEAST, because a prompt may happen to
contain no tie, and never more than MOST, which would let a lost token or cache slot pass.

An INT8 cache puts keys and values on a grid too. With float linears nothing else is on one, and a
flip changes one entry of one slot by one step, 1/127 of the head's largest. On a six-layer Llama
with 512 tokens the perturbation then moved the logits by up to 2e-3 of their range (5e-6 with a
float cache) and a slot by 7e-3 of its norm; the engine, in either form, was at 1e-3 and 5e-3. So
the least tolerances of such models are LEAST_CACHED. With INT8 activations the cache adds little to
2e-2.

A router near a tie (routing.py) may choose another expert, whose output may be quite different. If
the prompt contains such a tie, the reference is run twice more with perturbed routers: every
router's weights are multiplied by 1 + 1e-5 n, then by 1 - 1e-5 n, so that each tie is decided the
other way in one of the two runs.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import numpy as np

from planish.reference.model import transformer as reference_transformer
from planish.reference.model.attention import Heads, dequantize_heads
from planish.reference.model.config import ModelConfig
from planish.reference.model.transformer import KVCache
from planish.reference.model.weights import Block, Experts, Weights
from planish.reference.text.evaluate import agreement

PERTURBATION = np.float32(2e-6)
ROUTER_PERTURBATION = np.float32(1e-5)
FACTOR = 3.0


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """Relative to the range of the compared logits, except for the last two."""

    largest: float  # of any logit
    row: float  # mean over one token's logits, or a few
    mean: float  # mean over a prompt
    mean_kl: float  # nats per token
    slot: float  # relative to the norm of one cache slot's keys or values


IN_FLOATS = Tolerances(largest=1e-4, row=1e-5, mean=1e-5, mean_kl=1e-6, slot=1e-4)
LEAST_CACHED = Tolerances(largest=0.01, row=0.003, mean=3e-4, mean_kl=1e-5, slot=0.03)
LEAST = Tolerances(largest=0.05, row=0.02, mean=0.003, mean_kl=0.003, slot=0.1)
MOST = Tolerances(largest=0.3, row=0.1, mean=0.02, mean_kl=0.1, slot=0.9)


@dataclass(frozen=True, kw_only=True)
class ReferenceRun:
    """What the reference computed: logits [T, V] of the prompt, and the first chunk's cache.

    router_ties: how many rows, in all blocks, have more than one legal choice of experts
    """

    tokens: list[int]
    logits: np.ndarray
    cache: KVCache
    router_ties: int = 0


def measure_tolerances(
    config: ModelConfig, weights: Weights, run: ReferenceRun, least: Tolerances = LEAST
) -> Tolerances:
    """The tolerances of a model with INT8 activations, an INT8 cache or routers near a tie."""
    tokens = run.tokens[: run.cache.length]
    runs = [run_perturbed(config, weights, tokens)]
    if run.router_ties:
        runs += [run_perturbed(config, weights, tokens, routers=sign) for sign in (1, -1)]
    seen = [astuple(measure_movement(run, *perturbed)) for perturbed in runs]
    worst = map(max, *seen, seen[0])
    values = zip(astuple(least), worst, astuple(MOST), strict=True)
    allowed = [min(max(low, FACTOR * value), high) for low, value, high in values]
    return Tolerances(**dict(zip(vars(least), allowed, strict=True)))


def measure_movement(run: ReferenceRun, logits: np.ndarray, cache: KVCache) -> Tolerances:
    """How much a perturbed run differs from the reference's own."""
    expected = run.logits[: len(logits)]
    noise = np.abs(logits.astype(np.float64) - expected)
    ranges = np.ptp(expected, axis=1)
    return Tolerances(
        largest=float((noise.max(axis=1) / ranges).max()),
        row=float((noise.mean(axis=1) / ranges).max()),
        mean=float(noise.mean() / np.ptp(expected)),
        mean_kl=agreement(expected, logits).mean_kl,
        slot=find_worst_slot(run.cache, cache),
    )


def run_perturbed(
    config: ModelConfig, weights: Weights, tokens: list[int], routers: int = 0
) -> tuple[np.ndarray, KVCache]:
    """Logits and cache of tokens when each block reads x (1 + 2e-6 n), n normally distributed.

    routers: 1 or -1 to perturb the routers' weights too, in this direction.
    """
    rng, positions = np.random.default_rng(0), np.arange(len(tokens))
    nothing = reference_transformer.empty_cache(config)
    x = reference_transformer.embed(config, weights, np.asarray(tokens), positions)
    pasts = []
    for layer, block in enumerate(weights.blocks):
        x = x * (1 + PERTURBATION * rng.standard_normal(x.shape, np.float32))
        past = nothing.keys[layer], nothing.values[layer]
        block = perturb_router(block, layer, routers) if routers else block
        x, longer = reference_transformer.block_forward(config, block, x, positions, past)
        pasts.append(longer)
    keys, values = zip(*pasts, strict=True)
    return reference_transformer.unembed(config, weights, x), KVCache(keys, values)


def perturb_router(block: Block, layer: int, sign: int) -> Block:
    """The block with its router's weights, if it has a router, multiplied by 1 + sign * 1e-5 n."""
    if not isinstance(block.mlp, Experts):
        return block
    router = block.mlp.router
    weight = np.asarray(router.weight)
    noise = np.random.default_rng((1, layer)).standard_normal(weight.shape, np.float32)
    changed = weight * (1 + np.float32(sign) * ROUTER_PERTURBATION * noise)
    return replace(block, mlp=replace(block.mlp, router=replace(router, weight=changed)))


def measure_slot_errors(expected: Heads, found: Heads) -> np.ndarray:
    """|found - expected| / |expected| of the vectors [S, K, Hd] in each slot, [S]; of floats."""
    expected, found = dequantize_heads(expected), dequantize_heads(found)
    length = np.linalg.norm(expected, axis=(1, 2)) + np.float32(1e-30)
    errors: np.ndarray = np.linalg.norm(found - expected, axis=(1, 2)) / length
    return errors


def find_worst_slot(expected: KVCache, found: KVCache) -> float:
    """The largest slot error over all layers, keys and values."""
    pairs = [*zip(expected.keys, found.keys, strict=True)]
    pairs += zip(expected.values, found.values, strict=True)
    return max(float(measure_slot_errors(a, b).max()) for a, b in pairs)
