"""The keys that decoders since Llama have in common, and the tensor names that most of them use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from planish.reference.architectures.entry import Tensor
from planish.reference.architectures.read.keys import ACTIVATION_NAMES, Keys


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a decoder's config means if it leaves a key out, and the keys that differ by name."""

    max_positions: int
    norm: str = "rms_norm"
    eps: tuple[str, float] = ("rms_norm_eps", 1e-6)  # the key and its default
    activation: tuple[str, str] = ("hidden_act", "silu")  # the key and its default
    gated: bool = True
    tied: bool = False
    bos: tuple[int, ...] = ()
    eos: tuple[int, ...] = ()


def read_decoder(keys: Keys, defaults: Defaults) -> dict[str, Any]:
    """Sizes, norm, activation and special tokens: fields of ModelConfig."""
    hidden = keys.count("hidden_size")
    return {
        "vocab_size": keys.count("vocab_size"),
        "hidden_size": hidden,
        "embedding_size": hidden,
        "intermediate_size": keys.count("intermediate_size"),
        "max_positions": keys.count("max_position_embeddings", defaults.max_positions),
        "norm": defaults.norm,
        "norm_eps": keys.number(*defaults.eps),
        "activation": keys.choice(defaults.activation[0], ACTIVATION_NAMES, defaults.activation[1]),
        "gated_mlp": defaults.gated,
        "tie_embeddings": keys.flag("tie_word_embeddings", defaults.tied),
        "bos_token_id": keys.token_id("bos_token_id", defaults.bos),
        "eos_token_ids": keys.token_ids("eos_token_id", defaults.eos),
    }


def read_biases(keys: Keys, name: str, default: bool, *linears: str) -> dict[str, Any]:
    """The biases that one flag switches, of `linears`: qkv, o, mlp."""
    return {f"{linear}_bias": keys.flag(name, default) for linear in linears}


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
OLD_BUFFERS = (r".*rotary_emb\.inv_freq",)  # saved by older versions of transformers
