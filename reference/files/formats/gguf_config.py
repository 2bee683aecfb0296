"""config.json from the keys of a GGUF file of llama.cpp.

Some of it is not in keys: whether lm_head is the embedding and which linears have biases follows
from the tensors that are there, and the rope scaling of Llama 3 is a tensor, rope_freqs.weight, of
factors by which wavelengths are multiplied. Source: llama.cpp, conversion/*.py and gguf-py.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from planish.reference.errors import CheckpointError, ConfigError
from planish.reference.gguf import GgufFile
from planish.reference.model.rope import Llama3, Rope, frequencies

ARCHITECTURES = {  # general.architecture -> model_type of the config
    "llama": "llama",  # or mixtral, which has experts
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
}
TOKENIZER = "tokenizer.ggml"
FACTORS = "rope_freqs.weight"
LLAMA3 = ((1.0, 4.0, 8192),)  # low and high frequency factor, original length, as published
WITH_CONFIG = (
    "--config DIR with the model's config.json and tokenizer.json, or both beside the file"
)


def architecture(file: GgufFile) -> str:
    """general.architecture; ConfigError for one whose names are not in the tables."""
    found = file.keys.get("general.architecture")
    if found not in ARCHITECTURES:
        raise ConfigError(
            "cannot be read",
            path=file.path,
            name="general.architecture",
            expected=f"one of {', '.join(ARCHITECTURES)}",
            found=repr(found),
        )
    return str(found)


def rebuild_config(file: GgufFile) -> dict[str, Any]:
    """config.json from the keys; ConfigError for what they cannot say or planish cannot compute."""
    name = architecture(file)
    _refuse_unknown(file, name)
    heads = _count(file, f"{name}.attention.head_count")
    hidden = _count(file, f"{name}.embedding_length")
    head_dim = _count(file, f"{name}.attention.key_length", hidden // max(heads, 1))
    values: dict[str, Any] = {
        "model_type": ARCHITECTURES[name],
        "hidden_size": hidden,
        "intermediate_size": _count(file, f"{name}.feed_forward_length"),
        "num_hidden_layers": _count(file, f"{name}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _count(file, f"{name}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": _decimal(file, f"{name}.attention.layer_norm_rms_epsilon"),
        "rope_theta": _decimal(file, f"{name}.rope.freq_base", 10000.0),
        "max_position_embeddings": _count(file, f"{name}.context_length"),
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "bos_token_id": file.keys.get(f"{TOKENIZER}.bos_token_id"),
        "eos_token_id": _ends(file),
    }
    if "blk.0.ffn_gate.bias" in file.tensors:
        values["mlp_bias"] = True
    values |= _experts(file, name)
    scaling = _rope_scaling(file, name, values)
    return values if scaling is None else values | {"rope_scaling": scaling}


def _experts(file: GgufFile, name: str) -> dict[str, Any]:
    """The values of a mixture of experts, if the model is one."""
    if not file.keys.get(f"{name}.expert_count") and name != "qwen3moe":
        return {}
    count = _count(file, f"{name}.expert_count")
    values = {"num_experts_per_tok": _count(file, f"{name}.expert_used_count")}
    if name == "llama":
        return values | {"model_type": "mixtral", "num_local_experts": count}
    if name != "qwen3moe":
        raise _needs_config(file, f"{name}.expert_count", "a mixture of experts")
    width = _count(file, f"{name}.expert_feed_forward_length")
    values |= {"num_experts": count, "moe_intermediate_size": width}
    return values | {"norm_topk_prob": True}  # as llama.cpp computes this architecture


def _ends(file: GgufFile) -> Any:
    """The tokens that end a text, a turn and a message: an id, a list of ids, or None."""
    found = [file.keys.get(f"{TOKENIZER}.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    known = [number for number in dict.fromkeys(found) if number is not None]
    return known if len(known) > 1 else next(iter(known), None)


def _rope_scaling(file: GgufFile, name: str, values: dict[str, Any]) -> dict[str, Any] | None:
    """The config's rope_scaling, from the keys or from the tensor of factors."""
    kind = file.keys.get(f"{name}.rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise _needs_config(file, f"{name}.rope.scaling.type", repr(kind))
    if FACTORS not in file.tensors:
        factor = f"{name}.rope.scaling.factor"
        return None if kind == "none" else {"rope_type": kind, "factor": _decimal(file, factor)}
    if kind != "none":
        raise _needs_config(file, FACTORS, f"{kind} scaling, too")
    rope = Rope(theta=values["rope_theta"], dim=values["head_dim"])
    factors = _read_factors(file, rope)
    for low, high, original in LLAMA3:
        scaling = Llama3(
            factor=float(factors.max()),
            low_freq_factor=low,
            high_freq_factor=high,
            original_max_position_embeddings=original,
        )
        if np.allclose(rope_factors(replace(rope, scaling=scaling)), factors, rtol=1e-5):
            return {"rope_type": "llama3", **asdict(scaling)}
    return {
        "rope_type": "longrope",
        "short_factor": factors.tolist(),
        "long_factor": factors.tolist(),
        "attention_factor": 1.0,
        "original_max_position_embeddings": values["max_position_embeddings"],
    }


def _read_factors(file: GgufFile, rope: Rope) -> np.ndarray:
    """rope_freqs.weight, float32 [dim / 2]; CheckpointError for one that no frequency has."""
    tensor, pairs = file.tensors[FACTORS], rope.dim // 2
    if tensor.type != "F32" or tensor.shape != (pairs,):
        expected, found = f"F32 [{pairs}]", f"{tensor.type} {list(tensor.shape)}"
        problem = "wrong type or shape"
        raise CheckpointError(problem, path=file.path, name=FACTORS, expected=expected, found=found)
    factors: np.ndarray = tensor.data.view("<f4")
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise CheckpointError(
            "bad value", path=file.path, name=FACTORS, expected="finite factors above 0"
        )
    return factors


def rope_factors(rope: Rope) -> np.ndarray:
    """By what a scaling multiplies the wavelength of each pair, float32 [dim / 2]."""
    plain = frequencies(replace(rope, scaling=None), 1)
    factors: np.ndarray = plain / frequencies(rope, 1)
    return factors


def _refuse_unknown(file: GgufFile, name: str) -> None:
    """Refuse what the config would have to say and the keys do not, or say in another way."""
    if "token_embd.weight" not in file.tensors:
        raise CheckpointError("is missing", path=file.path, name="token_embd.weight")
    rotary, width = (f"{name}.rope.dimension_count", f"{name}.attention.key_length")
    found = file.keys.get(rotary)
    if found is not None and width in file.keys and found != file.keys[width]:
        raise _needs_config(file, rotary, f"{found} of {file.keys[width]} channels")


def _needs_config(file: GgufFile, name: str, found: str) -> ConfigError:
    problem = "is not enough to rebuild config.json"
    return ConfigError(problem, path=file.path, name=name, expected=WITH_CONFIG, found=found)


def _count(file: GgufFile, name: str, default: int | None = None) -> int:
    found = file.keys.get(name, default)
    if type(found) is not int or not 0 < found < 2**31:
        expected = "a number above 0"
        raise ConfigError(
            "bad value", path=file.path, name=name, expected=expected, found=repr(found)
        )
    return found


def _decimal(file: GgufFile, name: str, default: float | None = None) -> float:
    """A float32 as the shortest decimal that means it: 9.999999747e-06 is 1e-05."""
    found = file.keys.get(name, default)
    if not isinstance(found, float):
        raise ConfigError(
            "bad value", path=file.path, name=name, expected="a float", found=repr(found)
        )
    return float(str(np.float32(found)))
