"""GPT-2, and Megatron's GPT checkpoints converted to it: learned positions, transposed weights.

Source: transformers' modeling_gpt2 (its Conv1D stores [inputs, outputs]); Radford et al. 2019.
MT-NLG is a Megatron-LM GPT and has this layer.
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
    keys.only("attention_head_type", "multihead", "multihead")  # otherwise: the first SantaCoder
    hidden, heads = keys.count("n_embd", 768), keys.count("n_head", 12)
    head_dim = divide_evenly(keys, "n_embd", hidden, heads)
    return ModelConfig(
        model_type="gpt2",
        vocab_size=keys.count("vocab_size", 50257),
        hidden_size=hidden,
        embedding_size=hidden,
        layers=layer_kinds(keys, head_dim),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        intermediate_size=keys.count("n_inner", 4 * hidden),
        max_positions=keys.count("n_positions", 1024),
        norm="layer_norm",
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        position_offset=0,
        activation=keys.choice("activation_function", ACTIVATION_NAMES, "gelu_new"),
        gated_mlp=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        tie_embeddings=keys.flag("tie_word_embeddings", True),
        bos_token_id=keys.token_id("bos_token_id", (50256,)),
        eos_token_ids=keys.token_ids("eos_token_id", (50256,)),
    )


def layer_kinds(keys: Keys, head_dim: int) -> tuple[LayerKind, ...]:
    """Scores may be divided by sqrt(head_dim), and by the number of the layer, from 1."""
    divisor = math.sqrt(head_dim) if keys.flag("scale_attn_weights", True) else 1.0
    by_layer = keys.flag("scale_attn_by_inverse_layer_idx", False)
    layers = range(keys.count("n_layer", 12))
    return tuple(LayerKind(score_divisor=divisor * (i + 1 if by_layer else 1)) for i in layers)


QKV = Tensor("transformer.h.{i}.attn.c_attn", fused=True, transposed=True)

GPT2 = Architecture(
    model_type="gpt2",
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
        "o": Tensor("transformer.h.{i}.attn.c_proj", transposed=True),
        "mlp_norm": "transformer.h.{i}.ln_2",
        "up": Tensor("transformer.h.{i}.mlp.c_fc", transposed=True),
        "down": Tensor("transformer.h.{i}.mlp.c_proj", transposed=True),
    },
    examples=("openai-community/gpt2", "openai-community/gpt2-xl", "a converted megatron-gpt2"),
    ignored=(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",),  # causal masks
)
