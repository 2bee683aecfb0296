"""A backend with gradients: the linears of a block in training, and everything else in floats.

A linear in training has a QuantizedWeight in the layout `fake`: its codes are the float32 values
[N, K] that real codes would stand for. Its input is rounded to the scheme's INT8 grid, too, with
its gradient passed straight through, so that training sees the errors that will be there.

Attention keeps no slots, and recomputes its scores for the gradient instead of storing them, one
sample after another. A mixture computes every expert for every token, because a loop over tiles has
no gradient; the router's weights are exact.

B samples, T tokens, R = B * T rows, K inputs, N outputs, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from planish.fast.model.backend import QKV, AttentionConfig, Normed, Positions
from planish.fast.model.layers import ACTIVATIONS, map_chunks, normalize
from planish.fast.model.weights import PlacedExperts
from planish.fast.quantize.products import multiply
from planish.fast.xla.attention import SCORES, rotate_heads, score_weights
from planish.fast.xla.backend import can_sample, sample
from planish.fast.xla.grids import int8_codes, int8_scale
from planish.fast.xla.linear import split_groups
from planish.fast.xla.moe import route
from planish.fast.xla.scores import CausalMask
from planish.reference.grids import num_groups
from planish.reference.linear import Linear
from planish.reference.model.attention import AttentionScales
from planish.reference.model.config import ModelConfig
from planish.reference.quantized import QuantizedWeight


class Trainable:
    """The backend; dtype: of the factors of matrix products, float32 or bfloat16."""

    sample = staticmethod(sample)
    can_sample = staticmethod(can_sample)
    normalize = staticmethod(normalize)

    def __init__(self, dtype: str = "float32"):
        self.dtype = dtype

    def project(self, x: Normed, layers: Sequence[Linear]) -> tuple[jax.Array, ...]:
        """Every linear of x [B, T, K] -> [B, T, N_i]."""
        n = normalize(x.raw, x.norm)
        return tuple(self.linear(n, layer) for layer in layers)

    def gated(self, x: Normed, gate: Linear, up: Linear, activation: str) -> jax.Array:
        """act(gate x) * up x -> [B, T, F]."""
        gate_output, inner = self.project(x, (gate, up))
        return ACTIVATIONS[activation](gate_output) * inner

    def linear(self, x: jax.Array, layer: Linear, residual: jax.Array | None = None) -> jax.Array:
        """y = x Wt + b (+ residual) for x [B, T, K] -> [B, T, N]."""
        weight: Any = layer.weight
        if isinstance(weight, QuantizedWeight):
            x, weight = x + lax.stop_gradient(on_input_grid(x, layer) - x), weight.codes
        y = multiply(x.reshape(-1, x.shape[-1]), weight, self.dtype)
        y = y if layer.bias is None else y + layer.bias[None, :]
        y = y.reshape(*x.shape[:-1], -1)
        return y if residual is None else residual + y

    def empty_layer(self, config: ModelConfig, batch: int, slots: int) -> Any:
        """Nothing: samples are whole sequences."""

    def attention(
        self,
        qkv: QKV,
        positions: Positions,
        past: Any,
        config: AttentionConfig,
        scales: AttentionScales | None = None,
    ) -> tuple[jax.Array, Any]:
        """softmax(q kt / divisor) v of whole samples -> [B, T, H * Hd], and past as it was."""
        if config.int8 or scales is not None:
            raise TypeError("a block is trained with float attention over a float cache")
        q, k, v = rotate_heads(qkv, positions, config)
        attend = partial(self.attend_sample, config=config)
        return lax.map(lambda sample: attend(*sample), (q, k, v, positions.index)), past

    def attend_sample(
        self, q: jax.Array, k: jax.Array, v: jax.Array, index: jax.Array, config: AttentionConfig
    ) -> jax.Array:
        """One sample's q [T, H, Hd], k and v [T, K, Hd] -> [T, H * Hd]."""
        keys, values = k.transpose(1, 0, 2), v.transpose(1, 2, 0)  # [K, T, Hd], [K, Hd, T]

        @jax.checkpoint
        def attend_some(q: jax.Array, index: jax.Array) -> jax.Array:
            mask = CausalMask(index, config.window)
            weights = score_weights(
                self.scores(q[0], keys)[None], mask, config.divisor, config.alibi, config.cap
            )
            return self.mix(weights[0], values)[None]

        count = max(1, SCORES // (q.shape[1] * q.shape[0]))
        return map_chunks(attend_some, count, q[None], index[None])[0]

    def scores(self, q: jax.Array, keys: jax.Array) -> jax.Array:
        """q kt for q [T, H, Hd], keys [K, S, Hd] -> [H, T, S]; head h reads keys h // (H / K)."""
        tokens, heads, head_dim = q.shape
        q = q.transpose(1, 0, 2).reshape(len(keys), -1, head_dim)
        return multiply(q, keys, self.dtype).reshape(heads, tokens, -1)

    def mix(self, weights: jax.Array, values: jax.Array) -> jax.Array:
        """The values [K, Hd, S] weighted by weights [H, T, S] -> [T, H * Hd]."""
        heads, tokens, slots = weights.shape
        mixed = multiply(weights.reshape(len(values), -1, slots), values, self.dtype)
        return mixed.reshape(heads, tokens, -1).transpose(1, 0, 2).reshape(tokens, -1)

    def moe(
        self,
        config: ModelConfig,
        weights: PlacedExperts,
        x: Normed,
        residual: jax.Array | None = None,
    ) -> jax.Array:
        """The sum of routing weight * expert(x) over all experts, 0 for those not chosen."""
        n = normalize(x.raw, x.norm)
        scores = Trainable().linear(n, weights.router)  # exact: it chooses
        routing_weights, ids = route(config, scores)  # [R, top_k] both
        rows, count = jnp.arange(ids.shape[0])[:, None], weights.router.weight.shape[0]
        shares = jnp.zeros((ids.shape[0], count), n.dtype).at[rows, ids].add(routing_weights)
        shares = shares.T.reshape(count, *n.shape[:2], 1)  # [E, B, T, 1]

        @jax.checkpoint
        def add_expert(y: jax.Array, one: Any) -> tuple[jax.Array, None]:
            (gate, up, down), share = one
            inner = self.linear(n, up)
            act = ACTIVATIONS[config.activation]
            inner = act(inner) if gate is None else act(self.linear(n, gate)) * inner
            return y + share * self.linear(inner, down), None

        stacks = weights.gate, weights.up, weights.down
        y, _ = lax.scan(add_expert, jnp.zeros_like(n), (stacks, shares))
        return y if residual is None else residual + y


def on_input_grid(x: jax.Array, layer: Linear) -> jax.Array:
    """x [B, T, K] as its INT8 codes represent it; x itself if the scheme leaves it in floats."""
    kind, cols = layer.activation, x.shape[-1]
    if kind == "float":
        return x
    if kind == "static":
        return round_input(x, jnp.asarray(layer.activation_scale).reshape((1,) * x.ndim))
    if kind == "per_group" and layer.scheme is not None:
        size = cols if layer.scheme.group_size == -1 else layer.scheme.group_size
        groups = split_groups(x.reshape(-1, cols), num_groups(cols, size), size)  # [R, G, g]
        rounded = round_input(groups, absmax_scale(groups, (2,)))
        return rounded.reshape(len(groups), -1)[:, :cols].reshape(x.shape)
    axes = (1, 2) if kind == "per_tensor" else (x.ndim - 1,)
    return round_input(x, absmax_scale(x, axes))


def absmax_scale(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return int8_scale(jnp.max(jnp.abs(x), axis=axes, keepdims=True))


def round_input(x: jax.Array, scale: jax.Array) -> jax.Array:
    return int8_codes(x, scale).astype(jnp.float32) * scale
