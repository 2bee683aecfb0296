"""inspect: tensors of every type that a file may hold, and which of them are the model's."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from planish.reference.gguf import read_gguf
from tests.gguf_files import write_tied
from tests.golden.foreign import TARGET


def inspected(planish, model) -> dict:
    """What inspect says as JSON."""
    return json.loads(planish("inspect", "--model", model, "--json").out)


BUFFERS = {
    "bool": ("h.{i}.attn.bias", np.ones((1, 1, 8, 8), bool), 64),
    "i64": ("h.{i}.attn.masked_bias", np.array(-10000), 8),
    "i32": ("position_ids", np.arange(8, dtype=np.int32)[None], 32),
    "u16": ("score.weight", np.ones((2, 3), np.uint16), 12),
    "f64": ("h.{i}.attn.rotary_emb.inv_freq", np.ones(4), 32),
    "c64": ("rotary_emb.inv_freq", np.ones(4, np.complex64), 32),
    "f8_e4m3": ("h.{i}.attn.k_scale", np.ones(1, ml_dtypes.float8_e4m3fn), 1),
    "f8_e8m0": ("h.{i}.attn.v_scale", np.ones(1, ml_dtypes.float8_e8m0fnu), 1),
}


def test_inspect_lists_tensors_of_every_type_and_counts_no_buffer(planish, tmp_path):
    golden, path = Path(__file__).parents[2] / "golden" / "gpt2-hub-prefix", tmp_path / "model"
    expected = inspected(planish, golden)
    shutil.copytree(golden, path)
    buffers = {name.format(i=0): tensor for name, tensor, _ in BUFFERS.values()}
    save_file(load_file(path / "model.safetensors") | buffers, path / "model.safetensors")
    values = inspected(planish, path)
    assert values["parameters"] == expected["parameters"]
    assert values["bytes_by_kind"] == expected["bytes_by_kind"] | {"not used": 182}
    for words, (name, tensor, size) in BUFFERS.items():
        facts = {"kind": "not used", "scheme": words, "shape": list(tensor.shape), "bytes": size}
        assert values["tensors"][name.format(i=0)] == facts
    assert "f8_e8m0" in planish("inspect", "--model", path).out


@pytest.mark.parametrize(("dtype", "bits", "shape"), [("F4", 4, [4, 3]), ("F6_E2M3", 6, [4])])
def test_inspect_knows_the_size_of_parts_of_a_byte(planish, make_llama, dtype, bits, shape):
    model, size = make_llama(), math.prod(shape) * bits // 8
    text = {"score.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}
    header = json.dumps(text).encode()
    shard = len(header).to_bytes(8, "little") + header + bytes(size)
    (model / "model.safetensors").rename(model / "a.safetensors")
    (model / "b.safetensors").write_bytes(shard)
    names = dict.fromkeys(load_file(model / "a.safetensors"), "a.safetensors")
    index = {"weight_map": {**names, "score.weight": "b.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    facts = inspected(planish, model)["tensors"]["score.weight"]
    assert (facts["scheme"], facts["bytes"]) == (dtype.lower(), size)


@pytest.mark.parametrize("dtype", [np.float64, np.int64, ml_dtypes.float8_e5m2])
def test_inspect_shows_a_weight_of_a_type_that_generate_refuses(planish, make_llama, dtype):
    model, name = make_llama(), "model.layers.0.mlp.up_proj.weight"
    tensors = load_file(model / "model.safetensors")
    save_file(tensors | {name: tensors[name].astype(dtype)}, model / "model.safetensors")
    facts = inspected(planish, model)["tensors"][name]
    assert facts["bytes"] == 64 * 96 * np.dtype(dtype).itemsize
    words = ("--model", model, "--prompt", "a", "--engine", "reference")
    assert planish("generate", *words).refused(name, "F32 or F16 or BF16")


def test_a_model_whose_path_is_not_text_is_inspected(planish, make_llama):
    model = make_llama()
    odd = model.rename(model.with_name(os.fsdecode(b"caf\xe9")))
    assert inspected(planish, odd)["parameters"] > 0
    (odd / "model.safetensors").write_bytes(b"")
    assert planish("inspect", "--model", odd).refused("caf\\xe9", "truncated")


def test_inspect_counts_bits_and_bytes(planish, tiny_llama):
    values = planish("inspect", "--model", tiny_llama, "--json").only_json()
    assert values["architecture"] == "llama"
    assert values["bits_per_weight"] == 32
    assert values["bytes"] == 4 * values["parameters"]
    assert values["bytes"] == sum(tensor["bytes"] for tensor in values["tensors"].values())
    assert values["config"]["num_kv_heads"] == 2 and values["quantization"] is None


@pytest.mark.parametrize(("rule", "zero_point"), [("signed", 0), ("minmax", 8)])
def test_inspect_of_int4(planish, tiny_llama, tmp_path, rule, zero_point):
    words = ("--recipe", "W4A16", "--group_size", 32, "--lm_head", "int8", "--rule", rule)
    planish("quantize", "--model", tiny_llama, "--out", tmp_path / "q", *words)
    values = planish("inspect", "--model", tmp_path / "q", "--json").only_json()
    # 4 bits, and per group of 32 a float16 scale and under minmax a byte of zero point
    assert values["bits_per_weight"] == 4 + (16 + zero_point) / 32
    assert values["tensors"]["lm_head.weight"]["scheme"] == "int8 per_channel"
    assert values["bytes"] == sum(values["bytes_by_kind"].values())
    text = planish("inspect", "--model", tmp_path / "q").out
    assert "int4 g=32" + (" asymmetric" if rule == "minmax" else "") in text
    assert f"{values['bits_per_weight']:.3f} bits per weight" in text


@pytest.mark.matrix(4)
@pytest.mark.parametrize(
    ("words", "schemes"),
    [
        ("W4A16", {"int4 g=128": 14, "float": 1}),
        ("W4A16 --lm_head int8", {"int4 g=128": 14, "int8 per_channel": 1}),
        (
            "W8A8 --scheme *.down_proj=W4A16-g32",
            {
                "int8 per_channel, input int8 per_token": 12,
                "int4 g=32": 2,
                "float": 1,
            },
        ),
        ("float --lm_head int4", {"float": 14, "int4 g=128": 1}),
    ],
)
def test_inspect_counts_the_schemes_of_linears(planish, tiny_llama, tmp_path, words, schemes):
    more = ("--samples", 1, "--sample_length", 8) if "W8A8" in words else ()
    given = ("--out", tmp_path / "q", "--recipe", *words.split(), *more)
    assert planish("quantize", "--model", tiny_llama, *given).code == 0
    values = planish("inspect", "--model", tmp_path / "q", "--json").only_json()
    assert values["schemes"] == schemes


@pytest.mark.matrix(2)
@pytest.mark.parametrize("layout", ["tiles", "canonical"])
def test_inspect_tells_the_layout_and_counts_the_bytes_in_the_files(
    planish, make_llama, tmp_path, layout
):
    source = make_llama(name="odd", hidden_size=72, intermediate_size=100)
    words = ("--recipe", "W4A8", "--group_size", 32, "--layout", layout)
    planish("quantize", "--model", source, "--out", tmp_path / "q", *words)
    values = planish("inspect", "--model", tmp_path / "q", "--json").only_json()
    assert values["layout"] == values["quantization"]["layout"] == layout
    shapes = [(72, 72), (36, 72), (36, 72), (72, 72), (100, 72), (100, 72), (72, 100)]
    row, col = (16, 8) if layout == "tiles" else (1, 2)  # to what codes are padded
    held = sum(-(-n // row) * row * (-(-k // col) * col / 2 + 2 * -(-k // 32)) for n, k in shapes)
    assert values["bits_per_weight"] == 8 * held / sum(n * k for n, k in shapes)
    down = values["tensors"]["model.layers.0.mlp.down_proj.weight"]["shape"]
    assert down == ([5, 13, 16, 4] if layout == "tiles" else [72, 50])
    text = planish("inspect", "--model", tmp_path / "q").out
    order = "tiles" if layout == "tiles" else "canonical order"
    assert f"codes in {order}" in text and str(down) in text


def test_inspect_of_a_directory_whose_name_is_no_utf8(planish, make_llama, tmp_path):
    path = make_llama().rename(tmp_path / os.fsdecode(b"mod\xe8le"))
    assert r"mod\xe8le: llama" in planish("inspect", "--model", path).out
    values = planish("inspect", "--model", path, "--json").only_json()
    assert os.fsencode(values["model"]).endswith(b"mod\xe8le")


def test_inspect_says_the_recipe_in_words(planish, tiny_llama, tmp_path):
    words = ("--recipe", "W4A8", "--group_size", 32, "--lm_head", "int8", "--alpha", 0.5)
    more = ("--ignore", "*.o_proj", "--samples", 1, "--sample_length", 8)
    planish("quantize", "--model", tiny_llama, "--out", tmp_path / "q", *words, *more)
    lines = planish("inspect", "--model", tmp_path / "q").out.splitlines()
    assert lines[2:6] == [
        "  recipe W4A8, method rtn, smoothed with alpha 0.5, codes in tiles",
        "  12 linears in int4 g=32, input int8 per_group",
        "  2 linears in float",
        "  1 linear in int8 per_channel",
    ]
    assert planish("inspect", "--model", tiny_llama).out.splitlines()[2] == "  not quantized"


@pytest.mark.parametrize(("window", "slots"), [(None, 4096), (100, 640)])
def test_inspect_counts_the_bytes_of_the_cache(planish, make_llama, window, slots):
    """Layers with a window keep it and a chunk, in steps of 128 slots."""
    words = {"model_type": "mistral", "sliding_window": window, "max_position_embeddings": 4096}
    model = make_llama(name="windowed", **words)
    values = planish("inspect", "--model", model, "--json").only_json()["cache"]
    expected = {"form": "float32", "positions": 4096, "bytes": slots * 2 * 2 * 2 * 16 * 4}
    assert values == expected | {"layers_with_rings": 2 if window else 0}
    text = planish("inspect", "--model", model).out
    assert f"KV cache: {values['bytes']:,} bytes, float32 for 4,096 positions" in text


@pytest.mark.parametrize("sample", ["gguf-q4_0", "gguf-q4_k_m"])
def test_an_embedding_that_is_the_head_is_counted_once_by_its_codes(planish, tmp_path, sample):
    source = TARGET / sample / "model.gguf"
    file, tied = read_gguf(source), write_tied(source, tmp_path / "tied.gguf")
    apart, found = inspected(planish, source.parent), inspected(planish, tied)
    head = {name for name in apart["tensors"] if name.startswith("lm_head.")}
    assert found["tensors"].keys() == apart["tensors"].keys() - head
    shape = file.tensors["token_embd.weight"].shape
    facts = found["tensors"]["model.embed_tokens.weight"]
    assert facts["kind"] == "INT4 codes" and facts["bytes"] == math.prod(shape) // 2
    assert found["bytes"] == sum(one["bytes"] for one in found["tensors"].values())
