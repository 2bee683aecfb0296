"""Routing by the kernel, and whole models with experts: quantized, all at once and in steps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planish.fast.native import moe as native_experts
from planish.fast.session.engine import Engine
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.linear import Linear, linear
from planish.reference.model import transformer as reference_transformer
from planish.reference.model.config import Moe
from planish.reference.model.layers import Norm, normalize
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import recipe
from planish.reference.text.generate import Stop

GOLDEN = Path(__file__).parents[2] / "golden"
TOLERANCES = {  # of the logits' range; a flipped code on a tie changes all later layers
    "W8A16": 2e-5,
    "W4A16": 2e-5,
    "W8A8": 0.05,
    "W4A8": 0.05,
    "O2": 0.05,
    "O3": 0.05,
}


@pytest.mark.matrix(2)
@pytest.mark.again
@pytest.mark.parametrize("norm", [None, "rms_norm", "layer_norm"])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(("rows", "width", "count", "top_k"), [(1, 75, 6, 2), (5, 300, 129, 8)])
def test_the_kernel_routes_as_the_reference(kernels, rows, width, count, top_k, normalized, norm):
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, width)).astype(np.float32)
    router = rng.standard_normal((count, width)).astype(np.float32)
    router[count // 2 :] = router[: count - count // 2]  # equals: the lowest index comes first
    moe = Moe(num_experts=count, top_k=top_k, intermediate_size=1, normalized=normalized)
    config = SimpleNamespace(moe=moe)
    scale, bias = rng.uniform(0.5, 1.5, (2, width)).astype(np.float32)
    bias = bias if norm == "layer_norm" else None
    weights = Norm(weight=scale, bias=bias, kind=norm, eps=1e-5) if norm else None
    wanted = normalize(x, weights)
    routing = reference_transformer.route(config, linear(wanted, Linear(router)))
    for isa in kernels:
        found = native_experts.route_rows(x, router, top_k, normalized, weights, isa)
        for array, expected in zip(found, (wanted, *routing), strict=True):
            np.testing.assert_allclose(array, expected, rtol=2e-5, atol=2e-6, err_msg=isa)


REFUSED_ROUTES = {
    "a router of other inputs": ({"router": np.ones((6, 5), np.float32)}, "router is [6, 5]"),
    "more experts than there are": (
        {"top_k": 7},
        "routing weights are [3, 7], expected [3, 1 to 6]",
    ),
    "rows of another type": ({"x": np.ones((3, 75), np.int32)}, "x has a type"),
    "a norm of other inputs": (
        {"norm": Norm(weight=np.ones(5, np.float32), kind="rms_norm", eps=0.0)},
        "norm weight is [5], expected 75 entries",
    ),
    "an unknown norm": (
        {"norm": Norm(weight=np.ones(75, np.float32), kind="no_norm", eps=0.0)},
        "unknown norm no_norm",
    ),
}


@pytest.mark.matrix(2)
@pytest.mark.parametrize("name", REFUSED_ROUTES)
def test_routes_that_do_not_fit_are_named(kernels, name):
    changes, message = REFUSED_ROUTES[name]
    given = {"x": np.ones((3, 75), np.float32), "router": np.ones((6, 75), np.float32)}
    given |= {"top_k": 2, "normalized": True, **changes}
    given |= {array: jnp.asarray(given[array]) for array in ("x", "router")}
    with pytest.raises(Exception) as caught:  # noqa: PT011  (jax chooses the class)
        jax.block_until_ready(native_experts.route_rows(**given))
    assert message in str(caught.value)


@pytest.fixture(scope="module", params=list(TOLERANCES))
def quantized_model(request, tmp_path_factory):
    """A small Qwen3-MoE by a recipe, one of whose layers has no experts."""
    path = tmp_path_factory.mktemp("mixture") / request.param
    source = open_checkpoint(GOLDEN / "qwen3_moe-some-layers")
    samples = [np.random.default_rng(i).integers(0, 200, 24) for i in range(4)]
    changes = {"group_size": 32} if request.param.startswith("W4") else {}
    with CheckpointWriter(path, source.path) as writer:
        quantize_checkpoint(source, writer, recipe(request.param, **changes), samples)
    return open_checkpoint(path)


@pytest.mark.whole(5)
@pytest.mark.parametrize("native", [False, True], ids=["xla", "native"])
def test_a_quantized_model_decodes_what_it_computes_at_once(kernels, quantized_model, native):
    tokens = np.random.default_rng(9).integers(0, 200, 40).tolist()
    weights = load_weights(quantized_model)
    expected = reference_transformer.forward(quantized_model.config, weights, tokens)
    engine = Engine(quantized_model, native)
    at_once = engine.forward(tokens)
    logits, cache = engine.prefill_batch([tokens[:30], tokens[:33]], Stop(8))
    for step in range(3):
        given = np.array([tokens[30 + step], tokens[33 + step]])
        logits, cache = engine.decode_step(given, np.array([30, 33]) + step, cache)
    tolerance = TOLERANCES[quantized_model.quantization["recipe"]] * np.ptp(expected)
    assert np.abs(at_once - expected).max() < tolerance
    if quantized_model.scheme("q", 0).activation != "per_tensor":  # whose scale steps change
        assert np.abs(logits - expected[[32, 35]]).max() < tolerance
