"""Against transformers: the logits that tests/golden/make.py stored (SPEC 6)."""

from pathlib import Path

import numpy as np
import pytest

from planish.reference.architectures import ENTRIES
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.model.transformer import decode_step, forward, prefill

GOLDEN = Path(__file__).parents[2] / "golden"
DIRECTORIES = sorted(path.parent for path in GOLDEN.glob("*/golden.npz"))
TOLERANCE = 2e-5  # of the logits' range


@pytest.fixture(params=DIRECTORIES, ids=lambda path: path.name)
def golden(request):
    checkpoint = open_checkpoint(request.param)
    with np.load(request.param / "golden.npz") as stored:
        return checkpoint.config, load_weights(checkpoint), dict(stored)


def error(found, expected):
    return np.abs(found - expected).max() / np.ptp(expected)


def test_every_architecture_has_a_golden_and_they_are_small():
    names = {path.name.partition("-")[0] for path in DIRECTORIES}
    assert names == set(ENTRIES)
    files = (file for path in DIRECTORIES for file in path.rglob("*") if file.is_file())
    assert sum(file.stat().st_size for file in files) < 8e6


@pytest.mark.matrix(11)
def test_logits_are_those_of_transformers(golden):
    config, weights, stored = golden
    short = forward(config, weights, stored["tokens_short"])
    assert error(short, stored["logits_short"]) < TOLERANCE
    long = forward(config, weights, stored["tokens_long"])[stored["positions_long"]]
    assert len(stored["tokens_long"]) >= 500 and error(long, stored["logits_long"]) < TOLERANCE


@pytest.mark.matrix(6)
def test_prompts_of_different_lengths_each_give_their_own_last_logits(golden):
    config, weights, stored = golden
    count = sum(name.startswith("batch_tokens_") for name in stored)
    assert count >= 2
    for row in range(count):
        last = forward(config, weights, stored[f"batch_tokens_{row}"])[-1]
        assert error(last, stored[f"batch_logits_{row}"]) < TOLERANCE


@pytest.mark.matrix(22)
def test_prefill_and_decode_give_the_same_logits(golden):
    """Or those of transformers' own cache, where rotary positions depend on the length."""
    config, weights, stored = golden
    tokens, positions = stored["tokens_long"], stored["positions_long"]
    logits, cache = prefill(config, weights, tokens[:490], 128)
    rows = [logits]
    for token in tokens[490:]:
        row, cache = decode_step(config, weights, int(token), cache)
        rows.append(row[None])
    found = np.concatenate(rows)
    assert any(rope.by_length for rope in config.ropes) == ("logits_decoded" in stored)
    if "logits_decoded" in stored:
        assert error(found[489:], stored["logits_decoded"]) < TOLERANCE
    else:
        assert error(found[positions], stored["logits_long"]) < TOLERANCE
