"""StarCoder2: LayerNorm, rotary positions, grouped queries, a plain MLP, biases everywhere.

Source: transformers' modeling_starcoder2; Lozhkov et al. 2024, arXiv 2402.19173.
"""

from __future__ import annotations

from planish.reference.architectures.entry import Architecture
from planish.reference.architectures.read.attention import attention_heads, sliding_window
from planish.reference.architectures.read.decoder import (
    ATTENTION,
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
    keys.only("norm_type", "layer_norm", "layer_norm")
    keys.only("mlp_type", "default", "default")
    heads, window = attention_heads(keys, kv_heads=2), sliding_window(keys)
    layers = keys.count("num_hidden_layers")
    return ModelConfig(
        model_type="starcoder2",
        **heads,
        **read_decoder(
            keys,
            Defaults(
                max_positions=4096,
                norm="layer_norm",
                eps=("norm_epsilon", 1e-5),
                activation=("hidden_act", "gelu_pytorch_tanh"),
                gated=False,
                tied=True,
                bos=(50256,),
                eos=(50256,),
            ),
        ),
        layers=repeat_layer(layers, heads["head_dim"], rope=0, window=window),
        ropes=(read_rope(keys, heads["head_dim"]),),
        **read_biases(keys, "use_bias", True, "qkv", "o", "mlp"),
    )


STARCODER2 = Architecture(
    model_type="starcoder2",
    config=config,
    tensors=TENSORS,
    block=ATTENTION | {"up": LAYER + "mlp.c_fc", "down": LAYER + "mlp.c_proj"},
    examples=("bigcode/starcoder2-3b", "bigcode/starcoder2-15b"),
    ignored=OLD_BUFFERS,
)
