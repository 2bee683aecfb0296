"""How far two right implementations may be apart: measured on the reference itself.

A float model amplifies rounding errors little, and one tolerance fits all. With INT8 activations
a rounding error can move a code at a tie, and what one code is worth depends on the
model: next to nothing where the activations are smooth, a tenth of the logits where an outlier
makes every other code coarse. So the reference runs once more, with every block's input disturbed
by a relative error of 2e-6, such as level 2 sees between libraries; a right engine may be as far
off, and FACTOR times that is allowed. Never less than LEAST, for a prompt may happen to
meet no tie; never more than MOST, where a lost token or cache slot would pass.

An INT8 cache puts keys and values on a grid too, and nothing else where the linears are in floats.
There a flip is worth one step of one entry of one slot, 1/127 of a head's largest: the disturbance
gives (six-layer Llama, 512 tokens) up to 2e-3 of the range of the logits where a cache of floats
gives 5e-6, and 7e-3 of the length of a slot; the engine in either form was found at 1e-3 and 5e-3.
So the least allowance of such models is LEAST_CACHED. With INT8 activations as well the cache
adds little to their 2e-2.

A router that is near a tie (routing.py) may choose another expert, whose output may be quite
different. Where the prompt meets one, the reference runs twice more with disturbed routers: every
router's weights multiplied by 1 + 1e-5 n, then by 1 - 1e-5 n, so that each such tie falls the other
way in one of the two.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import numpy as np

from planish.reference.model import transformer as reference_transformer
from planish.reference.model.config import ModelConfig
from planish.reference.model.transformer import KVCache
from planish.reference.model.weights import Block, Experts, Weights
from planish.reference.text.evaluate import agreement

DISTURBANCE = np.float32(2e-6)
ROUTER_DISTURBANCE = np.float32(1e-5)
FACTOR = 3.0


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """Shares of the range of the logits compared, except for the last two."""

    largest: float  # of any logit
    row: float  # mean over one token's logits, or a few
    mean: float  # mean over a prompt
    mean_kl: float  # nats per token
    slot: float  # of the length of one cache slot's keys or values


IN_FLOATS = Tolerances(largest=1e-4, row=1e-5, mean=1e-5, mean_kl=1e-6, slot=1e-4)
LEAST_CACHED = Tolerances(largest=0.01, row=0.003, mean=3e-4, mean_kl=1e-5, slot=0.03)
LEAST = Tolerances(largest=0.05, row=0.02, mean=0.003, mean_kl=0.003, slot=0.1)
MOST = Tolerances(largest=0.3, row=0.1, mean=0.02, mean_kl=0.1, slot=0.9)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What the reference found on the way: logits [T, V] of the prompt, the first chunk's cache.

    router_ties: rows of all blocks whose experts may be chosen in several ways
    """

    tokens: list[int]
    logits: np.ndarray
    cache: KVCache
    router_ties: int = 0


def tolerances(
    config: ModelConfig, weights: Weights, trace: Trace, least: Tolerances = LEAST
) -> Tolerances:
    """Those of a model with INT8 activations, with an INT8 cache, or with routers near a tie."""
    tokens = trace.tokens[: trace.cache.length]
    runs = [disturbed(config, weights, tokens)]
    if trace.router_ties:
        runs += [disturbed(config, weights, tokens, routers=sign) for sign in (1, -1)]
    seen = [astuple(movement(trace, *run)) for run in runs]
    worst = map(max, *seen, seen[0])
    values = zip(astuple(least), worst, astuple(MOST), strict=True)
    allowed = [min(max(low, FACTOR * value), high) for low, value, high in values]
    return Tolerances(**dict(zip(vars(least), allowed, strict=True)))


def movement(trace: Trace, logits: np.ndarray, cache: KVCache) -> Tolerances:
    """How far a disturbed run is from the reference's own."""
    expected = trace.logits[: len(logits)]
    noise = np.abs(logits.astype(np.float64) - expected)
    ranges = np.ptp(expected, axis=1)
    return Tolerances(
        largest=float((noise.max(axis=1) / ranges).max()),
        row=float((noise.mean(axis=1) / ranges).max()),
        mean=float(noise.mean() / np.ptp(expected)),
        mean_kl=agreement(expected, logits).mean_kl,
        slot=worst_slot(trace.cache, cache),
    )


def disturbed(
    config: ModelConfig, weights: Weights, tokens: list[int], routers: int = 0
) -> tuple[np.ndarray, KVCache]:
    """Logits and cache of tokens when each block reads x (1 + 2e-6 n), n normally distributed.

    `routers`: 1 or -1 to disturb their weights too, one way or the other.
    """
    rng, positions = np.random.default_rng(0), np.arange(len(tokens))
    nothing = reference_transformer.empty_cache(config)
    x = reference_transformer.embed(config, weights, np.asarray(tokens), positions)
    pasts = []
    for layer, block in enumerate(weights.blocks):
        x = x * (1 + DISTURBANCE * rng.standard_normal(x.shape, np.float32))
        past = nothing.keys[layer], nothing.values[layer]
        block = disturbed_router(block, layer, routers) if routers else block
        x, longer = reference_transformer.block_forward(config, block, x, positions, past)
        pasts.append(longer)
    keys, values = zip(*pasts, strict=True)
    return reference_transformer.unembed(config, weights, x), KVCache(keys, values)


def disturbed_router(block: Block, layer: int, sign: int) -> Block:
    """The block, its router's weights, if it has one, multiplied by 1 + sign * 1e-5 n."""
    if not isinstance(block.mlp, Experts):
        return block
    router = block.mlp.router
    weight = np.asarray(router.weight)
    noise = np.random.default_rng((1, layer)).standard_normal(weight.shape, np.float32)
    changed = weight * (1 + np.float32(sign) * ROUTER_DISTURBANCE * noise)
    return replace(block, mlp=replace(block.mlp, router=replace(router, weight=changed)))


def slot_errors(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """|found - expected| / |expected| of the vectors [S, K, Hd] in each slot, [S]."""
    length = np.linalg.norm(expected, axis=(1, 2)) + np.float32(1e-30)
    return np.linalg.norm(found - expected, axis=(1, 2)) / length


def worst_slot(expected: KVCache, found: KVCache) -> float:
    """The largest of slot_errors over layers, keys and values."""
    pairs = [*zip(expected.keys, found.keys, strict=True)]
    pairs += zip(expected.values, found.values, strict=True)
    return max(float(slot_errors(a, b).max()) for a, b in pairs)
