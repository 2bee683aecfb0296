"""Checkpoint in, quantized checkpoint out: the directory is what quantizing in memory gives."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import planish.reference.model.transformer as transformer
from planish.reference.errors import OutputError, QuantizationError, RecipeError
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.files.safetensors import ALIGNMENT
from planish.reference.files.writer import CheckpointWriter
from planish.reference.grids import int8_scale
from planish.reference.linear import Linear
from planish.reference.model.transformer import forward
from planish.reference.model.weights import Weights
from planish.reference.quantize.checkpoint import choose_alphas, quantize_checkpoint
from planish.reference.quantize.recipe import RECIPES, needs_calibration, recipe
from planish.reference.quantize.runner import NumpyRunner
from planish.reference.quantize.runtime import NUMPY
from planish.reference.quantized import QuantizedWeight, dequantize
from planish.reference.text.evaluate import perplexity, window_nll
from tests.reference.quantize.conftest import in_memory

GOLDEN = Path(__file__).parents[2] / "golden"
TOKENS = np.random.default_rng(5).integers(0, 48, 60)


def written(source, target, chosen, samples, overwrite=False, layout="tiles"):
    checkpoint = open_checkpoint(source)
    given = samples if needs_calibration(chosen) else None
    with CheckpointWriter(target, source, overwrite) as writer:
        quantize_checkpoint(checkpoint, writer, chosen, given, layout=layout)
    return open_checkpoint(target)


def logits(checkpoint):
    return forward(checkpoint.config, load_weights(checkpoint), TOKENS)


VARIANTS = [
    *((name, {}) for name in RECIPES),
    ("naive", {"scheme": "O3"}),
    ("W8A8", {"smooth_outputs": True, "alpha": 0.7}),
    ("W4A16", {"rule": "minmax", "group_size": 32}),
    ("W4A8", {"activation": "per_token", "group_size": -1, "scale_dtype": "float32"}),
    ("W8A16", {"head": "int8"}),
    ("W8A8", {"head": "int4", "group_size": 32}),
    ("float", {"head": "int8"}),
    ("float", {"head": "int4"}),
    ("float", {"alpha": 0.5}),
]


@pytest.mark.matrix(9)
@pytest.mark.parametrize(("name", "changes"), VARIANTS, ids=str)
@pytest.mark.parametrize("model", ["llama", "llama-tied", "opt"])
def test_a_written_directory_gives_the_logits_of_quantizing_in_memory(
    loaded, directories, samples, tmp_path, model, name, changes
):
    chosen = recipe(name, **changes)
    reopened = written(directories[model], tmp_path / "out", chosen, samples)
    checkpoint, weights = loaded[model]
    expected = forward(checkpoint.config, in_memory(checkpoint, weights, chosen, samples), TOKENS)
    assert np.array_equal(logits(reopened), expected)
    plain = forward(checkpoint.config, weights, TOKENS)
    if chosen.quantizes:
        assert not np.array_equal(expected, plain)
        assert reopened.quantization["recipe"] == name
    else:
        assert reopened.quantization is None


@pytest.mark.parametrize("name", ["naive", "W8A16", "W4A16", "W4A8"])
def test_a_post_norm_model_is_quantized_without_smoothing(directories, samples, tmp_path, name):
    reopened = written(directories["opt-350m-form"], tmp_path / "out", recipe(name), samples)
    assert np.isfinite(logits(reopened)).all()


@pytest.mark.parametrize("name", ["W8A8", "W4A8", "O3"])
def test_files_are_safetensors_with_tensors_at_64_byte_offsets(
    directories, samples, tmp_path, name
):
    reopened = written(directories["llama"], tmp_path / "out", recipe(name), samples)
    found = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    for tensor, entry in reopened.entries.items():
        assert entry.offset % ALIGNMENT == 0
        assert np.array_equal(entry.map(), found[tensor])
    assert {n for n in found if not n.startswith("__padding__.")} == set(reopened.entries)


def test_the_directory_says_what_was_done(directories, samples, tmp_path):
    chosen = recipe("W8A8", ignore=("*.o_proj",))
    reopened = written(directories["llama"], tmp_path / "out", chosen, samples)
    values = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert values["quant_method"] == "planish" and values["version"] == 2
    assert (values["recipe"], values["method"]) == ("W8A8", "rtn")
    smoothing = {"alpha": 0.5, "outputs": False, "alpha_per_block": [0.5, 0.5]}
    assert values["smoothing"] == smoothing and values["calibration"]["samples"] == 4
    assert values["ignore"] == ["model.layers.{i}.self_attn.o_proj", "lm_head"]
    group = values["config_groups"]["group_0"]
    assert (group["weights"]["num_bits"], group["weights"]["strategy"]) == (8, "channel")
    assert group["targets"][0] == "model.layers.{i}.self_attn.q_proj"
    kept = reopened.entries["model.layers.0.self_attn.o_proj.weight"]
    assert kept.dtype == "F32" and kept.shape == (32, 32)
    assert reopened.entries["model.layers.0.self_attn.q_proj.weight"].dtype == "I8"


def test_float_tensors_that_nothing_changed_keep_their_type(tiny, samples, tmp_path):
    values = tiny.values()
    tensors = {n: t.astype(np.float16) for n, t in tiny.tensors(values).items()}
    source = tiny.write(tmp_path / "half", values, tensors)
    naive = written(source, tmp_path / "naive", recipe("naive"), samples)
    assert naive.entries["model.embed_tokens.weight"].dtype == "F16"
    assert naive.entries["model.layers.0.input_layernorm.weight"].dtype == "F16"
    smooth = written(source, tmp_path / "smooth", recipe("W8A8"), samples)
    assert smooth.entries["model.layers.0.input_layernorm.weight"].dtype == "F32"


def test_four_bits_take_an_eighth_of_the_bytes(directories, samples, tmp_path):
    """40 inputs: 20 bytes a row, or 5 blocks of 8 inputs in each of the two tiles of 16 rows."""
    for layout, shape in (("canonical", (32, 20)), ("tiles", (2, 5, 16, 4))):
        target = tmp_path / layout
        reopened = written(directories["llama"], target, recipe("W4A16"), samples, layout=layout)
        codes = reopened.entries["model.layers.0.mlp.down_proj.weight"]
        assert (codes.dtype, codes.shape) == ("U8", shape)


@pytest.mark.parametrize("kind", ["search", "search_per_block"])
def test_a_searched_alpha_is_recorded_for_every_block(directories, samples, tmp_path, kind):
    chosen = recipe("W8A8", alpha=kind)
    found = written(directories["llama"], tmp_path / "out", chosen, samples[:2]).quantization
    alphas = found["smoothing"]["alpha_per_block"]
    assert found["smoothing"]["alpha"] == kind and len(alphas) == 2
    assert all(0.3 <= a <= 0.95 for a in alphas)
    if kind == "search":
        assert alphas[0] == alphas[1]


def test_without_smoothing_there_are_no_alphas(loaded, samples):
    checkpoint, weights = loaded["llama"]
    assert choose_alphas(checkpoint, weights, recipe("naive"), samples) is None


def test_a_quantized_model_is_not_quantized_again(directories, samples, tmp_path):
    written(directories["llama"], tmp_path / "once", recipe("naive"), samples)
    with pytest.raises(RecipeError, match="once: is already quantized.*found naive"):
        written(tmp_path / "once", tmp_path / "twice", recipe("W8A8"), samples)
    assert not (tmp_path / "twice").exists()


def test_smoothing_needs_text_and_a_norm_that_can_be_scaled(directories, samples, tmp_path):
    with pytest.raises(RecipeError, match="W8A8: needs calibration text"):
        written(directories["llama"], tmp_path / "out", recipe("W8A8"), [])
    with pytest.raises(RecipeError, match="cannot smooth"):
        written(directories["opt-350m-form"], tmp_path / "out", recipe("W8A8"), samples)
    assert list(tmp_path.iterdir()) == []


def test_a_scale_that_does_not_fit_leaves_nothing_behind(tiny, samples, tmp_path):
    tensors = tiny.tensors(tiny.values())
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5:7] = 3e38, -3e38
    source = tiny.write(tmp_path / "source", None, tensors)
    with pytest.raises(QuantizationError, match=r"layers\.1\.mlp\.up_proj: row 3 group 0"):
        written(source, tmp_path / "out", recipe("W4A16", rule="minmax"), samples)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("layout", ["tiles", "canonical"])
def test_scales_that_do_not_fit_float16_are_float32_with_a_notice(tiny, tmp_path, caplog, layout):
    tensors = tiny.tensors(tiny.values())
    for name in ("0.mlp.gate_proj", "1.self_attn.k_proj"):
        tensors[f"model.layers.{name}.weight"][7] *= np.float32(1e-9)
    source = tiny.write(tmp_path / "source", None, tensors)
    reopened = written(source, tmp_path / "out", recipe("W4A16"), None, layout=layout)
    names = [f"model.layers.0.mlp.{part}_proj.weight_scale" for part in ("gate", "up")]
    assert [reopened.entries[name].dtype for name in names] == ["F32", "F16"]
    assert [record.getMessage() for record in caplog.records] == [
        (
            "scales of 2 linears do not fit float16 and are stored as float32; the first is"
            " model.layers.0.mlp.gate_proj"
        )
    ]
    plain, found = logits(open_checkpoint(source)), logits(reopened)
    assert np.abs(found - plain).max() < 0.5 * np.ptp(plain)


def test_experts_share_the_type_of_their_scales(tmp_path):
    source = open_checkpoint(GOLDEN / "mixtral-two-of-four")
    tensors = safetensors.numpy.load_file(source.path / "model.safetensors")
    tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    tensors["model.layers.1.block_sparse_moe.experts.2.w1.weight"][3] *= np.float32(1e-9)
    shutil.copytree(source.path, tmp_path / "source")
    safetensors.numpy.save_file(tensors, tmp_path / "source" / "model.safetensors")
    reopened = written(tmp_path / "source", tmp_path / "out", recipe("W4A16"), None)
    found = [
        reopened.entries[f"model.layers.1.block_sparse_moe.experts.{part}.weight_scale"].dtype
        for part in ("w1", "w2")
    ]
    assert found == ["F32", "F16"] and np.isfinite(logits(reopened)).all()


def test_rows_below_int8_s_floor_are_counted(tiny, tmp_path, caplog):
    tensors = tiny.tensors(tiny.values())
    tensors["model.layers.0.mlp.gate_proj.weight"][7:9] *= np.float32(1e-9)
    tensors["model.layers.1.mlp.up_proj.weight"][3] *= np.float32(1e-9)
    tensors["model.layers.1.mlp.up_proj.weight"][4] = 0  # exact
    source = tiny.write(tmp_path / "source", None, tensors)
    written(source, tmp_path / "out", recipe("W8A16"), None)
    assert [record.getMessage() for record in caplog.records] == [
        (
            "rows of weights below INT8's floor of 1e-05 become near zeros: 3 in 2 linears,"
            " the first in model.layers.0.mlp.gate_proj"
        )
    ]


def test_a_zero_channel_is_quantized_and_smoothed(tiny, samples, tmp_path):
    tensors = tiny.tensors(tiny.values())
    tensors["model.layers.0.mlp.up_proj.weight"][3] = 0
    tensors["model.layers.0.mlp.down_proj.weight"][:, 3] = 0
    tensors["model.layers.0.input_layernorm.weight"][7] = 0
    source = tiny.write(tmp_path / "source", None, tensors)
    plain = logits(open_checkpoint(source))
    for name in ("W8A8", "O3", "W4A16", "W4A8"):
        found = logits(written(source, tmp_path / name, recipe(name), samples))
        assert np.isfinite(found).all()
        bound = 0.5 if name.startswith("W4") else 0.05
        assert np.abs(found - plain).max() < bound * np.ptp(plain)


def test_writing_over_the_source_is_refused(directories, samples):
    with pytest.raises(OutputError, match="is the model being read"):
        written(directories["llama"], directories["llama"], recipe("naive"), samples, True)


def fake_linear(x, layer):
    """The grid of SPEC 2 in floats: round the activations, multiply dequantized values."""
    scale = int8_scale(np.abs(x).max(axis=1, keepdims=True))
    x = np.clip(np.rint(x / scale), -127, 127) * scale
    y = x.astype(np.float64) @ dequantize(layer.weight).astype(np.float64).T
    y = y.astype(np.float32)
    return y if layer.bias is None else y + layer.bias


@pytest.mark.matrix(2)
@pytest.mark.parametrize("model", ["llama", "opt"])
def test_fake_quantization_gives_the_perplexity_of_the_integer_path(
    directories, samples, tmp_path, monkeypatch, model
):
    checkpoint = written(directories[model], tmp_path / "out", recipe("W8A8"), samples)
    weights: Weights = load_weights(checkpoint)
    text = np.random.default_rng(9).integers(0, 48, 200).tolist()

    def run(tokens):
        return window_nll(forward(checkpoint.config, weights, tokens), tokens)

    integer = perplexity(run, text, 40).perplexity
    plain_linear, faked = transformer.linear, []

    def either(x, layer: Linear):
        if isinstance(layer.weight, QuantizedWeight):
            faked.append(layer)
            return fake_linear(x, layer)
        return plain_linear(x, layer)

    monkeypatch.setattr(transformer, "linear", either)
    fake = perplexity(run, text, 40).perplexity
    assert len(faked) == 5 * 2 * (7 if model == "llama" else 6)
    assert fake == pytest.approx(integer, rel=1e-4)
    plain = load_weights(open_checkpoint(directories[model]))
    weights = plain
    exact = perplexity(run, text, 40).perplexity
    assert exact != pytest.approx(integer, rel=1e-5)


class CountingRunner(NumpyRunner):
    """NumPy's runner, which counts how often it observes a block."""

    def __init__(self):
        super().__init__()
        self.observed = []  # shared by copies

    def observe(self, *given, **named):
        self.observed.append(1)
        return super().observe(*given, **named)


@pytest.mark.parametrize(
    ("chosen", "passes"),
    [(recipe("naive", scheme="O3"), 1), (recipe("O3"), 2)],
    ids=["as it was", "smoothed"],
)
def test_a_block_that_nothing_rescales_is_observed_once(
    directories, samples, tmp_path, chosen, passes
):
    runner = CountingRunner()
    source = open_checkpoint(directories["llama"])
    with CheckpointWriter(tmp_path / "out", source.path) as writer:
        quantize_checkpoint(source, writer, chosen, samples, runtime=replace(NUMPY, runner=runner))
    assert len(runner.observed) == passes * source.config.num_layers
