"""The KV cache at level 2: its contents, read back through the subject.

An INT8 cache (SPEC 3) stores codes, and a scale per token and head, or calibrated ones that belong
to the layer and that a subject gives for every slot. A code at a tie may flip. So the cache is
judged first, as codes: they must be equal, or differ by one where the reference's float is within
1e-3 of a tie. (That is in units of the head's scale: a rotated key is a sum of two products, and
the scale is of one head, not of the whole row.) Then attention over the found cache is judged, as
strictly as over a float cache: a flipped code does not matter, because both sides read it. INT8
attention is judged by int8_attention.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from planish.compare.conformance.check import Check, check
from planish.compare.conformance.int8_attention import Attended, attend_codes
from planish.compare.conformance.tolerances import TIE_OF_A_HEAD
from planish.compare.subject import Slots
from planish.reference.grids import int8_codes, int8_scale
from planish.reference.model import layers as reference_layers
from planish.reference.model import transformer as reference_transformer
from planish.reference.model.attention import HeadCodes
from planish.reference.model.config import ModelConfig
from planish.reference.model.layers import causal_mask
from planish.reference.model.rope import rotate, rotations
from planish.reference.model.weights import Block

SCALE_TOLERANCE = 1e-5  # relative


def dequantize_slots(layer: Slots) -> tuple[np.ndarray, np.ndarray]:
    """One layer's keys and values, float32 [B, G, S, Hd]."""
    keys, values, *scales = layer
    if not scales:
        return keys, values
    key_scale, value_scale = (scale[..., None] for scale in scales)
    return keys.astype(np.float32) * key_scale, values.astype(np.float32) * value_scale


def check_written(
    config: ModelConfig, layer: int, block: Block, x: np.ndarray, past: Slots
) -> Iterator[Check]:
    """Codes and scales of an INT8 cache after attention over x [T, D], the first row of a batch."""
    _, *expected = project_qkv(config, block, x)
    found = [array[0].swapaxes(0, 1)[: len(x)] for array in past]  # [T, G, ...]
    calibrated = static_scales(config, block)[1:]
    for part, floats, codes, scales, static in zip(
        ("keys", "values"), expected, found[:2], found[2:], calibrated, strict=True
    ):
        scale = int8_scale(np.abs(floats).max(axis=-1, keepdims=True))
        scale = scale if static is None else np.broadcast_to(static, scale.shape)
        allowed = SCALE_TOLERANCE * scale[..., 0]
        yield check(2, layer, f"{part} in the cache, scale", scale[..., 0], scales, allowed)
        name = f"{part} in the cache, codes"
        yield check_slot_codes(2, layer, name, floats=floats, scale=scale, codes=codes)


def check_slot_codes(
    level: int,
    layer: int | None,
    part: str,
    *,
    floats: np.ndarray,
    scale: np.ndarray,
    codes: np.ndarray,
) -> Check:
    """Codes [T, G, Hd] must be those of the reference's floats, or differ by one at a tie."""
    ratio, expected = floats / scale, int8_codes(floats, scale)
    distance = np.abs(ratio - np.floor(ratio) - np.float32(0.5))
    allowed = np.where(distance < TIE_OF_A_HEAD, 1.0, 0.5)
    return check(level, layer, part, expected, codes, allowed, int(np.sum(expected != codes)))


def project_qkv(config: ModelConfig, block: Block, x: np.ndarray) -> list[np.ndarray]:
    """The reference's q, k and v of x [T, D], rotated, in floats: [T, heads, Hd] each."""
    q, k, v = reference_transformer.heads(config, block, x)
    if block.kind.rope is not None:
        rope = config.ropes[block.kind.rope]
        cos, sin = rotations(rope, np.arange(len(x)), len(x))
        q, k = rotate(q, cos, sin, rope), rotate(k, cos, sin, rope)
    return [q, k, v]


def static_scales(config: ModelConfig, block: Block) -> list[np.ndarray | None]:
    """The calibrated scales [1] of q, k and v, if the cache is static."""
    scales = block.attention_scales
    if config.kv_cache != "int8_static" or scales is None:
        return [None] * 3
    return [scales.q, scales.k, scales.v]


def read_codes(
    config: ModelConfig, block: Block, past: Slots, count: int
) -> tuple[HeadCodes, HeadCodes]:
    """The first `count` keys and values that the subject wrote, as the reference's codes."""
    arrays = [array[0].swapaxes(0, 1)[:count] for array in past]  # [T, G, ...]
    static = static_scales(config, block)[1:]
    keys, values = (
        HeadCodes(x, scale[..., None])
        if fixed is None
        else HeadCodes(x, fixed.reshape(1, 1, 1), static=True)
        for x, scale, fixed in zip(arrays[:2], arrays[2:], static, strict=True)
    )
    return keys, values


def attend_over_codes(config: ModelConfig, block: Block, x: np.ndarray, past: Slots) -> Attended:
    """The reference's INT8 attention of x [T, D] over the codes that the subject wrote."""
    keys, values = read_codes(config, block, past, len(x))
    mask = causal_mask(np.arange(len(x)), len(x), block.kind.window)
    scores = block.kind.score_divisor, config.alibi, config.score_cap
    q = project_qkv(config, block, x)[0]
    return attend_codes(q, keys, values, mask, scores, static_scales(config, block)[0])


def attend_over(config: ModelConfig, block: Block, x: np.ndarray, past: Slots) -> np.ndarray:
    """The reference's attention of x [T, D] over the slots that the subject wrote."""
    kind = block.kind
    keys, values = (
        slots[0].swapaxes(0, 1)[: len(x)] for slots in dequantize_slots(past)
    )  # [T, G, Hd]
    mask = causal_mask(np.arange(len(x)), len(x), kind.window)
    scores = kind.score_divisor, config.alibi, config.score_cap
    q = project_qkv(config, block, x)[0]
    return reference_layers.attention(q, keys, values, mask, *scores)
