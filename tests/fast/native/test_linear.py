"""What the kernels refuse, before memory is touched: shapes, types, positions that do not fit."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planish.fast.model.backend import AttentionConfig, Positions
from planish.fast.native import linear as native
from planish.fast.native import sampling as native_sampling
from planish.fast.native.attention import cached_attention
from planish.fast.native.cache import TiledSlots
from planish.reference.linear import Linear
from planish.reference.model.layers import Norm
from planish.reference.quantize.methods.rtn import quantize_weight
from planish.reference.quantize.recipe import recipe
from planish.reference.quantized import QuantizedWeight, to_layout
from planish.reference.scheme import Scheme
from planish.reference.text.sampling import Sampling
from tests.fast.schemes import forced

pytestmark = pytest.mark.usefixtures("kernels")


def layer(name: str = "W4A8", n: int = 20, k: int = 96) -> Linear:
    chosen = recipe(name, group_size=32 if name.startswith("W4") else None).default
    weight = quantize_weight(np.linspace(-1, 1, n * k, dtype=np.float32).reshape(n, k), chosen)
    return Linear(to_layout(weight, "tiles"), np.zeros(n, np.float32))


def foreign(n: int = 20, k: int = 96) -> Linear:
    """INT8 in groups of 16, with offsets and in act order."""
    scheme = {"granularity": "per_group", "group_size": 16, "symmetric": False}
    weight = QuantizedWeight(
        codes=np.zeros((n, k), np.uint8),
        scale=np.ones((n, k // 16), np.float32),
        offset=np.ones((n, k // 16), np.float32),
        permutation=np.arange(k, dtype=np.int32)[::-1].copy(),
        scheme=Scheme(bits=8, offset=True, act_order=True, **scheme),
        shape=(n, k),
    )
    return Linear(to_layout(weight, "tiles"))


def replace_weight(linear: Linear, **fields) -> Linear:
    assert isinstance(linear.weight, QuantizedWeight)
    return replace(linear, weight=replace(linear.weight, **fields))


def replace_scheme(linear: Linear, **fields) -> Linear:
    return replace_weight(linear, scheme=forced(linear.scheme, **fields))


def error_of(run) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011  (jax chooses the class)
        jax.block_until_ready(run())
    return str(caught.value)


def of(linear: Linear, x=None, **options) -> str:
    x = jnp.ones((1, 3, 96)) if x is None else x
    return error_of(lambda: native.linears(x, (linear,), **options))


BAD_LINEARS = {
    "codes of fewer tiles": (
        lambda: replace_weight(layer(), codes=np.zeros((1, 12, 16, 4), np.uint8)),
        "codes is [1, 12, 16, 4], expected 1536 entries",
    ),
    "codes of another type": (
        lambda: replace_weight(layer(), codes=np.zeros((2, 12, 16, 4), np.int8)),
        "codes has a type",
    ),
    "scales of fewer groups": (
        lambda: replace_weight(layer(), scale=np.ones((2, 2, 16), np.float16)),
        "scale is [2, 2, 16], expected 96 entries",
    ),
    "INT8 scales of other outputs": (
        lambda: replace_weight(layer("W8A8"), scale=np.ones((7, 1), np.float32)),
        "scale is [7, 1], expected 1 or 20",
    ),
    "a short bias": (
        lambda: replace(layer(), bias=np.zeros(19, np.float32)),
        "bias is [19], expected 20 entries",
    ),
    "a group of 24": (lambda: replace_scheme(layer(), group_size=24), "multiple of 32"),
    "offsets of fewer groups": (
        lambda: replace_weight(foreign(), offset=np.ones((2, 2, 16), np.float32)),
        "offset is [2, 2, 16], expected 192 entries",
    ),
    "offsets of another type": (
        lambda: replace_weight(foreign(), offset=np.ones((2, 6, 16), np.int32)),
        "offset has a type",
    ),
    "signed codes with offsets": (
        lambda: replace_weight(foreign(), codes=np.zeros((2, 24, 16, 4), np.int8)),
        "codes has a type",
    ),
    "INT8 in groups of 24": (lambda: replace_scheme(foreign(), group_size=24), "multiple of 16"),
    "an order of fewer inputs": (
        lambda: replace_weight(foreign(), permutation=np.arange(95, dtype=np.int32)),
        "permutation is [95], expected 96 entries",
    ),
    "an order of more inputs": (
        lambda: replace_weight(foreign(), permutation=np.arange(1, 97, dtype=np.int32)),
        "permutation has 96 of 96 inputs",
    ),
    "an order with a negative input": (
        lambda: replace_weight(foreign(), permutation=np.arange(-1, 95, dtype=np.int32)),
        "permutation has -1 of 96 inputs",
    ),
    "offsets and quantized rows": (
        lambda: replace_scheme(foreign(), activation="per_token"),
        "offsets, orders and INT8 in groups multiply float activations",
    ),
    "3 bits": (lambda: replace_scheme(layer(), bits=3), "8 or 4 bits"),
    "an activation that is none": (
        lambda: replace_scheme(layer(), activation="per_chance"),
        "unknown activation per_chance",
    ),
}


@pytest.mark.matrix(2)
@pytest.mark.parametrize("name", BAD_LINEARS)
def test_a_weight_that_does_not_fit_is_named_with_both_sizes(name):
    make, expected = BAD_LINEARS[name]
    assert expected in of(make())


def test_an_input_of_another_width_is_refused():
    assert "codes is" in of(layer(), jnp.ones((1, 3, 80)))


def test_a_norm_of_another_width_is_refused():
    norm = Norm(weight=np.ones(95, np.float32), kind="rms_norm", eps=1e-5)
    found = of(layer(), norm=norm)
    assert "norm weight is [95], expected 96 entries" in found


def test_a_residual_of_another_shape_is_refused():
    assert "residual is" in of(layer(), residual=jnp.ones((1, 2, 20)))


def test_gate_and_up_must_match():
    x = jnp.ones((1, 3, 96))
    found = error_of(lambda: native.linears(x, (layer(), layer(n=21)), gated=True))
    assert "as many outputs" in found


def test_unknown_kernels_are_refused():
    assert "no kernels for sse9" in of(layer(), isa="sse9")


def test_linears_with_other_groups_cannot_share_a_call():
    weight = quantize_weight(np.ones((4, 96), np.float32), recipe("W8A16").default)
    other = Linear(to_layout(weight, "tiles"))
    found = error_of(lambda: native.linears(jnp.ones((1, 1, 96)), (layer(), other)))
    assert "the same groups" in found


def past(slots: int = 32, width: int = 16) -> TiledSlots:
    keys, values = jnp.zeros((1, 2, slots // 16, width, 16)), jnp.zeros((1, 2, slots, width))
    return TiledSlots(keys=keys, values=values)


def attend(positions, cache=None, width: int = 16, **changes):
    shape = {"q": (1, 2, 4 * width), "k": (1, 2, 2 * width), "v": (1, 2, 2 * width)} | changes
    q, k, v = (jnp.ones(shape[name]) for name in "qkv")
    where = Positions(jnp.asarray([positions], jnp.int32))
    config = AttentionConfig(kv_heads=2, head_dim=width, divisor=4.0)
    return cached_attention((q, k, v), where, cache or past(width=width), config)


def test_a_position_outside_of_the_slots_is_refused():
    assert "position 32 is outside 32 slots" in error_of(lambda: attend([31, 32]))
    assert "position -1" in error_of(lambda: attend([-1, 0]))


def test_attention_refuses_shapes_that_do_not_fit():
    assert "k is [1, 2, 16], expected 64" in error_of(lambda: attend([0, 1], k=(1, 2, 16)))
    assert "head_dim of 16" in error_of(lambda: attend([0, 1], width=24, cache=past(width=24)))
    values = replace(past(), values=jnp.zeros((1, 2, 31, 16)))
    assert "values is [1, 2, 31, 16], expected 1024" in error_of(lambda: attend([0, 1], values))


def test_sampling_refuses_shapes_that_do_not_fit():
    settings = jnp.asarray([native_sampling.pack_settings(Sampling())] * 2)
    uniform = jnp.zeros((3, 2), jnp.int32)
    found = error_of(lambda: native_sampling.sample(jnp.ones((2, 5)), settings, uniform))
    assert "uniform is [3, 2], expected 4 entries" in found


def test_sampling_marks_what_is_no_number():
    logits = jnp.asarray([[1.0, 2.0, jnp.nan], [0.0, jnp.inf, 1.0], [-jnp.inf, 3.0, 3.0]])
    settings = jnp.asarray([native_sampling.pack_settings(Sampling())] * 3)
    found = native_sampling.sample(logits, settings, jnp.zeros((3, 2), jnp.int32))
    assert np.asarray(found).tolist() == [-1, -1, 1]
