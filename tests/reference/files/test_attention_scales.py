"""Calibrated scales of attention: written beside its linears, read back, and refused if bad."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from planish.reference.errors import PlanishError
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.model.transformer import forward
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import recipe
from tests.models import make_llama

NAME = "model.layers.0.self_attn.k_scale"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An O3 model with INT8 attention."""
    root = tmp_path_factory.mktemp("static")
    source = make_llama(root, "llama")
    checkpoint = open_checkpoint(source)
    samples = list(np.random.default_rng(1).integers(0, checkpoint.config.vocab_size, (3, 24)))
    with CheckpointWriter(root / "O3", source) as writer:
        quantize_checkpoint(checkpoint, writer, recipe("O3", attention="int8"), samples)
    return root / "O3"


@pytest.fixture
def changed(made, tmp_path):
    """A copy of it with some tensors or values of quantization_config changed."""

    def change(tensors=None, **values):
        target = tmp_path / "changed"
        target.mkdir()
        config = json.loads((made / "config.json").read_text())
        config["quantization_config"] |= values
        (target / "config.json").write_text(json.dumps(config))
        both = load_file(made / "model.safetensors") | (tensors or {})
        both = {name: x for name, x in both.items() if x is not None}
        save_file(both, target / "model.safetensors")
        return target

    return change


def load(path):
    return list(load_weights(open_checkpoint(path)).blocks)


def test_the_scales_are_stored_and_used(made):
    checkpoint = open_checkpoint(made)
    assert (checkpoint.config.attention, checkpoint.config.kv_cache) == ("int8", "int8_static")
    blocks = load(made)
    stored = load_file(made / "model.safetensors")
    assert blocks[0].attention_scales.k == stored[NAME] and stored[NAME].dtype == np.float32
    logits = forward(checkpoint.config, load_weights(checkpoint), [1, 2, 3])
    assert np.isfinite(logits).all()


def test_a_directory_without_them_loads_as_before(changed):
    names = [f"model.layers.{i}.self_attn.{x}_scale" for i in range(2) for x in "qkv"]
    path = changed(dict.fromkeys(names), attention="float", kv_cache="float32")
    assert load(path)[0].attention_scales is None


@pytest.mark.parametrize(
    ("scale", "problem"),
    [
        ([np.nan], "positive finite scales, found nan"),
        ([np.inf], "positive finite scales, found inf"),
        ([0.0], "positive finite scales, found 0.0"),
        ([-0.1], "positive finite scales, found -0.1"),
        ([0.1, 0.1], r"wrong shape; expected \[1\], found \[2\]"),
    ],
)
def test_a_bad_scale_is_named(changed, scale, problem):
    with pytest.raises(PlanishError, match=problem) as caught:
        load(changed({NAME: np.array(scale, np.float32)}))
    assert NAME in str(caught.value) and "\n" not in str(caught.value)


def test_a_scale_of_another_type_is_named(changed):
    with pytest.raises(PlanishError, match=f"{NAME}: wrong type"):
        load(changed({NAME: np.ones(1, np.float16)}))


def test_a_missing_scale_is_named(changed):
    with pytest.raises(PlanishError, match=f"{NAME}: is missing"):
        load(changed({NAME: None}))


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"attention": "int4"}, "quantization_config.attention"),
        ({"kv_cache": "int4"}, "quantization_config.kv_cache"),
        ({"kv_cache": "float32"}, "quantization_config.kv_cache"),  # INT8 attention over floats
        ({"attention": 8}, "quantization_config.attention"),
    ],
)
def test_values_that_contradict_are_refused(changed, values, name):
    with pytest.raises(PlanishError, match=name):
        open_checkpoint(changed(**values))


def test_static_scales_are_those_of_the_smoothed_model(made):
    """absmax / 127: no key of the calibration text is beyond its scale by more than rounding."""
    for block in load(made):
        scales = block.attention_scales
        assert all(0 < getattr(scales, x).item() < 1 for x in "qkv")
