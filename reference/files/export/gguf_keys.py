"""A model's config as the keys of a GGUF file, and a check that they say the same.

The keys are those of llama.cpp's converter (gguf-py, constants.py). They are read back as
formats/gguf_config.py reads any file, and a model is refused if another config comes out: a window,
a bias or a rope scaling that the keys cannot say would be lost without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from planish.reference.architectures import model_config
from planish.reference.errors import RecipeError
from planish.reference.files.checkpoint import Checkpoint
from planish.reference.files.export.gguf_container import Part
from planish.reference.files.formats.gguf_config import FACTORS, rebuild_config, rope_factors
from planish.reference.gguf import GgufFile, GgufTensor
from planish.reference.model.config import ModelConfig
from planish.reference.model.rope import (
    Interpolation,
    Llama3,
    LongRope,
    Rope,
    attention_factor,
    frequencies,
)

FAMILIES = {
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
}
NOT_IN_KEYS = ("model_type", "tie_embeddings", "attention", "kv_cache", "eos_token_ids", "ropes")
NEAREST = "--format float"
LONG = 2**24  # tokens, more than any original length


def family(checkpoint: Checkpoint) -> str:
    """general.architecture; RecipeError for a model_type whose names are not known."""
    found = checkpoint.config.model_type
    if found not in FAMILIES:
        expected = f"one of {', '.join(FAMILIES)}; {NEAREST}"
        raise _refuse(checkpoint.path, "model_type", expected, found)
    return FAMILIES[found]


def _refuse(path: Path, name: str, expected: object, found: object) -> RecipeError:
    problem = "cannot be held by gguf"
    return RecipeError(problem, path=path, name=name, expected=expected, found=found)


def config_keys(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """The keys of the architecture `name`, and general.architecture."""
    config = checkpoint.config
    positions = checkpoint.values.get("max_position_embeddings", config.max_positions)
    values: dict[str, Any] = {
        "context_length": positions,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.dimension_count": config.head_dim,
        "vocab_size": config.vocab_size,
    }
    for rope in config.ropes[:1]:
        values["rope.freq_base"] = float(rope.theta)
        if isinstance(rope.scaling, Interpolation):
            values["rope.scaling.type"] = "linear"
            values["rope.scaling.factor"] = float(rope.scaling.factor)
    if config.moe is not None:
        values["expert_count"] = config.moe.num_experts
        values["expert_used_count"] = config.moe.top_k
        values["expert_feed_forward_length"] = config.moe.intermediate_size
    keys = {f"{name}.{key}": value for key, value in values.items()}
    return {"general.architecture": name, "general.type": "model", **keys}


def rope_part(config: ModelConfig) -> dict[str, Part]:
    """rope_freqs.weight, if the model has Llama 3's scaling, or factors of another file."""
    scaled = [rope for rope in config.ropes if isinstance(rope.scaling, Llama3 | LongRope)]
    if not scaled:
        return {}
    factors = rope_factors(scaled[0])
    return {FACTORS: Part(type="F32", shape=factors.shape, read=lambda: factors)}


def check_keys(checkpoint: Checkpoint, keys: Mapping[str, Any], parts: Mapping[str, Part]) -> None:
    """Raise RecipeError unless the file's config will be the model's."""
    tensors = {name: _stub(part) for name, part in parts.items()}
    file = GgufFile(path=checkpoint.path, keys=dict(keys), tensors=tensors)
    made = model_config(rebuild_config(file), checkpoint.path)
    pairs = zip(checkpoint.config.ropes, made.ropes, strict=False)
    if not all(np.allclose(_angles(a), _angles(b), rtol=1e-5) for a, b in pairs):
        expected = f"none, linear or llama3; {NEAREST}"
        found = checkpoint.values.get("rope_scaling", "another")
        raise _refuse(checkpoint.path, "rope_scaling", expected, found)
    own, other = _comparable(checkpoint.config), _comparable(made)
    for name, value in own.items():
        if other[name] != value:
            expected = f"{other[name]}, which is all that keys can say; {NEAREST}"
            raise _refuse(checkpoint.path, name, expected, value)


def _stub(part: Part) -> GgufTensor:
    """The tensor as a reader of the file will see it; its bytes only if the config needs them."""
    small = part.type == "F32" and len(part.shape) == 1
    data = np.ascontiguousarray(part.read()).view(np.uint8) if small else np.empty(0, np.uint8)
    return GgufTensor(type=part.type, shape=part.shape, data=data)


def _angles(rope: Rope) -> np.ndarray:
    """The frequencies of a short and of a long sequence, and the factor of cos and sin."""
    lengths = [frequencies(rope, length) for length in (1, LONG)]
    return np.concatenate([*lengths, [attention_factor(rope)]])


def _comparable(config: ModelConfig) -> dict[str, Any]:
    """What keys must say, with floats as the file's float32 holds them."""
    eps = float(np.float32(config.norm_eps))
    ropes = [(float(np.float32(rope.theta)), rope.dim, rope.interleaved) for rope in config.ropes]
    plain = {k: v for k, v in asdict(replace(config, norm_eps=eps)).items() if k not in NOT_IN_KEYS}
    return plain | {"rope_theta": ropes}
