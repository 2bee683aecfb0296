"""GPT-J: a parallel block with one norm, rotary neighbours, biases only in the MLP and lm_head.

Source: transformers' modeling_gptj; Wang and Komatsuzaki 2021.
"""

from __future__ import annotations

from planish.reference.architectures.entry import Architecture
from planish.reference.architectures.read.keys import ACTIVATION_NAMES, Keys, divide_evenly
from planish.reference.architectures.read.rope import check_pairs
from planish.reference.model.config import ModelConfig, repeat_layer
from planish.reference.model.rope import Rope


def config(keys: Keys) -> ModelConfig:
    keys = keys.with_aliases(n_embd="hidden_size", n_layer="num_hidden_layers")
    keys = keys.with_aliases(n_head="num_attention_heads", n_positions="max_position_embeddings")
    keys.only("tie_word_embeddings", False, False)  # a tied lm_head would still have a bias
    hidden, heads = keys.count("n_embd", 4096), keys.count("n_head", 16)
    head_dim, rotary_dim = (
        divide_evenly(keys, "n_embd", hidden, heads),
        keys.count("rotary_dim", 64),
    )
    check_pairs(keys, rotary_dim, head_dim, "rotary_dim")
    return ModelConfig(
        model_type="gptj",
        vocab_size=keys.count("vocab_size", 50400),
        hidden_size=hidden,
        embedding_size=hidden,
        layers=repeat_layer(keys.count("n_layer", 28), head_dim, rope=0),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        intermediate_size=keys.count("n_inner", 4 * hidden),
        max_positions=keys.count("n_positions", 2048),
        norm="layer_norm",
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        parallel=True,
        shared_norm=True,
        ropes=(Rope(theta=10000.0, dim=rotary_dim, interleaved=True),),
        activation=keys.choice("activation_function", ACTIVATION_NAMES, "gelu_new"),
        gated_mlp=False,
        mlp_bias=True,
        head_bias=True,
        tie_embeddings=False,
        bos_token_id=keys.token_id("bos_token_id", (50256,)),
        eos_token_ids=keys.token_ids("eos_token_id", (50256,)),
    )


GPTJ = Architecture(
    model_type="gptj",
    config=config,
    tensors={
        "embed": "transformer.wte",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    },
    block={
        "attention_norm": "transformer.h.{i}.ln_1",
        "q": "transformer.h.{i}.attn.q_proj",
        "k": "transformer.h.{i}.attn.k_proj",
        "v": "transformer.h.{i}.attn.v_proj",
        "o": "transformer.h.{i}.attn.out_proj",
        "up": "transformer.h.{i}.mlp.fc_in",
        "down": "transformer.h.{i}.mlp.fc_out",
    },
    examples=("EleutherAI/gpt-j-6b", "nomic-ai/gpt4all-j"),
    ignored=(r"transformer\.h\.\d+\.attn\.(masked_)?bias",),  # causal masks
)
