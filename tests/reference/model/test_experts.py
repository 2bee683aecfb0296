"""Stacked experts, one tensor for each of their linears: written, read, and damaged."""

from __future__ import annotations

import gc
import json
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from planish.reference.errors import CheckpointError, RecipeError
from planish.reference.files.load import load_block, load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.linear import Linear
from planish.reference.model.experts import Stack, linear_of, stack_linears
from planish.reference.model.transformer import forward
from planish.reference.model.weights import block_linears
from planish.reference.quantize.block import with_unseen_experts
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.methods.rtn import quantize_linear
from planish.reference.quantize.recipe import recipe
from planish.reference.quantized import to_layout
from planish.reference.scheme import int4
from tests.old.version_1 import as_version_1
from tests.reference.conftest import tensors_of

GOLDEN = Path(__file__).parents[2] / "golden"
MODEL = GOLDEN / "mixtral-two-of-four"
FIRST = "model.layers.0.block_sparse_moe.experts"
UP, DOWN = f"{FIRST}.w3", f"{FIRST}.w2"
INT4 = recipe("W4A8", group_size=32, rule="minmax")
INT8 = recipe("W8A16")


def quantized(target, chosen, layout="tiles", model=MODEL, samples=None):
    checkpoint = open_checkpoint(model)
    with CheckpointWriter(target, model, overwrite=True) as writer:
        quantize_checkpoint(checkpoint, writer, chosen, samples, layout=layout)
    return target


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """(bits, layout) -> a quantized directory that no test changes."""
    root = tmp_path_factory.mktemp("experts")
    kinds = [(bits, layout) for bits in (4, 8) for layout in ("tiles", "canonical")]
    recipes = {4: INT4, 8: INT8}
    return {k: quantized(root / "-".join(map(str, k)), recipes[k[0]], k[1]) for k in kinds}


SHAPES = {  # of 4 experts with 24 outputs and 32 inputs: codes, scales
    (4, "tiles"): ([4, 2, 4, 16, 4], [4, 2, 1, 16]),
    (4, "canonical"): ([4, 24, 16], [4, 24, 1]),
    (8, "tiles"): ([4, 2, 8, 16, 4], [4, 24, 1]),
    (8, "canonical"): ([4, 24, 32], [4, 24, 1]),
}


@pytest.mark.parametrize("kind", SHAPES, ids=str)
def test_a_quantized_directory_has_one_tensor_for_a_linear_of_all_experts(directories, kind):
    entries = open_checkpoint(directories[kind]).entries
    found = [list(entries[f"{UP}.{name}"].shape) for name in ("weight", "weight_scale")]
    assert found == list(SHAPES[kind])
    assert not [name for name in entries if "experts.0" in name]


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("kind", SHAPES, ids=str)
def test_every_expert_is_what_its_float_linear_becomes(directories, kind, tiled):
    floats = block_linears(load_block(open_checkpoint(MODEL), 0))
    block = load_block(open_checkpoint(directories[kind]), 0, tiled)
    assert isinstance(block.mlp.experts, Stack) and len(block.mlp.experts) == 4
    for part, layer in block_linears(block).items():
        if part.startswith("experts."):
            scheme = (INT4 if kind[0] == 4 else INT8).default
            wanted = quantize_linear(floats[part], scheme).weight
            wanted = to_layout(wanted, "tiles" if tiled else "canonical")
            for array, expected in vars(wanted).items():
                np.testing.assert_array_equal(getattr(layer.weight, array), expected)


@pytest.mark.parametrize("kind", [(4, "tiles"), (8, "canonical")], ids=str)
def test_experts_in_the_layout_of_the_file_are_views_of_it(directories, kind):
    checkpoint = open_checkpoint(directories[kind])
    block = load_block(checkpoint, 0, tiled=kind[1] == "tiles")
    mapped = checkpoint.entries[f"{DOWN}.weight"].map()
    assert np.shares_memory(block.mlp.experts[3].down.weight.codes, mapped)


def change(source, target, edit):
    """A copy of a directory whose tensors were edited."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    edit(tensors)
    save_file(tensors, target / "model.safetensors")
    return target


def read_all(path):
    weights = load_weights(open_checkpoint(path), tiled=True)
    return [list(block_linears(block).values()) for block in weights.blocks]


def put(name, make):
    return lambda tensors: tensors.update({name: np.ascontiguousarray(make(tensors[name]))})


def poke(name, index, value):
    def edit(tensors):
        tensors[name][index] = value

    return edit


def drop(name):
    return lambda tensors: tensors.pop(name)


def add(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


BAD = [
    ((4, "tiles"), drop(f"{UP}.weight"), f"{UP}.weight: is missing"),
    ((8, "tiles"), drop(f"{DOWN}.weight_scale"), f"{DOWN}.weight_scale: is missing"),
    ((4, "tiles"), drop(f"{UP}.weight_zero_point"), f"{UP}.weight_zero_point: is missing"),
    ((4, "tiles"), drop(f"{UP}.weight_scale"), "is missing"),
    ((4, "tiles"), drop(f"{FIRST}.w1.weight"), f"{FIRST}.w1.weight: is missing"),
    (
        (4, "tiles"),
        put(f"{UP}.weight", lambda w: w[:3]),
        r"wrong shape; expected \[4, 2, 4, 16, 4\], found \[3, 2, 4, 16, 4\]",
    ),
    ((8, "canonical"), put(f"{UP}.weight", lambda w: np.concatenate([w, w])), r"found \[8, 24, 32"),
    ((8, "tiles"), put(f"{UP}.weight_scale", lambda w: w[:1]), r"expected \[4, 24, 1\], found \[1"),
    ((4, "canonical"), put(f"{UP}.weight", lambda w: w[0]), r"wrong shape.*found \[24, 16\]"),
    ((4, "tiles"), put(f"{UP}.weight_zero_point", lambda w: w[:, :1]), "wrong shape"),
    ((8, "tiles"), put(f"{UP}.weight", lambda w: w.view(np.uint8)), "wrong type"),
    ((4, "tiles"), poke(f"{UP}.weight_scale", (3, 1, 0, 7), np.inf), "scales other than 0"),
    ((4, "canonical"), poke(f"{UP}.weight_zero_point", (3, 23, 0), 16), r"0\.\.15"),
    ((8, "tiles"), poke(f"{UP}.weight_scale", (2, 5), -1), "positive finite scales"),
    ((8, "tiles"), poke(f"{UP}.weight", (3, 1, 0, 7, 0), -128), "codes -127"),
    ((8, "canonical"), poke(f"{UP}.weight", (3, 23, 31), -128), "codes -127"),
    ((8, "tiles"), add(f"{FIRST}.0.w3.weight", np.ones((24, 32), "f4")), "is not a tensor"),
    ((8, "tiles"), add(f"{FIRST}.4.w3.weight", np.ones((24, 32), "f4")), "is not a tensor"),
    ((8, "tiles"), add(f"{UP}.bias", np.ones((4, 24), "f4")), "is not a tensor"),
]


@pytest.mark.parametrize(("kind", "edit", "message"), BAD)
def test_a_bad_stack_is_an_error_that_names_it(directories, tmp_path, kind, edit, message):
    path = change(directories[kind], tmp_path / "bad", edit)
    with pytest.raises(CheckpointError, match=message):
        read_all(path)


def test_padding_beyond_the_outputs_is_never_read(directories, tmp_path):
    def edit(tensors):
        tensors[f"{UP}.weight_scale"][:, 1, :, 8:] = np.nan
        tensors[f"{UP}.weight_zero_point"][:, 1, :, 8:] = 99

    path = change(directories[4, "tiles"], tmp_path / "padding", edit)
    tokens = np.arange(20)
    expected, found = (
        forward(checkpoint.config, load_weights(checkpoint), tokens)
        for checkpoint in map(open_checkpoint, (directories[4, "tiles"], path))
    )
    np.testing.assert_array_equal(found, expected)


def test_a_truncated_file_is_an_error(directories, tmp_path):
    shutil.copytree(directories[4, "tiles"], tmp_path / "short")
    file = tmp_path / "short" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4096])
    with pytest.raises(CheckpointError, match="is damaged|is truncated"):
        read_all(tmp_path / "short")


def test_a_config_with_more_experts_than_are_stored_is_an_error(directories, tmp_path):
    shutil.copytree(directories[4, "tiles"], tmp_path / "more")
    config = tmp_path / "more" / "config.json"
    values = json.loads(config.read_text()) | {"num_local_experts": 5}
    config.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"expected \[5, .*found \[4, "):
        read_all(tmp_path / "more")


def unstack(tensors):
    """The experts' tensors in the form of older directories, one for each expert."""
    for name in [name for name in tensors if ".experts." in name]:
        stack, (prefix, rest) = tensors.pop(name), name.split(".experts.")
        for index, one in enumerate(stack):
            tensors[f"{prefix}.experts.{index}.{rest}"] = np.ascontiguousarray(one)


def test_some_experts_in_floats_are_an_error_that_names_one(directories, tmp_path):
    def edit(tensors):
        unstack(tensors)
        del tensors[f"{FIRST}.2.w2.weight_scale"]
        tensors[f"{FIRST}.2.w2.weight"] = np.ones((32, 24), np.float32)

    path = as_version_1(change(directories[8, "tiles"], tmp_path / "mixed", edit))
    with pytest.raises(CheckpointError, match=f"{FIRST}.2.w2.weight: .*as the other experts have"):
        read_all(path)


def test_experts_whose_scales_differ_in_granularity_are_an_error_that_names_one(
    directories, tmp_path
):
    def edit(tensors):
        unstack(tensors)
        tensors[f"{FIRST}.2.w2.weight_scale"] = np.ones((1, 1), np.float32)

    path = as_version_1(change(directories[8, "tiles"], tmp_path / "mixed", edit))
    message = f"{FIRST}.2.w2.weight_scale: .*int8 per_channel, as the other.* found int8 per_tensor"
    with pytest.raises(CheckpointError, match=message):
        read_all(path)


def test_zero_points_that_only_some_experts_have_stored_are_8_in_the_others():
    rng, scheme = np.random.default_rng(0), int4(32)
    one, other = (
        quantize_linear(Linear(rng.normal(size=(5, 40)).astype(np.float32)), scheme)
        for _ in range(2)
    )
    eights = np.full((5, 2), 8, np.uint8)
    stack = stack_linears([one, replace(other, weight=replace(other.weight, zero_point=eights))])
    assert stack.weight.zero_point.tolist() == [eights.tolist()] * 2
    with pytest.raises(ValueError, match="experts of one stack differ: int4 g=32, int4 g=64"):
        stack_linears([one, quantize_linear(Linear(np.ones((5, 40), np.float32)), int4(64))])


def test_an_older_directory_with_a_tensor_for_each_expert_reads_the_same(directories, tmp_path):
    path = as_version_1(change(directories[4, "tiles"], tmp_path / "older", unstack))
    for ours, older in zip(read_all(directories[4, "tiles"]), read_all(path), strict=True):
        for one, other in zip(ours, older, strict=True):
            if not isinstance(one.weight, np.ndarray):
                np.testing.assert_array_equal(one.weight.codes, other.weight.codes)
                np.testing.assert_array_equal(one.weight.scale, other.weight.scale)


def test_experts_are_ignored_all_or_none(tmp_path):
    with pytest.raises(RecipeError, match="all of them or none"):
        quantized(tmp_path / "some", recipe("W8A16", ignore=("*.experts.2.*",)))
    with pytest.raises(RecipeError, match="all of them or none"):
        quantized(tmp_path / "downs", recipe("W8A16", ignore=("*.w2",)))
    path = quantized(tmp_path / "none", recipe("W8A16", ignore=("*.layers.1.*experts*",)))
    entries = open_checkpoint(path).entries
    assert f"{FIRST.replace('0', '1')}.2.w2.weight" in entries and f"{DOWN}.weight" in entries
    assert len(read_all(path)) == 2


@pytest.mark.parametrize(
    ("name", "part", "stored"),
    [
        ("mixtral-two-of-four", "experts.2.up", f"{FIRST}.2.w3"),
        ("gpt2-hub-prefix", "k", "h.0.attn.c_attn"),
        ("opt-pre-norm", "k", "model.decoder.layers.0.self_attn.k_proj"),
    ],
)
def test_a_directory_says_where_it_has_a_linear(name, part, stored):
    assert open_checkpoint(GOLDEN / name).stored_prefix(part, 0) == stored


def test_a_quantized_expert_is_stored_with_the_others(directories):
    checkpoint = open_checkpoint(directories[4, "tiles"])
    assert checkpoint.stored_prefix("experts.2.up", 0) == UP
    assert checkpoint.stored_prefix("router", 0) == "model.layers.0.block_sparse_moe.gate"


def test_static_scales_are_stacked_and_an_expert_without_tokens_has_the_largest(tmp_path):
    samples = [np.arange(3)]
    path = quantized(tmp_path / "static", recipe("O3"), samples=samples)
    checkpoint = open_checkpoint(path)
    assert checkpoint.entries[f"{DOWN}.input_scale"].shape == (4, 1)
    block = load_block(checkpoint, 0)
    seen = {"experts.0.up": np.float32([1, 5]), "experts.2.up": np.float32([2, 3])}
    seen |= {"experts.1.gate": np.float32([1, 1]), "experts.1.down": np.float32([4])}
    filled = with_unseen_experts(block, seen | dict.fromkeys((*"qkvo", "router"), np.zeros(2)))
    np.testing.assert_array_equal(filled["experts.3.up"], [2, 5])
    np.testing.assert_array_equal(filled["experts.0.up"], [1, 5])
    np.testing.assert_array_equal(filled["experts.0.down"], [4])


def test_a_stack_of_float_linears_is_unstacked():
    bias = np.arange(6, dtype=np.float32).reshape(2, 3)
    stack = Linear(np.arange(24, dtype=np.float32).reshape(2, 3, 4), bias)
    second = linear_of(stack, 1)
    np.testing.assert_array_equal(second.weight, np.arange(12, 24).reshape(3, 4))
    np.testing.assert_array_equal(second.bias, [3, 4, 5])


def wide_model(path, layers):
    """A float16 mixture of `layers` blocks, wide enough for its arrays to outweigh all else."""
    values = json.loads((MODEL / "config.json").read_text())
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_attention_heads": 4}
    values |= {**sizes, "num_hidden_layers": layers, "torch_dtype": "float16"}
    path.mkdir()
    (path / "config.json").write_text(json.dumps(values))
    tensors = {name: x.astype(np.float16) for name, x in tensors_of(values).items()}
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.mark.matrix(2)
@pytest.mark.parametrize(("name", "most"), [("W4A8", 1.9), ("W8A8", 2.7)])
def test_one_block_at_a_time_is_in_memory_as_floats(tmp_path, name, most):
    """Beside what waits to be written; smoothing makes a second block of the first."""
    path = wide_model(tmp_path / "wide", layers=8)
    linears = block_linears(load_block(open_checkpoint(path), 0)).values()
    block = sum(layer.weight.nbytes for layer in linears)
    gc.collect()
    tracemalloc.start()
    try:
        quantized(tmp_path / "small", recipe(name), model=path, samples=[np.arange(16)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    waiting = sum(file.stat().st_size for file in (tmp_path / "small").glob("*.safetensors"))
    assert peak - waiting < most * block
