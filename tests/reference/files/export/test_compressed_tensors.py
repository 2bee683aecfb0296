"""compressed-tensors: what is written, read back, and the same as llm-compressor writes."""

import json

import numpy as np
import pytest

from planish.fast.session.engine import Engine
from planish.reference.errors import RecipeError
from planish.reference.files.export import compressed_tensors
from planish.reference.files.load import open_checkpoint
from planish.reference.files.safetensors import read_entries
from planish.reference.scheme import Scheme, int4, int8
from tests.golden.foreign import TARGET as FOREIGN
from tests.reference.files.export.conftest import TOKENS, differing, logits

RECIPES = {  # each scheme that the format holds
    "W8A8": {},
    "O1": {},
    "O3": {},
    "O3-lm_head": {"head": "int4", "group_size": -1},
    "W8A16": {"head": "int8"},
    "W4A16": {"group_size": 32},
    "W4A16-asymmetric": {"group_size": 32, "rule": "minmax"},
    "W4A16-rows": {"group_size": -1},
    "W4A16-float32": {"group_size": 32, "scale_dtype": "float32", "head": "int4"},
    "W4A16-mixed": {"group_size": 32, "scheme": "*.down_proj=W8A16,o_proj=float,v_proj=W8A8"},
    "W4A8": {"group_size": 32, "activation": "per_token"},
    "W4A8-asymmetric": {"group_size": 32, "activation": "per_token", "rule": "minmax"},
}
WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
SAMPLES = [path for path in sorted(FOREIGN.iterdir()) if path.name.startswith("ct-w")]
SAMPLES += [FOREIGN / "autoround-as-llm_compressor"]


@pytest.fixture
def source(tiny, tmp_path):
    return tiny.write(tmp_path / "float", tiny.values(**WIDE))


@pytest.mark.matrix(4)
@pytest.mark.parametrize("name", RECIPES)
def test_what_is_written_is_read_back_to_the_bit(name, source, quantized, converted):
    own = quantized(source, name.partition("-")[0], **RECIPES[name])
    theirs = converted(own, "compressed-tensors")
    assert theirs.origin.format == "compressed-tensors"
    np.testing.assert_array_equal(logits(theirs), logits(own))
    back = converted(theirs, "planish")
    assert differing(back, own) == []
    assert back.schemes() == own.schemes()
    assert back.layout == own.layout


@pytest.mark.matrix(3)
@pytest.mark.parametrize("name", ["W8A8", "W4A16-asymmetric", "W4A8"])
def test_the_fast_engine_computes_the_same_from_both(name, source, quantized, converted, kernels):
    own = quantized(source, name.partition("-")[0], **RECIPES[name])
    theirs = converted(own, "compressed-tensors")
    for native in (False, True):
        found, expected = (Engine(one, native=native).forward(TOKENS) for one in (theirs, own))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_a_sample_of_llm_compressor_is_written_as_it_was(path, converted):
    theirs = converted(converted(open_checkpoint(path), "planish"), "compressed-tensors")
    found = read_entries(theirs.path / "model.safetensors")
    expected = read_entries(path / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, entry in expected.items():
        assert found[name].dtype == entry.dtype, name
        np.testing.assert_array_equal(
            found[name].map(), entry.map().astype(found[name].map().dtype)
        )
    groups = json.loads((path / "config.json").read_text())["quantization_config"]["config_groups"]
    ours = theirs.values["quantization_config"]["config_groups"]
    for key in ("num_bits", "symmetric", "strategy", "group_size"):
        assert ours["group_0"]["weights"][key] == groups["group_0"]["weights"][key]


def test_one_scheme_is_a_group_of_all_linears(source, quantized, converted):
    theirs = converted(quantized(source, "W4A16", group_size=32), "compressed-tensors")
    said = theirs.values["quantization_config"]
    assert said["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert said["ignore"] == ["lm_head"]
    assert (said["format"], said["quantization_status"]) == ("pack-quantized", "compressed")


def test_several_schemes_are_groups_with_expressions(source, quantized, converted):
    own = quantized(source, "W4A16", **RECIPES["W4A16-mixed"])
    said = converted(own, "compressed-tensors").values["quantization_config"]
    assert said["format"] == "mixed-precision"
    formats = {
        target.rpartition("]")[2]: group["format"]
        for group in said["config_groups"].values()
        for target in group["targets"]
    }
    assert formats["down_proj$"] == formats["q_proj$"] == "pack-quantized"
    assert formats["v_proj$"] == "int-quantized"
    assert "model.layers.0.self_attn.o_proj" in said["ignore"]


def test_files_have_no_padding_and_name_their_format(source, quantized, converted):
    theirs = converted(quantized(source, "W8A16"), "compressed-tensors")
    raw = (theirs.path / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert not [name for name in header if "padding" in name]


@pytest.mark.parametrize(
    ("scheme", "cols", "words"),
    [
        (int8("per_tensor", "per_tensor"), 64, "int8 per_tensor, input int8 per_tensor"),
        (int4(32, activation="per_group"), 64, "input int8 per_group"),
        (int4(32), 40, "40 inputs in groups of 32"),
        (
            Scheme(bits=4, granularity="per_group", group_size=32, symmetric=False, offset=True),
            64,
            "int4 g=32 offset",
        ),
        (Scheme(bits=4, granularity="per_group", group_size=32, act_order=True), 64, "act order"),
    ],
)
def test_what_it_cannot_hold_is_refused_with_the_nearest(scheme, cols, words):
    refusal = compressed_tensors.refuse(scheme, (16, cols))
    assert words in refusal.found
    nearest = {"int4 g=32 offset": "mlx", "act order": "gptq_v2"}
    assert refusal.nearest == nearest.get(words, "planish")


def test_a_refusal_is_one_line_that_names_the_linear(source, quantized, converted, tmp_path):
    own = quantized(source, "W4A8", group_size=32)
    with pytest.raises(RecipeError) as problem:
        converted(own, "compressed-tensors")
    for words in (
        "model.layers.0.self_attn.q_proj: cannot be held by compressed-tensors",
        "--format planish",
        "per_group",
    ):
        assert words in str(problem.value)
    assert not [*tmp_path.glob("converted*"), *tmp_path.glob(".converted*")]


def test_groups_are_at_most_128_as_vllm_takes_them(tiny, tmp_path, quantized, converted):
    wide = tiny.values(hidden_size=512, intermediate_size=64, num_attention_heads=4)
    source = tiny.write(tmp_path / "float", wide)
    own = quantized(source, "W4A16", group_size=256, rule="minmax")
    theirs = converted(own, "compressed-tensors")
    scale = theirs.entries["model.layers.0.self_attn.q_proj.weight_scale"].map()
    assert scale.shape[1] == 4
    np.testing.assert_array_equal(scale[:, 0], scale[:, 1])
    np.testing.assert_array_equal(logits(theirs), logits(own))


def test_a_short_last_group_becomes_groups_of_32(tiny, tmp_path, quantized, converted):
    source = tiny.write(tmp_path / "float", tiny.values(**WIDE))
    own = quantized(source, "W4A16", group_size=64)
    theirs = converted(own, "compressed-tensors")
    sizes = {prefix.rpartition(".")[2]: s.group_size for prefix, s in theirs.schemes().items() if s}
    assert sizes["q_proj"] == -1  # a group of all 64 inputs
    assert sizes["down_proj"] == 32  # 96 inputs
    np.testing.assert_array_equal(logits(theirs), logits(own))
