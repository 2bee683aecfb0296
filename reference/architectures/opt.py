"""OPT: LayerNorm, learned positions with an offset of 2, ReLU, biases everywhere.

The 350m model normalizes after the residual sum and projects a narrower embedding in and out.
Source: transformers' modeling_opt; Zhang et al. 2022, arXiv 2205.01068.
"""

from __future__ import annotations

from planish.reference.architectures.entry import Architecture
from planish.reference.architectures.read.keys import ACTIVATION_NAMES, Keys, divide_evenly
from planish.reference.model.config import ModelConfig, repeat_layer


def config(keys: Keys) -> ModelConfig:
    hidden, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    bias, norm_first = keys.flag("enable_bias", True), keys.flag("do_layer_norm_before", True)
    head_dim = divide_evenly(keys, "hidden_size", hidden, heads)
    return ModelConfig(
        model_type="opt",
        vocab_size=keys.count("vocab_size"),
        hidden_size=hidden,
        embedding_size=keys.count("word_embed_proj_dim", hidden),
        layers=repeat_layer(keys.count("num_hidden_layers"), head_dim),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        intermediate_size=keys.count("ffn_dim"),
        max_positions=keys.count("max_position_embeddings", 2048),
        norm="layer_norm",
        norm_eps=1e-5,  # torch's default, which modeling_opt uses
        norm_affine=keys.flag("layer_norm_elementwise_affine", True),
        norm_placement="pre" if norm_first else "post",
        final_norm=norm_first and not keys.flag("_remove_final_layer_norm", False),
        activation=keys.choice("activation_function", ACTIVATION_NAMES, "relu"),
        gated_mlp=False,
        position_offset=2,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
        tie_embeddings=keys.flag("tie_word_embeddings", True),
        bos_token_id=keys.token_id("bos_token_id"),
        eos_token_ids=keys.token_ids("eos_token_id"),
    )


OPT = Architecture(
    model_type="opt",
    config=config,
    tensors={
        "embed": "model.decoder.embed_tokens",
        "positions": "model.decoder.embed_positions",
        "project_in": "model.decoder.project_in",
        "final_norm": "model.decoder.final_layer_norm",
        "project_out": "model.decoder.project_out",
        "head": "lm_head",
    },
    block={
        "attention_norm": "model.decoder.layers.{i}.self_attn_layer_norm",
        "q": "model.decoder.layers.{i}.self_attn.q_proj",
        "k": "model.decoder.layers.{i}.self_attn.k_proj",
        "v": "model.decoder.layers.{i}.self_attn.v_proj",
        "o": "model.decoder.layers.{i}.self_attn.out_proj",
        "mlp_norm": "model.decoder.layers.{i}.final_layer_norm",
        "up": "model.decoder.layers.{i}.fc1",
        "down": "model.decoder.layers.{i}.fc2",
    },
    examples=("facebook/opt-125m", "facebook/opt-350m", "facebook/opt-6.7b"),
)
