"""Flipped bytes anywhere in a model's files: a model that runs, or a PlanishError; nothing else."""

import shutil

import numpy as np
import pytest

from planish.reference.errors import PlanishError
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.model.transformer import forward
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import recipe
from planish.reference.text.tokenizer import load_tokenizer

SEEDS = 200


def flip(file, rng):
    """Change 1 to 8 bytes, half of the time all of them in the first 600: the headers."""
    content = bytearray(file.read_bytes())
    end = min(600, len(content)) if rng.random() < 0.5 else len(content)
    for _ in range(rng.integers(1, 9)):
        content[rng.integers(end)] ^= 1 << rng.integers(8)
    file.write_bytes(content)


def run(path):
    """Open, load, tokenize and compute, as the command does."""
    checkpoint = open_checkpoint(path)
    tokenizer = load_tokenizer(path, checkpoint.config)
    tokens = tokenizer.encode("a b c")[: checkpoint.config.max_positions]
    logits = forward(checkpoint.config, load_weights(checkpoint), tokens)
    assert logits.shape == (len(tokens), checkpoint.config.vocab_size)
    return tokenizer.decode([int(logits[-1].argmax())])


@pytest.fixture(scope="module")
def models(directories, samples, tmp_path_factory):
    """A float model and a quantized one."""
    target = tmp_path_factory.mktemp("fuzz") / "quantized"
    with CheckpointWriter(target, directories["llama"]) as writer:
        chosen = recipe("W4A8", group_size=32)
        quantize_checkpoint(open_checkpoint(directories["llama"]), writer, chosen, samples)
    return [directories["llama"], directories["opt"], target]


@pytest.mark.matrix(4)
@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_flipped_bytes_give_a_model_or_a_typed_error(models, tmp_path, first):
    outcomes = {"runs": 0, "refused": 0}
    for seed in range(first, first + 50):
        rng = np.random.default_rng(seed)
        path = tmp_path / str(seed)
        shutil.copytree(models[seed % len(models)], path)
        files = sorted(path.iterdir())
        flip(files[rng.integers(len(files))], rng)
        try:
            with np.errstate(all="ignore"):
                run(path)
            outcomes["runs"] += 1
        except PlanishError as problem:
            assert str(problem).isprintable(), seed  # noqa: PT017  (it may also run)
            outcomes["refused"] += 1
        shutil.rmtree(path)
    assert outcomes["runs"] > 0 and outcomes["refused"] > 10
