"""Random models: what they contain, that both engines compute the same, that a seed fixes them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planish.command import main
from planish.compare.bench.random_model import write_random
from planish.compare.bench.roofline import (
    active_share,
    count_cache_bytes,
    count_expert_bytes,
    count_token_bytes,
    count_token_weights,
)
from planish.compare.bench.sizes import ModelSize
from planish.fast.session.engine import Engine
from planish.reference.engine import Engine as ReferenceEngine
from planish.reference.errors import OutputError, RecipeError
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.linear import quantized_weight
from planish.reference.model.weights import block_linears
from planish.reference.quantized import dequantize, to_layout

TINY = ModelSize(name="tiny", hidden=64, layers=2, heads=4, kv_heads=2, ffn=104, vocab=300)
# no multiple of 16 outputs or of 8 inputs anywhere
ODD = ModelSize(name="odd", hidden=36, layers=1, heads=2, kv_heads=1, ffn=77, vocab=260)
MIXTURES = [  # the experts' outputs are no multiple of 16
    replace(
        TINY,
        name="few",
        ffn=40,
        experts=4,
        top_k=2,
        model_type="mixtral",
        model_class="MixtralForCausalLM",
    ),
    replace(
        TINY,
        name="many",
        ffn=24,
        experts=16,
        top_k=3,
        head_width=32,
        model_type="qwen3_moe",
        model_class="Qwen3MoeForCausalLM",
    ),
]
RECIPES = [
    ("float", None),
    ("W8A8", None),
    ("W8A16", None),
    ("W4A16", 128),
    ("W4A8", 128),
    ("W4A8", 32),
]


def files(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.matrix(6)
@pytest.mark.parametrize(("name", "group_size"), RECIPES)
def test_both_engines_compute_the_same_on_a_random_model(tmp_path, name, group_size):
    path = write_random(TINY, tmp_path / "random", name, group_size)
    checkpoint, tokens = open_checkpoint(path), list(b"Random weights mean nothing.")
    expected = ReferenceEngine(checkpoint).forward(tokens)
    found = Engine(checkpoint).forward(tokens)
    assert expected.shape == (len(tokens), TINY.vocab) and np.ptp(expected) > 0.1
    assert np.abs(np.asarray(found) - expected).max() < 0.02 * np.ptp(expected)


@pytest.mark.parametrize(("name", "group_size"), RECIPES[1:])
def test_every_linear_and_the_head_are_in_tiles_and_as_wide_as_trained_ones(
    tmp_path, name, group_size
):
    checkpoint = open_checkpoint(write_random(TINY, tmp_path / "random", name, group_size))
    weights, tiled = load_weights(checkpoint), load_weights(checkpoint, tiled=True)
    assert checkpoint.layout == "tiles"
    assert checkpoint.scheme("head").bits == checkpoint.scheme("up", 0).bits
    for linear in (weights.blocks[1].mlp.up, weights.blocks[0].k, weights.head):
        w = dequantize(quantized_weight(linear))
        assert 0.018 < w.std() < 0.023 and abs(w.mean()) < 0.002
    assert tiled.head.weight.layout == tiled.blocks[0].mlp.down.weight.layout == "tiles"


@pytest.mark.parametrize(("name", "group_size"), RECIPES[1:])
def test_the_padding_of_a_random_model_is_zero(tmp_path, name, group_size):
    checkpoint = open_checkpoint(write_random(ODD, tmp_path / "random", name, group_size))
    block = load_weights(checkpoint, tiled=True).blocks[0]
    for linear in block_linears(block).values():
        again = to_layout(to_layout(linear.weight, "canonical"), "tiles")
        assert np.array_equal(again.codes, linear.weight.codes)
        assert np.array_equal(again.scale, linear.weight.scale)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    first = files(write_random(TINY, tmp_path / "a", "W4A8", 32, seed=3))
    assert files(write_random(TINY, tmp_path / "b", "W4A8", 32, seed=3)) == first
    other = files(write_random(TINY, tmp_path / "c", "W4A8", 32, seed=4))
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}


def test_four_bits_take_half_a_byte(tmp_path):
    checkpoint = open_checkpoint(write_random(TINY, tmp_path / "random", "W4A8", 32))
    held = sum(
        math.prod(entry.shape)
        for name, entry in checkpoint.entries.items()
        if entry.dtype == "U8" and "layers" in name
    )
    padding = TINY.layers * 2 * 8 * TINY.hidden  # gate and up: 104 outputs are 6.5 tiles
    assert held == (TINY.layers * TINY.weights_per_layer + padding) // 2


def test_the_command_writes_text_with_a_random_model(tmp_path, capsys):
    path = write_random(TINY, tmp_path / "random", "W4A8", 32)
    words = ("--prompt", "abc", "--max_new_tokens", "5", "--engine", "reference")
    with pytest.raises(SystemExit) as ended:
        main(["planish", "generate", "--model", str(path), *words])
    assert ended.value.code in (0, None) and capsys.readouterr().out


def test_what_cannot_be_written_is_refused(tmp_path):
    write_random(TINY, tmp_path / "random", "W4A8")
    with pytest.raises(OutputError, match="exists"):
        write_random(TINY, tmp_path / "random", "W4A8")
    write_random(TINY, tmp_path / "random", "float", overwrite=True)
    assert open_checkpoint(tmp_path / "random").layout is None
    with pytest.raises(RecipeError, match="did you mean W4A8"):
        write_random(TINY, tmp_path / "other", "W4A9")
    with pytest.raises(RecipeError, match="no effect without INT4"):
        write_random(TINY, tmp_path / "other", "W8A8", 32)
    assert not (tmp_path / "other").exists()


@pytest.mark.whole
@pytest.mark.parametrize("recipe", ["float", "W8A16", "W4A8"])
@pytest.mark.parametrize("size", MIXTURES, ids=lambda size: size.name)
def test_both_engines_compute_the_same_on_a_random_mixture_of_experts(tmp_path, size, recipe):
    checkpoint = open_checkpoint(write_random(size, tmp_path / "random", recipe))
    tokens = list(b"Random weights mean nothing.")
    expected = ReferenceEngine(checkpoint).forward(tokens)
    found = Engine(checkpoint).forward(tokens)
    assert np.abs(np.asarray(found) - expected).max() < 0.02 * np.ptp(expected)


@pytest.mark.parametrize("size", MIXTURES, ids=lambda size: size.name)
def test_random_experts_are_stored_stacked_and_their_padding_is_zero(tmp_path, size):
    checkpoint = open_checkpoint(write_random(size, tmp_path / "random", "W4A8", 32))
    block = load_weights(checkpoint, tiled=True).blocks[1]
    assert checkpoint.has_stacked_experts(1) and len(block.mlp.experts) == size.experts
    for expert in block.mlp.experts:
        again = to_layout(to_layout(expert.up.weight, "canonical"), "tiles")
        assert np.array_equal(again.codes, expert.up.weight.codes)


def linear_bytes(outputs, inputs):
    """INT4 in tiles, with a float16 scale for each output and group of 32."""
    padded = -(-outputs // 16) * 16
    return padded * inputs // 2 + 2 * padded * -(-inputs // 32)


@pytest.mark.parametrize("size", MIXTURES, ids=lambda size: size.name)
def test_a_token_reads_the_bytes_of_the_experts_that_it_chooses(tmp_path, size):
    checkpoint = open_checkpoint(write_random(size, tmp_path / "random", "W4A8", 32))
    queries, keys = size.heads * size.head_dim, size.kv_heads * size.head_dim
    width, ffn = size.hidden, size.ffn
    expert = 2 * linear_bytes(ffn, width) + linear_bytes(width, ffn)
    attention = 2 * linear_bytes(keys, width) + linear_bytes(queries, width)
    attention += linear_bytes(width, queries)
    norms = 2 * width + (2 * size.head_dim if size.model_type == "qwen3_moe" else 0)
    layer = size.top_k * expert + attention + 4 * (norms + size.experts * width)
    outer = linear_bytes(size.vocab, width) + 4 * width
    assert count_token_bytes(checkpoint) == size.layers * layer + outer
    assert count_expert_bytes(checkpoint) == size.layers * size.experts * expert


def test_a_batch_reads_more_experts_than_a_token_but_never_more_than_there_are(tmp_path):
    config = open_checkpoint(write_random(MIXTURES[0], tmp_path / "random", "W4A8")).config
    assert active_share(config) == 0.5 and active_share(config, 2) == 0.75
    assert 0.99 < active_share(config, 8) < 1
    weights = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 40 * 2 + 4 * 64
    assert count_token_weights(config) == 2 * weights


def test_a_token_reads_no_more_of_the_cache_than_its_window():
    golden = Path(__file__).parents[2] / "golden" / "gemma2-caps"  # 64 tokens, and all of them
    config = open_checkpoint(golden).config
    one = 2 * config.num_kv_heads * config.head_dim * 4
    assert count_cache_bytes(config, 500) == (64 + 500) * one
    assert count_cache_bytes(config, 30) == (30 + 30) * one
