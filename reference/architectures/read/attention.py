"""Attention heads and sliding windows, as most current configs spell them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from planish.reference.architectures.read.keys import Keys, check_heads, divide_evenly
from planish.reference.model.config import LayerKind

LAYER_TYPES = ("full_attention", "sliding_attention")


def attention_heads(
    keys: Keys, kv_heads: int | None = None, head_dim: int | None = None
) -> dict[str, Any]:
    """num_heads, num_kv_heads and head_dim; the arguments are the architecture's defaults.

    Without a default, each query head has its own key-value head, and head_dim is hidden_size /
    num_heads.
    """
    heads = shared = keys.count("num_attention_heads")
    if keys.values.get("num_key_value_heads", kv_heads) is not None:  # null is not absence
        shared = keys.count("num_key_value_heads", kv_heads)
    check_heads(keys, heads, shared)
    if keys.get("head_dim") is None and head_dim is None:
        head_dim = divide_evenly(keys, "hidden_size", keys.count("hidden_size"), heads)
    head_dim = keys.count("head_dim", head_dim)
    return {"num_heads": heads, "num_kv_heads": shared, "head_dim": head_dim}


def sliding_window(keys: Keys, default: int | None = None) -> int | None:
    """How many tokens a token attends to, including itself; null means no window."""
    if keys.values.get("sliding_window", default) is None:
        return None
    return keys.count("sliding_window", default)


def optional_window(keys: Keys, default: int | None = None) -> int | None:
    """The window, if use_sliding_window is true."""
    window = sliding_window(keys, default)
    return window if keys.flag("use_sliding_window", False) else None


def windows_of_types(
    keys: Keys, window: int | None, default: Sequence[str]
) -> tuple[int | None, ...]:
    """The window of each layer, by layer_types: full_attention or sliding_attention for each."""
    types = keys.get("layer_types")
    types = default if types is None else types
    if not isinstance(types, list | tuple) or len(types) != len(default):
        raise keys.fail("layer_types", f"a list of {len(default)} layers' types", repr(types))
    for each in types:
        if each not in LAYER_TYPES:
            raise keys.fail("layer_types", f"each of {' or '.join(LAYER_TYPES)}", repr(each))
    if window is None and "sliding_attention" in types:
        raise keys.fail("sliding_window", "a window, for layers with sliding_attention", "none")
    return tuple(window if each == "sliding_attention" else None for each in types)


def sliding_types(sliding: Iterable[bool]) -> list[str]:
    """layer_types from whether each layer has a sliding window."""
    return [LAYER_TYPES[each] for each in sliding]


def make_layers(
    windows: Sequence[int | None], head_dim: int, **features: Any
) -> tuple[LayerKind, ...]:
    """One layer for each window; scores are divided by sqrt(head_dim)."""
    divisor = math.sqrt(head_dim)
    features = {"rope": 0, **features}
    return tuple(LayerKind(score_divisor=divisor, window=w, **features) for w in windows)
