"""Goldens of the architectures that SmoothQuant's authors and the CPU paper name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from variant import POSITIONS, VOCABULARY, Variant, rope_theta

FLOAT32 = torch.float32


def llama(**changes: Any) -> Callable[[], transformers.PretrainedConfig]:
    base = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
    }
    return lambda: transformers.LlamaConfig(**{**base, **changes})


def opt(**changes: Any) -> Callable[[], transformers.PretrainedConfig]:
    base = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "ffn_dim": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        "word_embed_proj_dim": 48,
    }
    return lambda: transformers.OPTConfig(**{**base, **changes})


def old_llama(values: dict[str, Any]) -> dict[str, Any]:
    """config.json in transformers 4's spelling, without the keys that came later."""
    later = ("head_dim", "attention_bias", "mlp_bias", "transformers_version")
    rope = values.pop("rope_parameters")
    values["rope_theta"], values["rope_scaling"] = rope["rope_theta"], None
    values["torch_dtype"] = values.pop("dtype")
    return {k: v for k, v in values.items() if k not in later}


def old_opt(values: dict[str, Any]) -> dict[str, Any]:
    """config.json without the keys that came after the first OPT checkpoints."""
    later = ("enable_bias", "layer_norm_elementwise_affine", "_remove_final_layer_norm")
    values["torch_dtype"] = values.pop("dtype")
    values["architectures"] = ["OPTForCausalLM"]
    dropped = (*later, "tie_word_embeddings", "transformers_version")
    return {k: v for k, v in values.items() if k not in dropped}


SEEDS = {
    "llama-tied-grouped": Variant(llama(rope_parameters=rope_theta(1e5)), FLOAT32),
    "llama-old-spelling": Variant(llama(rope_parameters=rope_theta(1e5)), FLOAT32, edit=old_llama),
    "llama-untied-wide-heads": Variant(
        llama(
            tie_word_embeddings=False,
            num_key_value_heads=4,
            head_dim=16,
            rope_parameters=rope_theta(5e5),
        ),
        FLOAT32,
        embed_scale=0.02,
    ),
    "llama-multi-query-bfloat16-shards": Variant(
        llama(num_key_value_heads=1, rms_norm_eps=1e-6), torch.bfloat16, shards=True
    ),
    "llama-biases-float16": Variant(
        llama(
            attention_bias=True,
            mlp_bias=True,
            rms_norm_eps=1e-2,
            rope_parameters=rope_theta(2e3),
        ),
        torch.float16,
    ),
    "opt-pre-norm": Variant(opt(), FLOAT32),
    "opt-350m-form": Variant(opt(do_layer_norm_before=False, word_embed_proj_dim=32), FLOAT32),
    "opt-350m-decoder-prefix": Variant(
        opt(do_layer_norm_before=False, word_embed_proj_dim=32),
        FLOAT32,
        without_head=True,
        edit=old_opt,
    ),
    "opt-no-bias-no-affine": Variant(
        opt(enable_bias=False, layer_norm_elementwise_affine=False), FLOAT32
    ),
    "opt-untied-gelu-no-final-norm": Variant(
        opt(tie_word_embeddings=False, activation_function="gelu", _remove_final_layer_norm=True),
        FLOAT32,
        embed_scale=0.02,
    ),
}
