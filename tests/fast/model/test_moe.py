"""mixture of both backends against reference/model/transformer.py's, for every recipe.

The router's choice is made unambiguous. The kernels' integer linears of experts then equal the
reference's bit for bit; in a mixture only the silu between them differs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planish.fast.model.backend import Normed
from planish.fast.model.weights import place_block
from planish.fast.native import backend as native_backend
from planish.fast.native import moe as native_experts
from planish.fast.xla import backend as xla_backend
from planish.fast.xla import moe as xla_moe
from planish.reference.linear import Linear, linear
from planish.reference.model import transformer as reference_transformer
from planish.reference.model.config import Moe
from planish.reference.model.experts import Stack, linear_of, stack_experts
from planish.reference.model.weights import Experts, Mlp
from planish.reference.quantize.methods.rtn import quantize_linear
from planish.reference.quantize.recipe import recipe
from planish.reference.quantized import QuantizedWeight, to_layout
from tests.fast.schemes import forced

WIDTH, INNER, COUNT, TOP_K = 75, 50, 6, 2  # no size divides another, nor 16
RECIPES = {
    "float": {},
    "W8A8": {},
    "O1": {},
    "O2": {},
    "O3": {},
    "W8A16": {},
    "W4A16": {"group_size": 32},
    "W4A8": {"group_size": 32},
    "W4A8-zero-points": {"group_size": 32, "rule": "minmax", "scale_dtype": "float32"},
    "W4A8-per-token": {"group_size": -1, "activation": "per_token"},
}
INTEGER = [name for name in RECIPES if name not in ("float", "W8A16", "W4A16")]


@dataclass(frozen=True)
class Case:
    """Sequences, tokens of each, and the experts that may be chosen."""

    sequences: int
    tokens: int
    among: tuple[int, ...] = tuple(range(COUNT))

    def __str__(self) -> str:
        return f"{self.sequences}x{self.tokens}-of-{len(self.among)}"


CASES = [
    Case(1, 1),
    Case(3, 1),
    Case(1, 5),
    Case(1, 37),
    Case(2, 19),
    Case(1, 23, (1, 4)),  # experts without tokens, and all tokens to the same two
]


def config_of(activation: str = "silu", normalized: bool = True) -> SimpleNamespace:
    """The features that a mixture reads."""
    moe = Moe(num_experts=COUNT, top_k=TOP_K, intermediate_size=INNER, normalized=normalized)
    return SimpleNamespace(activation=activation, moe=moe)


def random_experts(name: str, rng: np.random.Generator, gated: bool = True) -> Experts:
    """Experts quantized by a recipe, with biases; the router reads only the first inputs."""
    router = np.zeros((COUNT, WIDTH), np.float32)
    router[:, :COUNT] = np.eye(COUNT)
    shapes = {"gate": (INNER, WIDTH), "up": (INNER, WIDTH), "down": (WIDTH, INNER)}
    experts = [
        Mlp(**{n: random_linear(name, shape, rng) for n, shape in shapes.items()})
        for _ in range(COUNT)
    ]
    experts = experts if gated else [replace(expert, gate=None) for expert in experts]
    return Experts(Linear(router), tuple(experts))


def random_linear(name: str, shape: tuple[int, int], rng: np.random.Generator) -> Linear:
    weight = rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[1]))
    layer = Linear(weight, rng.standard_normal(shape[0]).astype(np.float32))
    if name == "float":
        return layer
    chosen = recipe(name.split("-")[0], **RECIPES[name])
    absmax = rng.uniform(2, 4, 1)
    return quantize_linear(layer, chosen.default, rule=chosen.rule, absmax=absmax)


def random_rows(case: Case, rng: np.random.Generator) -> np.ndarray:
    """x [B, T, D] whose first inputs are distinct scores, the largest of those in `among`."""
    x = rng.standard_normal((case.sequences, case.tokens, WIDTH)).astype(np.float32)
    for row in x.reshape(-1, WIDTH):
        row[:COUNT] = rng.permutation(COUNT) * np.float32(0.4) - 2
        row[list(case.among)] += np.float32(COUNT if len(case.among) < COUNT else 0)
    return x


def placed(experts: Experts, native: bool):
    """As the engine places them: from tiles for the kernels."""
    if native:
        experts = Experts(experts.router, [in_tiles(expert) for expert in experts.experts])
    return jax.device_put(place_block(experts))


def in_tiles(mlp: Mlp) -> Mlp:
    """An MLP's quantized weights in tiles; float ones stay as they are: XLA computes them."""

    def tiled(layer: Linear | None) -> Linear | None:
        if layer is None or not isinstance(layer.weight, QuantizedWeight):
            return layer
        return replace(layer, weight=to_layout(layer.weight, "tiles"))

    return Mlp(tiled(mlp.gate), tiled(mlp.up), tiled(mlp.down))


def expected(config, experts: Experts, x: np.ndarray, residual: np.ndarray) -> np.ndarray:
    mixed = [reference_transformer.mixture(config, experts, rows) for rows in x]
    return residual + np.stack(mixed)


def found(config, experts, x: np.ndarray, residual: np.ndarray, native: bool) -> np.ndarray:
    backend = native_backend if native else xla_backend
    run = jax.jit(lambda e, x, r: backend.moe(config, e, Normed(x), r))
    return np.asarray(run(experts, jnp.asarray(x), jnp.asarray(residual)))


@pytest.mark.matrix(121, 7)
@pytest.mark.parametrize("native", [False, True], ids=["xla", "native"])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", RECIPES)
def test_a_mixture_is_the_references(kernels, name, case, native):
    rng = np.random.default_rng(sum(map(ord, name)) + case.tokens)
    experts, x = random_experts(name, rng), random_rows(case, rng)
    residual = rng.standard_normal(x.shape).astype(np.float32)
    wanted = expected(config_of(), experts, x, residual)
    y = found(config_of(), placed(experts, native), x, residual, native)
    step = 0.05 if name in INTEGER else 0  # an inner code on a tie, half a step of its grid
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5 + step)
    assert np.median(np.abs(y - wanted)) < 1e-6


@pytest.mark.again
@pytest.mark.matrix(11)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", INTEGER)
def test_the_kernels_linears_of_experts_are_the_references_bit_for_bit(kernels, name, case):
    rng = np.random.default_rng(1)
    experts, x = random_experts(name, rng), random_rows(case, rng).reshape(-1, WIDTH)
    rows, tokens = len(x), case.tokens
    routing_weights, expert_ids = reference_transformer.route(
        config_of(), linear(x, experts.router)
    )
    whole = placed(experts, native=True)
    residual = rng.standard_normal(x.shape).astype(np.float32)
    pairs = grouped_pairs(expert_ids)
    inner = rng.standard_normal((rows * TOP_K, INNER)).astype(np.float32)
    for isa in kernels:
        ids = jnp.asarray(expert_ids, jnp.int32)
        up = native_experts.expert_linears(x, ids, (whole.up,), case.sequences, isa)
        wanted = by_groups(experts, "up", pairs, x[[row for _, row, _ in pairs]], tokens)
        np.testing.assert_array_equal(up, wanted, err_msg=isa)
        found = native_experts.expert_sums(
            inner, ids, routing_weights, whole.down, residual, case.sequences, isa
        )
        y = np.zeros_like(x)
        down = by_groups(experts, "down", pairs, inner, tokens)
        for (_, row, column), output in zip(pairs, down, strict=True):
            y[row] += routing_weights[row, column] * output
        np.testing.assert_array_equal(found, residual + y, err_msg=isa)


def grouped_pairs(expert_ids: np.ndarray) -> list[tuple[int, int, int]]:
    """(expert, row, column) in the order of the kernels' grouped rows."""
    return sorted((int(e), row, column) for (row, column), e in np.ndenumerate(expert_ids))


def by_groups(experts, part, pairs, x, tokens) -> np.ndarray:
    """Each expert's linear of its rows of each sequence, concatenated."""
    found = []
    groups = itertools.groupby(
        zip(pairs, x, strict=True), lambda pair: (pair[0][0], pair[0][1] // tokens)
    )
    for (expert, _), group in groups:
        rows = np.stack([row for _, row in group])
        found.append(linear(rows, getattr(experts.experts[expert], part)))
    return np.concatenate(found)


@pytest.mark.whole
@pytest.mark.parametrize("native", [False, True], ids=["xla", "native"])
@pytest.mark.parametrize(
    ("activation", "gated", "normalized"),
    [("gelu_tanh", True, True), ("relu", False, True), ("silu", False, False)],
)
def test_other_activations_and_ungated_experts_run_in_both_forms(
    kernels, activation, gated, normalized, native
):
    rng = np.random.default_rng(3)
    experts, config = random_experts("W8A16", rng, gated), config_of(activation, normalized)
    x = random_rows(Case(2, 7), rng)
    residual = rng.standard_normal(x.shape).astype(np.float32)
    y = found(config, placed(experts, native), x, residual, native)
    np.testing.assert_allclose(y, expected(config, experts, x, residual), atol=1e-5)


@pytest.mark.parametrize("name", ["W4A8", "W8A8"])
def test_stacks_in_a_file_are_placed_without_a_copy(name):
    experts = random_experts(name, np.random.default_rng(4)).experts
    stack = Stack(stack_experts([in_tiles(expert) for expert in experts]), "tiles")
    router = Linear(np.zeros((COUNT, WIDTH), np.float32))
    put = place_block(Experts(router, stack))
    assert put.up.weight.codes is stack.whole.up.weight.codes
    assert put.down.weight.scale is stack.whole.down.weight.scale


def test_grouped_tiles_hold_every_pair_once():
    rng = np.random.default_rng(5)
    expert_ids = np.stack([rng.permutation(COUNT)[:TOP_K] for _ in range(24)]).astype(np.int32)
    for tokens in (None, 8):
        groups = xla_moe.group_rows(jnp.asarray(expert_ids), COUNT, 4, tokens)
        assert sorted(np.asarray(groups.order)) == list(range(expert_ids.size))
        assert int(groups.counts.sum()) == expert_ids.size
        assert (4 * np.asarray(groups.tiles) >= np.asarray(groups.counts)).all()


def arguments(**changes):
    """What expert_linears takes, some of it replaced; weights by field."""
    rng = np.random.default_rng(6)
    up = placed(random_experts("W4A8-zero-points", rng), native=True).up
    weight = {k: changes.pop(k) for k in ("codes", "scale", "zero_point") if k in changes}
    weight["scheme"] = forced(up.scheme, **changes.pop("scheme", {}))
    up = replace(up, weight=replace(up.weight, **weight), **changes.pop("layer", {}))
    rows = {"x": np.ones((3, WIDTH), np.float32), "expert_ids": np.zeros((3, TOP_K), np.int32)}
    return {**rows, "layers": (up,), "sequences": 1, **changes}


REFUSED = {
    "an expert too many": (
        {"expert_ids": np.full((3, 2), COUNT, np.int32)},
        "expert 6 was chosen of 6",
    ),
    "a negative expert": (
        {"expert_ids": np.full((3, 2), -1, np.int32)},
        "expert -1 was chosen of 6",
    ),
    "choices of other rows": (
        {"expert_ids": np.zeros((4, 2), np.int32)},
        "x is [3, 75], expected [4",
    ),
    "choices of no row": (
        {"expert_ids": np.zeros(3, np.int32)[:, None, None]},
        "expert ids is [3, 1, 1]",
    ),
    "choices of another type": (
        {"expert_ids": np.zeros((3, 2), np.uint32)},
        "expert ids has a type",
    ),
    "rows of another type": ({"x": np.ones((3, WIDTH), np.int32)}, "x has a type"),
    "sequences of unequal length": ({"sequences": 2}, "rows do not divide into sequences"),
    "scales of one expert": ({"scale": np.ones((1, 4, 3, 16), np.float32)}, "scale is [1, 4, 3"),
    "zero points of one expert": (
        {"zero_point": np.zeros((1, 4, 3, 16), np.uint8)},
        "zero_point is [1, 4, 3, 16], expected 1152 entries",
    ),
    "a bias of one expert": (
        {"layer": {"bias": np.ones(50, np.float32)}},
        "bias is [50], expected",
    ),
    "one static scale": (
        {"scheme": {"activation": "static"}, "layer": {"activation_scale": np.ones(1, "f4")}},
        "activation scale is [1], expected 6 entries",
    ),
}


@pytest.mark.matrix(4)
@pytest.mark.parametrize("name", REFUSED)
def test_buffers_that_do_not_fit_are_named_and_the_next_call_works(kernels, name):
    changes, message = REFUSED[name]
    with pytest.raises(Exception) as caught:  # noqa: PT011  (jax chooses the class)
        jax.block_until_ready(native_experts.expert_linears(**as_arrays(arguments(**changes))))
    assert message in str(caught.value)
    assert np.isfinite(native_experts.expert_linears(**as_arrays(arguments()))).all()


def as_arrays(given):
    return given | {name: jnp.asarray(given[name]) for name in ("x", "expert_ids")}


def test_codes_of_fewer_experts_than_the_scales_are_refused(kernels):
    up = arguments()["layers"][0]
    fewer = replace(up, weight=replace(up.weight, codes=up.weight.codes[:2]))
    with pytest.raises(Exception) as caught:  # noqa: PT011  (jax chooses the class)
        jax.block_until_ready(
            native_experts.expert_linears(**as_arrays(arguments(layers=(fewer,))))
        )
    assert "expected 384 entries" in str(caught.value)


def test_linears_are_cut_from_a_stack_as_they_were_put_into_it():
    each = random_experts("W4A8-zero-points", np.random.default_rng(8)).experts
    whole = stack_experts(each)
    for index, expert in enumerate(each):
        np.testing.assert_array_equal(
            linear_of(whole.down, index).weight.zero_point, expert.down.weight.zero_point
        )
    assert Stack(whole, "tiles")[1].up.weight.layout == "tiles"
