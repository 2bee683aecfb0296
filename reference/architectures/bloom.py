"""BLOOM: ALiBi, a norm after the embedding, queries, keys and values fused head by head.

Source: transformers' modeling_bloom; Le Scao et al. 2022, arXiv 2211.05100.
"""

from __future__ import annotations

from planish.reference.architectures.entry import Architecture, Tensor
from planish.reference.architectures.read.alibi import alibi_slopes
from planish.reference.architectures.read.keys import Keys, divide_evenly
from planish.reference.model.config import Alibi, ModelConfig, repeat_layer


def config(keys: Keys) -> ModelConfig:
    keys = keys.with_aliases(n_layer="num_hidden_layers", n_head="num_attention_heads")
    keys = keys.with_aliases(n_embed="hidden_size")
    keys.only("apply_residual_connection_post_layernorm", False, False)
    hidden, heads = keys.count("n_embed", 64), keys.count("n_head", 8)
    head_dim = divide_evenly(keys, "hidden_size", hidden, heads)
    return ModelConfig(
        model_type="bloom",
        vocab_size=keys.count("vocab_size", 250880),
        hidden_size=hidden,
        embedding_size=hidden,
        layers=repeat_layer(keys.count("n_layer", 2), head_dim),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        intermediate_size=4 * hidden,
        max_positions=keys.count("seq_length", 2048),  # the training length; ALiBi sets no limit
        norm="layer_norm",
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        embed_norm=True,
        alibi=Alibi(slopes=alibi_slopes(heads)),
        activation="gelu_tanh",
        gated_mlp=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        tie_embeddings=keys.flag("tie_word_embeddings", True),
        bos_token_id=keys.token_id("bos_token_id", (1,)),
        eos_token_ids=keys.token_ids("eos_token_id", (2,)),
    )


QKV = Tensor("transformer.h.{i}.self_attention.query_key_value", fused=True, grouped=True)

BLOOM = Architecture(
    model_type="bloom",
    config=config,
    tensors={
        "embed": "transformer.word_embeddings",
        "embed_norm": "transformer.word_embeddings_layernorm",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    },
    block={
        "attention_norm": "transformer.h.{i}.input_layernorm",
        "q": QKV,
        "k": QKV,
        "v": QKV,
        "o": "transformer.h.{i}.self_attention.dense",
        "mlp_norm": "transformer.h.{i}.post_attention_layernorm",
        "up": "transformer.h.{i}.mlp.dense_h_to_4h",
        "down": "transformer.h.{i}.mlp.dense_4h_to_h",
    },
    examples=("bigscience/bloom-560m", "bigscience/bloom", "bigscience/bloomz-7b1"),
)
