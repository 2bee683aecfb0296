"""The judge judged: each plausible mistake of an engine is caught, and the right level names it.

The reference is left as it is; one answer of the subject is changed (tests/compare/mutations.py).
This file has what every model has, in the portable form; native kernels are in
test_kernel_mutations.py, features in test_feature_mutations.py, and level 3 is in
test_engine_mutations.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planish.compare.conformance.kv_cache import project_qkv
from planish.reference.quantized import QuantizedWeight
from tests.compare.mutations import (
    Mutation,
    change_part,
    of_config,
    of_kind,
    other_pairs,
    read_as,
    sharper,
    shift_mask,
    store_as,
    swap_nibbles,
    with_activation,
    with_nan,
    with_weight,
    without_bias,
)

F = np.float32


def transposed(linear):
    square = isinstance(linear.weight, np.ndarray) and len(set(linear.weight.shape)) == 1
    return replace(linear, weight=np.ascontiguousarray(linear.weight.T)) if square else linear


def int8_codes(recode):
    """Activation codes made of x and the right scale in another way."""

    def codes(quantize, x, linear):
        _, scale = quantize(x, linear)
        wide = np.repeat(scale, -(-x.shape[1] // scale.shape[1]), axis=1)[:, : x.shape[1]]
        if isinstance(linear.weight, QuantizedWeight) and scale.shape[1] > 1:
            size = linear.weight.scheme.group_size
            wide = np.repeat(scale, size, axis=1)[:, : x.shape[1]]
        return np.clip(recode(x, wide), -127, 127).astype(np.int8), scale

    return change_part("codes", activation_codes=codes)


def dynamic_instead_of_static(quantize, x, linear):
    kind = "per_tensor" if linear.activation == "static" else linear.activation
    return quantize(x, with_activation(linear, kind))


def last_plus_one(product, *arguments):
    y = np.array(product(*arguments))
    y[-1, -1] += 1
    return y


def in_16_bits(sums, *arguments):
    """The upper half of each float32: what bfloat16 keeps."""
    return (sums(*arguments).view(np.uint32) & np.uint32(0xFFFF0000)).view(F)


def scales(change):
    return change_part("codes", int8_scale=lambda scale, absmax: change(absmax))


LEVEL_1: dict[str, tuple[str, Mutation, str]] = {
    "nibbles swapped, W4A8": (
        "W4A8",
        store_as(with_weight(codes=swap_nibbles)),
        "q, weight codes",
    ),
    "nibbles swapped, W4A16": (
        "W4A16",
        store_as(with_weight(codes=swap_nibbles)),
        "q, weight codes",
    ),
    "zero point off by one": (
        "W4A8-minmax",
        store_as(with_weight(zero_point=lambda z: z + np.uint8(1))),
        "q, weight codes",
    ),
    "group scales shifted by a group": (
        "W4A8",
        store_as(with_weight(scale=lambda s: np.roll(s, 1, axis=1))),
        "q, weight scale",
    ),
    "a square weight transposed": ("float", store_as(transposed), "q, weight values"),
    "128 instead of 127": ("W8A8", scales(lambda m: np.maximum(m, F(1e-5)) / F(128)), "int8 scale"),
    "scale by a reciprocal": (
        "W8A8",
        scales(lambda m: np.maximum(m, F(1e-5)) * F(1 / 127)),
        "int8 scale",
    ),
    "largest clipped too high": ("W8A8", scales(lambda m: m / F(127)), "int8 scale"),
    "codes cut off, not rounded": (
        "W8A8",
        int8_codes(lambda x, s: np.trunc(x / s)),
        "q, real rows, activation codes",
    ),
    "half rounded up, not to even": (
        "W8A8",
        int8_codes(lambda x, s: np.floor(x / s + F(0.5))),
        "q, hard rows, activation codes",
    ),
    "static scale ignored": (
        "O3",
        change_part("codes", activation_codes=dynamic_instead_of_static),
        "q, real rows, activation scale",
    ),
    "one sum wrong": (
        "W8A8",
        change_part("codes", integer_product=last_plus_one),
        "integer product 1 x 96 x 33",
    ),
    "groups added in bfloat16": (
        "W4A8",
        change_part("codes", group_sums=in_16_bits),
        "q, integer sums",
    ),
    "NaN in a linear": ("W8A8", change_part("ops", linear=with_nan), "q, 1 rows"),
}


@pytest.mark.matrix(14, 3)
@pytest.mark.parametrize("name", LEVEL_1)
def test_level_1_names_a_wrong_op(judge, name):
    recipe, mutation, part = LEVEL_1[name]
    first = judge("llama", recipe, [1], mutation=mutation).first_mismatch
    assert first is not None
    assert (first.level, first.part) == (1, part)


@pytest.mark.whole
@pytest.mark.parametrize("recipe", ["W8A8", "O2", "O3", "W4A8", "W4A8-per_token"])
def test_level_1_names_codes_made_with_reciprocal_scales(judge, recipe):
    mutation = int8_codes(lambda x, s: np.rint(x * (F(1) / s)))
    first = judge("llama", recipe, [1], mutation=mutation).first_mismatch
    assert first is not None and first.level == 1
    assert first.part.endswith("activation codes")


@pytest.mark.matrix(2)
@pytest.mark.parametrize("recipe", ["float", "W8A8"])
def test_level_1_names_a_missing_bias(judge, recipe):
    forgotten = change_part(
        "ops", linear=lambda run, x, linear, *rest: run(x, without_bias(linear), *rest)
    )
    first = judge("opt", recipe, [1], mutation=forgotten).first_mismatch
    assert first is not None
    assert (first.level, first.part) == (1, "q, 1 rows")


def test_level_1_names_a_bias_lost_while_loading(judge):
    first = judge("opt", "float", [1], mutation=store_as(without_bias)).first_mismatch
    assert first is not None
    assert (first.level, first.part) == (1, "q, bias")


def without_biases(project, norm, linears, x):
    return project(norm, list(map(without_bias, linears)), x)


def without_offset(config):
    return replace(config, position_offset=config.position_offset - 1)


LEVEL_2: dict[str, tuple[str, str, Mutation, str]] = {
    "rope pairs neighbours": ("llama", "float", of_config("attend", other_pairs), "attention"),
    "rope pairs neighbours, W8A8": ("llama", "W8A8", of_config("attend", other_pairs), "attention"),
    "mask hides the token itself": ("llama", "float", shift_mask(-1), "attention"),
    "mask shows the next token": ("opt", "W8A8", shift_mask(1), "attention"),
    "attention a little too sharp": ("llama", "W8A8", of_kind(sharper), "attention"),
    "NaN from a norm": (
        "llama",
        "W8A8",
        change_part("modules", project=with_nan),
        "attention_norm",
    ),
    "bias forgotten by the model": (
        "opt",
        "W8A8",
        change_part("modules", project=without_biases),
        "q",
    ),
    "residual left out": (
        "opt",
        "W8A8",
        change_part("modules", block=lambda run, config, block, x: run(config, block, x) - x),
        "block",
    ),
    "positions without their offset": ("opt", "float", of_config("embed", without_offset), "embed"),
    "NaN from the head": ("llama", "float", change_part("modules", unembed=with_nan), "unembed"),
}


@pytest.mark.matrix(12)
@pytest.mark.parametrize("name", LEVEL_2)
def test_level_2_names_a_wrong_part(judge, name):
    family, recipe, mutation, part = LEVEL_2[name]
    first = judge(family, recipe, [2], mutation=mutation).first_mismatch
    assert first is not None
    assert (first.level, first.part) == (2, part)


def keys_cut_off(run, config, block, x, *rest):
    """Keys whose codes are truncated and not rounded."""
    y, (keys, *others) = run(config, block, x, *rest)
    scale = others[1][0].swapaxes(0, 1)[: len(x), :, None]  # [T, G, 1]
    codes = np.trunc(project_qkv(config, block, x)[1] / scale).astype(np.int8)
    keys = np.array(keys)
    keys[0, :, : len(x)] = codes.swapaxes(0, 1)
    return y, (keys, *others)


def over_128(run, *arguments):
    y, (keys, values, *scales) = run(*arguments)
    return y, (keys, values, *(scale * F(127) / F(128) for scale in scales))


CACHE: dict[str, tuple[Mutation, str]] = {
    "codes cut off, not rounded": (
        change_part("modules", attend=keys_cut_off),
        "keys in the cache, codes",
    ),
    "128 instead of 127": (change_part("modules", attend=over_128), "keys in the cache, scale"),
    "read without its scale": (read_as(lambda k, v, s, t: (k, v, s, s)), "attention"),
}


@pytest.mark.matrix(6)
@pytest.mark.parametrize("recipe", ["float", "W8A8"])
@pytest.mark.parametrize("name", CACHE)
def test_level_2_names_a_wrong_int8_cache(judge, name, recipe):
    mutation, part = CACHE[name]
    first = judge("llama", recipe, [2], kv_cache="int8", mutation=mutation).first_mismatch
    assert first is not None
    assert (first.level, first.part) == (2, part)
