"""Training: its forward pass is the engine's, it lowers the error, and repeats to the byte."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from planish import pocket
from planish.fast.placement import put
from planish.fast.quantize import signround, teq, training
from planish.fast.quantize.ranges import fake_quantize, group_ranges, range_parameters
from planish.fast.quantize.runtime import STEPS, fast_runtime
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.model.weights import block_linears
from planish.reference.quantize.block import observe_absmax, quantize_block
from planish.reference.quantize.job import BlockJob
from planish.reference.quantize.methods.signround import Rounding, signround_weight
from planish.reference.quantize.recipe import recipe
from planish.reference.quantize.runtime import NUMPY
from planish.reference.quantized import dequantize
from planish.reference.scheme import int4, int8
from tests.reference.quantize.conftest import same_schemes

F32 = np.float32
GOLDEN = Path(__file__).parents[2] / "golden"
FORMS = {
    "pocket": pocket.MODEL,
    **{
        name: GOLDEN / name
        for name in (
            "mixtral-two-of-four",
            "gemma2-caps",
            "falcon-7b-form-biases",
            "opt-350m-form",
            "mpt-clipped-scaled-six-heads",
            "qwen3_moe-some-layers",
        )
    },
}
GRIDS = [
    *((int4(32), rule) for rule in ("signed", "absmax", "absmax7")),
    (int4(64, symmetric=False), "minmax"),
    (int4(-1, scale_dtype="float32"), "signed"),
    (int8(), "signed"),
    (int8("per_tensor"), "signed"),
]


def job_of(form, name, samples=4, layer=0, **changes):
    """A job of one block on random tokens, and the block."""
    checkpoint = open_checkpoint(FORMS[form])
    config, weights, chosen = checkpoint.config, load_weights(checkpoint), recipe(name, **changes)
    rng, block = np.random.default_rng(3), weights.blocks[layer]
    tokens = [rng.integers(0, config.vocab_size, 24 + 8 * (i % 2)) for i in range(samples)]
    hidden = NUMPY.runner.embed(config, weights, tokens)
    job = BlockJob(
        config=config,
        schemes=same_schemes(block, chosen.default),
        rule=chosen.rule,
        settings=chosen.settings,
        runner=fast_runtime().runner,
        inputs=hidden,
        float_inputs=hidden,
        targets=NUMPY.runner.run(config, block, hidden),
        layer=layer,
    )
    return job, block, chosen


def errors_of(job, block):
    """The squared error of each sample's outputs, by the reference."""
    found = NUMPY.runner.run(job.config, block, job.inputs)
    return np.array([np.square(y - t).sum() for y, t in zip(found, job.targets, strict=True)])


@pytest.mark.matrix(7)
@pytest.mark.parametrize(("scheme", "rule"), GRIDS, ids=str)
def test_training_runs_the_values_of_the_references_codes(scheme, rule):
    rng = np.random.default_rng(1)
    w = rng.normal(size=(16, 144)).astype(F32)
    w[2, 32:64], w[3], w[4] = 0, 0, w[4] * F32(1e-5)  # a scale that is subnormal in float16
    ranges = jax.jit(group_ranges, static_argnums=1)(put(w), scheme)
    learned = Rounding(
        v=rng.uniform(-0.5, 0.5, w.shape).astype(F32),
        alpha_min=rng.uniform(0.6, 1, ranges.low.shape).astype(F32),
        alpha_max=rng.uniform(0.6, 1, ranges.low.shape).astype(F32),
    )

    @jax.jit
    def fake(w, ranges, learned):
        low, high = ranges.low * learned.alpha_min, ranges.high * learned.alpha_max
        scale, zero = range_parameters(replace(ranges, low=low, high=high), scheme, rule)
        return fake_quantize(w, scale, zero, scheme, learned.v)

    found = np.asarray(fake(put(w), ranges, put(learned)))
    right = dequantize(signround_weight(w, learned, scheme, rule))
    different = np.abs(found - right) > 1e-6 * np.abs(right)
    assert different.mean() <= 2e-3  # an entry where a product was rounded once, not twice


@pytest.mark.whole
def test_the_gradient_of_v_is_the_scale_and_ends_with_the_grid():
    w, scheme = put(np.array([[-8, 7, 4, 0]], F32)), int4(-1)
    scale, zero = range_parameters(group_ranges(w, scheme), scheme, "signed")

    def total(v):
        return fake_quantize(w, scale, zero, scheme, v).sum()

    given = put(np.array([[-1, 1, 0.2, 0]], F32))
    assert jax.grad(total)(given).tolist() == [[0, 0, 1, 1]]


@pytest.mark.whole(15)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["W4A16-g32", "W8A8", "W4A8-g32", "naive-O3"])
def test_the_loss_before_training_is_that_of_rounding_to_nearest(form, name):
    job, block, chosen = job_of(form, name)
    job = replace(job, absmax=observe_absmax(job, block))
    plan, fixed, start = signround.prepare(job, block)
    plan = in_dtype(plan, "float32")  # in bfloat16 a router may choose another expert
    rounded, _ = quantize_block(job, block, replace(chosen, smoothing=None))
    found = training.initial_losses(plan, fixed, start, job)
    assert found == pytest.approx(errors_of(job, rounded), rel=2e-2)


def in_dtype(plan, dtype):
    return replace(plan, structure=replace(plan.structure, dtype=dtype))


@pytest.mark.whole
@pytest.mark.parametrize("name", ["W4A16-g32", "W4A8-g32"])
def test_bfloat16_products_hardly_change_the_losses_or_the_signs_of_gradients(name):
    job, block, _ = job_of("pocket", name)
    plan, fixed, start = signround.prepare(job, block)
    losses, gradients = [], []
    for dtype in ("float32", "bfloat16"):
        kind = in_dtype(plan, dtype)
        losses.append(training.initial_losses(kind, fixed, start, job))
        gradient, _ = training.batch_gradient(kind, fixed, start, job, [0, 1, 2, 3])
        gradients.append({part: gradient.linears[part].weight.codes for part in start})
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    for part in start:
        wide, short = (np.asarray(gradient[part]) for gradient in gradients)
        large = np.abs(wide) > np.abs(wide).max() / 100
        assert (np.sign(wide) == np.sign(short))[large].mean() > 0.95


def test_only_int4_blocks_train_in_bfloat16(monkeypatch):
    monkeypatch.setattr(training, "fast_dtype", lambda: "bfloat16")
    assert training.training_dtype([("q", int4(32)), ("o", int4(64))]) == "bfloat16"
    assert training.training_dtype([("q", int4(32)), ("o", int8())]) == "float32"


@pytest.mark.whole(15)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["signround", "teq"])
def test_a_trained_block_loses_less_than_one_rounded_to_nearest(form, method):
    job, block, chosen = job_of(form, "W4A16-g32", method=method, iterations=12)
    found, _ = quantize_block(job, block, chosen, fast_runtime())
    nearest, _ = quantize_block(job, block, replace(chosen, method="rtn"))
    least = {"signround": 0.9, "teq": 1.01}[method]
    assert errors_of(job, found).sum() < least * errors_of(job, nearest).sum()
    for part, layer in block_linears(found).items():
        assert (layer.scheme is None) == (part == "router")


def test_the_seed_and_the_block_decide_the_order_of_the_samples():
    def orders(seed, layer):
        rng = np.random.default_rng([seed, layer])
        return [chosen.tolist() for chosen in training.draw_batches(rng, 20, 5)]

    assert orders(1, 2) == orders(1, 2)
    assert orders(1, 2) != orders(1, 3) and orders(1, 2) != orders(2, 2)
    assert all(len(set(chosen)) == training.BATCH for chosen in orders(1, 2))
    assert [*training.draw_batches(np.random.default_rng(0), 3, 2)][1].tolist() == [0, 1, 2]


@pytest.mark.whole
def test_blocks_of_one_kind_share_their_programs():
    programs, sizes = [training.fake_modules, training.add_gradient, training.advance], []
    for layer in (0, 1):
        given = {"layer": layer, "method": "teq+signround", "iterations": 2}
        job, block, chosen = job_of("pocket", "W4A16-g32", **given)
        quantize_block(job, block, chosen, fast_runtime())
        sizes.append([program._cache_size() for program in programs])
    assert sizes[0] == sizes[1]


def test_a_block_without_error_or_with_an_overflow_is_rounded_to_nearest():
    job, block, chosen = job_of("pocket", "W4A16-g32", method="signround", iterations=2)
    nearest, _ = quantize_block(job, block, replace(chosen, method="rtn"))
    huge = [np.full_like(x, 3e38) for x in job.inputs]
    found = STEPS["signround"](replace(job, inputs=huge), block)
    for part, layer in block_linears(found).items():
        assert np.array_equal(layer.weight.codes, block_linears(nearest)[part].weight.codes)


def test_adam_moves_each_scale_by_the_rate_at_first():
    rate = put(np.array([0.01, 1], F32))
    one, zero = [put(np.ones(2, F32))], [put(np.zeros(2, F32))]
    (found,), _ = teq.update(one, (zero, zero), [put(np.array([5, -0.1], F32))], rate)
    assert np.asarray(found) == pytest.approx([0.99, 1.01], rel=1e-5)


LEARN = """
import hashlib, sys
from planish.fast.quantize import signround
from tests.fast.quantize.test_training import job_of
job, block, _ = job_of("pocket", "W4A16", 9, method="signround", preset="light", iterations=4)
learned = signround.learn(job, block)
assert any(rounding.v.any() for rounding in learned.values())
print(hashlib.sha256(b"".join(learned[part].v.tobytes() for part in learned)).hexdigest())
"""


@pytest.mark.whole
def test_any_number_of_threads_learns_the_same_bytes():
    def learn(threads):
        given = {**os.environ, "NPROC": threads}
        done = subprocess.run([sys.executable, "-c", LEARN], capture_output=True, env=given)
        assert not done.returncode, done.stderr
        return done.stdout

    assert learn("1") == learn("2")
