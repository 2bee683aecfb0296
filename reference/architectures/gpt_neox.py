"""GPT-NeoX (Pythia, Dolly): partly rotated heads; a parallel block with two norms, or sequential.

Source: transformers' modeling_gpt_neox; Black et al. 2022, arXiv 2204.06745.
"""

from __future__ import annotations

from planish.reference.architectures.entry import Architecture, Tensor
from planish.reference.architectures.read.keys import ACTIVATION_NAMES, Keys, divide_evenly
from planish.reference.architectures.read.rope import read_rope
from planish.reference.model.config import ModelConfig, repeat_layer


def config(keys: Keys) -> ModelConfig:
    keys = keys.with_aliases(rope_theta="rotary_emb_base", partial_rotary_factor="rotary_pct")
    hidden, heads = keys.count("hidden_size", 6144), keys.count("num_attention_heads", 64)
    head_dim = divide_evenly(keys, "hidden_size", hidden, heads)
    attention_bias = keys.flag("attention_bias", True)
    return ModelConfig(
        model_type="gpt_neox",
        vocab_size=keys.count("vocab_size", 50432),
        hidden_size=hidden,
        embedding_size=hidden,
        layers=repeat_layer(keys.count("num_hidden_layers", 44), head_dim, rope=0),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        intermediate_size=keys.count("intermediate_size", 24576),
        max_positions=keys.count("max_position_embeddings", 2048),
        norm="layer_norm",
        norm_eps=keys.number("layer_norm_eps", 1e-5),
        parallel=keys.flag("use_parallel_residual", True),
        ropes=(read_rope(keys, head_dim, partial_rotary_factor=0.25),),
        activation=keys.choice("hidden_act", ACTIVATION_NAMES, "gelu"),
        gated_mlp=False,
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        mlp_bias=True,
        tie_embeddings=keys.flag("tie_word_embeddings", False),
        bos_token_id=keys.token_id("bos_token_id", (0,)),
        eos_token_ids=keys.token_ids("eos_token_id", (2,)),
    )


LAYER = "gpt_neox.layers.{i}."
QKV = Tensor(LAYER + "attention.query_key_value", fused=True, grouped=True)

GPT_NEOX = Architecture(
    model_type="gpt_neox",
    config=config,
    tensors={
        "embed": "gpt_neox.embed_in",
        "final_norm": "gpt_neox.final_layer_norm",
        "head": Tensor("embed_out", also=("lm_head",)),  # transformers 5 calls it lm_head
    },
    block={
        "attention_norm": LAYER + "input_layernorm",
        "q": QKV,
        "k": QKV,
        "v": QKV,
        "o": LAYER + "attention.dense",
        "mlp_norm": LAYER + "post_attention_layernorm",
        "up": LAYER + "mlp.dense_h_to_4h",
        "down": LAYER + "mlp.dense_4h_to_h",
    },
    examples=("EleutherAI/gpt-neox-20b", "EleutherAI/pythia-6.9b", "databricks/dolly-v2-12b"),
    ignored=(r".*\.attention\.(masked_)?bias", r".*\.rotary_emb\.inv_freq"),
)
