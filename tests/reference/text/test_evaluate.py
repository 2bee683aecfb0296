"""Perplexity, its standard error, KL and agreement (SPEC 8)."""

import math

import numpy as np
import pytest

from planish.reference.errors import PromptError
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.model.transformer import prefill
from planish.reference.text import evaluate as reference_evaluate
from planish.reference.text.evaluate import (
    agreement,
    cut_windows,
    log_softmax,
    perplexity,
    rolling,
    rolling_windows,
    summarize,
    token_losses,
    window_nll,
)


def losses(forward):
    """The losses that perplexity needs, from a function that gives logits."""
    return lambda tokens: window_nll(forward(tokens), tokens)


def test_uniform_logits_give_the_size_of_the_vocabulary():
    found = perplexity(losses(lambda t: np.zeros((len(t), 50), np.float32)), list(range(40)), 10)
    assert found.perplexity == pytest.approx(50) and found.standard_error == pytest.approx(0)
    assert found.mean_nll == pytest.approx(math.log(50))


def test_a_certain_model_has_perplexity_1():
    def successor(tokens):
        return np.where(np.arange(9) == np.array(tokens)[:, None] + 1, 0, -1e4)

    assert perplexity(losses(successor), list(range(9)), 9).perplexity == pytest.approx(1)


def test_the_tail_is_dropped_and_windows_do_not_see_each_other():
    seen = []

    def forward(tokens):
        seen.append(list(tokens))
        return np.zeros((len(tokens), 50), np.float32)

    found = perplexity(losses(forward), list(range(23)), 10)
    assert seen == [list(range(10)), list(range(10, 20))]
    assert (found.tokens, found.windows, found.window) == (23, 2, 10)


def test_cross_entropy_is_that_of_the_next_token():
    p = np.array([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])
    found = window_nll(np.log(p), [0, 1, 0])
    assert found == pytest.approx([-math.log(0.8), -math.log(0.6)])


@pytest.mark.parametrize("count", [1, 2, 600])
def test_losses_are_those_of_all_logits_though_few_are_held_at_a_time(
    tiny_llama, monkeypatch, count
):
    config = (checkpoint := open_checkpoint(tiny_llama)).config
    weights, tokens = load_weights(checkpoint), (np.arange(count) * 7 % 300).tolist()
    expected, made = window_nll(prefill(config, weights, tokens)[0], tokens), []

    def unembed(config, weights, x):
        made.append(len(x))
        return original(config, weights, x)

    original = reference_evaluate.unembed
    monkeypatch.setattr(reference_evaluate, "unembed", unembed)
    monkeypatch.setattr(reference_evaluate, "LOGITS", 100 * config.vocab_size)
    found = token_losses(config, weights, tokens)
    assert found.dtype == np.float64 and found.shape == (count - 1,)
    assert found == pytest.approx(expected, rel=1e-5)
    assert made == {1: [], 2: [1], 600: [100] * 5 + [12, 87]}[count]


def test_standard_error_is_perplexity_times_deviation_over_root_n():
    found = summarize(np.array([1.0, 3.0, 1.0, 3.0]), 5, 1, 5)
    assert found.perplexity == pytest.approx(math.exp(2))
    assert found.standard_error == pytest.approx(math.exp(2) * 1 / 2)


def test_standard_error_covers_the_truth_of_resampled_texts():
    rng = np.random.default_rng(0)
    nll = rng.exponential(1.0, (300, 400))
    found = [summarize(row, 0, 1, 1) for row in nll]
    spread = np.std([f.perplexity for f in found])
    assert np.mean([f.standard_error for f in found]) == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize(("count", "window"), [(9, 10), (0, 2)])
def test_a_text_shorter_than_one_window_is_refused(count, window):
    with pytest.raises(PromptError, match=f"text: is too short; expected at least {window}"):
        cut_windows([1] * count, window)


@pytest.mark.parametrize("window", [1, 0, -3])
def test_a_window_must_hold_two_tokens(window):
    with pytest.raises(PromptError, match="window: bad value"):
        cut_windows([1] * 10, window)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_model_that_gives_nan_is_an_error_and_no_perplexity(bad):
    with np.errstate(invalid="ignore"), pytest.raises(PromptError, match="NaN or Inf"):
        perplexity(losses(lambda t: np.full((len(t), 5), bad, np.float32)), [1, 2, 3, 4], 4)


def test_rolling_windows_predict_every_token_once():
    """Written by hand from lm_eval's rule; the last window has as many tokens as the others."""
    assert rolling_windows([0, 1, 2, 3, 4, 5, 6], 9, 3) == [
        ([9], [0, 1, 2]),
        ([2], [3, 4, 5]),
        ([3, 4, 5], [6]),
    ]
    assert rolling_windows([0, 1, 2, 3], 9, 2) == [([9], [0, 1]), ([1], [2, 3])]
    assert rolling_windows([5], 9, 4) == [([9], [5])]
    assert rolling_windows([], 9, 4) == []
    with pytest.raises(PromptError, match="window: bad value; expected at least 1 token"):
        rolling_windows([1], 9, 0)


def test_rolling_figures_are_for_words_bytes_and_tokens():
    def score(context, targets):
        return np.full(len(targets), 0.5 * math.log(2))

    documents = [("a é\nb", [1, 2, 3, 4]), ("x", [5])]  # 3 words in 6 bytes, 1 in 1
    found = rolling(score, documents, 9, 2)
    assert (found.documents, found.words, found.bytes, found.tokens) == (2, 4, 7, 5)
    assert (found.windows, found.window) == (3, 2)
    assert found.log_likelihood == pytest.approx(-2.5 * math.log(2))
    assert found.word_perplexity == pytest.approx(2 ** (2.5 / 4))
    assert found.byte_perplexity == pytest.approx(2 ** (2.5 / 7))
    assert found.perplexity == pytest.approx(2**0.5)
    assert found.bits_per_byte == pytest.approx(2.5 / 7)


def test_rolling_over_nan_is_an_error():
    with pytest.raises(PromptError, match="NaN or Inf"):
        rolling(lambda _, targets: np.full(len(targets), np.nan), [("a", [1])], 9, 2)


def test_log_softmax_does_not_overflow():
    assert log_softmax(np.array([[1e4, 1e4]], np.float32)) == pytest.approx(-math.log(2))


def test_agreement_of_a_model_with_itself_is_perfect():
    logits = np.random.default_rng(1).standard_normal((7, 20)).astype(np.float32)
    found = agreement(logits, logits + 3)  # a shift changes no distribution
    assert found.mean_kl == pytest.approx(0, abs=1e-6) and found.top1 == 1


def test_kl_goes_from_the_expected_to_the_found_distribution():
    expected, found = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.25, 0.75], [0.9, 0.1]])
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    result = agreement(expected, found)
    assert result.mean_kl == pytest.approx(kl / 2) and result.max_kl == pytest.approx(kl)
    assert result.top1 == 0.5
