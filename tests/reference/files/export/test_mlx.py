"""MLX affine: literal words, and every scheme that it holds comes back to the bit."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from planish.reference.files.export import WRITERS
from planish.reference.files.export.codes import regrouped
from planish.reference.files.export.protocol import CannotHoldError, Facts, Refusal
from planish.reference.files.export.tied import tie
from planish.reference.files.formats.offsets import whole_zero_points
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.grids import INT4_RULES
from planish.reference.model.embedding import embedding_rows
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

MLX = WRITERS["mlx"]


def test_a_zero_point_is_a_bias_of_minus_its_scale_times_itself():
    codes = np.arange(64, dtype=np.uint8).reshape(2, 32) % 16
    scale, zero = np.array([[0.5], [-2]], np.float16), np.array([[3], [15]], np.uint8)
    scheme = int4(32, symmetric=False)
    tensors, values = written(from_codes(codes, scale, zero, scheme), "mlx")
    assert tensors[f"{P}.weight"].dtype == np.uint32
    assert [hex(word) for word in tensors[f"{P}.weight"][0, :2]] == ["0x76543210", "0xfedcba98"]
    assert tensors[f"{P}.scales"].tolist() == [[0.5], [-2]]
    assert tensors[f"{P}.biases"].tolist() == [[-1.5], [30]]
    assert values == {"group_size": 32, "bits": 4, "mode": "affine", "lm_head": False}


@pytest.mark.parametrize("rule", INT4_RULES)
@pytest.mark.parametrize("size", [32, 64, 128])
def test_int4_comes_back_to_the_bit(tmp_path, rule, size):
    weight = int4_weight(random_weights(24, 384), size, rule)
    assert_same(read_back(weight, "mlx", tmp_path), weight)


@pytest.mark.parametrize(
    ("size", "cols", "finer"), [(-1, 96, 32), (-1, 256, 128), (512, 1024, 128), (64, 160, 32)]
)
@pytest.mark.parametrize("rule", ["signed", "minmax"])
def test_coarser_groups_and_a_short_last_one_come_back_finer(tmp_path, size, cols, finer, rule):
    weight = int4_weight(random_weights(8, cols), size, rule)
    found = read_back(weight, "mlx", tmp_path)
    assert found.scheme == regrouped(weight.scheme, finer)
    place = np.arange(0, cols, finer) // (cols if size == -1 else size)
    for kind, array in (("weight_scale", weight.scale), ("weight_zero_point", weight.zero_point)):
        if array is not None:
            np.testing.assert_array_equal(found.arrays[kind], array[:, place])
    np.testing.assert_array_equal(found.arrays["weight"], weight.codes)


def test_int8_comes_back_in_groups(tmp_path):
    weight = int8_weight(random_weights(8, 256))
    found = read_back(weight, "mlx", tmp_path)
    assert str(found.scheme) == "int8 g=128" and found.scheme.scale_dtype == "float16"
    np.testing.assert_array_equal(found.arrays["weight"], weight.codes)
    np.testing.assert_array_equal(found.arrays["weight_scale"], np.repeat(weight.scale, 2, axis=1))


def test_scales_whose_products_are_rounded_are_refused():
    wide = int4_weight(random_weights(8, 64), 32, "minmax", "float32")
    with pytest.raises(CannotHoldError, match="at most 16 significant bits, found") as caught:
        written(wide, "mlx")
    assert caught.value.refusal.nearest == "compressed-tensors"


def with_offsets(dtype, bits=4, by=0.1) -> QuantizedWeight:
    """Codes [8, 128] with offsets, which numbers of a type hold."""
    rng = np.random.default_rng(3)
    scale, offset = (rng.standard_normal((8, 2)).astype(dtype) for _ in range(2))
    kept = np.float16 if dtype == np.float16 else np.float32
    scheme = Scheme(
        bits=bits,
        granularity="per_group",
        group_size=64,
        symmetric=False,
        offset=True,
        scale_dtype=np.dtype(kept).name,
    )
    codes = rng.integers(0, 2**bits, (8, 128)).astype(np.uint8)
    weight = from_codes(codes, scale.astype(kept), None, scheme)
    return replace(weight, offset=offset.astype(np.float32))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_offsets_keep_the_narrowest_type(tmp_path, dtype, bits):
    weight = with_offsets(dtype, bits)
    tensors, values = written(weight, "mlx")
    assert tensors[f"{P}.scales"].dtype == tensors[f"{P}.biases"].dtype == dtype
    assert values["bits"] == bits and values["group_size"] == 64
    assert_same(read_back(weight, "mlx", tmp_path), weight)


def test_whole_zero_points_are_within_the_codes():
    scale = np.array([[0.5, -0.25], [2, 1]], np.float16)
    zeros = np.array([[0, 15], [3, 8]], np.uint8)
    offset = -scale.astype(np.float32) * zeros
    np.testing.assert_array_equal(whole_zero_points(scale, offset, 4), zeros)
    for place, wrong in (((0, 0), 0.5), ((1, 0), -32), ((1, 1), -8.5), ((0, 1), np.nan)):
        other = offset.copy()
        other[place] = wrong
        assert whole_zero_points(scale, other, 4) is None
    assert whole_zero_points(scale * 0, offset * 0, 4) is None


def test_a_scale_of_seventeen_bits_has_no_zero_points():
    scale = np.array([[1 + 2**-16]], np.float32)
    assert whole_zero_points(scale, -8 * scale, 4) is None
    short = np.array([[1 + 2**-15]], np.float32)
    assert whole_zero_points(short, -8 * short, 4).tolist() == [[8]]


@pytest.mark.parametrize(
    ("scheme", "shape", "nearest"),
    [
        (int4(32, activation="per_token"), (32, 32), "compressed-tensors"),
        (int8("per_tensor", "per_tensor"), (32, 32), "planish"),
        (replace(int4(32), act_order=True), (32, 32), "gptq_v2"),
        (int4(-1), (32, 48), "compressed-tensors"),
        (Scheme(bits=8, granularity="per_group", group_size=16), (32, 64), "compressed-tensors"),
    ],
)
def test_what_is_not_held_is_refused_with_the_nearest_format(scheme, shape, nearest):
    assert MLX.refuse(scheme, shape).nearest == nearest


def test_linears_of_other_settings_and_floats_are_declared_by_name():
    schemes = {f"{P}.{i}": int4(64) for i in range(3)} | {"down": int8(), "gate": None}
    schemes["down"] = MLX.regroup(int8(), (32, 192))
    values = MLX.config(schemes, Facts(program="planish 1", dtype="float32", shapes={}))
    assert values["quantization"] == values["quantization_config"]
    expected = {"group_size": 64, "bits": 4, "mode": "affine", "gate": False}
    assert values["quantization"] == {**expected, "down": {"group_size": 64, "bits": 8}}


@pytest.mark.parametrize("sample", ["mlx-4bit-g64", "mlx-8bit-g64"])
def test_mlx_linears_come_back_tensor_by_tensor(tmp_path, sample):
    """Those of the embedding, too, which is the head."""
    ours = convert_to(TARGET / sample, tmp_path / "ours", "planish")
    theirs = convert_to(ours, tmp_path / "theirs", "mlx")
    assert_equal(raw(theirs), raw(TARGET / sample))
    assert_equal(raw(convert_to(theirs, tmp_path / "again", "planish")), raw(ours))


def test_an_embedding_that_is_not_the_head_keeps_its_codes(tmp_path):
    path = TARGET / "gguf-q4_0" / "model.gguf"
    source = open_checkpoint(path)
    made = open_checkpoint(convert_to(path, tmp_path / "mlx", "mlx"))
    assert not source.config.tie_embeddings
    assert raw(tmp_path / "mlx")["model.embed_tokens.weight"][0] == "U32"
    rows = np.arange(source.config.vocab_size)
    first, second = (embedding_rows(load_weights(one).embed, rows) for one in (source, made))
    assert np.array_equal(first, second)


def test_an_embedding_whose_numbers_are_not_held_becomes_floats(monkeypatch):
    def refuse(*_):
        raise CannotHoldError(Refusal(expected="other scales", found="these", nearest="planish"))

    checkpoint = open_checkpoint(TARGET / "gguf-q4_0" / "model.gguf")
    assert tie(checkpoint, MLX).embedding is not None
    monkeypatch.setattr(MLX, "tensors", refuse)
    assert tie(checkpoint, MLX).embedding is None


@pytest.mark.parametrize("sample", ["gptq-v2-asym-g32", "autoround-as-mlx", "awq-gemm-g32"])
def test_zero_points_survive_mlx(tmp_path, sample):
    ours = convert_to(TARGET / sample, tmp_path / "ours", "planish")
    theirs = convert_to(ours, tmp_path / "theirs", "mlx")
    assert_equal(raw(convert_to(theirs, tmp_path / "again", "planish")), raw(ours))
