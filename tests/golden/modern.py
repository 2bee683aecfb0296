"""Goldens of the architectures that people use today.

Windows and trained lengths are shorter than the long prompt, so that they show.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)
from variant import POSITIONS, Values, Variant, kind, rope_theta, without

WINDOW, TRAINED = 64, 128
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
}
TIED = {"tie_word_embeddings": True}
llama = kind(LlamaConfig, **SMALL, **TIED)
mistral = kind(MistralConfig, **SMALL)
mixtral = kind(MixtralConfig, **{**SMALL, "intermediate_size": 24}, **TIED, num_local_experts=4)
qwen2 = kind(Qwen2Config, **SMALL, **TIED)
qwen3 = kind(Qwen3Config, **SMALL, **TIED, head_dim=16)
qwen3_moe = kind(
    Qwen3MoeConfig,
    **SMALL,
    **TIED,
    head_dim=16,
    num_experts=6,
    num_experts_per_tok=3,
    moe_intermediate_size=16,
)
gemma2 = kind(Gemma2Config, **SMALL, head_dim=16, sliding_window=WINDOW)
gemma3 = kind(Gemma3TextConfig, **SMALL, head_dim=16, sliding_window=WINDOW)
phi3 = kind(Phi3Config, **SMALL, pad_token_id=None)
starcoder2 = kind(Starcoder2Config, **SMALL)
stablelm = kind(StableLmConfig, **{**SMALL, "num_attention_heads": 2, "num_key_value_heads": 2})
olmo2 = kind(Olmo2Config, **SMALL)
smollm3 = kind(SmolLM3Config, **SMALL, pad_token_id=None, no_rope_layer_interval=2)


def rope(rope_type: str, theta: float = 1e4, **factors: Any) -> Values:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": theta, **factors}}


def old_rope(values: Values) -> Values:
    """rope_theta and rope_scaling with a `type`, as before transformers 5."""
    scaling = values.pop("rope_parameters")
    values["rope_theta"] = scaling.pop("rope_theta")
    values["rope_scaling"] = {"type": scaling.pop("rope_type"), **scaling}
    return without("layer_types", "dtype", "transformers_version")(values)


def old_gemma3(values: Values) -> Values:
    """Both rotary bases beside each other, and a pattern instead of a type for each layer."""
    ropes = values.pop("rope_parameters")
    scaling = ropes["full_attention"]
    values["rope_theta"] = scaling.pop("rope_theta")
    values["rope_scaling"] = scaling
    values["rope_local_base_freq"] = ropes["sliding_attention"]["rope_theta"]
    values["sliding_window_pattern"] = 2
    return without("layer_types", "_sliding_window_pattern", "transformers_version")(values)


YARN = {"factor": 4.0, "original_max_position_embeddings": TRAINED}
LONGROPE = {
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.0, 2.0, 4.0],
    "original_max_position_embeddings": TRAINED,
    "partial_rotary_factor": 0.75,
}
TWO_BASES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
}
WINDOWS = {"use_sliding_window": True, "sliding_window": WINDOW}
FULL_THEN_SLIDING = ["full_attention", "sliding_attention"]

MODERN: dict[str, Variant] = {
    "llama-linear-rope": Variant(llama(**rope("linear", factor=4.0))),
    "llama-dynamic-rope": Variant(
        llama(max_position_embeddings=TRAINED, **rope("dynamic", factor=4.0)), decode=True
    ),
    "llama-yarn-scaled": Variant(
        llama(**rope("yarn", 1e3, **YARN, mscale=0.7, mscale_all_dim=0.3, truncate=False))
    ),
    "mistral-window": Variant(mistral(sliding_window=WINDOW)),
    "mistral-no-window-wide-heads": Variant(
        mistral(sliding_window=None, head_dim=16, rope_parameters=rope_theta(1e6)),
        embed_scale=0.02,
    ),
    "mixtral-two-of-four": Variant(mixtral()),
    "mixtral-window-untied": Variant(
        mixtral(sliding_window=WINDOW, tie_word_embeddings=False, num_local_experts=3)
    ),
    "qwen2-biases": Variant(qwen2(), embed_scale=0.02),
    "qwen2-windows-untied": Variant(
        qwen2(**WINDOWS, max_window_layers=1, tie_word_embeddings=False)
    ),
    "qwen2-yarn-old-spelling": Variant(qwen2(**rope("yarn", 1e6, **YARN)), edit=old_rope),
    "qwen3-norms": Variant(qwen3()),
    "qwen3-biases-window-untied": Variant(
        qwen3(
            **WINDOWS,
            layer_types=FULL_THEN_SLIDING[::-1],
            attention_bias=True,
            tie_word_embeddings=False,
            head_dim=8,
        )
    ),
    "qwen3_moe-normalized": Variant(qwen3_moe(norm_topk_prob=True)),
    "qwen3_moe-some-layers": Variant(
        qwen3_moe(num_hidden_layers=4, decoder_sparse_step=2, mlp_only_layers=[3], head_dim=8)
    ),
    "gemma2-caps": Variant(gemma2(query_pre_attn_scalar=24)),
    "gemma2-small-caps": Variant(
        gemma2(attn_logit_softcapping=2.0, final_logit_softcapping=3.0, head_dim=8)
    ),
    "gemma3_text-two-bases": Variant(gemma3(num_hidden_layers=7, intermediate_size=16, head_dim=8)),
    "gemma3_text-old-spelling": Variant(
        gemma3(
            rope_parameters=TWO_BASES,
            layer_types=FULL_THEN_SLIDING[::-1],
            query_pre_attn_scalar=20,
            final_logit_softcapping=4.0,
        ),
        edit=old_gemma3,
    ),
    "phi3-window": Variant(phi3(sliding_window=WINDOW)),
    "phi3-longrope-partial": Variant(
        phi3(
            original_max_position_embeddings=TRAINED,
            tie_word_embeddings=True,
            **rope("longrope", **LONGROPE),
        ),
        decode=True,
    ),
    "starcoder2-window": Variant(starcoder2(sliding_window=WINDOW)),
    "starcoder2-no-bias-untied": Variant(
        starcoder2(use_bias=False, tie_word_embeddings=False, norm_epsilon=1e-2), embed_scale=0.02
    ),
    "stablelm-3b-form": Variant(stablelm()),
    "stablelm-biases-half-rotary": Variant(
        stablelm(use_qkv_bias=True, partial_rotary_factor=0.5, **TIED)
    ),
    "stablelm-12b-form": Variant(
        stablelm(
            num_attention_heads=4,
            qk_layernorm=True,
            use_parallel_residual=True,
            layer_norm_eps=1e-2,
        )
    ),
    "olmo2-grouped": Variant(olmo2()),
    "olmo2-biases-tied": Variant(olmo2(attention_bias=True, num_key_value_heads=4, **TIED)),
    "smollm3-no-rope": Variant(smollm3()),
    "smollm3-windows-biases": Variant(
        smollm3(**WINDOWS, no_rope_layers=[0, 1], attention_bias=True, mlp_bias=True)
    ),
}
