"""Llama 1 and 2 (and what shares their graph): RMSNorm, rotary, grouped queries, gated MLP.

Source: transformers' modeling_llama; Touvron et al. 2023.
"""

from __future__ import annotations

from reference.architectures.entry import Architecture, Fold
from reference.architectures.rope_keys import rope_from
from reference.config import ModelConfig, same_layers
from reference.keys import ACTIVATION_NAMES, Keys, check_heads, divided


def config(keys: Keys) -> ModelConfig:
    hidden, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    kv_heads = keys.count("num_key_value_heads", heads)
    check_heads(keys, heads, kv_heads)
    if keys.get("head_dim") is None:
        head_dim = divided(keys, "hidden_size", hidden, heads)
    else:
        head_dim = keys.count("head_dim")
    attention_bias, mlp_bias = keys.flag("attention_bias", False), keys.flag("mlp_bias", False)
    return ModelConfig(
        model_type="llama",
        vocab_size=keys.count("vocab_size"),
        hidden_size=hidden,
        embedding_size=hidden,
        layers=same_layers(keys.count("num_hidden_layers"), head_dim, rope=0),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=keys.count("intermediate_size"),
        max_positions=keys.count("max_position_embeddings", 2048),
        norm="rms_norm",
        norm_eps=keys.number("rms_norm_eps", 1e-6),
        activation=keys.choice("hidden_act", ACTIVATION_NAMES, "silu"),
        gated_mlp=True,
        ropes=(rope_from(keys, head_dim),),
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        mlp_bias=mlp_bias,
        tie_embeddings=keys.flag("tie_word_embeddings", False),
        bos_token_id=next(iter(keys.token_ids("bos_token_id")), None),
        eos_token_ids=keys.token_ids("eos_token_id"),
    )


def folds(_: ModelConfig) -> tuple[Fold, ...]:
    return Fold("attention_norm", ("q", "k", "v")), Fold("mlp_norm", ("gate", "up"))


LLAMA = Architecture(
    model_type="llama",
    config=config,
    tensors={
        "embed": "model.embed_tokens",
        "final_norm": "model.norm",
        "head": "lm_head",
    },
    block={
        "attention_norm": "model.layers.{i}.input_layernorm",
        "q": "model.layers.{i}.self_attn.q_proj",
        "k": "model.layers.{i}.self_attn.k_proj",
        "v": "model.layers.{i}.self_attn.v_proj",
        "o": "model.layers.{i}.self_attn.o_proj",
        "mlp_norm": "model.layers.{i}.post_attention_layernorm",
        "gate": "model.layers.{i}.mlp.gate_proj",
        "up": "model.layers.{i}.mlp.up_proj",
        "down": "model.layers.{i}.mlp.down_proj",
    },
    folds=folds,
    examples=("meta-llama/Llama-2-7b-hf", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
    ignored=(r".*rotary_emb\.inv_freq",),
)
