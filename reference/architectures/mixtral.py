"""Mixtral: Mistral with a mixture of experts instead of the MLP, two of eight for each token.

Source: transformers' modeling_mixtral; Jiang et al. 2024, arXiv 2401.04088.
"""

from __future__ import annotations

from planish.reference.architectures.entry import Architecture, Tensor
from planish.reference.architectures.read.attention import attention_heads, sliding_window
from planish.reference.architectures.read.decoder import (
    ATTENTION,
    LAYER,
    OLD_BUFFERS,
    TENSORS,
    Defaults,
    read_decoder,
)
from planish.reference.architectures.read.experts import read_moe
from planish.reference.architectures.read.keys import Keys
from planish.reference.architectures.read.rope import read_rope
from planish.reference.model.config import ModelConfig, repeat_layer


def config(keys: Keys) -> ModelConfig:
    heads, window = attention_heads(keys, kv_heads=8), sliding_window(keys)
    layers, width = keys.count("num_hidden_layers"), keys.count("intermediate_size")
    return ModelConfig(
        model_type="mixtral",
        **heads,
        **read_decoder(
            keys, Defaults(max_positions=131072, eps=("rms_norm_eps", 1e-5), bos=(1,), eos=(2,))
        ),
        layers=repeat_layer(layers, heads["head_dim"], rope=0, window=window, experts=True),
        ropes=(read_rope(keys, heads["head_dim"], theta=1e6),),
        moe=read_moe(keys, experts=("num_local_experts", 8), top_k=2, width=width, normalized=True),
    )


def expert(name: str) -> Tensor:
    """Two spellings: that of published files, and that of transformers 5 with unpacked experts."""
    return Tensor(
        LAYER + "block_sparse_moe.experts.{e}." + name, also=(LAYER + "mlp.experts.{e}." + name,)
    )


MIXTRAL = Architecture(
    model_type="mixtral",
    config=config,
    tensors=TENSORS,
    block=ATTENTION
    | {
        "router": Tensor(LAYER + "block_sparse_moe.gate", also=(LAYER + "mlp.gate",)),
        "experts.gate": expert("w1"),
        "experts.up": expert("w3"),
        "experts.down": expert("w2"),
    },
    examples=("mistralai/Mixtral-8x7B-v0.1", "mistralai/Mixtral-8x22B-Instruct-v0.1"),
    ignored=OLD_BUFFERS,
)
