"""Norms and activations of a batch, as reference/model/layers.py defines them.

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
    """x / sqrt(mean(x^2) + eps) * weight. Source: arXiv 1910.07467."""
    y = x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + jnp.float32(norm.eps))
    return y if norm.weight is None else y * add_axes(norm.weight, y)


def layer_norm(x: jax.Array, norm: Norm) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) * weight + bias. Source: arXiv 1607.06450."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    y = centred / jnp.sqrt(variance + jnp.float32(norm.eps))
    y = y if norm.weight is None else y * add_axes(norm.weight, y)
    return y if norm.bias is None else y + add_axes(norm.bias, y)


def add_axes(x: np.ndarray | jax.Array, y: jax.Array) -> jax.Array:
    """x with leading axes of length 1, so that it has as many axes as y."""
    return jnp.asarray(x).reshape((1,) * (y.ndim - x.ndim) + x.shape)


NORMS = {"rms_norm": rms_norm, "layer_norm": layer_norm}


def normalize(x: jax.Array, norm: Norm | None) -> jax.Array:
    """norm(x) over the last axis; x itself if norm is None."""
    return x if norm is None else NORMS[norm.kind](x, norm)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """cap * tanh(x / cap); x itself if cap is None."""
    return x if cap is None else jnp.float32(cap) * jnp.tanh(x / jnp.float32(cap))


def map_chunks(function: Callable[..., jax.Array], count: int, *arrays: jax.Array) -> jax.Array:
    """Apply a function to arrays [B, T, ...], `count` tokens at a time -> [B, T, ...]."""
    batch, tokens = arrays[0].shape[:2]
    if tokens <= count:
        return function(*arrays)
    chunks = -(-tokens // count)
    padding = chunks * count - tokens

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(batch, chunks, count, *x.shape[2:]).swapaxes(0, 1)

    y = lax.map(lambda chunk: function(*chunk), tuple(map(split, arrays)))  # [chunks, B, ...]
    return y.swapaxes(0, 1).reshape(batch, chunks * count, *y.shape[3:])[:, :tokens]
