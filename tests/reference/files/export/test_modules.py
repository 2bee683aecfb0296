"""Hugging Face's names: fused, stacked, renamed and shifted tensors are put back."""

import numpy as np
import pytest

from planish.reference.errors import RecipeError
from planish.reference.files.export.modules import all_places, modules, public_name
from planish.reference.files.load import open_checkpoint
from tests.reference.files.export.conftest import GOLDEN, differing, logits

FUSED = ("bloom-tied", "chatglm-2", "falcon-40b-form", "gpt_bigcode-multi-query", "phi3-window")
OTHERS = ("gemma2-caps", "mixtral-two-of-four", "qwen3_moe-some-layers", "stablelm-12b-form")


@pytest.mark.matrix(3)
@pytest.mark.parametrize("name", [*FUSED, *OTHERS])
def test_a_quantized_model_has_the_names_of_its_source_again(name, quantized, converted):
    source = open_checkpoint(GOLDEN / name)
    own = quantized(GOLDEN / name, "W8A16", alpha=0.5)
    floats = converted(own, "float")
    assert floats.entries.keys() == source.entries.keys()
    for kind, entry in floats.entries.items():
        assert entry.shape == source.entries[kind].shape, kind
    np.testing.assert_array_equal(logits(floats), logits(own))


@pytest.mark.matrix(5)
@pytest.mark.parametrize("name", [*FUSED, *OTHERS])
def test_fused_and_stacked_codes_are_put_together_and_taken_apart(name, quantized, converted):
    own = quantized(GOLDEN / name, "W4A16", group_size=-1, rule="minmax")
    theirs = converted(own, "compressed-tensors")
    np.testing.assert_array_equal(logits(theirs), logits(own))
    assert differing(converted(theirs, "planish"), own) == []


def test_fused_scales_of_whole_tensors_become_scales_of_rows(quantized, converted):
    own = quantized(GOLDEN / "phi3-window", "O1")
    theirs = converted(own, "compressed-tensors")
    schemes = {place.name: place.scheme for place in all_places(own)}
    assert schemes["model.layers.0.self_attn.qkv_proj"].granularity == "per_channel"
    assert schemes["model.layers.0.self_attn.o_proj"].granularity == "per_tensor"
    np.testing.assert_array_equal(logits(theirs), logits(own))


def test_parts_of_one_tensor_with_different_schemes_are_refused(quantized, converted):
    own = quantized(GOLDEN / "phi3-window", "W8A16", scheme="*.k=float")
    with pytest.raises(RecipeError, match=r"qkv_proj: cannot be put together.*--format planish"):
        converted(own, "float")


def test_weights_of_a_transposed_model_are_dequantized_but_not_written_quantized(
    quantized, converted
):
    own = quantized(GOLDEN / "gpt2-megatron", "W8A16")
    np.testing.assert_array_equal(logits(converted(own, "float")), logits(own))
    with pytest.raises(RecipeError, match=r"c_attn: cannot be held.*Conv1D"):
        converted(own, "compressed-tensors")


def test_a_norm_that_smoothing_added_has_no_place(quantized, converted):
    own = quantized(GOLDEN / "opt-no-bias-no-affine", "W8A16", alpha=0.5)
    with pytest.raises(RecipeError, match=r"layer_norm: cannot be stored.*--format planish"):
        converted(own, "float")


def test_a_word_that_the_directory_leaves_off_is_put_back(quantized, converted):
    name = "bloom-hub-spelling-six-heads"
    assert "h.0.mlp.dense_h_to_4h.weight" in open_checkpoint(GOLDEN / name).entries
    own = quantized(GOLDEN / name, "W8A16")
    theirs = converted(own, "compressed-tensors")
    assert "transformer.h.0.mlp.dense_h_to_4h.weight" in theirs.entries
    assert public_name(own, "lm_head") == "lm_head"
    np.testing.assert_array_equal(logits(theirs), logits(own))


def test_tensors_that_nothing_changed_are_those_of_the_file(directories):
    checkpoint = open_checkpoint(directories["llama-tied"])
    found = {
        f"{one.name}.{kind}": x for one in modules(checkpoint) for kind, x in one.floats.items()
    }
    assert found.keys() == checkpoint.entries.keys()  # no lm_head: it is the embedding
    for name, tensor in found.items():
        assert tensor.tobytes() == checkpoint.entries[name].map().tobytes()
