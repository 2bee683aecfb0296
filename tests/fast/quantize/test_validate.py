"""compare_heads against its definition, also where rows are cut and the head is quantized."""

from dataclasses import replace

import numpy as np
import pytest

from planish.fast.quantize import validate
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.quantize.methods.rtn import quantize_linear
from planish.reference.scheme import int8
from planish.reference.text import evaluate

TOKENS = [5, 9, 70, 33, 8, 120, 64, 7, 12, 99]


@pytest.fixture
def model(tiny_llama):
    checkpoint = open_checkpoint(tiny_llama)
    return checkpoint.config, load_weights(checkpoint)


@pytest.mark.matrix(4)
@pytest.mark.parametrize("rows", [4, 256])
@pytest.mark.parametrize("head", ["float", "int8"])
def test_the_jitted_comparison_is_the_references(model, monkeypatch, rows, head):
    config, weights = model
    monkeypatch.setattr(validate, "ROWS", rows)
    other = (
        weights if head == "float" else replace(weights, head=quantize_linear(weights.head, int8()))
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(len(TOKENS), config.hidden_size)).astype(np.float32)
    states = x, x + rng.normal(size=x.shape).astype(np.float32) / 10
    expected = evaluate.compare_heads(config, weights, other, states, TOKENS)
    found = validate.compare_heads(config, weights, other, states, TOKENS)
    for name in ("float_nll", "nll", "kl"):
        assert getattr(found, name).shape == (len(TOKENS) - 1,)
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=1e-5, atol=2e-6
        )
    np.testing.assert_array_equal(found.same, expected.same)


def test_the_comparison_is_the_agreement_token_by_token(model, monkeypatch):
    config, weights = model
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 6, 11)).astype(np.float32)
    targets = rng.integers(0, 11, 6)
    found = evaluate.compare_rows(logits[0], logits[1], targets)
    whole = evaluate.agreement(logits[0], logits[1])
    assert found.kl.mean() == pytest.approx(whole.mean_kl)
    assert found.same.mean() == whole.top1
    np.testing.assert_allclose(found.nll, evaluate.target_losses(logits[1], targets))
    states = (weights.embed[TOKENS], weights.embed[TOKENS])
    monkeypatch.setattr(evaluate, "LOGITS", 4 * config.vocab_size)
    cut = evaluate.compare_heads(config, weights, weights, states, TOKENS)
    assert np.all(cut.kl == 0) and np.all(cut.same) and len(cut.nll) == len(TOKENS) - 1
