"""Modules cut from fused tensors are the rows that the code of each model takes."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from planish.reference.files.load import load_block, load_weights, open_checkpoint
from planish.reference.model.transformer import forward

GOLDEN = Path(__file__).parents[2] / "golden"


def three_per_head(tensor, heads):
    """[heads * 3 * head_dim, ...]: a query, a key and a value for each head."""
    return tensor.reshape(heads, 3, -1, *tensor.shape[1:]).swapaxes(0, 1)


def grouped(tensor, kv_heads, per_group):
    """[kv_heads * (per_group + 2) * head_dim, ...]: queries, then a key and a value, by group."""
    rows = tensor.reshape(kv_heads, per_group + 2, -1, *tensor.shape[1:])
    return rows[:, :-2], rows[:, -2], rows[:, -1]


QKV = [
    ("bloom-tied", "transformer.h.1.self_attention.query_key_value", three_per_head, (4,)),
    ("gpt_neox-parallel", "gpt_neox.layers.1.attention.query_key_value", three_per_head, (2,)),
    ("gpt_bigcode-multi-head", "transformer.h.1.attn.c_attn", three_per_head, (4,)),
    ("gpt_bigcode-multi-query", "transformer.h.1.attn.c_attn", grouped, (1, 4)),
    ("falcon-7b-form-biases", "transformer.h.1.self_attention.query_key_value", grouped, (1, 4)),
    ("falcon-40b-form", "transformer.h.1.self_attention.query_key_value", grouped, (2, 2)),
]


@pytest.mark.parametrize(("name", "source", "cut", "numbers"), QKV)
def test_queries_keys_and_values_are_cut_head_by_head(name, source, cut, numbers):
    tensors = load_file(GOLDEN / name / "model.safetensors")
    block = load_block(open_checkpoint(GOLDEN / name), 1)
    for kind in ("weight", "bias"):
        if f"{source}.{kind}" in tensors:
            parts = cut(tensors[f"{source}.{kind}"].astype(np.float32), *numbers)
            for layer, part in zip((block.q, block.k, block.v), parts, strict=True):
                found = getattr(layer, kind)
                assert np.array_equal(found, part.reshape(found.shape)) and found.any()
    assert (block.k.bias is None) == (f"{source}.bias" not in tensors)


def test_transposed_weights_are_transposed_back_and_their_biases_cut():
    tensors = load_file(GOLDEN / "gpt2-hub-prefix" / "model.safetensors")
    block = load_block(open_checkpoint(GOLDEN / "gpt2-hub-prefix"), 0)
    assert np.array_equal(block.v.weight, tensors["h.0.attn.c_attn.weight"][:, 64:].T)
    assert np.array_equal(block.k.bias, tensors["h.0.attn.c_attn.bias"][32:64])
    assert np.array_equal(block.mlp.down.weight, tensors["h.0.mlp.c_proj.weight"].T)
    assert block.mlp.up.weight.shape == (128, 32)


def test_gate_is_the_first_half_and_up_the_second():
    tensors = load_file(GOLDEN / "glm-grouped" / "model.safetensors")
    whole = tensors["model.layers.1.mlp.gate_up_proj.weight"].astype(np.float32)
    mlp = load_block(open_checkpoint(GOLDEN / "glm-grouped"), 1).mlp
    assert np.array_equal(mlp.gate.weight, whole[:48])
    assert np.array_equal(mlp.up.weight, whole[48:])


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("llama-old-spelling", "llama-tied-grouped"),
        ("opt-350m-decoder-prefix", "opt-350m-form"),
        ("chatglm-2", "glm-grouped"),
    ],
)
def test_another_spelling_or_layout_of_one_model_gives_equal_logits(name, same):
    one, other = (open_checkpoint(GOLDEN / each) for each in (name, same))
    tokens = [3, 200, 17, 4]
    found = forward(one.config, load_weights(one), tokens)
    assert np.array_equal(found, forward(other.config, load_weights(other), tokens))
