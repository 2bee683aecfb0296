"""A block by the method: each linear with its own statistics, the router and others left."""

from dataclasses import replace

import numpy as np
import pytest

from planish.reference.errors import QuantizationError
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.linear import Linear
from planish.reference.model.weights import block_linears, block_norms, replace_modules
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.methods import METHODS, Method
from planish.reference.quantize.observe import Observer, embed_samples, observe_block
from planish.reference.quantize.recipe import recipe
from planish.reference.quantize.runtime import NUMPY
from planish.reference.quantize.smooth import apply_smoothing
from planish.reference.quantized import QuantizedWeight
from tests.reference.quantize.conftest import by_recipe

F32 = np.float32


def test_rounding_to_nearest_runs_no_sample(loaded):
    checkpoint, weights = loaded["llama"]
    given = checkpoint.config, weights.blocks[0]
    for name in ("W8A8", "W4A16"):
        by_recipe(*given, recipe(name), runner=None)  # no runner is asked


def test_ignored_linears_stay_in_float(loaded, samples):
    checkpoint, weights = loaded["llama"]
    block, scheme = weights.blocks[0], recipe("naive").default
    schemes = {part: None if part == "down" else scheme for part in block_linears(block)}
    found = by_recipe(checkpoint.config, block, recipe("naive"), schemes=schemes)
    assert found.mlp.down is block.mlp.down and isinstance(found.mlp.up.weight, QuantizedWeight)


def test_static_scales_are_calibrated_on_the_block_as_it_is_given(loaded, samples):
    checkpoint, weights = loaded["llama"]
    config = checkpoint.config
    hidden = embed_samples(config, weights, samples)
    absmax, _ = observe_block(config, weights.blocks[0], hidden)
    found = by_recipe(config, weights.blocks[0], recipe("naive", scheme="O3"), hidden)
    assert found.mlp.down.activation_scale == absmax["down"].max() / F32(127)
    smooth = apply_smoothing(config, weights.blocks[0], absmax, recipe("O3"), 0.5)
    after, _ = observe_block(config, smooth, hidden)
    found = by_recipe(config, smooth, recipe("O3"), hidden)
    assert found.q.activation_scale == after["q"].max() / F32(127)
    assert found.q.activation_scale != absmax["q"].max() / F32(127)


def test_a_weight_that_cannot_be_quantized_is_named_by_its_tensor(loaded):
    checkpoint, weights = loaded["llama"]
    block = weights.blocks[0]
    bad = replace_modules(block, {"up": Linear(np.full_like(block.mlp.up.weight, np.nan))})
    names = {**dict.fromkeys(block_linears(bad), "other"), "up": "mlp.up_proj"}
    with pytest.raises(QuantizationError, match=r"^mlp\.up_proj: cannot be quantized"):
        by_recipe(checkpoint.config, bad, recipe("naive"), names=names)


SPOILED = {  # what a method makes of rounded modules -> the name and the array in the message
    "scale": (
        "q",
        lambda q: replace(q, weight=replace(q.weight, scale=q.weight.scale * F32(np.nan))),
    ),
    "bias": ("up", lambda up: replace(up, bias=np.full(up.weight.shape[0], np.inf, F32))),
    "weight": ("attention_norm", lambda norm: replace(norm, weight=norm.weight * F32(np.nan))),
}


@pytest.mark.parametrize("array", SPOILED)
def test_what_a_method_makes_must_be_finite(loaded, monkeypatch, array):
    """No rounding looks at a norm, a bias or a scale: the error names the module."""
    checkpoint, weights = loaded["llama"]
    part, spoil = SPOILED[array]

    def step(job, block):
        block = METHODS["rtn"].step(job, block)
        return replace_modules(
            block, {part: spoil((block_linears(block) | block_norms(block))[part])}
        )

    monkeypatch.setitem(METHODS, "bad", Method(step=step))
    names = {name: f"model.layers.0.{name}_proj" for name in block_linears(weights.blocks[0])}
    named = names.get(part, f"model.layers.0: {part}")
    with pytest.raises(QuantizationError, match=f"^{named}: the method leaves NaN .* its {array}$"):
        by_recipe(checkpoint.config, weights.blocks[0], recipe("W4A16", method="bad"), names=names)


def test_a_quantized_block_that_overflows_is_named(loaded, samples, tmp_path, monkeypatch):
    """Finite scales, but an output beyond float32: the next block would learn from NaN."""
    checkpoint, _ = loaded["llama"]

    def step(job, block):
        block = METHODS["rtn"].step(job, block)
        up = replace(block.mlp.up, bias=np.full(block.mlp.up.weight.shape[0], 3e38, F32))
        return replace_modules(block, {"up": up})

    monkeypatch.setitem(METHODS, "bad", Method(step=step, calibrates=True, sequential=True))
    expected = r"^model\.layers\.0: the hidden states that leave it overflow float32 once"
    with (
        CheckpointWriter(tmp_path / "out", checkpoint.path) as writer,
        pytest.raises(QuantizationError, match=expected),
    ):
        quantize_checkpoint(checkpoint, writer, recipe("W4A16", method="bad"), samples)


def test_a_new_method_is_a_row_that_says_what_it_wants(loaded, samples, tmp_path, monkeypatch):
    """Here one that wants the Hessian of every linear's inputs, of the block after smoothing."""
    checkpoint, weights = loaded["llama"]
    hessian, seen = Observer(measure=lambda x: x.T @ x, merge=np.add), []

    def step(job, block):
        given = job.config, block, job.inputs, job.names, hessian
        seen.append(job.runner.observe(*given, parts=("q", "down")))
        return METHODS["rtn"].step(job, block)

    monkeypatch.setitem(METHODS, "mine", Method(step=step, calibrates=True, sequential=True))
    chosen = recipe("W4A16", group_size=32, alpha=0.5, method="mine", head="int8")
    with CheckpointWriter(tmp_path / "out", checkpoint.path) as writer:
        quantize_checkpoint(checkpoint, writer, chosen, samples)
    config, block = checkpoint.config, weights.blocks[0]
    hidden = embed_samples(config, weights, samples)
    smooth = apply_smoothing(config, block, observe_block(config, block, hidden)[0], chosen, 0.5)
    expected, _ = observe_block(config, smooth, hidden, observer=hessian)
    (first, states), (second, _) = seen
    assert set(first) == {"q", "down"} and len(states) == 0
    assert all(np.array_equal(first[part], expected[part]) for part in first)
    written = load_weights(open_checkpoint(tmp_path / "out")).blocks
    assert isinstance(written[0].q.weight, QuantizedWeight)
    # what the second block's method is given: the inputs that the quantized first one leaves
    _, floats = observe_block(config, block, hidden)
    absmax, _ = observe_block(config, weights.blocks[1], floats)
    smooth = apply_smoothing(config, weights.blocks[1], absmax, chosen, 0.5)
    states = NUMPY.runner.run(config, written[0], hidden)
    expected, _ = observe_block(config, smooth, states, observer=hessian)
    assert all(np.array_equal(second[part], expected[part]) for part in second)
