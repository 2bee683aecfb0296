"""The jitted runner against the reference's: the same statistics, states, errors and codes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planish import pocket
from planish.fast.quantize.observe import Runner
from planish.reference.errors import QuantizationError
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.model.folds import folds
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.observe import Observer, observe_block
from planish.reference.quantize.recipe import recipe
from planish.reference.quantize.runtime import NUMPY, Runtime
from planish.reference.quantize.search import search_alpha
from tests.reference.quantize.conftest import by_recipe

GOLDEN = Path(__file__).parents[2] / "golden"
MODELS = {
    "pocket": pocket.MODEL,
    **{
        name: GOLDEN / name
        for name in (
            "gpt_neox-parallel",
            "falcon-7b-form-biases",
            "opt-350m-form",
            "mpt-clipped-scaled-six-heads",
            "bloom-hub-spelling-six-heads",
            "gemma2-caps",
            "olmo2-grouped",
            "phi3-longrope-partial",
            "qwen3-norms",
            "mixtral-two-of-four",
            "qwen3_moe-some-layers",
        )
    },
}
TOLERANCE = 1e-5  # of the largest statistic of a linear


@pytest.fixture(params=MODELS)
def model(request):
    """A checkpoint, its weights, and samples of 24 tokens and a longer one."""
    checkpoint = open_checkpoint(MODELS[request.param])
    rng = np.random.default_rng(3)
    lengths = (24, 24, 24, 40)
    samples = [rng.integers(0, checkpoint.config.vocab_size, n) for n in lengths]
    return checkpoint, load_weights(checkpoint), samples


@pytest.mark.optimized(9)
@pytest.mark.whole(5)
@pytest.mark.parametrize("native", [False, True], ids=["xla", "native"])
def test_statistics_and_states_are_the_references(kernels, model, native):
    checkpoint, weights, samples = model
    config, runner = checkpoint.config, Runner(native)
    expected_states = states = runner.embed(config, weights, samples)
    for block in weights.blocks:
        expected, expected_states = NUMPY.runner.observe(config, block, expected_states)
        found, states = runner.observe(config, block, states)
        assert set(found) == set(expected)
        for part, absmax in expected.items():
            assert np.abs(found[part] - absmax).max() <= TOLERANCE * absmax.max(), part
        for y, right in zip(states, expected_states, strict=True):
            assert np.abs(y - right).max() <= TOLERANCE * np.abs(right).max()


@pytest.mark.matrix(27, 5)
@pytest.mark.parametrize("native", [False, True], ids=["xla", "native"])
def test_candidates_of_a_search_run_on_their_codes(kernels, model, native):
    checkpoint, weights, samples = model
    config, runner, block = checkpoint.config, Runner(native), weights.blocks[0]
    hidden = runner.embed(config, weights, samples)
    for chosen in (recipe("W8A16"), recipe("W4A16", group_size=32, rule="minmax")):
        candidate = by_recipe(config, block, chosen)
        found = runner.run(config, candidate, hidden)
        for y, right in zip(found, NUMPY.runner.run(config, candidate, hidden), strict=True):
            assert np.abs(y - right).max() <= TOLERANCE * np.abs(right).max()


def off_by_one(found: Path, expected: Path) -> float:
    """The share of codes that differ; the files must otherwise hold the same tensors.

    A code may be off by one, a float by rounding.
    """
    before, after = (open_checkpoint(path).entries for path in (expected, found))
    assert set(before) == set(after)
    codes = different = 0
    for name, entry in before.items():
        a, b = entry.map(), after[name].map()
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if a.dtype == np.int8:
            distance = np.abs(a.astype(int) - b)
            assert distance.max() <= 1, name
            codes, different = codes + a.size, different + int(distance.sum())
        elif a.dtype == np.float32:
            assert np.abs(a - b).max() <= 2 * TOLERANCE * np.abs(a).max(), name
    return different / codes


@pytest.mark.matrix(27, 5)
@pytest.mark.parametrize("name", ["W8A8", "O3"])
def test_at_most_one_code_in_ten_thousand_is_off_by_one(kernels, model, tmp_path, name):
    checkpoint, _, samples = model
    chosen = recipe(name) if folds(checkpoint.config) else recipe("naive", scheme="O3")
    for runner, path in ((NUMPY.runner, "numpy"), (Runner(native=True), "fast")):
        with CheckpointWriter(tmp_path / path, checkpoint.path) as writer:
            given = (samples[:3], "canonical", Runtime(runner=runner))
            quantize_checkpoint(checkpoint, writer, chosen, *given)
    assert off_by_one(tmp_path / "fast", tmp_path / "numpy") <= 1e-4


@pytest.mark.whole
def test_a_search_finds_the_same_errors(kernels):
    """Not the same alphas where two are as good: a code that flips at a tie decides then."""
    checkpoint = open_checkpoint(pocket.MODEL)
    samples = [np.random.default_rng(i).integers(0, 512, 48) for i in range(2)]
    given = checkpoint, load_weights(checkpoint), samples, recipe("W8A8", alpha="search")
    expected, found = (
        search_alpha(*given, (0.3, 0.9), Runtime(runner=runner)).errors
        for runner in (NUMPY.runner, Runner(native=True))
    )
    assert found.shape == (checkpoint.config.num_layers, 2)
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.matrix(18, 5)
def test_another_observer_sees_the_same_inputs(kernels, model):
    checkpoint, weights, samples = model
    hessian = Observer(measure=lambda x: x.T @ x, merge=np.add)
    config, block = checkpoint.config, weights.blocks[0]
    hidden = NUMPY.runner.embed(config, weights, samples)
    expected, _ = observe_block(config, block, hidden, observer=hessian)
    found, _ = Runner(native=True).observe(config, block, hidden, observer=hessian)
    for part, right in expected.items():
        assert np.abs(found[part] - right).max() <= TOLERANCE * np.abs(right).max()


def spoilt(hidden, value):
    """The states with one entry replaced."""
    states = [x.copy() for x in hidden]
    states[1][3, 5] = value
    return states


@pytest.mark.matrix(42, 9)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_input_that_is_not_finite_is_an_error_that_names_block_and_linear(model, value):
    checkpoint, weights, samples = model
    config, block = checkpoint.config, weights.blocks[1]
    hidden = spoilt(NUMPY.runner.embed(config, weights, samples), value)
    names = {part: f"layers.1.{part}" for part in ("q", "k", "v", "o", "gate", "up", "down")}
    messages = []
    for runner in (NUMPY.runner, Runner()):
        with pytest.raises(QuantizationError) as caught:
            runner.observe(config, block, hidden, names)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and messages[0].startswith("layers.1.q: the activations")


@pytest.mark.matrix(2)
@pytest.mark.parametrize(("weight", "problem"), [(3e38, "the hidden"), (1e25, "the squared")])
def test_outputs_that_overflow_are_an_error_that_names_the_block(tiny_llama, weight, problem):
    checkpoint = open_checkpoint(tiny_llama)
    config, weights = checkpoint.config, load_weights(checkpoint)
    block = weights.blocks[0]
    down = replace(block.mlp.down, weight=np.full_like(block.mlp.down.weight, weight))
    block = replace(block, mlp=replace(block.mlp, down=down))
    hidden = NUMPY.runner.embed(config, weights, [np.arange(20)])
    names = {"q": "layers.0.q", "k": "layers.0.k"}
    for runner in (NUMPY.runner, Runner()):
        with pytest.raises(QuantizationError, match=rf"^layers\.0: {problem}"):
            runner.observe(config, block, hidden, names)
