"""The judge judged on the native form: what a wrong kernel would do, and which check names it.

Kernels cannot be replaced from here, so mistakes are made at their door (fast/native.py): a wrong
operand, a wrong order, something left out.
"""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import pytest

from planish.fast.model import weights as fast_weights
from planish.fast.model.cache import FIELDS
from planish.fast.native import backend as native_backend
from planish.fast.native import linear as native_linear
from planish.fast.native.cache import TiledSlots
from tests.compare.conftest import Mutation, with_activation, wrap


def handed(change):
    """Change codes, scale, zero point (and bias) as they are handed to a kernel."""
    return lambda arguments, layer: change(*arguments(layer))


def tiles_transposed(place, layer):
    placed = place(layer)
    if not native_linear.is_tiled(placed):
        return placed
    codes = placed.weight.codes.swapaxes(2, 3).reshape(placed.weight.codes.shape)
    return replace(placed, weight=replace(placed.weight, codes=codes))


def one_tensor_scale(linears, x, layers, *arguments, **options):
    kind = "per_tensor" if layers[0].activation == "static" else layers[0].activation
    layers = [with_activation(layer, kind) for layer in layers]
    return linears(x, layers, *arguments, **options)


def without_bias(linears, x, layers, *arguments, **options):
    layers = [replace(layer, bias=None) for layer in layers]
    return linears(x, layers, *arguments, **options)


def wrong_on_the_last_set(linears, x, layers, *arguments, isa="", **options):
    found = linears(x, layers, *arguments, isa=isa, **options)
    return tuple(y.at[-1, -1, -1].add(1.0) for y in found) if isa == "plain" else found


def next_input(linears, x, *arguments, **options):
    return linears(x * jnp.float32(1 + 2**-23), *arguments, **options)


def with_options(**changes):
    """A call of native.linears with some of its operands replaced."""

    def call(linears, x, layers, norm=None, **options):
        values = {"norm": norm, **options}
        values |= {key: change(values[key]) for key, change in changes.items() if key in values}
        return linears(x, layers, **values)

    return call


ARGUMENTS = "weight_arguments"
SEEN = "q, real rows, codes times scale, {isa}"
LEVEL_1: dict[str, tuple[str, str, Mutation, str]] = {
    "tiles transposed": (
        "llama",
        "W4A8",
        wrap(fast_weights, "place_linear", tiles_transposed),
        "q, weight codes",
    ),
    "zero points one too high": (
        "llama",
        "W4A8-minmax",
        wrap(
            native_linear,
            ARGUMENTS,
            handed(lambda c, s, z=None: (c, s, z + jnp.uint8(1)) if z is not None else (c, s)),
        ),
        "q, 1 rows, {isa}",
    ),
    "zero points of the next group": (
        "llama",
        "W4A8-minmax",
        wrap(
            native_linear,
            ARGUMENTS,
            handed(lambda c, s, z=None: (c, s, jnp.roll(z, 1, 1)) if z is not None else (c, s)),
        ),
        "q, 1 rows, {isa}",
    ),
    "scales of the next group": (
        "llama",
        "W4A8",
        wrap(native_linear, ARGUMENTS, handed(lambda c, s: (c, jnp.roll(s, 1, 1)))),
        "q, 1 rows, {isa}",
    ),
    "scales an ulp too large": (
        "llama",
        "W8A8",
        wrap(
            native_linear,
            ARGUMENTS,
            handed(lambda c, s: (c, jnp.nextafter(s, jnp.float32(9)))),
        ),
        SEEN,
    ),
    "nibbles swapped": (
        "llama",
        "W4A8",
        wrap(
            native_linear,
            ARGUMENTS,
            handed(lambda c, s: ((c << jnp.uint8(4)) | (c >> jnp.uint8(4)), s)),
        ),
        SEEN,
    ),
    "inputs an ulp too large": (
        "llama",
        "W8A8",
        wrap(native_linear, "linears", next_input),
        SEEN,
    ),
    "static scale ignored": (
        "llama",
        "O3",
        wrap(native_linear, "linears", one_tensor_scale),
        SEEN,
    ),
    "bias left out": (
        "opt",
        "W4A8",
        wrap(native_linear, "linears", without_bias),
        "q, 1 rows, {isa}",
    ),
    "bias left out, weight-only": (
        "opt",
        "W8A16",
        wrap(native_linear, "linears", without_bias),
        "q, 1 rows, {isa}",
    ),
}


@pytest.mark.matrix(4)
@pytest.mark.parametrize("name", LEVEL_1)
def test_level_1_names_a_wrong_kernel(judge, mutate, kernels, name):
    family, recipe, mutation, part = LEVEL_1[name]
    mutation(mutate)
    first = judge(family, recipe, [1], native=True).first_mismatch
    assert first is not None
    assert (first.level, first.part) == (1, part.format(isa=kernels[0]))


def test_level_1_names_the_instruction_set_that_is_wrong(judge, mutate, kernels):
    """Nobody runs the last one where there are better ones, and still it is judged."""
    if kernels[-1] != "plain" or len(kernels) == 1:
        pytest.skip("the portable kernels are not the last of several")
    wrap(native_linear, "linears", wrong_on_the_last_set)(mutate)
    failed = [item for item in judge("llama", "W8A8", [1], True).checks if not item.agrees]
    assert failed and all(item.part.endswith(", plain") for item in failed)


def order_of_outputs(linears, *arguments, **options):
    found = linears(*arguments, **options)
    return (found[0], found[2], found[1]) if len(found) == 3 else found


def gate_for_up(linears, x, layers, *arguments, gated=False, **options):
    layers = layers[::-1] if gated else layers
    return linears(x, layers, *arguments, gated=gated, **options)


def one_token_early(attention, qkv, positions, *rest):
    return attention(qkv, replace(positions, index=jnp.maximum(positions.index - 1, 0)), *rest)


def unrotated(attention, qkv, positions, past, config):
    return attention(qkv, positions, past, replace(config, rope=None, table=None))


def a_little_sharper(attention, qkv, *rest):
    return attention((qkv[0] * jnp.float32(1.0001), *qkv[1:]), *rest)


def written(change):
    """Change the cache that attention hands back."""

    def call(attention, *arguments, **options):
        mixed, past = attention(*arguments, **options)
        return mixed, TiledSlots(**dict(zip(FIELDS, change(*past.arrays), strict=False)))

    return call


def last_slot_lost(keys, values, *scales):
    return (keys, values.at[:, :, 39].set(0), *scales)


LINEARS, ATTENTION = "linears", "attention"
LEVEL_2: dict[str, tuple[str, str, Mutation, str]] = {
    "norm left out": (
        "W8A8",
        "float32",
        wrap(native_linear, LINEARS, with_options(norm=lambda norm: None)),
        "attention_norm",
    ),
    "norm without its weight": (
        "W4A16",
        "float32",
        wrap(
            native_linear,
            LINEARS,
            with_options(norm=lambda norm: norm and replace(norm, weight=None)),
        ),
        "attention_norm",
    ),
    "epsilon of the norm a hundred times too large": (
        "W4A8",
        "float32",
        wrap(
            native_linear,
            LINEARS,
            with_options(norm=lambda norm: norm and replace(norm, eps=100 * norm.eps)),
        ),
        "attention_norm",
    ),
    "keys for values": (
        "W8A8",
        "float32",
        wrap(native_linear, LINEARS, order_of_outputs),
        "k behind its norm",
    ),
    "gate for up": (
        "W8A8",
        "float32",
        wrap(native_linear, LINEARS, gate_for_up),
        "mlp",
    ),
    "residual left out": (
        "W8A8",
        "float32",
        wrap(native_linear, LINEARS, with_options(residual=lambda residual: None)),
        "o and the residual behind attention",
    ),
    "residual an ulp too large": (
        "W4A8",
        "float32",
        wrap(
            native_linear,
            LINEARS,
            with_options(residual=lambda r: r if r is None else jnp.nextafter(r, 2 * r)),
        ),
        "o and the residual behind attention",
    ),
    "a position too early": (
        "W8A8",
        "float32",
        wrap(native_backend, ATTENTION, one_token_early),
        "attention",
    ),
    "not rotated": (
        "float",
        "float32",
        wrap(native_backend, ATTENTION, unrotated),
        "attention",
    ),
    "attention a little too sharp": (
        "W8A8",
        "float32",
        wrap(native_backend, ATTENTION, a_little_sharper),
        "attention",
    ),
    "attention a little too sharp over INT8": (
        "float",
        "int8",
        wrap(native_backend, ATTENTION, a_little_sharper),
        "attention",
    ),
    "scales of keys for those of values": (
        "W8A8",
        "int8",
        wrap(native_backend, ATTENTION, written(lambda k, v, s, t: (k, v, t, s))),
        "keys in the cache, scale",
    ),
    "slots moved within their tile": (
        "W8A8",
        "int8",
        wrap(
            native_backend,
            ATTENTION,
            written(lambda k, *rest: (jnp.roll(k, 1, axis=-1), *rest)),
        ),
        "keys in the cache, codes",
    ),
    "last slot lost": (
        "float",
        "int8",
        wrap(native_backend, ATTENTION, written(last_slot_lost)),
        "values in the cache, codes",
    ),
}


@pytest.mark.matrix(4)
@pytest.mark.parametrize("name", LEVEL_2)
def test_level_2_names_a_wrong_part_of_a_kernel(judge, mutate, name):
    recipe, kv_cache, mutation, part = LEVEL_2[name]
    mutation(mutate)
    first = judge("llama", recipe, [2], native=True, kv_cache=kv_cache).first_mismatch
    assert first is not None
    assert (first.level, first.part) == (2, part)
