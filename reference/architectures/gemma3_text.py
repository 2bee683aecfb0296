"""Gemma 3, the text model: windows in five layers of six, which have another rotary base.

Queries and keys are normalized, and scores not capped. Source: transformers' modeling_gemma3;
Gemma team 2025, arXiv 2503.19786.
"""

from __future__ import annotations

from typing import Any

from planish.reference.architectures.entry import Architecture
from planish.reference.architectures.gemma2 import SANDWICH, gemma, read_soft_cap, score_divisor
from planish.reference.architectures.read.attention import (
    LAYER_TYPES,
    sliding_types,
    sliding_window,
    windows_of_types,
)
from planish.reference.architectures.read.decoder import (
    ATTENTION,
    GATED_MLP,
    QK_NORMS,
    TENSORS,
)
from planish.reference.architectures.read.keys import Keys
from planish.reference.architectures.read.rope import parse_rope, rope_values
from planish.reference.model.config import LayerKind, ModelConfig
from planish.reference.model.rope import Rope

FULL, SLIDING = LAYER_TYPES
THETA = {FULL: 1e6, SLIDING: 1e4}


def config(keys: Keys) -> ModelConfig:
    keys = keys.with_aliases(sliding_window_pattern="_sliding_window_pattern")
    keys.only("attn_logit_softcapping", None)
    features = gemma(keys, max_positions=131072)
    return ModelConfig(
        model_type="gemma3_text",
        **features,
        layers=layers(keys),
        ropes=ropes(keys, features["head_dim"]),
        qk_norm="head",
        logit_cap=read_soft_cap(keys, "final_logit_softcapping", None),
    )


def layers(keys: Keys) -> tuple[LayerKind, ...]:
    """Full attention in every sixth layer, unless sliding_window_pattern or layer_types differ."""
    count, every = keys.count("num_hidden_layers"), keys.count("sliding_window_pattern", 6)
    slides = sliding_types((layer + 1) % every != 0 for layer in range(count))
    divisor = score_divisor(keys)
    return tuple(
        LayerKind(score_divisor=divisor, rope=0 if window is None else 1, window=window)
        for window in windows_of_types(keys, sliding_window(keys, 4096), slides)
    )


def ropes(keys: Keys, head_dim: int) -> tuple[Rope, Rope]:
    """The rotary parameters of layers with full attention, and of layers with a window.

    rope_parameters has an object for each; older configs have rope_theta and rope_scaling for
    the former and rope_local_base_freq for the latter.
    """
    local = Keys({**keys.values, "rope_theta": keys.get("rope_local_base_freq")}, keys.path)
    values = rope_values(keys)
    nested = (
        {FULL: values} if keys.get("rope_parameters") is None else check_layer_types(keys, values)
    )
    around = {FULL: keys, SLIDING: local}
    full, sliding = (
        parse_rope(around[kind], nested.get(kind) or {}, head_dim, theta=THETA[kind])
        for kind in (FULL, SLIDING)
    )
    return full, sliding


def check_layer_types(keys: Keys, values: dict[str, Any]) -> dict[str, Any]:
    """rope_parameters, if it has an object for each type of layer; else ConfigError."""
    for kind, value in values.items():
        if kind not in LAYER_TYPES or not isinstance(value, dict | None):
            raise keys.fail("rope_parameters", f"an object for each of {FULL}, {SLIDING}", kind)
    return values


GEMMA3_TEXT = Architecture(
    model_type="gemma3_text",
    config=config,
    tensors=TENSORS,
    block=ATTENTION | QK_NORMS | SANDWICH | GATED_MLP,
    examples=("google/gemma-3-1b-it", "google/gemma-3-270m"),
    interpolated=True,  # the larger models: 131072 positions, the factor of 8 included
)
