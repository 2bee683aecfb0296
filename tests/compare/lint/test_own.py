"""planish's own directories: sound ones have no finding, damaged ones are read all the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from planish.compare.lint.run import lint
from planish.reference.errors import CheckpointError
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import recipe
from tests.compare.lint.conftest import UP, found
from tests.models import make_llama

GOLDEN = Path(__file__).parents[2] / "golden"
RECIPES = {
    "W8A8": {},
    "O1": {},
    "O2": {},
    "O3": {},
    "naive": {},
    "W8A16": {},
    "W4A16": {"group_size": 32},
    "W4A8": {"group_size": 32},
    "W4A16-minmax": {"group_size": 32, "rule": "minmax", "scale_dtype": "float32"},
    "W4A16-row": {"group_size": -1},
}


def make(source, target, name="W4A16", layout="tiles", **fields):
    """Quantize a model by the reference."""
    checkpoint = open_checkpoint(source)
    samples = list(np.random.default_rng(1).integers(0, 60, (2, 16)))
    with CheckpointWriter(target, source) as writer:
        chosen = recipe(name, **fields)
        quantize_checkpoint(checkpoint, writer, chosen, samples, layout)
    return target


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("lint"))


@pytest.mark.matrix(4)
@pytest.mark.parametrize("layout", ["tiles", "canonical"])
@pytest.mark.parametrize("name", RECIPES)
def test_what_planish_writes_has_no_finding(model, tmp_path, name, layout):
    path = make(model, tmp_path / "q", name.partition("-")[0], layout, **RECIPES[name])
    result = lint(path)
    assert (result.linears, result.findings) == (14, ())
    assert 0 < max(result.saturation.values()) < 0.2


@pytest.mark.parametrize("name", ["mixtral-two-of-four", "phi3-window", "gpt2-hub-prefix"])
def test_experts_fused_and_transposed_linears(tmp_path, name):
    path = make(GOLDEN / name, tmp_path / "q", group_size=32)
    result = lint(path, floats=open_checkpoint(GOLDEN / name))
    assert result.findings == ()
    assert len(result.errors) == result.linears > 10 and not result.skipped
    assert max(one.error for one in result.errors) < 0.11


def spoil(path, name, change):
    """Change one tensor of a directory."""
    tensors = load_file(path / "model.safetensors")
    change(tensors[name])
    save_file(tensors, path / "model.safetensors")
    return path


def set_first(value):
    return lambda tensor: tensor.reshape(-1).__setitem__(0, value)


@pytest.mark.matrix(3)
@pytest.mark.parametrize("layout", ["tiles", "canonical"])
@pytest.mark.parametrize(
    ("name", "kind", "value", "rule"),
    [
        ("W4A16", "weight_scale", 0, "scale-zero"),
        ("W4A16", "weight_scale", np.nan, "scale-not-finite"),
        ("W8A8", "weight_scale", np.inf, "scale-not-finite"),
        ("W8A8", "weight", -128, "code-minus-128-refused"),
        ("O3", "input_scale", 0, "scale-input"),
        ("W4A16-minmax", "weight_zero_point", 16, "zero-range"),
    ],
)
def test_what_planish_refuses_to_load(model, tmp_path, name, kind, value, rule, layout):
    path = make(model, tmp_path / "q", name.partition("-")[0], layout, **RECIPES[name])
    spoil(path, f"{UP}.{kind}", set_first(value))
    (one,) = lint(path).findings
    assert (one.rule, one.where) == (rule, UP)
    with pytest.raises(CheckpointError):
        load_weights(open_checkpoint(path)).blocks[0]


def test_a_scale_without_a_scheme_in_the_config(model, tmp_path):
    path = make(model, tmp_path / "q", group_size=32)
    config = json.loads((path / "config.json").read_text())
    groups = config["quantization_config"]["config_groups"]
    groups["group_0"]["targets"].remove("model.layers.{i}.mlp.up_proj")
    (path / "config.json").write_text(json.dumps(config))
    assert len(found(path, "linear-unreadable")) == 2
