"""The KV cache: a fixed number of slots, donated from step to step and updated in place.

            slot   0     1     2     3    ...  S-1
    a row of B   | k0  | k1  | k2  |  -  |  -  |  -  |      position 2 was just written

A token reads the slots up to its own position, so nothing has to be cleared. dynamic_update_slice
clamps a start that is out of range and would overwrite the last slots silently: lengths are
checked on the host, before anything is computed.

A layer with a sliding window reads only the last tokens. Its slots are a ring: position p is at
slot p % S, where S slots hold the window and the tokens that are computed at once, so that none is
overwritten before it has been read. Masks and rotations are of positions, as elsewhere.

Each backend has its own layout of a layer (xla/cache.py, native/cache.py). INT8 keys and values
have one scale for each token and head (docs/spec.md, section 3): 68 bytes instead of 256 for a head
of width 64. In a static cache the scales belong to the layer's weights, not to the cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from planish.reference.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class LayerCache:
    """One layer's keys (rotated) and values; the scales of dynamic INT8 codes [B, K, S], or None.

    ring: how many positions the slots take in turn, position p at slot p % S; None: one for each.
    masks_after: whether attention multiplies slots that no row has reached by zero instead of
    skipping them; their contents must then be numbers.
    """

    keys: jax.Array
    values: jax.Array  # [B, K, S, Hd]
    key_scale: jax.Array | None = None
    value_scale: jax.Array | None = None
    ring: int | None = field(default=None, metadata={"static": True})
    masks_after: ClassVar[bool] = True

    @property
    def arrays(self) -> tuple[jax.Array, ...]:
        """Keys and values, and their scales where each token has its own."""
        if self.key_scale is None or self.value_scale is None:
            return self.keys, self.values
        return self.keys, self.values, self.key_scale, self.value_scale

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and slots."""
        return self.values.shape[0], self.values.shape[2]

    @property
    def capacity(self) -> int:
        """Positions of a row."""
        return self.shape[1] if self.ring is None else self.ring

    def replace_arrays(self, arrays: Iterable[jax.Array]) -> Self:
        """The same slots with other contents, in the order of `arrays`."""
        contents: dict[str, Any] = dict(zip(FIELDS, arrays, strict=False))
        return replace(self, **contents)


FIELDS = ["keys", "values", "key_scale", "value_scale"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer."""

    layers: tuple[LayerCache, ...]

    @property
    def slots(self) -> int:
        """Positions of a row: the slots of a layer that is no ring."""
        return self.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and positions."""
        return self.layers[0].shape[0], self.layers[0].capacity


def storage_type(config: ModelConfig) -> type:
    """The type of a cached key or value."""
    return jnp.float32 if config.kv_cache == "float32" else jnp.int8


def empty_scales(config: ModelConfig, batch: int, slots: int) -> dict[str, Any]:
    """Zero scales [B, K, S] for dynamic INT8 slots, each in a separate buffer; none for others."""
    if config.kv_cache != "int8":
        return {}
    shape = batch, config.num_kv_heads, slots
    return {name: jnp.zeros(shape, jnp.float32) for name in ("key_scale", "value_scale")}
