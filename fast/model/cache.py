"""The KV cache: a fixed number of slots, donated from step to step and updated in place.

            slot   0     1     2     3    ...  S-1
    a row of B   | k0  | k1  | k2  |  -  |  -  |  -  |      position 2 was just written

A slot is valid for a token if it is not behind the token's position, so nothing has to be
cleared. dynamic_update_slice clamps a start that is out of range and would overwrite the last
slots silently: lengths are checked on the host, before anything is computed.

One layer's cache is a tuple of arrays, and its form says who works on it:

    keys, values                             float32 [B, K, S, Hd]          XLA
    keys, values, key scales, value scales   int8, float32 [B, K, S]        XLA
    the same, keys [B, K, S / 16, Hd, 16]    a vector holds 16 slots        the native kernels

The kernels' heads are a multiple of 16 wide: behind a narrower head lie zeros.
INT8 keys and values have one scale for each token and head (SPEC 3): 68 bytes instead of 256 for
a head of width 64.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from planish.fast.xla.grids import int8_codes, int8_scale
from planish.reference.model.config import ModelConfig

KEY_SLOTS = 16  # slots of one tile of keys
WIDEST_HEAD = 256  # that the native kernels take
LayerCache = tuple[jax.Array, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys (rotated) and values of every layer."""

    layers: tuple[LayerCache, ...]

    @property
    def slots(self) -> int:
        return self.layers[0][1].shape[2]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and slots."""
        return self.layers[0][1].shape[0], self.slots


def empty_cache(config: ModelConfig, batch: int, slots: int, tiled: bool = False) -> KVCache:
    """A cache of zeros; each array its own buffer, since each is donated."""
    return KVCache(
        tuple(empty_layer(config, batch, slots, tiled) for _ in range(config.num_layers))
    )


def cache_bytes(config: ModelConfig, batch: int, slots: int, tiled: bool) -> int:
    """Bytes of empty_cache's arrays, none of which is made."""
    layer = jax.eval_shape(lambda: empty_layer(config, batch, slots, tiled))
    return config.num_layers * sum(array.size * array.dtype.itemsize for array in layer)


def empty_layer(config: ModelConfig, batch: int, slots: int, tiled: bool = False) -> LayerCache:
    """One layer's slots; `tiled` for the native kernels, both sizes in multiples of 16."""
    heads, width = config.num_kv_heads, config.head_dim
    kind = jnp.int8 if config.kv_cache == "int8" else jnp.float32
    if tiled:
        slots, width = whole_tiles(slots), whole_tiles(width)
    tiles = (slots // KEY_SLOTS, width, KEY_SLOTS)
    keys = jnp.zeros((batch, heads, *tiles) if tiled else (batch, heads, slots, width), kind)
    values = jnp.zeros((batch, heads, slots, width), kind)
    if kind == jnp.float32:
        return keys, values
    return keys, values, *(jnp.zeros((batch, heads, slots), jnp.float32) for _ in range(2))


def whole_tiles(count: int) -> int:
    """The next multiple of a tile."""
    return -(-count // KEY_SLOTS) * KEY_SLOTS


def can_tile(config: ModelConfig) -> bool:
    """Whether the native kernels can hold and read this model's cache."""
    return whole_tiles(config.head_dim) <= WIDEST_HEAD


def is_tiled(layer: LayerCache) -> bool:
    """Whether one layer's slots are in the native kernels' form."""
    return layer[0].ndim == 5


def append(past: LayerCache, k: jax.Array, v: jax.Array, positions: jax.Array) -> LayerCache:
    """Write new k and v [B, T, K, Hd] at slots positions[b, 0].. of each row b."""
    new: LayerCache = (k, v)
    if len(past) == 4:
        scales = tuple(int8_scale(jnp.max(jnp.abs(x), axis=-1, keepdims=True)) for x in new)
        codes = tuple(int8_codes(x, scale) for x, scale in zip(new, scales, strict=True))
        new = (*codes, *(scale[..., 0] for scale in scales))
    return tuple(write(slots, x, positions) for slots, x in zip(past, new, strict=True))


def write(slots: jax.Array, new: jax.Array, positions: jax.Array) -> jax.Array:
    """Write new [B, T, K, ...] into slots [B, K, S, ...]."""
    new = jnp.swapaxes(new, 1, 2)  # [B, K, T, ...]
    zero = jnp.zeros((), positions.dtype)
    rest = (zero,) * (new.ndim - 3)
    for row in range(new.shape[0]):
        start = (zero + row, zero, positions[row, 0], *rest)
        slots = lax.dynamic_update_slice(slots, new[row : row + 1], start)
    return slots


def read(past: LayerCache) -> tuple[jax.Array, jax.Array]:
    """Keys and values as floats [B, K, S, Hd]."""
    if len(past) == 2:
        return past[0], past[1]
    keys, values = (
        codes.astype(jnp.float32) * scale[..., None]
        for codes, scale in zip(past[:2], past[2:], strict=True)
    )
    return keys, values


def insert(cache: KVCache, single: KVCache, row: jax.Array) -> KVCache:
    """Put the cache of one prompt, [1, K, S, Hd], into a row of a batch's cache."""

    def put(whole: jax.Array, part: jax.Array) -> jax.Array:
        zero = jnp.zeros((), row.dtype)
        return lax.dynamic_update_slice(whole, part, (row, *(zero,) * (whole.ndim - 1)))

    return jax.tree.map(put, cache, single)
