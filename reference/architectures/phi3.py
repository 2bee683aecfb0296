"""Phi-3, Phi-3.5 and Phi-4: Llama's graph with q, k and v fused, and gate and up fused.

Long-context models have the rope scaling longrope; Phi-4-mini rotates only part of a head.
Source: transformers' modeling_phi3; Abdin et al. 2024, arXiv 2404.14219.
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
from planish.reference.architectures.read.keys import Keys
from planish.reference.architectures.read.rope import read_rope
from planish.reference.model.config import ModelConfig, repeat_layer
from planish.reference.model.rope import LongRope, Rope


def config(keys: Keys) -> ModelConfig:
    heads, window = attention_heads(keys), sliding_window(keys)
    layers = keys.count("num_hidden_layers")
    return ModelConfig(
        model_type="phi3",
        **heads,
        **read_decoder(
            keys, Defaults(max_positions=4096, eps=("rms_norm_eps", 1e-5), bos=(1,), eos=(32000,))
        ),
        layers=repeat_layer(layers, heads["head_dim"], rope=0, window=window),
        ropes=(phi3_rope(keys, heads["head_dim"]),),
    )


def phi3_rope(keys: Keys, head_dim: int) -> Rope:
    """The rotary parameters: unscaled, or longrope."""
    lengths = {
        name: keys.count(name, 4096)
        for name in ("max_position_embeddings", "original_max_position_embeddings")
    }
    rope = read_rope(
        Keys({**keys.values, **lengths}, keys.path), head_dim, partial_rotary_factor=1.0
    )
    if not isinstance(rope.scaling, LongRope | None):
        found = type(rope.scaling).__name__.lower()
        raise keys.fail("rope_type", "default or longrope, for phi3", found)
    return rope


QKV = Tensor(LAYER + "self_attn.qkv_proj", fused=True)
GATE_UP = Tensor(LAYER + "mlp.gate_up_proj", fused=True)

PHI3 = Architecture(
    model_type="phi3",
    config=config,
    tensors=TENSORS,
    block=ATTENTION
    | {"q": QKV, "k": QKV, "v": QKV}
    | {"gate": GATE_UP, "up": GATE_UP, "down": LAYER + "mlp.down_proj"},
    examples=("microsoft/Phi-3-mini-4k-instruct", "microsoft/Phi-4-mini-instruct"),
    ignored=OLD_BUFFERS,
)
