"""Architectures: each Hugging Face `model_type` is one small entry, a table and not a program.

An entry (entry.py) says two things: how its config.json becomes a ModelConfig, and under which
names its tensors are stored. Which norm feeds which linears follows from the config
(reference/model/folds.py).

To add one, with qwen2.py as the example:

    1. write reference/architectures/NAME.py: a function config(keys) and a table of tensor names
       for the modules that reference/model/shapes.py lists. Read every key of the model's
       configuration class with its default there, or refuse it with keys.only if the transformer
       lacks the graph that another value selects: silently ignoring a key computes another model
    2. list the entry in _LISTED below
    3. add rows for every flag that real checkpoints use to tests/golden/modern.py and run
       `python tests/golden/make.py NAME-...`, which also writes table.json (what `planish
       inspect --architectures` prints); the tests find new golden directories by themselves
    4. add the config.json of a public checkpoint to public_configs.json in
       tests/reference/architectures: its number of parameters, computed from shapes alone, must
       be the published one

Modules that are fused in one tensor name the same Tensor, in the order of its rows. It is `grouped`
if the rows of a key-value head are contiguous, and `transposed` if weights are [inputs, outputs].

read/ has the readers of config keys that several entries share.

If a model needs an `if` on its name anywhere else, the transformer lacks a feature: add the feature
to ModelConfig, to reference/model/transformer.py and to fast/model/transformer.py.
"""

from __future__ import annotations

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
from planish.reference.architectures.read.rope import extend_max_positions
from planish.reference.errors import ConfigError, suggest
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
    if any(isinstance(values.get(key), dict) for key in ("text_config", "vision_config")):
        problem = "wraps a text model and others; only pure text models can be read"
        raise ConfigError(problem, path=path, name="model_type", found=repr(name))
    problem = "unknown (how to add one: reference/architectures/__init__.py)"
    expected = f"one of {', '.join(ENTRIES)}{suggest(str(name), ENTRIES, most=3)}"
    raise ConfigError(problem, path=path, name="model_type", expected=expected, found=repr(name))


def model_config(values: dict[str, Any], path: Path) -> ModelConfig:
    """config.json -> ModelConfig; raises ConfigError for anything unknown or impossible."""
    entry = architecture_of(values, path)
    return extend_max_positions(entry.config(Keys(values, path)), entry.interpolated)
