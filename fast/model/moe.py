"""A mixture of experts, as reference/model.py defines it: a token reads its own experts alone.

Rows are grouped by expert. The kernels do it in two calls (native_experts.py); the portable form
takes the groups in tiles of as many rows as an expert has on average, one after another:

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

from planish.fast.model.weights import PlacedExperts
from planish.fast.native import linear as native
from planish.fast.native import moe as native_experts
from planish.fast.xla.layers import ACTIVATIONS, normalize
from planish.fast.xla.linear import FEW_ROWS, linear
from planish.reference.linear import Linear, float_weight
from planish.reference.model.config import ModelConfig
from planish.reference.model.layers import Norm

MOST_ROWS = 64  # of a tile


def mixture(
    config: ModelConfig,
    experts: PlacedExperts,
    x: jax.Array,
    norm: Norm | None = None,
    residual: jax.Array | None = None,
) -> jax.Array:
    """Each token of norm(x) through its top experts, weighted by the router, + residual.

    x [B, T, D] -> [B, T, D].
    """
    if native.is_tiled(experts.up):
        n, shares, chosen = native_route(config, experts, x, norm)
        return native_mixture(config, experts, n, shares, chosen, residual)
    n, shares, chosen = portable_route(config, experts, x, norm)
    y, _ = portable_mixture(config, experts, n, shares, chosen)
    return y if residual is None else residual + y


def portable_route(
    config: ModelConfig, experts: PlacedExperts, x: jax.Array, norm: Norm | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """norm(x) [B, T, D], and the shares and the experts of each row [R, P]."""
    n = x if norm is None else normalize(x, norm)
    return n, *route(config, linear(n, experts.router))


def native_route(
    config: ModelConfig, experts: PlacedExperts, x: jax.Array, norm: Norm | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same in one call, for few rows; of many XLA's product is faster."""
    rows, router = x.reshape(-1, x.shape[-1]), experts.router
    if config.moe is None or router.bias is not None or len(rows) > FEW_ROWS:
        return portable_route(config, experts, x, norm)
    how = config.moe.top_k, config.moe.normalized, norm
    weight = jnp.asarray(float_weight(router))
    n, shares, chosen = native_experts.route(rows, weight, *how)
    return n.reshape(x.shape), shares, chosen


def route(config: ModelConfig, scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The shares and the experts of each token, from scores [B, T, E]: both [R, P]."""
    if config.moe is None:
        raise ValueError("the model has no experts")
    shares = jax.nn.softmax(scores.reshape(-1, scores.shape[-1]), axis=-1)
    shares, chosen = lax.top_k(shares, config.moe.top_k)  # the lowest index first among equals
    if config.moe.normalized:
        shares = shares / jnp.sum(shares, axis=-1, keepdims=True)
    return shares, chosen


def native_mixture(
    config: ModelConfig,
    experts: PlacedExperts,
    x: jax.Array,
    shares: jax.Array,
    chosen: jax.Array,
    residual: jax.Array | None = None,
    isa: str = "",
) -> jax.Array:
    """The kernels' form: x [B, T, D], shares and chosen [R, P] -> [B, T, D]."""
    rows, sequences = x.reshape(-1, x.shape[-1]), x.shape[0]

    def through(*layers: Linear) -> jax.Array:  # [R * P, F]
        return native_experts.expert_linears(rows, chosen, layers, sequences, isa)

    act, gate = ACTIVATIONS[config.activation], experts.gate
    if gate is None:
        inner = act(through(experts.up))
    elif config.activation == "silu" and native.alike((gate, experts.up)):
        inner = through(gate, experts.up)
    else:
        inner = act(through(gate)) * through(experts.up)
    added = None if residual is None else residual.reshape(rows.shape)
    down = experts.down
    y = native_experts.expert_sums(inner, chosen, shares, down, added, sequences, isa)
    return y.reshape(*x.shape[:-1], -1)


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


Watch = Callable[[Any, jax.Array, jax.Array, jax.Array], Any]


def unwatched(seen: Any, expert: jax.Array, x: jax.Array, inner: jax.Array) -> Any:
    """A watch sees rows x [S, D] and inner [S, F] of an expert (rows of no token are zero) and
    returns what has been seen so far; this one looks at nothing."""
    return seen


def portable_mixture(
    config: ModelConfig,
    experts: PlacedExperts,
    x: jax.Array,
    shares: jax.Array,
    chosen: jax.Array,
    watch: Watch = unwatched,
    seen: Any = (),
) -> tuple[jax.Array, Any]:
    """XLA's form: x [B, T, D], shares and chosen [R, P] -> [B, T, D], and what was seen.

    per_tensor activations have a scale for an expert's rows of one sequence (SPEC 2), which must
    then lie in one tile. watch: called with `seen` and each tile on its way through an expert.
    """
    rows, places = x.reshape(-1, x.shape[-1]), chosen.shape[1]
    layers = experts.gate or experts.up, experts.up, experts.down
    together = any(layer.activation == "per_tensor" for layer in layers)
    count = experts.router.weight.shape[0]
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
        inner = expert_inner(config, experts, group % count, inputs, here)
        mixed = linear(inner, take(experts.down, group % count))[0]
        seen = watch(seen, group % count, inputs, inner[0])
        share = shares.reshape(-1)[pair]
        row = jnp.where(here, row, rows.shape[0])  # out of range: dropped
        return tile + 1, y.at[row].add(share[:, None] * mixed, mode="drop"), seen

    def going(state: tuple[jax.Array, jax.Array, Any]) -> jax.Array:
        return state[0] < ends[-1]

    _, y, seen = lax.while_loop(going, compute, (jnp.int32(0), jnp.zeros_like(rows), seen))
    return y.reshape(x.shape), seen


def one_expert(
    config: ModelConfig, experts: PlacedExperts, index: jax.Array, x: jax.Array, here: jax.Array
) -> jax.Array:
    """Rows x [S, D] through one expert -> [S, D]; rows that are not `here` are kept at zero."""
    inner = expert_inner(config, experts, index, x, here)
    return linear(inner, take(experts.down, index))[0]


def expert_inner(
    config: ModelConfig, experts: PlacedExperts, index: jax.Array, x: jax.Array, here: jax.Array
) -> jax.Array:
    """What the `down` of one expert reads, [1, S, F], of rows x [S, D]."""
    act: Any = ACTIVATIONS[config.activation]
    inner = linear(x[None], take(experts.up, index))
    gate = experts.gate
    inner = act(inner) if gate is None else act(linear(x[None], take(gate, index))) * inner
    return jnp.where(here[None, :, None], inner, jnp.float32(0))


def take(stack: Linear, index: jax.Array) -> Linear:
    """One expert's linear."""
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, index, keepdims=False), stack)
