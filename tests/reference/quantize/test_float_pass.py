"""How many samples pass through the float blocks: all, or those that the errors are measured on."""

from dataclasses import replace

import numpy as np
import pytest

from planish.reference.errors import QuantizationError
from planish.reference.files.load import open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.quantize.checkpoint import ERROR_SAMPLES, quantize_checkpoint
from planish.reference.quantize.methods import METHODS
from planish.reference.quantize.recipe import recipe
from planish.reference.quantize.runner import NumpyRunner
from planish.reference.quantize.runtime import NUMPY

COUNT = 9


class Counting(NumpyRunner):
    """Counts the samples of each pass that gives a float block's outputs."""

    def __init__(self):
        super().__init__()
        self.passes = []

    def observe(self, config, block, hidden, names=None, observer=None, parts=None):
        if parts is None:
            self.passes.append(len(hidden))
        given = () if observer is None else (observer, parts)
        return super().observe(config, block, hidden, names, *given)


def quantize(source, target, chosen):
    """The passes' numbers of samples, the reports' errors, and the bytes."""
    runner, reports = Counting(), []
    checkpoint = open_checkpoint(source)
    rng = np.random.default_rng(2)
    samples = [rng.integers(0, checkpoint.config.vocab_size, 16) for _ in range(COUNT)]
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
