"""Architectures: each Hugging Face `model_type` is one small entry, a table and not a program.

An entry says three things: how its config.json becomes a ModelConfig, under which names its
tensors lie, and which norm feeds which linears (the folding table of SmoothQuant). To add one,
write a module like `llama.py`, list it in ENTRIES, and add a golden in tests/golden/make.py.
If it needs an `if` on its own name anywhere else, the transformer lacks a feature: add that
feature to ModelConfig under its own name.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from reference.architectures import (
    bloom,
    chatglm,
    falcon,
    glm,
    glm4,
    gpt2,
    gpt_bigcode,
    gpt_neox,
    gptj,
    llama,
    mpt,
    opt,
)
from reference.architectures.entry import Architecture, Fold, Tensor
from reference.config import ModelConfig
from reference.errors import ConfigError
from reference.keys import Keys

__all__ = ["ENTRIES", "Architecture", "Fold", "Tensor", "architecture_of", "model_config"]

_LISTED = (
    bloom.BLOOM,
    chatglm.CHATGLM,
    falcon.FALCON,
    glm.GLM,
    glm4.GLM4,
    gpt2.GPT2,
    gpt_bigcode.GPT_BIGCODE,
    gpt_neox.GPT_NEOX,
    gptj.GPTJ,
    llama.LLAMA,
    mpt.MPT,
    opt.OPT,
)
ENTRIES = {entry.model_type: entry for entry in _LISTED}


def architecture_of(values: dict[str, Any], path: Path) -> Architecture:
    """The entry for a config's model_type; raises ConfigError naming the nearest known one."""
    name = values.get("model_type")
    if isinstance(name, str) and name in ENTRIES:
        return ENTRIES[name]
    near = difflib.get_close_matches(str(name), ENTRIES, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    expected = f"one of {', '.join(ENTRIES)}{hint}"
    raise ConfigError("unknown", path=path, name="model_type", expected=expected, found=repr(name))


def model_config(values: dict[str, Any], path: Path) -> ModelConfig:
    """config.json -> ModelConfig; raises ConfigError for anything unknown or impossible."""
    return architecture_of(values, path).config(Keys(values, path))
