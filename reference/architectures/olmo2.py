"""OLMo 2: norms on the outputs of attention and MLP, not on their inputs.

Queries and keys are normalized over all heads at once. Source: transformers' modeling_olmo2; OLMo
team 2024, arXiv 2501.00656.
"""

from __future__ import annotations

from planish.reference.architectures.entry import Architecture
from planish.reference.architectures.read.attention import attention_heads
from planish.reference.architectures.read.decoder import (
    ATTENTION,
    GATED_MLP,
    LAYER,
    QK_NORMS,
    TENSORS,
    Defaults,
    read_biases,
    read_decoder,
)
from planish.reference.architectures.read.keys import Keys
from planish.reference.architectures.read.rope import read_rope
from planish.reference.model.config import ModelConfig, repeat_layer


def config(keys: Keys) -> ModelConfig:
    heads = attention_heads(keys)
    return ModelConfig(
        model_type="olmo2",
        **heads,
        **read_decoder(
            keys, Defaults(max_positions=2048, eps=("rms_norm_eps", 1e-5), eos=(50279,))
        ),
        layers=repeat_layer(keys.count("num_hidden_layers"), heads["head_dim"], rope=0),
        ropes=(read_rope(keys, heads["head_dim"]),),
        norm_placement="output",
        qk_norm="width",
        **read_biases(keys, "attention_bias", False, "qkv", "o"),
    )


OLMO2 = Architecture(
    model_type="olmo2",
    config=config,
    tensors=TENSORS,
    block={
        module: name
        for module, name in ATTENTION.items()
        if module not in ("attention_norm", "mlp_norm")
    }
    | QK_NORMS
    | GATED_MLP
    | {
        "attention_output_norm": LAYER + "post_attention_layernorm",
        "mlp_output_norm": LAYER + "post_feedforward_layernorm",
    },
    examples=("allenai/OLMo-2-1124-7B", "allenai/OLMo-2-0425-1B"),
)
