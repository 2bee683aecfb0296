"""GPTQ: literal words, and every scheme that it holds comes back to the bit."""

from dataclasses import replace

import numpy as np
import pytest

from planish.reference.errors import RecipeError
from planish.reference.files.export import WRITERS
from planish.reference.files.export.codes import regrouped
from planish.reference.files.export.protocol import CannotHoldError, Facts
from planish.reference.grids import INT4_RULES, SYMMETRIC_RULES
from planish.reference.quantized import QuantizedWeight, from_codes
from planish.reference.scheme import Scheme, int4, int8
from tests.golden.foreign import TARGET
from tests.reference.files.export.linears import (
    P,
    assert_same,
    int4_weight,
    int8_weight,
    random_weights,
    read_back,
    written,
)
from tests.reference.files.export.samples import assert_equal, convert_to, raw

V1, V2 = WRITERS["gptq"], WRITERS["gptq_v2"]
SIZES = (-1, 32, 64, 128, 256)


def plain_weight(value=8, symmetric=True, bits=4):
    """A weight [32, 32] whose codes of output 0 are 0, 1, 2, ..."""
    codes = np.full((32, 32), value, np.uint8)
    codes[0] = np.arange(32) % 16
    scale, zero = np.full((32, 1), 0.5, np.float16), np.full((32, 1), value, np.uint8)
    return from_codes(codes, scale, zero, int4(-1, symmetric=symmetric))


def test_codes_are_packed_along_the_inputs():
    tensors, _ = written(plain_weight(), "gptq")
    words = tensors[f"{P}.qweight"].view(np.uint32)
    assert words.shape == (4, 32)
    assert [hex(word) for word in words[:2, 0]] == ["0x76543210", "0xfedcba98"]


@pytest.mark.parametrize(("name", "stored"), [("gptq", 0x77777777), ("gptq_v2", 0x88888888)])
def test_version_1_stores_one_less(name, stored):
    tensors, values = written(plain_weight(), name)
    words = tensors[f"{P}.qzeros"].view(np.uint32)
    assert words.shape == (1, 4) and (words == stored).all()
    assert values["checkpoint_format"] == values["format"] == name


def test_a_trivial_g_idx_is_written():
    weight = int4_weight(random_weights(32, 96), 64, "signed")
    tensors, values = written(weight, "gptq")
    assert tensors[f"{P}.g_idx"].dtype == np.int32
    np.testing.assert_array_equal(tensors[f"{P}.g_idx"], np.arange(96) // 64)
    assert values["desc_act"] is False and values["sym"] is True


@pytest.mark.matrix(2)
@pytest.mark.parametrize("rule", INT4_RULES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cols", [64, 160])
@pytest.mark.parametrize("name", ["gptq", "gptq_v2"])
def test_int4_comes_back_to_the_bit(tmp_path, rule, size, cols, name):
    """160 inputs have a short last group of 64, 128 and 256."""
    weight = int4_weight(random_weights(64, cols), size, rule)
    if size >= cols:  # one group: a group of the whole row
        weight = replace(weight, scheme=regrouped(weight.scheme, -1))
    if name == "gptq" and rule not in SYMMETRIC_RULES:
        refusal = V1.refuse(weight.scheme, weight.shape)
        assert refusal.nearest == "gptq_v2"
        return
    assert_same(read_back(weight, name, tmp_path), weight)


def test_every_zero_point_is_held_by_version_2(tmp_path):
    zero = np.arange(32, dtype=np.uint8)[:, None] % 16
    codes = np.random.default_rng(0).integers(0, 16, (32, 64)).astype(np.uint8)
    scale = np.full((32, 1), -0.25, np.float16)
    weight = from_codes(codes, scale, zero, int4(-1, symmetric=False))
    assert_same(read_back(weight, "gptq_v2", tmp_path), weight)


@pytest.mark.parametrize("name", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("size", [-1, 16, 32, 128])
def test_int8_comes_back_to_the_bit(tmp_path, name, size):
    weight = int8_weight(random_weights(32, 160))
    if size != -1:
        scheme = Scheme(bits=8, granularity="per_group", group_size=size, scale_dtype="float16")
        scale = np.repeat(weight.scale.astype(np.float16), -(-160 // size), axis=1)
        weight = replace(weight, scale=scale * np.float16(2), scheme=scheme)
    weight.codes[3, 4] = -128
    found = read_back(weight, name, tmp_path)
    assert_same(found, weight)
    assert found.scheme.full_range == (size == -1)


def test_one_scale_for_all_becomes_one_for_each_row(tmp_path):
    weight = int8_weight(random_weights(32, 64), "per_tensor")
    found = read_back(weight, "gptq_v2", tmp_path)
    assert found.scheme.granularity == "per_channel"
    np.testing.assert_array_equal(found.arrays["weight"], weight.codes)
    np.testing.assert_array_equal(
        found.arrays["weight_scale"], np.full((32, 1), weight.scale[0, 0])
    )


@pytest.mark.parametrize("name", ["gptq", "gptq_v2"])
def test_act_order_is_written_as_g_idx(tmp_path, name):
    order = np.random.default_rng(5).permutation(96).astype(np.int32)
    order = np.concatenate([np.sort(order[start : start + 32]) for start in (0, 32, 64)])
    weight = int4_weight(random_weights(32, 96), 32, "absmax")
    scheme = replace(weight.scheme, act_order=True)
    weight = replace(weight, permutation=order, scheme=scheme)
    tensors, values = written(weight, name)
    assert values["desc_act"] is True
    np.testing.assert_array_equal(tensors[f"{P}.g_idx"][order], np.arange(96) // 32)
    assert_same(read_back(weight, name, tmp_path), weight)


def with_offsets(zeros: np.ndarray, by: float = 0) -> QuantizedWeight:
    """INT8 codes [32, 64] with offsets of -zeros * scale + by."""
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 256, (32, 64)).astype(np.uint8)
    scale = rng.standard_normal((32, 2)).astype(np.float16)
    offset = -scale.astype(np.float32) * zeros.astype(np.float32) + np.float32(by)
    scheme = Scheme(
        bits=8,
        granularity="per_group",
        group_size=32,
        symmetric=False,
        offset=True,
        scale_dtype="float16",
    )
    return QuantizedWeight(codes=codes, scale=scale, offset=offset, scheme=scheme, shape=(32, 64))


def test_offsets_that_are_zero_points_are_held_by_version_2(tmp_path):
    """GPTQ's asymmetric 8 bits are read so."""
    zeros = np.random.default_rng(2).integers(0, 256, (32, 2))
    weight = with_offsets(zeros)
    assert_same(read_back(weight, "gptq_v2", tmp_path), weight)
    assert V1.refuse(weight.scheme, weight.shape).nearest == "mlx"


@pytest.mark.parametrize("weight", [with_offsets(np.int64(7), 0.25), with_offsets(np.int64(256))])
def test_other_offsets_are_refused(weight):
    with pytest.raises(CannotHoldError, match="expected zero points, found offsets") as caught:
        written(weight, "gptq_v2")
    assert caught.value.refusal.nearest == "mlx"


def test_float32_scales_are_held_where_each_is_a_float16(tmp_path):
    wide = int4_weight(random_weights(32, 64), 32, "minmax", "float32")
    with pytest.raises(CannotHoldError, match=r"expected float16 scales, found [0-9.]+$") as caught:
        written(wide, "gptq_v2")
    assert caught.value.refusal.nearest == "compressed-tensors"
    narrow = int4_weight(random_weights(32, 64), 32, "minmax")
    scheme = replace(narrow.scheme, scale_dtype="float32")
    same = replace(narrow, scale=narrow.scale.astype(np.float32), scheme=scheme)
    assert_same(read_back(same, "gptq_v2", tmp_path), narrow)


@pytest.mark.parametrize(
    ("scheme", "shape", "found", "nearest"),
    [
        (int4(32, activation="per_token"), (32, 32), "input int8 per_token", "compressed-tensors"),
        (int8(activation="static"), (32, 32), "input int8 static", "compressed-tensors"),
        (int4(32, activation="per_group"), (32, 32), "input int8 per_group", "planish"),
        (int8("per_tensor", "per_tensor"), (32, 32), "input int8 per_tensor", "planish"),
        (int4(32), (40, 32), "40 and 32", "compressed-tensors"),
        (int4(32), (32, 40), "32 and 40", "compressed-tensors"),
    ],
)
@pytest.mark.parametrize("form", [V1, V2], ids=["gptq", "gptq_v2"])
def test_what_is_not_held_is_refused_with_the_nearest_format(form, scheme, shape, found, nearest):
    refusal = form.refuse(scheme, shape)
    assert found in refusal.found and refusal.nearest == nearest


def names(*parts):
    return [f"model.layers.{layer}.{part}" for layer in range(3) for part in parts]


def test_exceptions_are_declared_by_name():
    schemes = dict.fromkeys(names("self_attn.q_proj", "mlp.up_proj"), int4(64))
    schemes |= dict.fromkeys(names("mlp.down_proj"), int4(32, symmetric=False))
    schemes |= dict.fromkeys(names("mlp.gate"), None) | {"lm_head": None}
    schemes["model.layers.1.mlp.up_proj"] = int8()
    facts = Facts(program="planish 1.2", dtype="float16", shapes={})
    values = V2.config(schemes, facts)["quantization_config"]
    assert [values[key] for key in ("bits", "group_size", "sym", "lm_head")] == [4, 64, True, False]
    assert values["meta"] == {"quantizer": ["planish:1.2"]}
    down = r"+:^model[.]layers[.][0-9]+[.]mlp[.]down_proj$"
    gate = r"-:^model[.]layers[.][0-9]+[.]mlp[.]gate$"
    up = r"+:^model\.layers\.1\.mlp\.up_proj$"
    assert values["dynamic"].keys() == {down, gate, up}
    assert values["dynamic"][down]["sym"] is False and values["dynamic"][gate] == {}
    assert values["dynamic"][up]["bits"] == 8


def test_a_quantized_head_has_a_key_of_its_own():
    facts = Facts(program="planish 1", dtype="float16", shapes={})
    values = V1.config({P: int4(64), "lm_head": int4(64)}, facts)["quantization_config"]
    assert values["lm_head"] is True and "dynamic" not in values


@pytest.mark.matrix(2)
@pytest.mark.parametrize(
    ("sample", "name"),
    [
        ("gptq-v1-sym-g32", "gptq"),
        ("gptq-v1-sym-channel", "gptq"),
        ("gptq-v1-8bit-sym-g32", "gptq"),
        ("gptq-v1-sym-g32-desc_act", "gptq"),
        ("gptq-v2-asym-g32", "gptq_v2"),
    ],
)
def test_gptqmodels_own_files_come_back_tensor_by_tensor(tmp_path, sample, name):
    ours = convert_to(TARGET / sample, tmp_path / "ours", "planish")
    theirs = convert_to(ours, tmp_path / "theirs", name)
    assert_equal(raw(theirs), raw(TARGET / sample))
    assert_equal(raw(convert_to(theirs, tmp_path / "again", "planish")), raw(ours))


@pytest.mark.parametrize(
    "sample", ["gptq-v1-asym-g32", "awq-gemm-g32", "autoround-asym-g32", "mlx-4bit-g64"]
)
def test_version_1_refuses_asymmetric_models(tmp_path, sample):
    with pytest.raises(RecipeError, match=r"q_proj: cannot be held by gptq; expected symmetric"):
        convert_to(TARGET / sample, tmp_path / "out", "gptq")
    assert not any(tmp_path.iterdir())


def test_a_models_offsets_are_refused_before_it_looks_finished(tmp_path):
    with pytest.raises(RecipeError, match="expected zero points; --format mlx, found offsets"):
        convert_to(TARGET / "mlx-4bit-g64", tmp_path / "out", "gptq_v2")
    assert not any(tmp_path.iterdir())
