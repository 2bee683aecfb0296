"""Norms and activations, as reference/model/layers.py defines them, for a batch.

B sequences, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from planish.reference.model.layers import Norm


def rms_norm(x: jax.Array, norm: Norm) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * weight."""
    y = x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + jnp.float32(norm.eps))
    return y if norm.weight is None else y * aligned(norm.weight, y)


def layer_norm(x: jax.Array, norm: Norm) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) * weight + bias."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    y = centred / jnp.sqrt(variance + jnp.float32(norm.eps))
    y = y if norm.weight is None else y * aligned(norm.weight, y)
    return y if norm.bias is None else y + aligned(norm.bias, y)


def aligned(x: np.ndarray | jax.Array, y: jax.Array) -> jax.Array:
    """x with axes of length 1 in front, as many as y has."""
    return jnp.asarray(x).reshape((1,) * (y.ndim - x.ndim) + x.shape)


NORMS = {"rms_norm": rms_norm, "layer_norm": layer_norm}


def normalize(x: jax.Array, norm: Norm | None) -> jax.Array:
    """norm(x) over the last axis; x itself where the model has no norm here."""
    return x if norm is None else NORMS[norm.kind](x, norm)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """cap * tanh(x / cap); None caps nothing."""
    return x if cap is None else jnp.float32(cap) * jnp.tanh(x / jnp.float32(cap))


def by_parts(function: Callable[..., jax.Array], count: int, *arrays: jax.Array) -> jax.Array:
    """function(*arrays) for arrays [B, T, ...] -> [B, T, ...], of `count` tokens at a time."""
    batch, tokens = arrays[0].shape[:2]
    if tokens <= count:
        return function(*arrays)
    parts = -(-tokens // count)
    spare = parts * count - tokens

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, spare), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(batch, parts, count, *x.shape[2:]).swapaxes(0, 1)

    y = lax.map(lambda part: function(*part), tuple(map(split, arrays)))  # [parts, B, count, ...]
    return y.swapaxes(0, 1).reshape(batch, parts * count, *y.shape[3:])[:, :tokens]
