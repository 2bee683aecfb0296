"""MPT: ALiBi, no biases, fused queries, keys and values, which may be clipped.

Source: transformers' modeling_mpt, which ignores some of the keys that MosaicML's code reads; those
that select another graph are refused. MosaicML 2023.
"""

from __future__ import annotations

import math

from planish.reference.architectures.entry import Architecture, Tensor
from planish.reference.architectures.read.alibi import mpt_slopes
from planish.reference.architectures.read.keys import Keys, divide_evenly
from planish.reference.model.config import Alibi, LayerKind, ModelConfig


def config(keys: Keys) -> ModelConfig:
    keys = keys.with_aliases(d_model="hidden_size", n_layers="num_hidden_layers")
    keys = keys.with_aliases(n_heads="num_attention_heads")
    attention = inner_keys(keys, "attn_config")
    check_graph(keys, attention)
    hidden, heads = keys.count("d_model", 2048), keys.count("n_heads", 16)
    head_dim = divide_evenly(keys, "d_model", hidden, heads)
    scale = attention.number("softmax_scale", 1 / math.sqrt(head_dim))
    slopes = mpt_slopes(heads, attention.number("alibi_bias_max", 8))
    return ModelConfig(
        model_type="mpt",
        vocab_size=keys.count("vocab_size", 50368),
        hidden_size=hidden,
        embedding_size=hidden,
        layers=(LayerKind(score_divisor=1 / scale),) * keys.count("n_layers", 24),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        intermediate_size=4 * hidden,
        max_positions=keys.count("max_seq_len", 2048),
        norm="layer_norm",
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        norm_bias=False,
        alibi=Alibi(slopes=slopes),
        activation="gelu",
        gated_mlp=False,
        qkv_clip=attention.number("clip_qkv") if attention.get("clip_qkv") else None,
        tie_embeddings=keys.flag("tie_word_embeddings", True),
        bos_token_id=keys.token_id("bos_token_id"),
        eos_token_ids=keys.token_ids("eos_token_id"),
    )


def inner_keys(keys: Keys, name: str) -> Keys:
    """The keys inside attn_config or ffn_config."""
    inner = keys.get(name) or {}
    if not isinstance(inner, dict):
        raise keys.fail(name, "an object", repr(inner))
    return Keys(inner, keys.path)


def check_graph(keys: Keys, attention: Keys) -> None:
    """Refuse the graphs that MosaicML's code computes and transformers silently does not."""
    keys.only("no_bias", True, True)
    keys.only("expansion_ratio", 4, 4)
    keys.only("logit_scale", None)
    norms = ("layernorm", "low_precision_layernorm")
    keys.choice("norm_type", dict.fromkeys(norms, ""), norms[1])
    attention.only("attn_type", "multihead_attention", "multihead_attention")
    attention.only("alibi", True, True)
    for flag in ("prefix_lm", "qk_ln", "qk_gn", "rope"):
        attention.only(flag, False, False)
    attention.only("sliding_window_size", -1, -1)
    attention.only("attn_logit_softcapping", None)
    keys.only("final_logit_softcapping", None)
    feed_forward = inner_keys(keys, "ffn_config")
    feed_forward.only("ffn_type", "mptmlp", "mptmlp")
    feed_forward.only("ffn_act_fn", None)


QKV = Tensor("transformer.blocks.{i}.attn.Wqkv", fused=True)

MPT = Architecture(
    model_type="mpt",
    config=config,
    tensors={
        "embed": "transformer.wte",
        "final_norm": "transformer.norm_f",
        "head": "lm_head",
    },
    block={
        "attention_norm": "transformer.blocks.{i}.norm_1",
        "q": QKV,
        "k": QKV,
        "v": QKV,
        "o": "transformer.blocks.{i}.attn.out_proj",
        "mlp_norm": "transformer.blocks.{i}.norm_2",
        "up": "transformer.blocks.{i}.ffn.up_proj",
        "down": "transformer.blocks.{i}.ffn.down_proj",
    },
    examples=("mosaicml/mpt-7b", "mosaicml/mpt-7b-storywriter", "mosaicml/mpt-30b"),
)
