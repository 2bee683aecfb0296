"""What attention leaves is kept for the next pass, changes no bit, and is not used for others."""

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import planish.fast.quantize.observe as observe
from planish.fast.quantize.observe import Runner
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.linear import float_weight
from planish.reference.quantize.observe import MOMENTS, observe_block

GOLDEN = Path(__file__).parents[2] / "golden"
NAMES = ["llama-tied-grouped", "olmo2-grouped", "gemma2-caps", "opt-350m-form"]


@pytest.fixture
def case(request):
    """A config, its first block, a runner, and the hidden states of four samples."""
    checkpoint = open_checkpoint(GOLDEN / getattr(request, "param", "llama-tied-grouped"))
    config, weights = checkpoint.config, load_weights(checkpoint)
    rng, runner = np.random.default_rng(3), Runner()
    samples = [rng.integers(0, config.vocab_size, n) for n in (24, 24, 40, 24)]
    return config, weights.blocks[0], runner, runner.embed(config, weights, samples)


def see_mlp(config, block, runner, hidden):
    return runner.observe(config, block, hidden, observer=MOMENTS, parts=("up", "down"))[0]


@pytest.fixture
def passes(monkeypatch):
    """How often attention is computed, in batches."""
    counted, attend = [], observe.attend_batch
    monkeypatch.setattr(observe, "attend_batch", lambda *given: counted.append(1) or attend(*given))
    return counted


@pytest.mark.whole
@pytest.mark.parametrize("case", NAMES, indirect=True)
def test_the_next_pass_begins_there_and_finds_the_same_bits(case, passes):
    config, block, runner, hidden = case
    expected = Runner().run(config, block, hidden)
    batches = len(passes)
    seen = see_mlp(config, block, runner, hidden)
    found = runner.run(config, block, hidden)
    assert batches > 1 and len(passes) == 2 * batches
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    reference, _ = observe_block(config, block, hidden, observer=MOMENTS, parts=("up", "down"))
    assert list(seen) == list(reference)
    for part, right in reference.items():
        assert np.abs(seen[part] - right).max() <= 1e-5 * np.abs(right).max()


@pytest.mark.whole
def test_another_attention_or_other_samples_are_computed(case, passes):
    config, block, runner, hidden = case
    see_mlp(config, block, runner, hidden)
    once = len(passes)
    other = replace(block, q=replace(block.q, weight=float_weight(block.q) * np.float32(2)))
    before, after = (runner.run(config, one, hidden) for one in (block, other))
    assert len(passes) == 2 * once
    assert np.abs(before[0] - after[0]).max() > 0
    runner.run(config, block, [*hidden])  # a list, whose samples somebody may replace
    assert len(passes) == 3 * once


@pytest.mark.whole
def test_it_is_forgotten_with_its_inputs(case):
    config, block, runner, hidden = case
    inputs = runner.store.new()
    inputs.extend(hidden)
    see_mlp(config, block, runner, inputs)
    assert len(runner.kept.by_inputs) == 1
    del inputs
    gc.collect()
    assert len(runner.kept.by_inputs) == 0
