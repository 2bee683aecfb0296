"""Conversions: into floats, into planish's format and its layouts, and what is refused."""

import errno
import json
import logging
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from planish.reference.errors import OutputError, QuantizationError, RecipeError
from planish.reference.files import writer as files_writer
from planish.reference.files.export.convert import convert
from planish.reference.files.export.protocol import Request
from planish.reference.files.load import open_checkpoint
from planish.reference.files.safetensors import read_entries
from planish.reference.linear import quantized_weight
from planish.reference.quantized import dequantize
from planish.reference.text.tokenizer import load_tokenizer
from tests.golden.foreign import TARGET as FOREIGN
from tests.reference.files.export.conftest import differing, logits

SAMPLES = [path for path in sorted(FOREIGN.iterdir()) if path.is_dir()]
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def source(tiny, tmp_path):
    return tiny.write(tmp_path / "float")


@pytest.mark.matrix(3)
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_what_others_wrote_is_the_same_in_planishs_format(path, converted):
    theirs = open_checkpoint(path)
    own = converted(theirs, "planish")
    assert own.origin is None
    tokens = range(1, 8)
    np.testing.assert_array_equal(logits(own, tokens), logits(theirs, tokens))
    if theirs.quantization is not None or theirs.declared is not None:
        assert own.quantization["source"].startswith(theirs.origin.format)
        assert own.layout == "canonical" or all(
            s is None or not s.canonical_in_files for s in own.schemes().values()
        )


@pytest.mark.matrix(3)
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_what_others_wrote_is_the_same_in_floats(path, converted):
    theirs = open_checkpoint(path)
    if any(s and s.activation != "float" for s in theirs.schemes().values()):
        pytest.skip("its inputs are quantized, too")
    floats = converted(theirs, "float")
    assert floats.quantization is None
    expected = logits(theirs, [1, 5, 9])  # of act order in another order of memory
    assert np.abs(logits(floats, [1, 5, 9]) - expected).max() < 1e-5 * np.ptp(expected)


def test_int8_that_never_is_minus_128_becomes_planishs_own(source, quantized, converted):
    theirs = converted(quantized(source, "W8A8"), "compressed-tensors")
    assert {s.full_range for s in theirs.schemes().values() if s} == {True}
    assert {s.full_range for s in converted(theirs, "planish").schemes().values() if s} == {False}
    sample = converted(open_checkpoint(FOREIGN / "ct-w8a8"), "planish")  # it has -128
    assert True in {s.full_range for s in sample.schemes().values() if s}


def test_layouts_are_converted_both_ways(source, quantized, converted):
    tiles = quantized(source, "W4A16", group_size=32, rule="minmax")
    canonical = converted(tiles, "planish", layout="canonical")
    assert (tiles.layout, canonical.layout) == ("tiles", "canonical")
    assert differing(converted(canonical, "planish"), tiles) == []
    np.testing.assert_array_equal(logits(canonical), logits(tiles))
    assert canonical.quantization["recipe"] == "W4A16"


@pytest.mark.parametrize(
    ("kind", "dtype"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)]
)
def test_floats_are_written_in_a_dtype(kind, dtype, source, quantized, converted):
    own = quantized(source, "W4A16", group_size=32)
    floats = converted(own, "float", dtype=kind)
    assert {entry.map().dtype for entry in floats.entries.values()} == {np.dtype(dtype)}
    assert floats.values.get("dtype", floats.values.get("torch_dtype")) == kind
    exact = converted(own, "float").entries[UP].map()
    assert exact.dtype == np.float32
    np.testing.assert_array_equal(floats.entries[UP].map(), exact.astype(dtype))


def test_fp8_becomes_float32_as_bfloat16_would_round_it(converted):
    theirs = open_checkpoint(FOREIGN / "ct-fp8")
    assert theirs.values["dtype"] == "bfloat16"
    assert converted(theirs, "float").values["dtype"] == "float32"


def test_a_smoothed_model_is_written_as_it_computes(source, quantized, converted):
    own = quantized(source, "float", alpha=0.5)
    np.testing.assert_array_equal(logits(converted(own, "float")), logits(own))


def test_an_overflow_of_float16_is_an_error(tiny, tmp_path, converted):
    tensors = tiny.tensors(tiny.values())
    tensors[UP] = tensors[UP].copy()
    tensors[UP][3, 2] = 7e4
    source = tiny.write(tmp_path / "float", None, tensors)
    with pytest.raises(QuantizationError) as problem:
        converted(open_checkpoint(source), "float", dtype="float16")
    for words in (UP, "overflows", "bfloat16", "70000"):
        assert words in str(problem.value)
    assert not [*tmp_path.glob("*converted*")]
    converted(open_checkpoint(source), "float", dtype="bfloat16")


def test_the_declared_dtype_holds_every_scale(tiny, tmp_path, quantized, converted):
    source = tiny.write(tmp_path / "float", tiny.values(torch_dtype="bfloat16"))
    theirs = converted(quantized(source, "W4A16", group_size=-1), "compressed-tensors")
    assert theirs.values["torch_dtype"] == "float16"


def test_the_models_own_dtype_stays_if_it_holds_every_scale(converted):
    sample = open_checkpoint(FOREIGN / "ct-w8a8")  # scales in bfloat16
    assert converted(sample, "compressed-tensors").values["dtype"] == "bfloat16"


def test_scales_that_no_short_type_holds_make_it_float32(tiny, tmp_path, quantized, converted):
    source = tiny.write(tmp_path / "float", tiny.values(torch_dtype="bfloat16"))
    theirs = converted(quantized(source, "W8A16"), "compressed-tensors")
    assert theirs.values["torch_dtype"] == "float32"


def test_a_dtype_that_rounds_scales_is_noticed(source, quantized, converted, caplog):
    own = quantized(source, "W8A16")
    with caplog.at_level(logging.WARNING, "planish"):
        theirs = converted(own, "compressed-tensors", dtype="bfloat16")
    assert "some scales are not exact" in caplog.text
    assert theirs.entries["model.norm.weight"].dtype == "BF16"


def test_a_tied_head_that_was_quantized_is_untied(tiny, tmp_path, quantized, converted):
    source = tiny.write(tmp_path / "float", tiny.values(tie_word_embeddings=True))
    own = quantized(source, "W8A16", head="int8")
    for form in ("compressed-tensors", "float"):
        theirs = converted(own, form)
        assert theirs.values["tie_word_embeddings"] is False
        np.testing.assert_array_equal(logits(theirs), logits(own))


def test_a_tied_head_in_floats_is_not_written(tiny, tmp_path, quantized, converted):
    source = tiny.write(tmp_path / "float", tiny.values(tie_word_embeddings=True))
    theirs = converted(quantized(source, "W8A16"), "compressed-tensors")
    assert not [name for name in read_entries(theirs.path / "model.safetensors") if "head" in name]
    assert "lm_head" in theirs.values["quantization_config"]["ignore"]


def test_a_router_is_ignored_by_name(tiny, tmp_path, quantized, converted):
    golden = Path(__file__).parents[3] / "golden" / "qwen3_moe-some-layers"
    theirs = converted(quantized(golden, "W8A16"), "compressed-tensors")
    said = theirs.values["quantization_config"]["ignore"]
    assert any(name.endswith("mlp.gate") for name in said)
    assert any(
        ".experts.0.gate_proj.weight_packed" in name
        for name in read_entries(theirs.path / "model.safetensors")
    )


def test_a_gguf_file_becomes_a_directory_with_config_and_tokenizer(converted):
    file = next((FOREIGN / "gguf-q4_0").glob("*.gguf"))
    theirs = open_checkpoint(file)
    made = converted(theirs, "planish")
    assert made.values["architectures"] == ["LlamaForCausalLM"]
    text = "a b"
    assert load_tokenizer(made.path, made.config).encode(text) == load_tokenizer(
        file, theirs.config
    ).encode(text)
    np.testing.assert_array_equal(logits(made, [1, 5]), logits(theirs, [1, 5]))


@pytest.mark.parametrize(
    ("recipe", "changes", "words"),
    [
        ("W8A8", {"attention": "int8"}, "attention"),
        ("O3", {"attention": "int8"}, "attention"),
        ("W4A16", {"group_size": 32, "kv_cache": "int8"}, "kv_cache"),
        ("O2", {}, "model.layers.0.self_attn.q_proj"),
        ("W4A8", {"group_size": 32}, "model.layers.0.self_attn.q_proj"),
    ],
)
def test_what_only_planish_stores_is_refused(recipe, changes, words, source, quantized, converted):
    own = quantized(source, recipe, **changes)
    with pytest.raises(RecipeError) as problem:
        converted(own, "compressed-tensors")
    assert f": {words}: cannot be" in str(problem.value)
    assert "--format planish" in str(problem.value)


def test_quantized_inputs_become_floats_with_a_notice(source, quantized, converted, caplog):
    own = quantized(source, "W8A8")
    with caplog.at_level(logging.WARNING, "planish"):
        floats = converted(own, "float")
    assert "per_token" in caplog.text
    weight = quantized_weight_of(own)
    np.testing.assert_array_equal(floats.entries[UP].map(), weight)


def quantized_weight_of(own):
    from planish.reference.files.load import load_weights

    return dequantize(quantized_weight(load_weights(own).blocks[0].mlp.up))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "compresed-tensors"}, "did you mean compressed-tensors?"),
        ({"form": "float", "dtype": "float61"}, "did you mean float16?"),
        ({"form": "float", "layout": "tiles"}, "is for --format planish"),
        ({"form": "planish", "dtype": "float16"}, "planish keeps every type"),
        ({"form": "planish", "layout": "tile"}, "did you mean tiles?"),
        ({"form": "compressed-tensors"}, "quantize it, or --format float"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(options, words, source, converted):
    form = options.pop("form")
    with pytest.raises(RecipeError) as problem:
        converted(open_checkpoint(source), form, **options)
    assert words in str(problem.value)


def test_tiles_of_what_has_none_are_refused(converted):
    sample = open_checkpoint(FOREIGN / "mlx-4bit-g64")
    schemes = [s for s in sample.schemes().values() if s is not None]
    if not any(scheme.canonical_in_files for scheme in schemes):
        pytest.skip("every scheme has tiles")
    with pytest.raises(RecipeError, match="canonical"):
        converted(sample, "planish", layout="tiles")


@pytest.mark.parametrize("form", ["planish", "compressed-tensors", "float"])
def test_no_format_replaces_a_model_or_writes_into_its_source(form, source, quantized, tmp_path):
    own = quantized(source, "W8A16")
    for out, words in ((source, "exists"), (own.path / "new", "inside the model being read")):
        with pytest.raises(OutputError, match=words):
            convert(own, out, Request(format=form))
    before = (source / "config.json").read_text()
    assert json.loads(before)["model_type"] == "llama"


def test_a_full_disk_leaves_nothing(source, quantized, tmp_path, monkeypatch):
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    own = quantized(source, "W8A16")
    monkeypatch.setattr(files_writer, "write_tensors", fill)
    with pytest.raises(OutputError, match="No space left"):
        convert(own, tmp_path / "out", Request(format="compressed-tensors"))
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_overwriting_is_asked_for(source, quantized, tmp_path):
    own = quantized(source, "W8A16")
    convert(own, tmp_path / "out", Request(format="compressed-tensors"))
    convert(own, tmp_path / "out", Request(format="float", overwrite=True))
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
