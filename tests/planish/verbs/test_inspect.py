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
