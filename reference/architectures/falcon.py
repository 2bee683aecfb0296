"""Falcon in its three forms.

    7B          parallel block under one norm, one key-value head
    40B, 180B   new_decoder_architecture: parallel block under two norms, grouped queries; with
                num_ln_in_parallel_attn 1 (11B) under one norm
    RW          sequential block, ALiBi, a key-value head for each query head, biases

Source: transformers' modeling_falcon; Almazrouei et al. 2023, arXiv 2311.16867; Penedo et al. 2023,
arXiv 2306.01116.
"""

from __future__ import annotations

from planish.reference.architectures.entry import Architecture, Tensor
from planish.reference.architectures.read.alibi import alibi_slopes
from planish.reference.architectures.read.keys import (
    ACTIVATION_NAMES,
    Keys,
    check_heads,
    divide_evenly,
)
from planish.reference.architectures.read.rope import read_rope
from planish.reference.model.config import Alibi, ModelConfig, repeat_layer


def config(keys: Keys) -> ModelConfig:
    keys = keys.with_aliases(hidden_size="n_embed", num_attention_heads="n_head")
    keys = keys.with_aliases(num_hidden_layers="n_layer", num_kv_heads="n_head_kv")
    hidden, heads = keys.count("hidden_size", 4544), keys.count("num_attention_heads", 71)
    head_dim = divide_evenly(keys, "hidden_size", hidden, heads)
    bias, with_alibi = keys.flag("bias", False), keys.flag("alibi", False)
    parallel, shared = block_form(keys)
    return ModelConfig(
        model_type="falcon",
        vocab_size=keys.count("vocab_size", 65024),
        hidden_size=hidden,
        embedding_size=hidden,
        layers=repeat_layer(
            keys.count("num_hidden_layers", 32), head_dim, rope=None if with_alibi else 0
        ),
        num_heads=heads,
        num_kv_heads=kv_heads(keys, heads),
        head_dim=head_dim,
        intermediate_size=keys.count("ffn_hidden_size", 4 * hidden),
        max_positions=keys.count("max_position_embeddings", 2048),
        norm="layer_norm",
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        parallel=parallel,
        shared_norm=shared,
        ropes=() if with_alibi else (read_rope(keys, head_dim),),
        alibi=falcon_alibi(heads) if with_alibi else None,
        activation=keys.choice("activation", ACTIVATION_NAMES, "gelu"),
        gated_mlp=False,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
        tie_embeddings=keys.flag("tie_word_embeddings", True),
        bos_token_id=keys.token_id("bos_token_id", (11,)),
        eos_token_ids=keys.token_ids("eos_token_id", (11,)),
    )


def kv_heads(keys: Keys, heads: int) -> int:
    """The older form ignores num_kv_heads: it has 1, or one for each query head."""
    if keys.flag("new_decoder_architecture", False):
        count = keys.count("num_kv_heads", heads)
        check_heads(keys, heads, count, "num_kv_heads")
        return count
    if keys.flag("multi_query", True):
        return 1
    keys.only("num_kv_heads", heads, heads)
    return heads


def block_form(keys: Keys) -> tuple[bool, bool]:
    """Whether the block is parallel, and whether attention and MLP share one norm."""
    new = keys.flag("new_decoder_architecture", False)
    norms = keys.count("num_ln_in_parallel_attn", 2 if new else 1)
    parallel = keys.flag("parallel_attn", True)
    if norms > 2 or (parallel and not new and norms == 2):
        raise keys.fail("num_ln_in_parallel_attn", "1, or 2 in the new architecture", norms)
    if new and not parallel:
        raise keys.fail("parallel_attn", "true, in the new architecture", parallel)
    return parallel, parallel and norms == 1


def falcon_alibi(heads: int) -> Alibi:
    """ALiBi, added before the division and rounded to bfloat16 even in a float32 model."""
    return Alibi(slopes=alibi_slopes(heads), divided=True, bfloat16=True)


LAYER = "transformer.h.{i}."
QKV = Tensor(LAYER + "self_attention.query_key_value", fused=True, grouped=True)

FALCON = Architecture(
    model_type="falcon",
    config=config,
    tensors={
        "embed": "transformer.word_embeddings",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    },
    block={
        "attention_norm": Tensor(LAYER + "input_layernorm", also=(LAYER + "ln_attn",)),
        "q": QKV,
        "k": QKV,
        "v": QKV,
        "o": LAYER + "self_attention.dense",
        "mlp_norm": Tensor(LAYER + "post_attention_layernorm", also=(LAYER + "ln_mlp",)),
        "up": LAYER + "mlp.dense_h_to_4h",
        "down": LAYER + "mlp.dense_4h_to_h",
    },
    examples=("tiiuae/falcon-7b", "tiiuae/falcon-40b", "tiiuae/falcon-11B", "tiiuae/falcon-rw-1b"),
    ignored=(r".*\.rotary_emb\.inv_freq", r".*\.self_attention\.maybe_rotary\.inv_freq"),
)
