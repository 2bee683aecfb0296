"""How many samples pass through a block: all, or those that the errors are measured on."""

from dataclasses import replace

import numpy as np
import pytest

from planish.reference.errors import QuantizationError
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.quantize.checkpoint import (
    ERROR_SAMPLES,
    choose_few,
    quantize_checkpoint,
)
from planish.reference.quantize.methods import METHODS
from planish.reference.quantize.recipe import recipe
from planish.reference.quantize.runner import NumpyRunner
from planish.reference.quantize.runtime import NUMPY
from planish.reference.quantize.search import output_error

COUNT = 9


class Counting(NumpyRunner):
    """Counts the samples of each pass that gives a block's outputs, float or quantized."""

    def __init__(self):
        super().__init__()
        self.passes, self.runs = [], []

    def observe(self, config, block, hidden, names=None, observer=None, parts=None):
        if parts is None:
            self.passes.append(len(hidden))
        given = () if observer is None else (observer, parts)
        return super().observe(config, block, hidden, names, *given)

    def run(self, config, block, hidden):
        self.runs.append(len(hidden))
        return super().run(config, block, hidden)


def draw_samples(checkpoint):
    rng = np.random.default_rng(2)
    return [rng.integers(0, checkpoint.config.vocab_size, 16) for _ in range(COUNT)]


def quantize(source, target, chosen, runner=None):
    """The passes' numbers of samples, the reports' errors, and the bytes."""
    runner, reports = runner or Counting(), []
    checkpoint = open_checkpoint(source)
    samples = draw_samples(checkpoint)
    runtime = replace(NUMPY, runner=runner, report=reports.append)
    with CheckpointWriter(target, source) as writer:
        quantize_checkpoint(checkpoint, writer, chosen, samples, runtime=runtime)
    errors = [(report.before, report.after) for report in reports]
    return runner.passes, errors, (target / "model.safetensors").read_bytes()


def test_gptq_passes_a_few_and_gives_the_same_bytes_and_errors(make_llama, tmp_path, monkeypatch):
    model, chosen = make_llama(), recipe("W4A16", method="gptq", group_size=32)
    few, errors, found = quantize(model, tmp_path / "few", chosen)
    monkeypatch.setitem(METHODS, "gptq", replace(METHODS["gptq"], targets=True))
    every, expected_errors, expected = quantize(model, tmp_path / "all", chosen)
    assert (few, every) == ([ERROR_SAMPLES] * 2, [COUNT] * 2)
    assert found == expected and errors == expected_errors


def test_the_error_is_of_the_outputs_that_the_next_block_reads(make_llama, tmp_path):
    """Only the last quantized block, whose outputs nothing reads, is run for its error alone."""
    model, runner = make_llama(), Counting()
    chosen = recipe("W4A16", method="gptq", group_size=32)
    _, errors, _ = quantize(model, tmp_path / "q", chosen, runner)
    assert runner.runs == [COUNT, ERROR_SAMPLES, ERROR_SAMPLES, ERROR_SAMPLES]
    source, made = open_checkpoint(model), open_checkpoint(tmp_path / "q")
    weights, few = load_weights(source), choose_few(draw_samples(source))
    hidden = NUMPY.runner.embed(source.config, weights, few)
    found, expected = (
        NUMPY.runner.run(source.config, block, hidden)
        for block in (load_weights(made).blocks[0], weights.blocks[0])
    )
    assert errors[0][1] == pytest.approx(output_error(hidden, found, expected), rel=1e-4)


@pytest.mark.matrix(4)
@pytest.mark.parametrize(
    ("name", "method"), [("W4A16", "awq+gptq"), ("W8A8", "gptq"), ("O3", "gptq"), ("W8A8", "rtn")]
)
def test_smoothing_static_scales_and_awq_see_all(make_llama, tmp_path, name, method):
    chosen = recipe(name, method=method)
    assert chosen.follows_floats
    passes, _, _ = quantize(make_llama(), tmp_path / "q", chosen)
    assert max(passes) == COUNT


def test_hidden_states_that_overflow_in_any_sample_are_an_error(make_llama, tmp_path):
    """Row 299 of the embedding, which one sample reads, is not among the few."""
    from safetensors.numpy import load_file, save_file

    model = make_llama(num_hidden_layers=3)
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"][299] *= np.float32(1e21)  # finite; its square is not
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    samples = [np.arange(16) for _ in range(COUNT)]
    samples[1] = np.full(16, 299)
    chosen = recipe("W4A16", method="gptq", group_size=32)
    with (
        pytest.raises(QuantizationError, match=r"layers\.0: the .*hidden states .* overflow"),
        CheckpointWriter(tmp_path / "q", model) as writer,
    ):
        quantize_checkpoint(open_checkpoint(model), writer, chosen, samples)
