"""A block by the method: each linear with its own statistics, the router and others left."""

import numpy as np
import pytest

from planish.reference.errors import QuantizationError
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.linear import Linear
from planish.reference.model.weights import block_linears, replace_modules
from planish.reference.quantize.block import observe_for, quantize_block
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.methods import METHODS, Method
from planish.reference.quantize.methods.rtn import quantize_weight
from planish.reference.quantize.observe import Observer, embed_samples, observe_block
from planish.reference.quantize.recipe import recipe
from planish.reference.quantize.smooth import apply_smoothing
from planish.reference.quantized import QuantizedWeight

F32 = np.float32


def calibrated(config, block, chosen, hidden):
    """The block with what its method wants to know."""
    return quantize_block(block, chosen, observe_for(config, block, chosen, hidden))


def test_a_method_that_wants_nothing_runs_no_sample(loaded):
    checkpoint, weights = loaded["llama"]
    nobody = None  # no runner is asked
    given = checkpoint.config, weights.blocks[0]
    assert observe_for(*given, recipe("W8A8"), [], runner=nobody) == {}
    assert observe_for(*given, recipe("W4A16"), [], runner=nobody) == {}


def test_ignored_linears_stay_in_float(loaded, samples):
    block = loaded["llama"][1].blocks[0]
    scheme = recipe("naive").default
    schemes = {part: None if part == "down" else scheme for part in block_linears(block)}
    found = quantize_block(block, recipe("naive"), schemes=schemes)
    assert found.mlp.down is block.mlp.down and isinstance(found.mlp.up.weight, QuantizedWeight)


def test_static_scales_are_calibrated_on_the_block_as_it_is_given(loaded, samples):
    checkpoint, weights = loaded["llama"]
    config = checkpoint.config
    hidden = embed_samples(config, weights, samples)
    absmax, _ = observe_block(config, weights.blocks[0], hidden)
    found = calibrated(config, weights.blocks[0], recipe("naive", scheme="O3"), hidden)
    assert found.mlp.down.activation_scale == absmax["down"].max() / F32(127)
    smooth = apply_smoothing(config, weights.blocks[0], absmax, recipe("O3"), 0.5)
    after, _ = observe_block(config, smooth, hidden)
    found = calibrated(config, smooth, recipe("O3"), hidden)
    assert found.q.activation_scale == after["q"].max() / F32(127)
    assert found.q.activation_scale != absmax["q"].max() / F32(127)


def test_a_weight_that_cannot_be_quantized_is_named_by_its_tensor(loaded):
    block = loaded["llama"][1].blocks[0]
    bad = replace_modules(block, {"up": Linear(np.full_like(block.mlp.up.weight, np.nan))})
    names = {**dict.fromkeys(block_linears(bad), "other"), "up": "mlp.up_proj"}
    with pytest.raises(QuantizationError, match=r"^mlp\.up_proj: cannot be quantized"):
        quantize_block(bad, recipe("naive"), names=names)


def test_a_new_method_is_a_row_that_says_what_it_wants(loaded, samples, tmp_path, monkeypatch):
    """Here one that wants the Hessian of every linear's inputs, of the block after smoothing."""
    checkpoint, weights = loaded["llama"]
    hessian, seen = Observer(measure=lambda x: x.T @ x, merge=np.add), {}

    def quantize(w, scheme, rule, statistic, name):
        seen[name] = statistic
        return quantize_weight(w, scheme, rule, None, name)

    monkeypatch.setitem(METHODS, "mine", Method(quantize=quantize, observer=hessian))
    chosen = recipe("W4A16", group_size=32, alpha=0.5, method="mine", head="int8")
    with CheckpointWriter(tmp_path / "out", checkpoint.path) as writer:
        quantize_checkpoint(checkpoint, writer, chosen, samples)
    config, block = checkpoint.config, weights.blocks[0]
    hidden = embed_samples(config, weights, samples)
    smooth = apply_smoothing(config, block, observe_block(config, block, hidden)[0], chosen, 0.5)
    expected, _ = observe_block(config, smooth, hidden, observer=hessian)
    assert np.array_equal(seen["model.layers.0.self_attn.q_proj"], expected["q"])
    assert seen["lm_head"] is None and len(seen) == 15
    written = load_weights(open_checkpoint(tmp_path / "out")).blocks[0]
    assert isinstance(written.q.weight, QuantizedWeight)
