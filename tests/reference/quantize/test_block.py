"""A block by the method: each linear with its own statistics, the router and others left."""

import numpy as np
import pytest

from planish.reference.errors import QuantizationError
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.linear import Linear
from planish.reference.model.weights import block_linears, replace_modules
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
