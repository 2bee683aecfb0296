"""A row of goldens: which model, how its weights are drawn and saved; helpers that rows share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers

SEED = 0
VOCABULARY, POSITIONS = 256, 512  # the long prompt has 500 tokens

Values = dict[str, Any]  # of a config.json
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Variant:
    """A config, how its weights are drawn and saved, and what is done to the directory then.

    `edit` changes config.json before transformers reads the directory, so that it reads the
    edited spelling; `convert` changes config and tensors after the logits were recorded, into
    a layout that transformers itself cannot read. `repair` is for what transformers computes
    differently from the model's authors: it is given the loaded model.
    """

    config: Callable[[], transformers.PretrainedConfig]
    dtype: torch.dtype = torch.float16  # small directories; the logits are computed in float32
    embed_scale: float = 1.0  # 0.02, as in trained models, lets the norms' epsilon show
    shards: bool = False
    without_head: bool = False  # saved from the base model: no head, one prefix fewer
    edit: Callable[[Values], Values] | None = None
    convert: Callable[[Values, Tensors], tuple[Values, Tensors]] | None = None
    attention: str = "eager"  # or sdpa
    repair: Callable[[Any], None] | None = None
    decode: bool = False  # positions depend on the length: record what decoding gives, too


def kind(
    config: type[transformers.PretrainedConfig], **base: Any
) -> Callable[..., Callable[[], transformers.PretrainedConfig]]:
    """A maker of configs of one type: `base`, but for the changes that a row names."""
    base = {"vocab_size": VOCABULARY, **base}
    return lambda **changes: lambda: config(**{**base, **changes})


def rope_theta(value: float) -> Values:
    """rope_parameters of plain rotary positions."""
    return {"rope_type": "default", "rope_theta": value}


def without(*names: str) -> Callable[[Values], Values]:
    """An edit that leaves keys out, as configs written before these keys were invented do."""
    return lambda values: {key: value for key, value in values.items() if key not in names}
