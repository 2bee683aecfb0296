"""Group sizes and schemes that a program cannot take."""

import pytest

from planish.compare.lint.groups import check_groups
from planish.reference.scheme import Scheme
from tests.compare.lint.conftest import activations, linear


def rules(form, size, cols=256, scheme=None):
    one = linear(format=form, group_size=size, scheme=scheme, shape=(32, cols))
    return {found.rule for found in check_groups(one)}


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("form", ["gptq", "awq", "pack-quantized", "mlx", "Q4_0", "planish"])
def test_sizes_that_everybody_takes(form, size):
    assert rules(form, size) == set()


@pytest.mark.parametrize(
    ("form", "size", "expected"),
    [
        ("gptq", 256, {"group-vllm"}),
        ("gptq", 16, {"group-vllm", "group-llama"}),
        ("gptq", -1, set()),
        ("awq", -1, {"group-mlx"}),
        ("awq", 256, {"group-vllm", "group-mlx"}),
        ("pack-quantized", -1, {"group-llama"}),
        ("int-quantized", -1, set()),
        ("int-quantized", 32, {"group-llama"}),
        ("mlx", 256, {"group-mlx"}),
        ("Q6_K", 16, set()),
        ("planish", 256, set()),
    ],
)
def test_sizes_that_some_program_refuses(form, size, expected):
    assert rules(form, size) == expected


def test_a_short_last_group():
    assert rules("pack-quantized", 64, cols=96) == {"group-short"}
    assert rules("gptq", 64, cols=96) == {"group-short-gptq"}
    assert rules("planish", 64, cols=96) == set()
    assert rules("gptq", 32, cols=96) == set()


def test_rows_that_fit_no_block_of_gguf():
    assert rules("gptq", -1, cols=80) == {"group-llama"}


def test_asymmetric_codes_in_pack_quantized():
    scheme = Scheme(bits=4, granularity="per_group", group_size=32, symmetric=False)
    assert rules("pack-quantized", 32, scheme=scheme) == {"asymmetric-transformers"}
    assert rules("awq", 32, scheme=scheme) == set()


@pytest.mark.parametrize(
    ("kind", "expected"), [("per_token", set()), ("per_group", {"scheme-vllm"})]
)
def test_inputs_that_vllm_has_no_scheme_for(kind, expected):
    scheme = activations(kind)
    assert rules("pack-quantized", 32, scheme=scheme) == expected


def test_one_scale_for_all_in_int_quantized():
    scheme = Scheme(bits=8, granularity="per_tensor", activation="per_tensor")
    assert rules("int-quantized", -1, scheme=scheme) == {"group-llama", "scheme-vllm"}
