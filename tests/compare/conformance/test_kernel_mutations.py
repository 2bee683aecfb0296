"""The judge judged on the native form: what a wrong kernel would do, and which check names it.

Kernels cannot be replaced from here, so mistakes are made at the subject's seams: a wrong operand,
a wrong order, something left out.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planish.reference.packing import tile_int4, untile_int4
from planish.reference.quantized import to_layout
from tests.compare.mutations import (
    Mutation,
    change_part,
    compute_as,
    of_kind,
    sharper,
    shift_mask,
    store_as,
    swap_nibbles,
    with_activation,
    with_weight,
    without_bias,
    write_slots,
)

F = np.float32


def transpose_tiles(linear):
    weight = linear.weight
    if isinstance(weight, np.ndarray):
        return linear
    weight = to_layout(weight, "canonical")
    rows, cols = weight.shape
    tiles = tile_int4(weight.codes, cols)
    turned = np.ascontiguousarray(tiles.swapaxes(2, 3)).reshape(tiles.shape)
    return replace(linear, weight=replace(weight, codes=untile_int4(turned, rows, cols)))


def one_tensor_scale(linear):
    kind = "per_tensor" if linear.activation == "static" else linear.activation
    return with_activation(linear, kind)


def next_input(run, x, *rest):
    return run(x * F(1 + 2**-23), *rest)


SEEN = "q, real rows, codes times scale, {isa}"
LEVEL_1: dict[str, tuple[str, str, Mutation, str]] = {
    "tiles transposed": ("llama", "W4A8", store_as(transpose_tiles), "q, weight codes"),
    "zero points one too high": (
        "llama",
        "W4A8-minmax",
        compute_as(with_weight(zero_point=lambda z: z + np.uint8(1))),
        "q, 1 rows, {isa}",
    ),
    "zero points of the next group": (
        "llama",
        "W4A8-minmax",
        compute_as(with_weight(zero_point=lambda z: np.roll(z, 1, 1))),
        "q, 1 rows, {isa}",
    ),
    "scales of the next group": (
        "llama",
        "W4A8",
        compute_as(with_weight(scale=lambda s: np.roll(s, 1, 1))),
        "q, 1 rows, {isa}",
    ),
    "scales an ulp too large": (
        "llama",
        "W8A8",
        compute_as(with_weight(scale=lambda s: np.nextafter(s, F(9)))),
        SEEN,
    ),
    "nibbles swapped": ("llama", "W4A8", compute_as(with_weight(codes=swap_nibbles)), SEEN),
    "inputs an ulp too large": ("llama", "W8A8", change_part("ops", linear=next_input), SEEN),
    "static scale ignored": ("llama", "O3", compute_as(one_tensor_scale), SEEN),
    "bias left out": ("opt", "W4A8", compute_as(without_bias), "q, 1 rows, {isa}"),
    "bias left out, weight-only": ("opt", "W8A16", compute_as(without_bias), "q, 1 rows, {isa}"),
}


@pytest.mark.matrix(10)
@pytest.mark.parametrize("name", LEVEL_1)
def test_level_1_names_a_wrong_kernel(judge, kernels, name):
    family, recipe, mutation, part = LEVEL_1[name]
    first = judge(family, recipe, [1], native=True, mutation=mutation).first_mismatch
    assert first is not None
    assert (first.level, first.part) == (1, part.format(isa=kernels[0]))


@pytest.mark.again
def test_level_1_names_the_instruction_set_that_is_wrong(judge, kernels):
    """Nobody runs the last one where there are better ones, and still it is judged."""
    if len(kernels) == 1:
        pytest.skip("one instruction set only")

    def wrong_on_the_last_set(run, x, linear, residual=None, variant=""):
        y = np.array(run(x, linear, residual, variant))
        y[-1, -1, -1] += variant == kernels[-1]
        return y

    mutation = change_part("ops", linear=wrong_on_the_last_set)
    result = judge("llama", "W8A8", [1], True, mutation=mutation)
    failed = [item for item in result.checks if not item.agrees]
    assert failed and all(item.part.endswith(f", {kernels[-1]}") for item in failed)


def of_norm(change):
    """Projections that read another norm."""

    def project(run, norm, linears, x):
        return run(norm and change(norm), linears, x)

    return change_part("modules", project=project)


def keys_for_values(project, *arguments):
    found = project(*arguments)
    return [found[0], found[2], found[1]] if len(found) == 3 else found


def gate_for_up(mlp, config, stored, *rest):
    return mlp(config, replace(stored, gate=stored.up, up=stored.gate), *rest)


def residual(change):
    """What one call adds to its output, change_part."""

    def attend(run, config, block, x, residual=None):
        return run(config, block, x, residual if residual is None else change(residual))

    return change_part("modules", attend=attend)


def slots_moved(keys, values, *scales):
    return np.roll(keys, 1, axis=2), values, *scales


def last_slot_lost(keys, values, *scales):
    values[:, :, 39] = 0
    return keys, values, *scales


AFTER_ATTENTION = "o and the residual after attention"
LEVEL_2: dict[str, tuple[str, str, Mutation, str]] = {
    "norm left out": (
        "W8A8",
        "float32",
        of_norm(lambda norm: None),
        "attention_norm",
    ),
    "norm without its weight": (
        "W4A16",
        "float32",
        of_norm(lambda norm: replace(norm, weight=None)),
        "attention_norm",
    ),
    "epsilon of the norm a hundred times too large": (
        "W4A8",
        "float32",
        of_norm(lambda norm: replace(norm, eps=100 * norm.eps)),
        "attention_norm",
    ),
    "keys for values": (
        "W8A8",
        "float32",
        change_part("modules", project=keys_for_values),
        "k after its norm",
    ),
    "gate for up": ("W8A8", "float32", change_part("modules", mlp=gate_for_up), "mlp"),
    "residual left out": ("W8A8", "float32", residual(lambda r: None), AFTER_ATTENTION),
    "residual an ulp too large": (
        "W4A8",
        "float32",
        residual(lambda r: np.nextafter(r, 2 * r)),
        AFTER_ATTENTION,
    ),
    "a position too early": ("W8A8", "float32", shift_mask(-1), "attention"),
    "not rotated": ("float", "float32", of_kind(lambda kind: {"rope": None}), "attention"),
    "attention a little too sharp": ("W8A8", "float32", of_kind(sharper), "attention"),
    "attention a little too sharp over INT8": ("float", "int8", of_kind(sharper), "attention"),
    "scales of keys for those of values": (
        "W8A8",
        "int8",
        write_slots(lambda k, v, s, t: (k, v, t, s)),
        "keys in the cache, scale",
    ),
    "slots moved by one": ("W8A8", "int8", write_slots(slots_moved), "keys in the cache, codes"),
    "last slot lost": ("float", "int8", write_slots(last_slot_lost), "values in the cache, codes"),
}


@pytest.mark.matrix(14)
@pytest.mark.parametrize("name", LEVEL_2)
def test_level_2_names_a_wrong_part_of_a_kernel(judge, name):
    recipe, kv_cache, mutation, part = LEVEL_2[name]
    result = judge("llama", recipe, [2], native=True, kv_cache=kv_cache, mutation=mutation)
    first = result.first_mismatch
    assert first is not None
    assert (first.level, first.part) == (2, part)
