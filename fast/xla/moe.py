"""A mixture of experts by XLA, as reference/model/transformer.py defines it.

Source: Shazeer et al. 2017, arXiv 1701.06538. Only the experts that the router chooses are read.
Rows are grouped by expert, and the groups are computed one tile after another; a tile has about as
many rows as an expert has on average:

    token        0    1    2    3       expert    0          1     3
    expert ids   0 3  0 1  3 0  0 1     tiles     0 1 | 2 3  1 3   0 2

B sequences, T tokens, R = B * T rows, E experts, G groups, S rows of a tile.
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

MOST_ROWS = 64  # of a tile, at most


def mixture(
    config: ModelConfig, weights: PlacedExperts, x: Normed, residual: jax.Array | None = None
) -> jax.Array:
    """Each token of x [B, T, D] through its top experts, weighted by the router, + residual."""
    n, routing_weights, expert_ids = route_normed(config, weights, x)
    y, _ = mix_experts(config, weights, n, routing_weights, expert_ids)
    return y if residual is None else residual + y


def route_normed(
    config: ModelConfig, weights: PlacedExperts, x: Normed
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x, normalized [B, T, D], and the routing weights and expert ids of each row [R, top_k]."""
    n = normalize(x.raw, x.norm)
    return n, *route(config, linear(n, weights.router))


def route(config: ModelConfig, scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Routing weights and expert ids, both [R, top_k], from router logits [B, T, E]."""
    if config.moe is None:
        raise ValueError("the model has no experts")
    p = jax.nn.softmax(scores.reshape(-1, scores.shape[-1]), axis=-1)  # [R, E]
    routing_weights, expert_ids = lax.top_k(
        p, config.moe.top_k
    )  # among equals, the lowest id first
    if config.moe.normalized:
        routing_weights = routing_weights / jnp.sum(routing_weights, axis=-1, keepdims=True)
    return routing_weights, expert_ids


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Groups:
    """(row, expert) pairs sorted by expert, and the number of tiles of each group."""

    order: jax.Array  # [R * top_k] pairs, group by group
    counts: jax.Array  # [G] pairs of each group
    tiles: jax.Array  # [G] tiles of each group


def group_rows(expert_ids: jax.Array, experts: int, size: int, tokens: int | None) -> Groups:
    """Group the pairs of expert_ids [R, top_k] by expert, in tiles of `size` pairs.

    With `tokens`, the length of a sequence, pairs are grouped by sequence and expert; the number of
    a group is then sequence * E + expert.
    """
    key = expert_ids.reshape(-1)
    groups = experts
    if tokens is not None:
        sequence = jnp.arange(expert_ids.size, dtype=jnp.int32) // (expert_ids.shape[1] * tokens)
        key, groups = key + sequence * experts, experts * (expert_ids.shape[0] // tokens)
    counts = jnp.zeros(groups, jnp.int32).at[key].add(1)
    return Groups(jnp.argsort(key, stable=True), counts, -(-counts // size))


def tile_rows(pairs: int, experts: int) -> int:
    """A power of two about as large as the groups are on average."""
    return min(MOST_ROWS, 1 << (-(-pairs // experts) - 1).bit_length())


@dataclass(frozen=True, kw_only=True)
class Watch:
    """An observer of the experts' inputs: seen = see(seen, expert, x, inner) for each tile.

    x [S, D] is what `up` reads, inner [S, F] what `down` reads; unused rows of a tile are zero.
    """

    start: Any
    see: Callable[[Any, jax.Array, jax.Array, jax.Array], Any]


UNWATCHED = Watch(start=(), see=lambda seen, *_: seen)


def mix_experts(
    config: ModelConfig,
    weights: PlacedExperts,
    x: jax.Array,
    routing_weights: jax.Array,
    expert_ids: jax.Array,
    watch: Watch = UNWATCHED,
) -> tuple[jax.Array, Any]:
    """Sum routing_weight * expert(x) over each row's experts, for x [B, T, D].

    routing_weights, expert_ids [R, top_k]. Returns the sum [B, T, D] and what the watch has seen.
    per_tensor activations share one scale among an expert's rows of one sequence (docs/spec.md,
    section 2), so these rows form one tile.
    """
    rows, top_k = x.reshape(-1, x.shape[-1]), expert_ids.shape[1]  # [R, D]
    layers = weights.gate or weights.up, weights.up, weights.down
    by_sequence = any(layer.activation == "per_tensor" for layer in layers)
    count = weights.router.weight.shape[0]
    size = x.shape[1] if by_sequence else tile_rows(expert_ids.size, count)
    groups = group_rows(expert_ids, count, size, x.shape[1] if by_sequence else None)
    ends, starts = jnp.cumsum(groups.tiles), jnp.cumsum(groups.counts) - groups.counts  # [G] each
    lane = jnp.arange(size, dtype=jnp.int32)  # [S]

    def compute_tile(state: tuple[jax.Array, jax.Array, Any]) -> tuple[jax.Array, jax.Array, Any]:
        tile, y, seen = state
        group = jnp.searchsorted(ends, tile, side="right").astype(jnp.int32)
        at = (tile - ends[group] + groups.tiles[group]) * size + lane  # [S], within the group
        used = at < groups.counts[group]
        pair = groups.order[jnp.where(used, starts[group] + at, 0)]  # [S]
        row = pair // top_k
        inputs = jnp.where(used[:, None], rows[row], jnp.float32(0))  # [S, D]
        inner = expert_inner(config, weights, group % count, inputs, used)  # [1, S, F]
        output = linear(inner, take_expert(weights.down, group % count))[0]  # [S, D]
        seen = watch.see(seen, group % count, inputs, inner[0])
        weight = routing_weights.reshape(-1)[pair]  # [S]
        row = jnp.where(used, row, rows.shape[0])  # out of range: dropped
        return tile + 1, y.at[row].add(weight[:, None] * output, mode="drop"), seen

    def has_tiles(state: tuple[jax.Array, jax.Array, Any]) -> jax.Array:
        return state[0] < ends[-1]

    start = jnp.int32(0), jnp.zeros_like(rows), watch.start
    _, y, seen = lax.while_loop(has_tiles, compute_tile, start)
    return y.reshape(x.shape), seen


def one_expert(
    config: ModelConfig, weights: PlacedExperts, index: jax.Array, x: jax.Array, used: jax.Array
) -> jax.Array:
    """One expert of rows x [S, D] -> [S, D]; the rows that are not `used` count as zeros."""
    inner = expert_inner(config, weights, index, x, used)
    return linear(inner, take_expert(weights.down, index))[0]


def expert_inner(
    config: ModelConfig, weights: PlacedExperts, index: jax.Array, x: jax.Array, used: jax.Array
) -> jax.Array:
    """The input of one expert's `down`, [1, S, F], for rows x [S, D]; zero if not `used`."""
    act: Any = ACTIVATIONS[config.activation]
    inner = linear(x[None], take_expert(weights.up, index))
    gate = weights.gate
    inner = act(inner) if gate is None else act(linear(x[None], take_expert(gate, index))) * inner
    return jnp.where(used[None, :, None], inner, jnp.float32(0))


def take_expert(stack: Linear, index: jax.Array) -> Linear:
    """Cut one expert's linear from a stack."""
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, index, keepdims=False), stack)
