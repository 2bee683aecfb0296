"""A backend whose linears are cut: each device computes its outputs and gathers the others'.

It wraps another backend, which computes, and runs inside a shard_map over the axis AXIS. What
is gathered has the same bits on all devices, so all take the same path and sample the same tokens.

B sequences, T tokens, N outputs of a whole linear, n of one device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from planish.fast.model.backend import QKV, AttentionConfig, Normed, Positions
from planish.fast.model.cache import LayerCache
from planish.fast.native import backend as native_backend
from planish.fast.native import moe as native_moe
from planish.fast.parallel.cut import TILE
from planish.fast.parallel.shards import Shard, splits_heads
from planish.reference.linear import Linear
from planish.reference.model.attention import AttentionScales
from planish.reference.model.config import ModelConfig
from planish.reference.model.layers import Norm
from planish.reference.text.sampling import Sampling

AXIS = "tensor"


@dataclass(frozen=True)
class TensorBackend:
    """`inner` on `parts` devices. heads: whether each device has some of the heads."""

    inner: Any  # a Backend
    parts: int
    heads: bool

    @property
    def sums_floats_by_row(self) -> bool:
        """Whether a float product's bits do not depend on how many outputs there are.

        XLA's do: it blocks a product by its shape. The kernels' do not.
        """
        return self.inner is native_backend

    def project(self, x: Normed, layers: Sequence[Linear]) -> tuple[jax.Array, ...]:
        """Every linear of x; those that are gathered share one gather."""
        given: Any = layers
        outputs = self.inner.project(x, tuple(own_part(layer) for layer in given))
        outputs = [self.own_heads(y, layer) for y, layer in zip(outputs, given, strict=True)]
        shared = [isinstance(layer, Shard) and layer.gathered for layer in given]
        widths = [
            layer.outputs for layer, is_shared in zip(given, shared, strict=True) if is_shared
        ]
        parts = [y for y, is_shared in zip(outputs, shared, strict=True) if is_shared]
        found = iter(gather_outputs(parts, widths))
        pairs = zip(outputs, shared, strict=True)
        return tuple(next(found) if is_shared else y for y, is_shared in pairs)

    def linear(self, x: jax.Array, layer: Linear, residual: jax.Array | None = None) -> jax.Array:
        """y = x Wt + b (+ residual) -> [B, T, N]."""
        shard: Any = layer
        if not isinstance(shard, Shard):
            return self.inner.linear(x, layer, residual)
        y = self.inner.linear(x, own_part(shard), self.own_outputs(residual, shard))
        return gather_outputs([y], [shard.outputs])[0]

    def gated(self, x: Normed, gate: Linear, up: Linear, activation: str) -> jax.Array:
        """act(gate x) * up x -> [B, T, F]."""
        shard: Any = up
        if not isinstance(shard, Shard):
            return self.inner.gated(x, gate, up, activation)
        y = self.inner.gated(x, own_part(gate), own_part(up), activation)
        return gather_outputs([y], [shard.outputs])[0]

    def attention(
        self,
        qkv: QKV,
        positions: Positions,
        past: Any,
        config: AttentionConfig,
        scales: AttentionScales | None = None,
    ) -> tuple[jax.Array, Any]:
        """The context of all heads [B, T, H * Hd], and this device's slots."""
        if not self.heads:
            return self.inner.attention(qkv, positions, past, config, scales)
        own = replace(config, kv_heads=config.kv_heads // self.parts)
        context, slots = self.inner.attention(qkv, positions, past, own, scales)
        return gather_outputs([context], [context.shape[-1] * self.parts])[0], slots

    def moe(
        self, config: ModelConfig, weights: Any, x: Normed, residual: jax.Array | None = None
    ) -> jax.Array:
        """A mixture; a device computes some outputs of every chosen expert."""
        if not isinstance(weights.up, Shard):
            return self.inner.moe(config, weights, x, residual)
        n, routing_weights, expert_ids = native_moe.route_normed(config, weights, x)
        names = ("gate", "up", "down")
        own = replace(weights, **{name: own_part(getattr(weights, name)) for name in names})
        rows, sequences = n.reshape(-1, n.shape[-1]), n.shape[0]
        inner = native_moe.expert_inner(config, own, rows, expert_ids, sequences)
        inner = gather_outputs([inner], [weights.up.outputs])[0]  # [R * top_k, F]
        added = self.own_outputs(residual, weights.down)
        added = None if added is None else added.reshape(-1, added.shape[-1])
        y = native_moe.expert_sums(inner, expert_ids, routing_weights, own.down, added, sequences)
        return gather_outputs([y], [weights.down.outputs])[0].reshape(n.shape)

    def normalize(self, x: jax.Array, norm: Norm | None) -> jax.Array:
        """A norm of what this device has."""
        return self.inner.normalize(x, norm)

    def sample(self, logits: jax.Array, sampling: jax.Array, uniform: jax.Array) -> jax.Array:
        """The next tokens; every device draws the same."""
        return self.inner.sample(logits, sampling, uniform)

    def can_sample(self, sampling: Sampling) -> bool:
        """As the inner backend."""
        return self.inner.can_sample(sampling)

    def empty_layer(self, config: ModelConfig, batch: int, slots: int) -> LayerCache:
        """One layer's slots of one device."""
        heads = config.num_kv_heads // (self.parts if self.heads else 1)
        own = replace(config, num_kv_heads=heads)
        return self.inner.empty_layer(own, batch, slots)

    def own_heads(self, y: jax.Array, layer: Any) -> jax.Array:
        """This device's part of heads that a whole linear computed; other results themselves."""
        if not isinstance(layer, Shard) or not layer.sliced:
            return y
        count = layer.outputs // self.parts
        return lax.dynamic_slice_in_dim(y, lax.axis_index(AXIS) * count, count, axis=-1)

    def own_outputs(self, y: jax.Array | None, shard: Shard) -> jax.Array | None:
        """This device's part [..., n] of y [..., N], as its linear gives it."""
        if y is None:
            return None
        tiles = -(-shard.outputs // TILE)
        count = -(-tiles // self.parts) * TILE
        padding = [(0, 0)] * (y.ndim - 1) + [(0, count * self.parts - y.shape[-1])]
        y = jnp.pad(y, padding) if padding[-1][1] else y
        return lax.dynamic_slice_in_dim(y, lax.axis_index(AXIS) * count, count, axis=-1)


def own_part(layer: Any) -> Any:
    """The linear of this device; a whole linear itself."""
    return layer.layer if isinstance(layer, Shard) else layer


def gather_outputs(parts: Sequence[jax.Array], widths: Sequence[int]) -> list[jax.Array]:
    """Arrays [..., n_i] of each device -> [..., N_i], by one gather; widths: the N_i."""
    if not parts:
        return []
    joined = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
    every = lax.all_gather(joined, AXIS)  # [devices, ..., n]
    found, start = [], 0
    for part, width in zip(parts, widths, strict=True):
        piece = lax.slice_in_dim(every, start, start + part.shape[-1], axis=-1)
        whole = jnp.moveaxis(piece, 0, -2).reshape(*part.shape[:-1], -1)
        found.append(whole if whole.shape[-1] == width else whole[..., :width])
        start += part.shape[-1]
    return found


def wrap_backend(inner: Any, config: ModelConfig, parts: int) -> TensorBackend:
    """A backend on several devices for this model."""
    return TensorBackend(inner, parts, splits_heads(config, parts))
