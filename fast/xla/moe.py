"""A mixture of experts by XLA, as reference/model/transformer.py defines it.

A token reads the experts that it chooses. Rows are grouped by expert, and the groups are taken in
tiles of as many rows as an expert has on average, one after another:

    token   0     1     2    3        experts    0        1     3
    chosen  0 3   0 1   3 0  0 1      tiles      0 1 | 2 3 | 1 3 | 0 2

B sequences, T tokens, R = B * T rows, P places (the experts of a row), E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from planish.fast.model.backend import Normed
from planish.fast.model.layers import ACTIVATIONS, normalize
from planish.fast.model.weights import PlacedExperts
from planish.fast.xla.linear import linear
from planish.reference.linear import Linear
from planish.reference.model.config import ModelConfig

MOST_ROWS = 64  # of a tile


def mixture(
    config: ModelConfig, weights: PlacedExperts, x: Normed, residual: jax.Array | None = None
) -> jax.Array:
    """Each token of x [B, T, D] through its top experts, weighted by the router, + residual."""
    n, shares, chosen = route_normed(config, weights, x)
    y, _ = mix_experts(config, weights, n, shares, chosen)
    return y if residual is None else residual + y


def route_normed(
    config: ModelConfig, weights: PlacedExperts, x: Normed
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x, normalized [B, T, D], and the shares and the experts of each row [R, P]."""
    n = normalize(x.raw, x.norm)
    return n, *route(config, linear(n, weights.router))


def route(config: ModelConfig, scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The shares and the experts of each token, from scores [B, T, E]: both [R, P]."""
    if config.moe is None:
        raise ValueError("the model has no experts")
    shares = jax.nn.softmax(scores.reshape(-1, scores.shape[-1]), axis=-1)
    shares, chosen = lax.top_k(shares, config.moe.top_k)  # the lowest index first among equals
    if config.moe.normalized:
        shares = shares / jnp.sum(shares, axis=-1, keepdims=True)
    return shares, chosen


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Groups:
    """(row, place) pairs by expert, and how the groups fall into tiles. G groups."""

    order: jax.Array  # [R * P] pairs, group by group
    counts: jax.Array  # [G] pairs of each group
    tiles: jax.Array  # [G] tiles of each group


def group_rows(chosen: jax.Array, experts: int, size: int, tokens: int | None) -> Groups:
    """Groups of chosen [R, P], in tiles of `size` pairs. With `tokens`, those of a sequence, each
    sequence's pairs are a group of their own: number sequence * E + expert."""
    key = chosen.reshape(-1)
    groups = experts
    if tokens is not None:
        sequence = jnp.arange(chosen.size, dtype=jnp.int32) // (chosen.shape[1] * tokens)
        key, groups = key + sequence * experts, experts * (chosen.shape[0] // tokens)
    counts = jnp.zeros(groups, jnp.int32).at[key].add(1)
    return Groups(jnp.argsort(key, stable=True), counts, -(-counts // size))


def tile_rows(pairs: int, experts: int) -> int:
    """A power of two about as large as the groups are on average."""
    return min(MOST_ROWS, 1 << (-(-pairs // experts) - 1).bit_length())


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What looks on while rows go through experts: seen = see(seen, expert, x, inner) for each
    tile of rows x [S, D] that `up` reads and inner [S, F] that `down` reads, zero where the tile
    is not full."""

    start: Any
    see: Callable[[Any, jax.Array, jax.Array, jax.Array], Any]


UNWATCHED = Watch(start=(), see=lambda seen, *_: seen)


def mix_experts(
    config: ModelConfig,
    weights: PlacedExperts,
    x: jax.Array,
    shares: jax.Array,
    chosen: jax.Array,
    watch: Watch = UNWATCHED,
) -> tuple[jax.Array, Any]:
    """sum over each row's experts of share * expert(x): x [B, T, D], shares and chosen [R, P].

    Returns the sum [B, T, D] and what the watch has seen. per_tensor activations have a scale
    for an expert's rows of one sequence (docs/spec.md, section 2): these rows are then one tile.
    """
    rows, places = x.reshape(-1, x.shape[-1]), chosen.shape[1]
    layers = weights.gate or weights.up, weights.up, weights.down
    together = any(layer.activation == "per_tensor" for layer in layers)
    count = weights.router.weight.shape[0]
    size = x.shape[1] if together else tile_rows(chosen.size, count)
    groups = group_rows(chosen, count, size, x.shape[1] if together else None)
    ends, starts = jnp.cumsum(groups.tiles), jnp.cumsum(groups.counts) - groups.counts
    lane = jnp.arange(size, dtype=jnp.int32)

    def compute(state: tuple[jax.Array, jax.Array, Any]) -> tuple[jax.Array, jax.Array, Any]:
        tile, y, seen = state
        group = jnp.searchsorted(ends, tile, side="right").astype(jnp.int32)
        place = (tile - ends[group] + groups.tiles[group]) * size + lane
        here = place < groups.counts[group]
        pair = groups.order[jnp.where(here, starts[group] + place, 0)]
        row = pair // places
        inputs = jnp.where(here[:, None], rows[row], jnp.float32(0))
        inner = expert_inner(config, weights, group % count, inputs, here)
        mixed = linear(inner, take(weights.down, group % count))[0]
        seen = watch.see(seen, group % count, inputs, inner[0])
        share = shares.reshape(-1)[pair]
        row = jnp.where(here, row, rows.shape[0])  # out of range: dropped
        return tile + 1, y.at[row].add(share[:, None] * mixed, mode="drop"), seen

    def going(state: tuple[jax.Array, jax.Array, Any]) -> jax.Array:
        return state[0] < ends[-1]

    start = jnp.int32(0), jnp.zeros_like(rows), watch.start
    _, y, seen = lax.while_loop(going, compute, start)
    return y.reshape(x.shape), seen


def one_expert(
    config: ModelConfig, weights: PlacedExperts, index: jax.Array, x: jax.Array, here: jax.Array
) -> jax.Array:
    """Rows x [S, D] through one expert -> [S, D]; rows that are not `here` are kept at zero."""
    inner = expert_inner(config, weights, index, x, here)
    return linear(inner, take(weights.down, index))[0]


def expert_inner(
    config: ModelConfig, weights: PlacedExperts, index: jax.Array, x: jax.Array, here: jax.Array
) -> jax.Array:
    """What `down` of one expert reads, [1, S, F], for rows x [S, D]."""
    act: Any = ACTIVATIONS[config.activation]
    inner = linear(x[None], take(weights.up, index))
    gate = weights.gate
    inner = act(inner) if gate is None else act(linear(x[None], take(gate, index))) * inner
    return jnp.where(here[None, :, None], inner, jnp.float32(0))


def take(stack: Linear, index: jax.Array) -> Linear:
    """One expert's linear."""
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, index, keepdims=False), stack)
