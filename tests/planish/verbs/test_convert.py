"""planish convert, quantize --format, and the same from Python."""

import shutil

import numpy as np
import pytest

import planish as api
from planish.reference.errors import OutputError, RecipeError
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.files.safetensors import read_entries
from planish.reference.model.transformer import forward
from tests.golden.foreign import TARGET as FOREIGN


@pytest.fixture
def quantized(tiny_llama, tmp_path):
    """A W4A16 model in planish's format."""
    api.quantize(tiny_llama, tmp_path / "w4", recipe="W4A16", group_size=32)
    return tmp_path / "w4"


def logits(path):
    checkpoint = open_checkpoint(path)
    return forward(checkpoint.config, load_weights(checkpoint), [1, 5, 9])


def tensors(path):
    entries = read_entries(path / "model.safetensors")
    return {name: entry.map().tobytes() for name, entry in entries.items()}


def test_a_model_is_converted_and_converted_back(planish, quantized, tmp_path):
    there, back = tmp_path / "ct", tmp_path / "back"
    words = ("--out", there, "--format", "compressed-tensors")
    result = planish("convert", "--model", quantized, *words)
    assert (result.code, result.out) == (0, "")
    assert f"{there}: compressed-tensors, " in result.err
    np.testing.assert_array_equal(logits(there), logits(quantized))
    assert planish("convert", "--model", there, "--out", back, "--format", "planish").code == 0
    assert tensors(back) == tensors(quantized)
    assert "made by compressed-tensors" in planish("inspect", "--model", there).out
    assert "from compressed-tensors" in planish("inspect", "--model", back).out


def test_a_gguf_file_is_converted(planish, tmp_path):
    file = next((FOREIGN / "gguf-q4_0").glob("*.gguf"))
    shutil.copy(file, tmp_path / "m.gguf")
    for form in ("planish", "float"):
        words = ("--out", tmp_path / form, "--format", form)
        assert planish("convert", "--model", tmp_path / "m.gguf", *words).code == 0
        np.testing.assert_array_equal(logits(tmp_path / form), logits(file))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--format", "compressed_tensor"), "did you mean compressed-tensors?"),
        (("--format", "float", "--dtype", "fp16"), "one of float32, float16, bfloat16"),
        (("--format", "float", "--layout", "tiles"), "is for --format planish"),
    ],
)
def test_words_that_are_unknown_are_refused(words, expected, planish, quantized, tmp_path):
    result = planish("convert", "--model", quantized, "--out", tmp_path / "x", *words)
    assert result.refused(expected)
    assert not (tmp_path / "x").exists()


def test_an_output_is_replaced_only_if_asked_for(planish, quantized, tmp_path):
    words = ("--model", quantized, "--format", "float", "--out")
    assert planish("convert", *words, quantized / "x").refused("is inside the model being read")
    assert planish("convert", *words, quantized).refused("is the model being read")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text("{}")
    assert planish("convert", *words, tmp_path / "x").refused("--overwrite")
    assert planish("convert", *words, tmp_path / "x", "--overwrite").code == 0


@pytest.mark.parametrize("form", ["compressed-tensors", "float"])
def test_quantize_writes_a_format_directly(form, planish, tiny_llama, quantized, tmp_path):
    words = ("--recipe", "W4A16", "--group_size", 32, "--format", form)
    assert planish("quantize", "--model", tiny_llama, "--out", tmp_path / "q", *words).code == 0
    api.convert(quantized, tmp_path / "c", format=form)
    assert tensors(tmp_path / "q") == tensors(tmp_path / "c")
    assert (tmp_path / "q" / "config.json").read_text() == (
        tmp_path / "c" / "config.json"
    ).read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"q", "c", "w4"}  # nothing hidden


def test_what_a_format_cannot_hold_is_refused_before_anything_is_computed(
    planish, tiny_llama, tmp_path
):
    words = ("--model", tiny_llama, "--out", tmp_path / "q", "--recipe", "W4A8")
    result = planish("quantize", *words, "--format", "compressed-tensors")
    assert result.refused("q_proj: cannot be held by compressed-tensors", "--format planish")
    result = planish("quantize", *words, "--format", "planis")
    assert result.refused("did you mean planish?")
    words = (*words, "--format", "float", "--layout", "tiles")
    assert planish("quantize", *words).refused("is for --format planish")
    assert [*tmp_path.iterdir()] == []


def test_a_format_is_for_one_recipe(planish, tiny_llama, tmp_path):
    words = ("--model", tiny_llama, "--out", tmp_path / "q", "--method", "auto")
    assert planish("quantize", *words, "--format", "float").refused("--format", "one recipe")
    with pytest.raises(api.PlanishError, match="format: is for one recipe"):
        api.quantize(tiny_llama, tmp_path / "q", method="auto", format="float")


def test_a_conversion_that_fails_leaves_what_resume_needs(tiny_llama, tmp_path, monkeypatch):
    given = {"recipe": "W8A16", "format": "float"}

    def fail(*_: object, **__: object) -> None:
        raise OutputError("cannot be written: No space left on device")

    with monkeypatch.context() as full:
        full.setattr("planish.exporting.convert", fail)
        with pytest.raises(OutputError, match="No space left"):
            api.quantize(tiny_llama, tmp_path / "q", **given)
    assert {path.name for path in tmp_path.iterdir()} == {"q.partial"}
    api.quantize(tiny_llama, tmp_path / "q", **given, resume=True)
    api.quantize(tiny_llama, tmp_path / "again", **given)
    assert tensors(tmp_path / "q") == tensors(tmp_path / "again")
    assert {path.name for path in tmp_path.iterdir()} == {"q", "again"}


def test_convert_from_python_raises_typed_errors(quantized, tmp_path):
    with pytest.raises(RecipeError, match="format: unknown"):
        api.convert(quantized, tmp_path / "x", format="onnx")
    with pytest.raises(OutputError, match="is the model being read"):
        api.convert(quantized, quantized, format="float")
