"""GPT-BigCode (SantaCoder, StarCoder): GPT-2 with multi-query attention.

Source: transformers' modeling_gpt_bigcode; Li et al. 2023, arXiv 2305.06161.
"""

from __future__ import annotations

import math

from planish.reference.architectures.entry import Architecture, Tensor
from planish.reference.architectures.read.keys import ACTIVATION_NAMES, Keys, divide_evenly
from planish.reference.model.config import LayerKind, ModelConfig


def config(keys: Keys) -> ModelConfig:
    keys = keys.with_aliases(n_embd="hidden_size", n_layer="num_hidden_layers")
    keys = keys.with_aliases(n_head="num_attention_heads", n_positions="max_position_embeddings")
    keys.only("add_cross_attention", False, False)
    hidden, heads = keys.count("n_embd", 768), keys.count("n_head", 12)
    head_dim = divide_evenly(keys, "n_embd", hidden, heads)
    divisor = math.sqrt(head_dim) if keys.flag("scale_attn_weights", True) else 1.0
    return ModelConfig(
        model_type="gpt_bigcode",
        vocab_size=keys.count("vocab_size", 50257),
        hidden_size=hidden,
        embedding_size=hidden,
        layers=(LayerKind(score_divisor=divisor),) * keys.count("n_layer", 12),
        num_heads=heads,
        num_kv_heads=1 if keys.flag("multi_query", True) else heads,
        head_dim=head_dim,
        intermediate_size=keys.count("n_inner", 4 * hidden),
        max_positions=keys.count("n_positions", 1024),
        norm="layer_norm",
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        position_offset=0,
        activation=keys.choice("activation_function", ACTIVATION_NAMES, "gelu_pytorch_tanh"),
        gated_mlp=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        tie_embeddings=keys.flag("tie_word_embeddings", True),
        bos_token_id=keys.token_id("bos_token_id", (50256,)),
        eos_token_ids=keys.token_ids("eos_token_id", (50256,)),
    )


# multi_query: all queries, then the one key and value; otherwise q, k and v head by head
QKV = Tensor("transformer.h.{i}.attn.c_attn", fused=True, grouped=True)

GPT_BIGCODE = Architecture(
    model_type="gpt_bigcode",
    config=config,
    tensors={
        "embed": "transformer.wte",
        "positions": "transformer.wpe",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    },
    block={
        "attention_norm": "transformer.h.{i}.ln_1",
        "q": QKV,
        "k": QKV,
        "v": QKV,
        "o": "transformer.h.{i}.attn.c_proj",
        "mlp_norm": "transformer.h.{i}.ln_2",
        "up": "transformer.h.{i}.mlp.c_fc",
        "down": "transformer.h.{i}.mlp.c_proj",
    },
    examples=("bigcode/starcoder", "bigcode/gpt_bigcode-santacoder"),
    ignored=(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",),  # causal masks
)
