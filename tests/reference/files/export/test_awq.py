"""AWQ gemm: literal words, and every scheme that it holds comes back to the bit."""

from dataclasses import replace

import numpy as np
import pytest

from planish.reference.files.export import WRITERS
from planish.reference.files.export.codes import regrouped
from planish.reference.files.export.protocol import CannotHoldError, Facts
from planish.reference.grids import INT4_RULES
from planish.reference.quantized import dequantize, from_codes
from planish.reference.scheme import int4, int8
from tests.golden.foreign import TARGET
from tests.reference.files.export.linears import (
    P,
    arrays_of,
    assert_same,
    int4_weight,
    random_weights,
    read_back,
    written,
)
from tests.reference.files.export.samples import assert_equal, convert_to, raw

AWQ = WRITERS["awq"]


def test_codes_are_packed_along_the_outputs_even_ones_first():
    codes = np.zeros((32, 32), np.uint8)
    codes[:, 0] = np.arange(32) % 16
    scale, zero = np.full((32, 1), 0.5, np.float16), codes[:, :1]
    tensors, values = written(from_codes(codes, scale, zero, int4(-1, symmetric=False)), "awq")
    words, zeros = (tensors[f"{P}.{kind}"].view(np.uint32) for kind in ("qweight", "qzeros"))
    assert words.shape == (32, 4) and zeros.shape == (1, 4)
    expected = ["0x75316420", "0xfdb9eca8", "0x75316420", "0xfdb9eca8"]
    assert [hex(word) for word in words[0]] == [hex(word) for word in zeros[0]] == expected
    assert values["version"] == "gemm" and values["zero_point"] is True
    assert values["modules_to_not_convert"] == ["lm_head"]


@pytest.mark.parametrize("rule", INT4_RULES)
@pytest.mark.parametrize("size", [-1, 32, 64, 128])
def test_int4_comes_back_to_the_bit(tmp_path, rule, size):
    weight = int4_weight(random_weights(64, 384), size, rule)
    assert_same(read_back(weight, "awq", tmp_path), weight)


@pytest.mark.parametrize(
    ("size", "cols", "finer"), [(256, 512, 128), (64, 160, 32), (128, 192, 64)]
)
@pytest.mark.parametrize("rule", ["signed", "minmax"])
def test_coarser_groups_and_a_short_last_one_come_back_finer(tmp_path, size, cols, finer, rule):
    weight = int4_weight(random_weights(32, cols), size, rule)
    found = read_back(weight, "awq", tmp_path)
    assert found.scheme == regrouped(weight.scheme, finer)
    np.testing.assert_array_equal(found.arrays["weight"], weight.codes)
    place = np.arange(0, cols, finer) // size
    np.testing.assert_array_equal(found.arrays["weight_scale"], weight.scale[:, place])
    again = replace(
        weight,
        scale=found.arrays["weight_scale"],
        zero_point=found.arrays.get("weight_zero_point"),
        scheme=found.scheme,
    )
    np.testing.assert_array_equal(dequantize(again), dequantize(weight))


def test_symmetric_is_read_from_zero_points_of_8(tmp_path):
    weight = int4_weight(random_weights(32, 64), 32, "absmax")
    eights = np.full(weight.scale.shape, 8, np.uint8)
    asymmetric = replace(weight, zero_point=eights, scheme=replace(weight.scheme, symmetric=False))
    found = read_back(asymmetric, "awq", tmp_path)
    assert found.scheme.symmetric and found.arrays.keys() == arrays_of(weight).keys()


def test_float32_scales_are_held_where_each_is_a_float16(tmp_path):
    wide = int4_weight(random_weights(32, 64), 32, "minmax", "float32")
    with pytest.raises(CannotHoldError, match="expected float16 scales, found"):
        written(wide, "awq")


@pytest.mark.parametrize(
    ("scheme", "shape", "nearest"),
    [
        (int4(32, activation="per_token"), (32, 32), "compressed-tensors"),
        (int4(32, activation="per_group"), (32, 32), "planish"),
        (int8(), (32, 32), "gptq_v2"),
        (replace(int4(32), act_order=True), (32, 32), "gptq_v2"),
        (int4(32), (8, 32), "compressed-tensors"),
        (int4(32), (32, 48), "compressed-tensors"),
    ],
)
def test_what_is_not_held_is_refused_with_the_nearest_format(scheme, shape, nearest):
    assert AWQ.refuse(scheme, shape).nearest == nearest


def test_other_groups_are_declared_by_name():
    facts = Facts(program="planish 1", dtype="float16", shapes={})
    schemes = {f"{P}.{i}": int4(128) for i in range(3)} | {"down": int4(64), "gate": None}
    values = AWQ.config(schemes, facts)["quantization_config"]
    assert values["group_size"] == 128 and values["modules_to_not_convert"] == ["gate"]
    assert values["dynamic"]["+:^down$"]["group_size"] == 64


@pytest.mark.parametrize("sample", ["awq-gemm-g32", "autoround-asym-g32"])
def test_awqs_own_files_come_back_tensor_by_tensor(tmp_path, sample):
    ours = convert_to(TARGET / sample, tmp_path / "ours", "planish")
    theirs = convert_to(ours, tmp_path / "theirs", "awq")
    assert_equal(raw(theirs), raw(TARGET / sample))
    assert_equal(raw(convert_to(theirs, tmp_path / "again", "planish")), raw(ours))
