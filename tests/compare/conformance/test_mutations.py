"""The judge judged: each plausible mistake in the engine is caught, and the right level names it.

A mistake is made by replacing one function of the engine; the reference is left as it is. What is
replaced in `fast.linear` or `fast.weights` level 1 must name; what is replaced in `fast.model`
level 1 never calls, so it is not run there. The engine's own mistakes are in
test_engine_mutations.py, the kernels' in test_kernel_mutations.py.
"""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from planish.fast.model import transformer as fast_transformer
from planish.fast.model import weights as fast_weights
from planish.fast.xla import attention as xla_attention
from planish.fast.xla import backend as xla_backend
from planish.fast.xla import cache as xla_cache
from planish.fast.xla import linear as fast_linear
from planish.fast.xla.grids import divide
from planish.reference.linear import Linear
from planish.reference.packing import pack_nibbles, unpack_nibbles
from tests.compare.conftest import Mutation, with_activation, wrap


def swapped_nibbles(centred, weight):
    codes = unpack_nibbles(weight.codes, 2 * weight.codes.shape[1])
    swapped = codes.reshape(len(codes), -1, 2)[:, :, ::-1].reshape(codes.shape)
    return centred(replace(weight, codes=pack_nibbles(swapped)))


def shifted_groups(place, layer):
    placed = place(layer)
    if getattr(placed.weight, "layout", None) == "grouped":
        weight = replace(placed.weight, scale=np.roll(placed.weight.scale, 1, axis=0))
        return replace(placed, weight=weight)
    return placed


def transposed(place, layer):
    placed = place(layer)
    square = isinstance(layer.weight, np.ndarray) and len(set(layer.weight.shape)) == 1
    return replace(placed, weight=np.ascontiguousarray(layer.weight.T)) if square else placed


def without_bias(linear, x, layer, *residual):
    return linear(x, replace(layer, bias=None), *residual)


def project_without_bias(project, x, layers):
    return project(x, tuple(replace(layer, bias=None) for layer in layers))


def dynamic_instead_of_static(quantize, x, layer):
    kind = "per_tensor" if layer.activation == "static" else layer.activation
    return quantize(x, with_activation(layer, kind))


def with_nan(function, *arguments):
    y = function(*arguments)
    return y.at[(0,) * y.ndim].set(jnp.nan)


def groups_added_in_16_bits(rows, codes, a_scale, weight):
    return rows(codes, a_scale, weight).astype(jnp.bfloat16).astype(jnp.float32)


CODES = fast_linear
LEVEL_1: dict[str, tuple[str, Mutation, str]] = {
    "nibbles swapped, W4A8": (
        "W4A8",
        wrap(fast_weights, "centred_codes", swapped_nibbles),
        "q, weight codes",
    ),
    "nibbles swapped, W4A16": (
        "W4A16",
        wrap(fast_weights, "centred_codes", swapped_nibbles),
        "q, weight codes",
    ),
    "zero point off by one": (
        "W4A8-minmax",
        wrap(fast_weights, "centred_codes", lambda centred, w: centred(w) - np.int8(1)),
        "q, weight codes",
    ),
    "group scales shifted by a group": (
        "W4A8",
        wrap(fast_weights, "place_linear", shifted_groups),
        "q, weight scale",
    ),
    "a square weight transposed": (
        "float",
        wrap(fast_weights, "place_linear", transposed),
        "q, weight values",
    ),
    "128 instead of 127": (
        "W8A8",
        wrap(CODES, "int8_scale", lambda scale, m: divide(jnp.maximum(m, 1e-5), jnp.float32(128))),
        "int8 scale",
    ),
    "scale by a reciprocal": (
        "W8A8",
        wrap(CODES, "int8_scale", lambda scale, m: jnp.maximum(m, 1e-5) * jnp.float32(1 / 127)),
        "int8 scale",
    ),
    "largest clipped too high": (
        "W8A8",
        wrap(CODES, "int8_scale", lambda scale, m: divide(m, jnp.float32(127))),
        "int8 scale",
    ),
    "codes cut off, not rounded": (
        "W8A8",
        wrap(CODES, "int8_codes", lambda codes, x, s: jnp.trunc(divide(x, s)).astype(jnp.int8)),
        "q, real rows, activation codes",
    ),
    "half rounded up, not to even": (
        "W8A8",
        wrap(
            CODES, "int8_codes", lambda codes, x, s: jnp.floor(divide(x, s) + 0.5).astype(jnp.int8)
        ),
        "q, hard rows, activation codes",
    ),
    "static scale ignored": (
        "O3",
        wrap(CODES, "quantize_activations", dynamic_instead_of_static),
        "q, real rows, activation scale",
    ),
    "one sum wrong": (
        "W8A8",
        wrap(CODES, "integer_product", lambda product, x, w: product(x, w).at[-1, -1].add(1)),
        "integer product 1 x 96 x 33",
    ),
    "groups added in bfloat16": (
        "W4A8",
        wrap(CODES, "int4_rows", groups_added_in_16_bits),
        "q, integer sums",
    ),
    "NaN in a linear": ("W8A8", wrap(CODES, "int8_rows", with_nan), "q, 1 rows"),
}


@pytest.mark.matrix(4)
@pytest.mark.parametrize("name", LEVEL_1)
def test_level_1_names_a_wrong_op(judge, mutate, name):
    recipe, mutation, part = LEVEL_1[name]
    mutation(mutate)
    first = judge("llama", recipe, [1]).first_mismatch
    assert first is not None
    assert (first.level, first.part) == (1, part)


def times_reciprocal(codes, x, scale):
    return codes(x * divide(jnp.ones_like(scale), scale), jnp.float32(1))


@pytest.mark.matrix(3)
@pytest.mark.parametrize("recipe", ["W8A8", "O2", "O3", "W4A8", "W4A8-per_token"])
def test_level_1_names_codes_made_with_reciprocal_scales(judge, mutate, recipe):
    wrap(CODES, "int8_codes", times_reciprocal)(mutate)
    first = judge("llama", recipe, [1]).first_mismatch
    assert first is not None and first.level == 1
    assert first.part.endswith("activation codes")


@pytest.mark.parametrize("recipe", ["float", "W8A8"])
def test_level_1_names_a_missing_bias(judge, mutate, recipe):
    wrap(fast_linear, "linear", without_bias)(mutate)
    first = judge("opt", recipe, [1]).first_mismatch
    assert first is not None
    assert (first.level, first.part) == (1, "q, 1 rows")


def test_level_1_names_a_bias_lost_while_loading(judge, mutate):
    wrap(
        fast_weights,
        "place_linear",
        lambda place, layer: replace(place(layer), bias=None),
    )(mutate)
    first = judge("opt", "float", [1]).first_mismatch
    assert first is not None
    assert (first.level, first.part) == (1, "q, bias")


def neighbours_paired(rotate, x, cos, sin, rope):
    return rotate(x, cos, sin, replace(rope, interleaved=True))


def sharper_attention(attention, q, *rest, **options):
    return attention(q * jnp.float32(1.0001), *rest, **options)


def no_residual(forward, config, block, x, *rest):
    y, past = forward(config, block, x, *rest)
    return y - x, past


LEVEL_2: dict[str, tuple[str, str, Mutation, str]] = {
    "rope pairs neighbours": (
        "llama",
        "float",
        wrap(xla_attention, "rotate", neighbours_paired),
        "attention",
    ),
    "rope pairs neighbours, W8A8": (
        "llama",
        "W8A8",
        wrap(xla_attention, "rotate", neighbours_paired),
        "attention",
    ),
    "mask hides the token itself": (
        "llama",
        "float",
        wrap(xla_attention, "causal_mask", lambda mask, p, *rest: mask(p - 1, *rest)),
        "attention",
    ),
    "mask shows the next token": (
        "opt",
        "W8A8",
        wrap(xla_attention, "causal_mask", lambda mask, p, *rest: mask(p + 1, *rest)),
        "attention",
    ),
    "attention a little too sharp": (
        "llama",
        "W8A8",
        wrap(xla_attention, "attention", sharper_attention),
        "attention",
    ),
    "NaN from a norm": (
        "llama",
        "W8A8",
        wrap(fast_linear, "normalize", with_nan),
        "attention_norm",
    ),
    "bias forgotten by the model": (
        "opt",
        "W8A8",
        wrap(xla_backend, "project", project_without_bias),
        "q",
    ),
    "residual left out": (
        "opt",
        "W8A8",
        wrap(fast_transformer, "block_forward", no_residual),
        "block",
    ),
    "positions without their offset": (
        "opt",
        "float",
        wrap(fast_transformer, "embed", lambda embed, c, w, t, p, b: embed(c, w, t, p - 1, b)),
        "embed",
    ),
    "NaN from the head": (
        "llama",
        "float",
        wrap(fast_transformer, "unembed", with_nan),
        "unembed",
    ),
}


@pytest.mark.matrix(4)
@pytest.mark.parametrize("name", LEVEL_2)
def test_level_2_names_a_wrong_part(judge, mutate, name):
    family, recipe, mutation, part = LEVEL_2[name]
    mutation(mutate)
    first = judge(family, recipe, [2]).first_mismatch
    assert first is not None
    assert (first.level, first.part) == (2, part)


CACHE: dict[str, tuple[Mutation, str]] = {
    "codes cut off, not rounded": (
        wrap(
            xla_cache,
            "int8_codes",
            lambda codes, x, s: jnp.trunc(divide(x, s)).astype(jnp.int8),
        ),
        "keys in the cache, codes",
    ),
    "128 instead of 127": (
        wrap(xla_cache, "int8_scale", lambda scale, m: divide(m, jnp.float32(128))),
        "keys in the cache, scale",
    ),
    "read without its scale": (
        wrap(
            xla_attention,
            "read",
            lambda read, past: read(replace(past, value_scale=past.key_scale)),
        ),
        "attention",
    ),
}


@pytest.mark.matrix(4)
@pytest.mark.parametrize("recipe", ["float", "W8A8"])
@pytest.mark.parametrize("name", CACHE)
def test_level_2_names_a_wrong_int8_cache(judge, mutate, name, recipe):
    mutation, part = CACHE[name]
    mutation(mutate)
    first = judge("llama", recipe, [2], kv_cache="int8").first_mismatch
    assert first is not None
    assert (first.level, first.part) == (2, part)


def test_linear_is_the_same_function_everywhere():
    """The mutations above rely on it: the model calls the linear that level 1 judges."""
    assert xla_backend.linear is fast_linear.linear
    assert xla_backend.project is fast_linear.project
    assert isinstance(fast_weights.place_linear(Linear(np.eye(2, dtype=np.float32))), Linear)
