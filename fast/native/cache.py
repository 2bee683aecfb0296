"""Slots for the kernels: a vector holds the same entry of 16 keys.

                     keys                            values
    TiledSlots       [B, K, S / 16, W, 16]           [B, K, S, W]
    CodedSlots       [B, K, S / 16, W / 4, 16, 4]    [B, K, W / 16, S / 4, 16, 4]

INT8 attention reads CodedSlots: tiles of INT8 weights, as those of a linear (reference/packing.py)
with S outputs and W inputs for keys, with W outputs and S inputs for values.

W is the width of a head, or the next multiple of 16: a narrower head is followed by zeros. The
kernels read no slot beyond a row's position, so slots are reused without being cleared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from planish.fast.model.cache import LayerCache, empty_scales, storage_type
from planish.fast.xla import cache as xla
from planish.reference.model.config import ModelConfig

KEY_SLOTS = 16  # slots of one tile of keys
WIDEST_HEAD = 256  # that the kernels take


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TiledSlots(LayerCache):
    """keys [B, K, S / 16, W, 16], values [B, K, S, W]."""

    masks_after: ClassVar[bool] = False

    @property
    def width(self) -> int:
        """Of a head."""
        return int(self.values.shape[-1])


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class CodedSlots(LayerCache):
    """keys int8 [B, K, S / 16, W / 4, 16, 4], values int8 [B, K, W / 16, S / 4, 16, 4]."""

    masks_after: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and slots."""
        return self.keys.shape[0], self.keys.shape[2] * KEY_SLOTS

    @property
    def width(self) -> int:
        """Of a head."""
        return int(self.values.shape[2]) * KEY_SLOTS


def empty_layer(config: ModelConfig, batch: int, slots: int) -> LayerCache:
    """Zeros; XLA's slots if heads are too wide for the kernels."""
    if not can_tile(config):
        return xla.empty_layer(config, batch, slots)
    heads, kind = config.num_kv_heads, storage_type(config)
    slots, width = round_up(slots), round_up(config.head_dim)
    scales = empty_scales(config, batch, slots)
    if config.attention == "int8":
        keys = jnp.zeros((batch, heads, slots // KEY_SLOTS, width // 4, KEY_SLOTS, 4), kind)
        values = jnp.zeros((batch, heads, width // KEY_SLOTS, slots // 4, KEY_SLOTS, 4), kind)
        return CodedSlots(keys=keys, values=values, **scales)
    keys = jnp.zeros((batch, heads, slots // KEY_SLOTS, width, KEY_SLOTS), kind)
    values = jnp.zeros((batch, heads, slots, width), kind)
    return TiledSlots(keys=keys, values=values, **scales)


def round_up(count: int) -> int:
    """Round up to a multiple of 16."""
    return -(-count // KEY_SLOTS) * KEY_SLOTS


def can_tile(config: ModelConfig) -> bool:
    """Whether the kernels can hold and read this model's cache."""
    reads = config.attention == "int8" or config.kv_cache != "int8_static"
    return reads and round_up(config.head_dim) <= WIDEST_HEAD
