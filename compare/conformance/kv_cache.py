"""The KV cache at level 2: what lies in it, read back from any of its forms.

An INT8 cache (SPEC 3) keeps codes and a scale per token and head, and a code that lies on a tie
may flip there as anywhere. So the cache is judged first, as codes: equal, but one off where the
reference's own float lies within 1e-3 of a tie (in units of the head's scale; a rotated key is
a sum of two products, and its scale belongs to one head and not to the whole row). Then attention
is judged over the cache that was found, as sharply as over a cache of floats: what a flip is worth
there does not matter, for both sides read it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from planish.compare.conformance.check import Check, check
from planish.fast.model.cache import LayerCache
from planish.fast.native.cache import TiledSlots
from planish.reference.grids import int8_codes, int8_scale
from planish.reference.model import layers as reference_layers
from planish.reference.model import transformer as reference_transformer
from planish.reference.model.config import ModelConfig
from planish.reference.model.layers import causal_mask
from planish.reference.model.rope import rotate, rotations
from planish.reference.model.weights import Block

TIE = 1e-3
SCALE_TOLERANCE = 1e-5  # relative


def as_floats(layer: LayerCache, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """One layer's keys and values, float32 [B, K, S, Hd]."""
    keys, values, *scales = untiled(layer, head_dim)
    if not scales:
        return keys, values
    return tuple(
        codes.astype(np.float32) * scale[..., None]
        for codes, scale in zip((keys, values), scales, strict=True)
    )


def untiled(layer: LayerCache, head_dim: int) -> list[np.ndarray]:
    """One layer's arrays with keys as [B, K, S, Hd], and no longer in tiles of 16 slots.

    The tiles of a narrow head have zeros behind it.
    """
    arrays = [np.asarray(array) for array in layer.arrays]
    if isinstance(layer, TiledSlots):
        batch, heads, tiles, width, slots = arrays[0].shape
        keys = arrays[0].transpose(0, 1, 2, 4, 3)
        arrays[0] = keys.reshape(batch, heads, tiles * slots, width)[..., :head_dim]
        arrays[1] = arrays[1][..., :head_dim]
    return arrays


def check_codes(
    config: ModelConfig, layer: int, block: Block, x: np.ndarray, past: LayerCache
) -> Iterator[Check]:
    """Codes and scales of an INT8 cache after attention over x [T, D], row 0 of the batch."""
    _, *expected = projections(config, block, x)
    found = [
        array[0].swapaxes(0, 1)[: len(x)] for array in untiled(past, config.head_dim)
    ]  # [T, K, ...]
    for part, floats, codes, scales in zip(
        ("keys", "values"), expected, found[:2], found[2:], strict=True
    ):
        scale = int8_scale(np.abs(floats).max(axis=-1, keepdims=True))
        allowed = SCALE_TOLERANCE * scale[..., 0]
        yield check(2, layer, f"{part} in the cache, scale", scale[..., 0], scales, allowed)
        yield check_flips(2, layer, f"{part} in the cache, codes", floats, scale, codes)


def check_flips(
    level: int,
    layer: int | None,
    part: str,
    floats: np.ndarray,
    scale: np.ndarray,
    codes: np.ndarray,
) -> Check:
    """Codes of [T, K, Hd]: those of the reference's floats, or one off at a tie."""
    ratio, expected = floats / scale, int8_codes(floats, scale)
    distance = np.abs(ratio - np.floor(ratio) - np.float32(0.5))
    allowed = np.where(distance < TIE, 1.0, 0.5)
    return check(level, layer, part, expected, codes, allowed, int(np.sum(expected != codes)))


def projections(config: ModelConfig, block: Block, x: np.ndarray) -> list[np.ndarray]:
    """The reference's q, k and v of x [T, D], rotated, in floats: [T, heads, Hd] each."""
    q, k, v = reference_transformer.heads(config, block, x)
    if block.kind.rope is not None:
        rope = config.ropes[block.kind.rope]
        cos, sin = rotations(rope, np.arange(len(x)), len(x))
        q, k = rotate(q, cos, sin, rope), rotate(k, cos, sin, rope)
    return [q, k, v]


def attention_over(
    config: ModelConfig, block: Block, x: np.ndarray, past: LayerCache
) -> np.ndarray:
    """The reference's attention of x [T, D] over the slots that the engine wrote."""
    both, kind = as_floats(past, config.head_dim), block.kind
    keys, values = (slots[0].swapaxes(0, 1)[: len(x)] for slots in both)  # [T, K, Hd]
    mask = causal_mask(np.arange(len(x)), len(x), kind.window)
    scores = kind.score_divisor, config.alibi, config.score_cap
    q = projections(config, block, x)[0]
    return reference_layers.attention(q, keys, values, mask, *scores)
