"""StableLM 3B, 2 1.6B and 2 12B: LayerNorm, a gated MLP, rotary positions in part of each head.

The 1.6B has biases on queries, keys and values; the 12B has a parallel block with one norm, and a
separate norm for the queries and keys of each head.
Source: transformers' modeling_stablelm; Bellagente et al. 2024, arXiv 2402.17834.
"""

from __future__ import annotations

from planish.reference.architectures.entry import Architecture
from planish.reference.architectures.read.attention import attention_heads
from planish.reference.architectures.read.decoder import (
    ATTENTION,
    GATED_MLP,
    LAYER,
    OLD_BUFFERS,
    TENSORS,
    Defaults,
    read_biases,
    read_decoder,
)
from planish.reference.architectures.read.keys import Keys
from planish.reference.architectures.read.rope import read_rope
from planish.reference.model.config import ModelConfig, repeat_layer


def config(keys: Keys) -> ModelConfig:
    heads = attention_heads(keys, kv_heads=32)
    head_dim, parallel = heads["head_dim"], keys.flag("use_parallel_residual", False)
    eps = ("layer_norm_eps", 1e-5)
    return ModelConfig(
        model_type="stablelm",
        **heads,
        **read_decoder(
            keys, Defaults(max_positions=4096, norm="layer_norm", eps=eps, bos=(0,), eos=(0,))
        ),
        layers=repeat_layer(keys.count("num_hidden_layers"), head_dim, rope=0),
        ropes=(read_rope(keys, head_dim, partial_rotary_factor=0.25),),
        qk_norm="each_head" if keys.flag("qk_layernorm", False) else None,
        parallel=parallel,
        shared_norm=parallel,
        **read_biases(keys, "use_qkv_bias", False, "qkv"),
    )


STABLELM = Architecture(
    model_type="stablelm",
    config=config,
    tensors=TENSORS,
    block=ATTENTION
    | GATED_MLP
    | {
        "q_norm": LAYER + "self_attn.q_layernorm.norms.{h}",
        "k_norm": LAYER + "self_attn.k_layernorm.norms.{h}",
    },
    examples=("stabilityai/stablelm-3b-4e1t", "stabilityai/stablelm-2-12b"),
    ignored=OLD_BUFFERS,
)
