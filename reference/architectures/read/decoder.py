"""What decoders since Llama say in the same keys, and where most of them keep their tensors."""

from __future__ import annotations

from typing import Any

from planish.reference.architectures.entry import Tensor
from planish.reference.architectures.read.keys import ACTIVATION_NAMES, Keys


def decoder(
    keys: Keys,
    *,
    max_positions: int,
    norm: str = "rms_norm",
    eps: tuple[str, float] = ("rms_norm_eps", 1e-6),
    activation: tuple[str, str] = ("hidden_act", "silu"),
    gated: bool = True,
    tied: bool = False,
    bos: tuple[int, ...] = (),
    eos: tuple[int, ...] = (),
) -> dict[str, Any]:
    """Sizes, norm, activation and tokens; the arguments are the architecture's own defaults."""
    hidden = keys.count("hidden_size")
    return {
        "vocab_size": keys.count("vocab_size"),
        "hidden_size": hidden,
        "embedding_size": hidden,
        "intermediate_size": keys.count("intermediate_size"),
        "max_positions": keys.count("max_position_embeddings", max_positions),
        "norm": norm,
        "norm_eps": keys.number(*eps),
        "activation": keys.choice(activation[0], ACTIVATION_NAMES, activation[1]),
        "gated_mlp": gated,
        "tie_embeddings": keys.flag("tie_word_embeddings", tied),
        "bos_token_id": next(iter(keys.token_ids("bos_token_id", bos)), None),
        "eos_token_ids": keys.token_ids("eos_token_id", eos),
    }


def one_bias(keys: Keys, name: str, default: bool, *parts: str) -> dict[str, Any]:
    """Biases that one flag switches: qkv, o, mlp."""
    return {f"{part}_bias": keys.flag(name, default) for part in parts}


TENSORS: dict[str, str | Tensor] = {
    "embed": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
}
LAYER = "model.layers.{i}."
ATTENTION: dict[str, str | Tensor] = {
    "attention_norm": LAYER + "input_layernorm",
    "q": LAYER + "self_attn.q_proj",
    "k": LAYER + "self_attn.k_proj",
    "v": LAYER + "self_attn.v_proj",
    "o": LAYER + "self_attn.o_proj",
    "mlp_norm": LAYER + "post_attention_layernorm",
}
GATED_MLP: dict[str, str | Tensor] = {
    "gate": LAYER + "mlp.gate_proj",
    "up": LAYER + "mlp.up_proj",
    "down": LAYER + "mlp.down_proj",
}
QK_NORMS: dict[str, str | Tensor] = {
    "q_norm": LAYER + "self_attn.q_norm",
    "k_norm": LAYER + "self_attn.k_norm",
}
OLD_BUFFERS = (r".*rotary_emb\.inv_freq",)  # saved by older versions, computed anew since
