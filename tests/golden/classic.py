"""Goldens of the architectures that SmoothQuant's authors and the CPU paper name."""

from __future__ import annotations

import torch
from relatives import alibi_as_configured, chatglm_layout, megatron_buffers, neox_buffers
from transformers import (
    BloomConfig,
    FalconConfig,
    Glm4Config,
    GlmConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MptConfig,
    OPTConfig,
)
from variant import POSITIONS, Values, Variant, kind, rope_theta, without

FLOAT32 = torch.float32

llama = kind(
    LlamaConfig,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=POSITIONS,
    tie_word_embeddings=True,
    rms_norm_eps=1e-5,
)
opt = kind(
    OPTConfig,
    hidden_size=48,
    ffn_dim=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=POSITIONS,
    word_embed_proj_dim=48,
)
bloom = kind(BloomConfig, hidden_size=32, n_layer=2, n_head=4, layer_norm_epsilon=1e-3)
gpt2 = kind(GPT2Config, n_embd=32, n_layer=2, n_head=4, n_positions=POSITIONS, n_inner=64)
gpt_bigcode = kind(
    GPTBigCodeConfig, n_embd=32, n_layer=2, n_head=4, n_positions=POSITIONS, n_inner=64
)
falcon = kind(
    FalconConfig,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=POSITIONS,
)
gptj = kind(GPTJConfig, n_embd=32, n_layer=2, n_head=2, n_positions=POSITIONS, rotary_dim=4)
gpt_neox = kind(
    GPTNeoXConfig,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=POSITIONS,
)
mpt = kind(MptConfig, d_model=32, n_layers=2, n_heads=4, max_seq_len=POSITIONS)
GLM = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
glm, glm4 = kind(GlmConfig, **GLM), kind(Glm4Config, **GLM)


def old_llama(values: Values) -> Values:
    """config.json in transformers 4's spelling, without the keys that came later."""
    rope = values.pop("rope_parameters")
    values["rope_theta"], values["rope_scaling"] = rope["rope_theta"], None
    values["torch_dtype"] = values.pop("dtype")
    return without("head_dim", "attention_bias", "mlp_bias", "transformers_version")(values)


def old_opt(values: Values) -> Values:
    """config.json without the keys that came after the first OPT checkpoints."""
    later = ("enable_bias", "layer_norm_elementwise_affine", "_remove_final_layer_norm")
    values["torch_dtype"] = values.pop("dtype")
    values["architectures"] = ["OPTForCausalLM"]
    return without(*later, "tie_word_embeddings", "transformers_version")(values)


def old_bloom(values: Values) -> Values:
    """config.json as the hub's first BLOOM has it."""
    values |= {"n_embed": values["hidden_size"], "num_attention_heads": values["n_head"]}
    values |= {"architectures": ["BloomForCausalLM"], "seq_length": 2048, "n_inner": None}
    return without("hidden_size", "n_head", "tie_word_embeddings", "transformers_version")(values)


def old_neox(values: Values) -> Values:
    """config.json as Pythia and Dolly have it: rotary_pct and rotary_emb_base."""
    rope = values.pop("rope_parameters")
    values["rotary_pct"] = rope["partial_rotary_factor"]
    values["rotary_emb_base"] = rope["rope_theta"]
    return without("attention_bias", "dtype", "transformers_version")(values)


OPT_350M = {"do_layer_norm_before": False, "word_embed_proj_dim": 32}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FALCON_RW = {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False}
NEOX_ROPE = {**rope_theta(2e3), "partial_rotary_factor": 0.5}
MPT_LONG = {"clip_qkv": 1.5, "softmax_scale": 0.3, "alibi_bias_max": 16}

CLASSIC = {
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
        )
    ),
    "llama-3-rope": Variant(llama(hidden_size=32, rope_parameters=LLAMA_3)),
    "opt-pre-norm": Variant(opt(), FLOAT32),
    "opt-350m-form": Variant(opt(**OPT_350M), FLOAT32),
    "opt-350m-decoder-prefix": Variant(opt(**OPT_350M), FLOAT32, without_head=True, edit=old_opt),
    "opt-no-bias-no-affine": Variant(
        opt(enable_bias=False, layer_norm_elementwise_affine=False), FLOAT32
    ),
    "opt-untied-gelu-no-final-norm": Variant(
        opt(tie_word_embeddings=False, activation_function="gelu", _remove_final_layer_norm=True),
        FLOAT32,
        embed_scale=0.02,
    ),
    "bloom-tied": Variant(bloom()),
    "bloom-hub-spelling-six-heads": Variant(
        bloom(hidden_size=24, n_head=6), without_head=True, edit=old_bloom
    ),
    "gpt2-hub-prefix": Variant(
        gpt2(n_inner=None), without_head=True, edit=without("tie_word_embeddings", "dtype")
    ),
    "gpt2-scaled-by-layer": Variant(
        gpt2(scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True)
    ),
    "gpt2-unscaled-untied": Variant(
        gpt2(scale_attn_weights=False, tie_word_embeddings=False, activation_function="gelu"),
        embed_scale=0.02,
    ),
    "gpt2-megatron": Variant(
        gpt2(activation_function="gelu_fast", layer_norm_epsilon=1e-2), convert=megatron_buffers
    ),
    "gpt_bigcode-multi-query": Variant(gpt_bigcode()),
    "gpt_bigcode-multi-head": Variant(
        gpt_bigcode(multi_query=False, activation_function="gelu", layer_norm_epsilon=1e-2)
    ),
    "falcon-7b-form": Variant(falcon()),
    "falcon-7b-form-biases": Variant(
        falcon(
            bias=True,
            tie_word_embeddings=False,
            ffn_hidden_size=64,
            activation="gelu_new",
            layer_norm_epsilon=1e-2,
        )
    ),
    "falcon-40b-form": Variant(falcon(new_decoder_architecture=True, num_kv_heads=2)),
    "falcon-11b-form": Variant(
        falcon(
            new_decoder_architecture=True,
            num_kv_heads=2,
            num_ln_in_parallel_attn=1,
            rope_parameters=rope_theta(5e5),
        )
    ),
    # eager attention in transformers 5.23 adds Falcon's ALiBi twice, once of it with the mask
    "falcon-rw-form": Variant(falcon(**FALCON_RW), attention="sdpa"),
    "falcon-rw-form-six-heads": Variant(
        falcon(**FALCON_RW, hidden_size=24, num_attention_heads=6, ffn_hidden_size=64),
        attention="sdpa",
    ),
    "gptj-partial-rotary": Variant(gptj()),
    "gptj-whole-rotary": Variant(gptj(rotary_dim=16, n_inner=64, layer_norm_epsilon=1e-2)),
    "gpt_neox-parallel": Variant(gpt_neox()),
    "gpt_neox-sequential-no-bias": Variant(
        gpt_neox(
            use_parallel_residual=False,
            attention_bias=False,
            layer_norm_eps=1e-2,
            rope_parameters=NEOX_ROPE,
        )
    ),
    "gpt_neox-old-spelling": Variant(
        gpt_neox(tie_word_embeddings=True, rope_parameters=NEOX_ROPE),
        edit=old_neox,
        convert=neox_buffers,
    ),
    "mpt-alibi": Variant(mpt()),
    "mpt-clipped-scaled-six-heads": Variant(
        mpt(d_model=24, n_heads=6, layer_norm_epsilon=1e-2, attn_config=MPT_LONG),
        repair=alibi_as_configured,
    ),
    "glm-grouped": Variant(glm()),
    "glm-no-bias-tied": Variant(
        glm(attention_bias=False, tie_word_embeddings=True, rms_norm_eps=1e-2)
    ),
    "glm4-sandwich": Variant(glm4(attention_bias=False, rms_norm_eps=1e-2)),
    "chatglm-2": Variant(glm(), convert=chatglm_layout),
    "chatglm-long-wide-heads": Variant(
        glm(
            head_dim=16,
            attention_bias=False,
            rms_norm_eps=1e-2,
            rope_parameters={**rope_theta(5e5), "partial_rotary_factor": 0.5},
        ),
        convert=chatglm_layout,
    ),
}
