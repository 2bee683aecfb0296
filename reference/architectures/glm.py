"""GLM-4 in the layout of transformers: half of each head is rotated, in neighbouring pairs.

Gate and up are fused. Source: transformers' modeling_glm; GLM team 2024, arXiv 2406.12793.
"""

from __future__ import annotations

from typing import Any

from planish.reference.architectures.entry import Architecture, Tensor
from planish.reference.architectures.read.decoder import ATTENTION, LAYER, TENSORS
from planish.reference.architectures.read.keys import ACTIVATION_NAMES, Keys, check_heads
from planish.reference.architectures.read.rope import read_rope
from planish.reference.model.config import ModelConfig, repeat_layer

END_IDS = (151329, 151336, 151338)


def config(keys: Keys, **features: Any) -> ModelConfig:
    """`features` replace those in which a related model differs (glm4.py)."""
    hidden, heads = keys.count("hidden_size", 4096), keys.count("num_attention_heads", 32)
    kv_heads, head_dim = keys.count("num_key_value_heads", 2), keys.count("head_dim", 128)
    check_heads(keys, heads, kv_heads)
    named: dict[str, Any] = {
        "model_type": "glm",
        "vocab_size": keys.count("vocab_size", 151552),
        "hidden_size": hidden,
        "embedding_size": hidden,
        "layers": repeat_layer(keys.count("num_hidden_layers", 40), head_dim, rope=0),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": keys.count("intermediate_size", 13696),
        "max_positions": keys.count("max_position_embeddings", 131072),
        "norm": "rms_norm",
        "norm_eps": keys.number("rms_norm_eps", 1.5625e-7),
        "ropes": (read_rope(keys, head_dim, partial_rotary_factor=0.5, interleaved=True),),
        "activation": keys.choice("hidden_act", ACTIVATION_NAMES, "silu"),
        "gated_mlp": True,
        "qkv_bias": keys.flag("attention_bias", True),
        "tie_embeddings": keys.flag("tie_word_embeddings", False),
        "bos_token_id": keys.token_id("bos_token_id"),
        "eos_token_ids": keys.token_ids("eos_token_id") or END_IDS,
    }
    return ModelConfig(**{**named, **features})


GATE_UP = Tensor(LAYER + "mlp.gate_up_proj", fused=True)
BLOCK = ATTENTION | {"gate": GATE_UP, "up": GATE_UP, "down": LAYER + "mlp.down_proj"}

GLM = Architecture(
    model_type="glm",
    config=config,
    tensors=TENSORS,
    block=BLOCK,
    examples=("zai-org/glm-4-9b-hf", "zai-org/glm-4-9b-chat-hf"),
)
