"""Mixtral: Mistral with a mixture of experts for its MLP, two of eight for each token.

Source: transformers' modeling_mixtral; Jiang et al. 2024.
"""

from __future__ import annotations

from planish.reference.architectures.entry import Architecture, Tensor
from planish.reference.architectures.read.attention import attention_heads, sliding_window
from planish.reference.architectures.read.decoder import (
    ATTENTION,
    LAYER,
    OLD_BUFFERS,
    TENSORS,
    decoder,
)
from planish.reference.architectures.read.experts import mixture
from planish.reference.architectures.read.keys import Keys
from planish.reference.architectures.read.rope import rope_from
from planish.reference.model.config import ModelConfig, same_layers


def config(keys: Keys) -> ModelConfig:
    heads, window = attention_heads(keys, kv_heads=8), sliding_window(keys)
    layers, width = keys.count("num_hidden_layers"), keys.count("intermediate_size")
    return ModelConfig(
        model_type="mixtral",
        **heads,
        **decoder(keys, max_positions=131072, eps=("rms_norm_eps", 1e-5), bos=(1,), eos=(2,)),
        layers=same_layers(layers, heads["head_dim"], rope=0, window=window, experts=True),
        ropes=(rope_from(keys, heads["head_dim"], theta=1e6),),
        moe=mixture(keys, experts=("num_local_experts", 8), top_k=2, width=width, normalized=True),
    )


def expert(name: str) -> Tensor:
    """Two spellings: of the hub's files, and of transformers 5 before it packs the experts."""
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
