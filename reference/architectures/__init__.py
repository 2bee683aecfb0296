"""Architectures: each Hugging Face `model_type` is one small entry, a table and not a program.

An entry (entry.py) says two things: how its config.json becomes a ModelConfig, and what its
tensors are called. Which norm feeds which linears follows from the config (model/folds.py).

To add one, with qwen2.py as the example:

    1. write reference/architectures/NAME.py: a function config(keys) and a table of tensors for
       the parts that shapes.py lists. Every key of the model's configuration class is
       read with its default there, or refused with keys.only where the transformer lacks the
       graph that another value asks for: a key that is silently ignored computes another model
    2. list it in _LISTED below
    3. add rows for every flag that real checkpoints use to tests/golden/modern.py and run
       `python tests/golden/make.py NAME-...`, which writes table.json, too (what `planish
       inspect --architectures` prints); tests/ finds the new directories by itself
    4. add the config.json of a public checkpoint to public_configs.json in
       tests/reference/architectures: its number of parameters, computed from shapes alone, must
       be the published one

Parts of a fused tensor name the same Tensor, in the order of its rows; `grouped` where the rows
of one key-value head lie together, `transposed` where weights are [inputs, outputs].

read/ has the readers of keys that entries share.

If it needs an `if` on its own name anywhere else, the transformer lacks a feature: add that
feature to ModelConfig under its own name, in reference/model/transformer.py
and in fast/model/transformer.py.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from planish.reference.architectures import (
    bloom,
    chatglm,
    falcon,
    gemma2,
    gemma3_text,
    glm,
    glm4,
    gpt2,
    gpt_bigcode,
    gpt_neox,
    gptj,
    llama,
    mistral,
    mixtral,
    mpt,
    olmo2,
    opt,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
    stablelm,
    starcoder2,
)
from planish.reference.architectures.entry import Architecture, Tensor
from planish.reference.architectures.read.keys import Keys
from planish.reference.architectures.read.rope import with_reach
from planish.reference.errors import ConfigError
from planish.reference.model.config import ModelConfig

__all__ = ["ENTRIES", "Architecture", "Tensor", "architecture_of", "model_config"]

_LISTED = (
    bloom.BLOOM,
    chatglm.CHATGLM,
    falcon.FALCON,
    gemma2.GEMMA2,
    gemma3_text.GEMMA3_TEXT,
    glm.GLM,
    glm4.GLM4,
    gpt2.GPT2,
    gpt_bigcode.GPT_BIGCODE,
    gpt_neox.GPT_NEOX,
    gptj.GPTJ,
    llama.LLAMA,
    mistral.MISTRAL,
    mixtral.MIXTRAL,
    mpt.MPT,
    olmo2.OLMO2,
    opt.OPT,
    phi3.PHI3,
    qwen2.QWEN2,
    qwen3.QWEN3,
    qwen3_moe.QWEN3_MOE,
    smollm3.SMOLLM3,
    stablelm.STABLELM,
    starcoder2.STARCODER2,
)
ENTRIES = {entry.model_type: entry for entry in _LISTED}


def architecture_of(values: dict[str, Any], path: Path) -> Architecture:
    """The entry for a config's model_type; raises ConfigError naming the nearest known ones."""
    name = values.get("model_type")
    if isinstance(name, str) and name in ENTRIES:
        return ENTRIES[name]
    if any(isinstance(values.get(part), dict) for part in ("text_config", "vision_config")):
        problem = "wraps a text model and others; only models of text alone can be read"
        raise ConfigError(problem, path=path, name="model_type", found=repr(name))
    near = difflib.get_close_matches(str(name), ENTRIES, n=3)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    problem = "unknown (how to add one: reference/architectures/__init__.py)"
    expected = f"one of {', '.join(ENTRIES)}{hint}"
    raise ConfigError(problem, path=path, name="model_type", expected=expected, found=repr(name))


def model_config(values: dict[str, Any], path: Path) -> ModelConfig:
    """config.json -> ModelConfig; raises ConfigError for anything unknown or impossible."""
    entry = architecture_of(values, path)
    return with_reach(entry.config(Keys(values, path)), entry.interpolated)
