"""What quantization costs: perplexity and its standard error, KL, top-1 agreement (SPEC 8).

Perplexity has two protocols: windows that do not see each other (`perplexity`), and those of
lm-evaluation-harness, which predict every token (`rolling`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from planish.reference.errors import PromptError
from planish.reference.model.config import ModelConfig
from planish.reference.model.transformer import (
    PREFILL_CHUNK,
    empty_cache,
    extend,
    hidden_states,
    unembed,
)
from planish.reference.model.weights import Weights
from planish.reference.progress import Progress, no_progress

LONGEST_WINDOW = 2048
TASK = "perplexity"  # what progress calls it
LOGITS = 2**24  # held at a time: 64 MiB, or those of one token if they are more

Losses = Callable[[Sequence[int]], np.ndarray]  # tokens [T] -> -log p of tokens 1..T-1, [T - 1]


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """exp of the mean cross entropy (nats) of the predicted tokens, and its standard error.

    standard_error = perplexity * std(nll) / sqrt(n), to first order, over the n predicted tokens.
    `tokens` counts the whole text; the tail after the last full window is dropped.
    """

    perplexity: float
    standard_error: float
    mean_nll: float
    tokens: int
    windows: int
    window: int


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a model gives each token of a continuation, given all tokens before it."""

    losses: np.ndarray  # -log p [n], nats
    likeliest: np.ndarray  # bool [n], whether greedy decoding would choose it


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """log p, float64, over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    log_p: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return log_p


def target_losses(logits: np.ndarray, targets: Sequence[int]) -> np.ndarray:
    """-log p of each row's target, float64 [T], from logits [T, V]; row by row, to save memory."""
    rows = zip(logits, targets, strict=True)
    return np.array([-log_softmax(row)[target] for row, target in rows], np.float64)


def window_nll(logits: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """-log p of tokens 1..T-1, each given the tokens before it, float64 [T - 1]."""
    return target_losses(logits[:-1], tokens[1:])


def continuation_scores(
    config: ModelConfig,
    weights: Weights,
    context: Sequence[int],
    continuations: Sequence[Sequence[int]],
) -> list[Scores]:
    """Score each continuation of one context, whose keys and values are computed once.

    context, continuations: token ids, at least one in each. If the model's angles depend on the
    length of the sequence (share_length), all continuations must have the same length.
    """
    cache, length = empty_cache(config), len(context) + max(map(len, continuations))
    *before, last = context
    for start in range(0, len(before), PREFILL_CHUNK):
        some = np.asarray(before[start : start + PREFILL_CHUNK])
        _, cache = extend(config, weights, some, cache, length)
    found = []
    for continuation in continuations:
        tokens = np.asarray([last, *continuation[:-1]])
        x, _ = extend(config, weights, tokens, cache, length)
        found.append(score_states(config, weights, x, continuation))
    return found


def score_states(
    config: ModelConfig, weights: Weights, x: np.ndarray, targets: Sequence[int]
) -> Scores:
    """Score the token after each hidden state x [T, D]; holds at most LOGITS logits at a time."""
    rows, losses, likeliest = max(1, LOGITS // config.vocab_size), [], []
    for start in range(0, len(targets), rows):
        some = targets[start : start + rows]
        logits = unembed(config, weights, x[start : start + rows])  # [rows, V]
        losses.append(target_losses(logits, some))
        likeliest.append(logits.argmax(axis=-1) == np.asarray(some))
    return Scores(losses=np.concatenate(losses), likeliest=np.concatenate(likeliest))


def share_length(
    config: ModelConfig, continuations: Sequence[Sequence[int]]
) -> list[Sequence[Sequence[int]]]:
    """Which continuations can share a context: all, or one at a time if the angles of a rope
    depend on the length of the whole sequence (dynamic, longrope)."""
    if any(rope.by_length for rope in config.ropes):
        return [[continuation] for continuation in continuations]
    return [continuations]


def token_losses(config: ModelConfig, weights: Weights, tokens: Sequence[int]) -> np.ndarray:
    """window_nll of a model, which never holds more than LOGITS logits at a time."""
    rows, found = max(1, LOGITS // config.vocab_size), [np.zeros(0)]
    for x, cache in hidden_states(config, weights, tokens):
        targets = tokens[cache.length - len(x) + 1 : cache.length + 1]
        for start in range(0, len(targets), rows):
            some = targets[start : start + rows]
            logits = unembed(config, weights, x[start : start + len(some)])  # [rows, V]
            found.append(target_losses(logits, some))
    return np.concatenate(found)


def cut_windows(tokens: Sequence[int], window: int) -> list[list[int]]:
    """Consecutive windows without the tail; PromptError if the text is shorter than one window."""
    if window < 2:
        raise PromptError("bad value", name="window", expected="at least 2 tokens", found=window)
    count = len(tokens) // window
    if count == 0:
        raise PromptError(
            "is too short", name="text", expected=f"at least {window} tokens", found=len(tokens)
        )
    return [list(tokens[i * window : (i + 1) * window]) for i in range(count)]


def perplexity(
    losses: Losses, tokens: Sequence[int], window: int, progress: Progress = no_progress
) -> Perplexity:
    """Perplexity of a tokenized text; the protocol of SmoothQuant's ppl_eval.py, GPTQ and AWQ."""
    windows = cut_windows(tokens, window)
    parts = [np.asarray(losses(w), np.float64) for w in progress(windows, TASK)]
    nll = np.concatenate(parts)
    if not np.isfinite(nll).all():
        raise PromptError("the model gives NaN or Inf", name="perplexity")
    return summarize(nll, len(tokens), len(windows), window)


def summarize(nll: np.ndarray, tokens: int, windows: int, window: int) -> Perplexity:
    """Mean and standard error from the cross entropy of every predicted token."""
    mean = float(nll.mean())
    value = bounded_exp(mean)
    error = value * float(nll.std()) / math.sqrt(len(nll))
    return Perplexity(
        perplexity=value,
        standard_error=error,
        mean_nll=mean,
        tokens=tokens,
        windows=windows,
        window=window,
    )


Score = Callable[[Sequence[int], Sequence[int]], np.ndarray]  # context, targets [T] -> -log p [T]


@dataclass(frozen=True, kw_only=True)
class Rolling:
    """How well a model predicts every token of documents, given some of those before it.

        word_perplexity = exp(-L / words)    byte_perplexity = exp(-L / bytes)
        perplexity = exp(-L / tokens)        bits_per_byte = -L / (bytes ln 2)

    L = log_likelihood, the sum of log p, nats. Models with different tokenizers can be compared by
    the figures of words and bytes. Words are what whitespace separates.
    """

    word_perplexity: float
    byte_perplexity: float
    bits_per_byte: float
    perplexity: float
    log_likelihood: float
    documents: int
    words: int
    bytes: int
    tokens: int
    windows: int
    window: int


def rolling_windows(
    tokens: Sequence[int], prefix: int, window: int
) -> list[tuple[list[int], list[int]]]:
    """Context and targets of each window; together the targets are the tokens.

    The first token is predicted from `prefix`, that of every other window from the token before
    it. The last window has fewer targets and as many more tokens of context.

    Source: get_rolling_token_windows with context_len 1, then make_disjoint_window, of
    https://github.com/EleutherAI/lm-evaluation-harness/blob/main/lm_eval/utils.py
    """
    if window < 1:
        raise PromptError("bad value", name="window", expected="at least 1 token", found=window)
    whole, found = [prefix, *tokens], []
    for start in range(0, len(tokens), window):
        end = min(start + window, len(tokens))
        found.append((whole[max(0, end - window) : start + 1], list(tokens[start:end])))
    return found


def rolling(
    score: Score,
    documents: Sequence[tuple[str, Sequence[int]]],
    prefix: int,
    window: int,
    progress: Progress = no_progress,
) -> Rolling:
    """The figures of documents, each a text and its token ids without BOS, together.

    As lm-evaluation-harness measures loglikelihood_rolling, in which wikitext is a task.
    """
    cut = [rolling_windows(tokens, prefix, window) for _, tokens in documents]
    windows = [one for part in cut for one in part]
    total = -math.fsum(float(score(*one).sum(dtype=np.float64)) for one in progress(windows, TASK))
    if not math.isfinite(total):
        raise PromptError("the model gives NaN or Inf", name="perplexity")
    return summarize_rolling(total, documents, len(windows), window)


def summarize_rolling(
    total: float, documents: Sequence[tuple[str, Sequence[int]]], windows: int, window: int
) -> Rolling:
    """The figures from the sum of log p of all tokens."""
    words = sum(len(re.split(r"\s+", text)) for text, _ in documents)
    size = sum(len(text.encode("utf-8")) for text, _ in documents)
    tokens = sum(len(ids) for _, ids in documents)
    return Rolling(
        word_perplexity=bounded_exp(-total / words),
        byte_perplexity=bounded_exp(-total / size),
        bits_per_byte=-total / (size * math.log(2)),
        perplexity=bounded_exp(-total / tokens),
        log_likelihood=total,
        documents=len(documents),
        words=words,
        bytes=size,
        tokens=tokens,
        windows=windows,
        window=window,
    )


def bounded_exp(x: float) -> float:
    """exp, at most 1e304, as more than that cannot be written."""
    return math.exp(min(x, 700.0))


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How closely one model's next-token distributions follow another's."""

    mean_kl: float  # nats per token, KL(expected || found)
    max_kl: float
    top1: float  # fraction of tokens whose most likely successor is the same


def agreement(expected: np.ndarray, found: np.ndarray) -> Agreement:
    """Compare logits [T, V] of the float32 model with another's."""
    kl = divergence(log_softmax(expected), log_softmax(found))
    top1 = float(np.mean(same_likeliest(expected, found)))
    return Agreement(mean_kl=float(kl.mean()), max_kl=float(kl.max()), top1=top1)


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) of each row, nats [T], from log probabilities [T, V]."""
    kl: np.ndarray = (np.exp(p) * (p - q)).sum(axis=-1)
    return kl


def same_likeliest(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Whether both find the same token likeliest, bool [T], from logits [T, V]."""
    same: np.ndarray = expected.argmax(axis=-1) == found.argmax(axis=-1)
    return same


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models on one text, for each of the n predicted tokens.

    float_nll, nll: -log p of the token. kl: KL(float || other) of its distribution, nats. same:
    whether both find the same token likeliest.
    """

    float_nll: np.ndarray  # float64 [n]
    nll: np.ndarray  # float64 [n]
    kl: np.ndarray  # float64 [n]
    same: np.ndarray  # bool [n]


def compare_heads(
    config: ModelConfig,
    weights: Weights,
    other: Weights,
    states: tuple[np.ndarray, np.ndarray],
    tokens: Sequence[int],
) -> Comparison:
    """Compare the predictions of tokens 1..T-1 from both models' last hidden states [T, D].

    weights, states[0]: of the float model. Never holds more than LOGITS logits of each.
    """
    rows, parts = max(1, LOGITS // config.vocab_size), []
    for start in range(0, len(tokens) - 1, rows):
        some = slice(start, min(start + rows, len(tokens) - 1))
        targets = np.asarray(tokens[some.start + 1 : some.stop + 1])
        pair = zip((weights, other), states, strict=True)
        logits = [unembed(config, each, x[some]) for each, x in pair]
        parts.append(compare_rows(logits[0], logits[1], targets))
    return join_comparisons(parts)


def compare_rows(expected: np.ndarray, found: np.ndarray, targets: np.ndarray) -> Comparison:
    """Compare logits [T, V] of the float model with another's; targets [T]."""
    p, q = log_softmax(expected), log_softmax(found)
    rows = np.arange(len(targets))
    return Comparison(
        float_nll=-p[rows, targets],
        nll=-q[rows, targets],
        kl=divergence(p, q),
        same=same_likeliest(expected, found),
    )


def join_comparisons(parts: Sequence[Comparison]) -> Comparison:
    """One comparison of all their tokens."""
    names = [field.name for field in fields(Comparison)]
    return Comparison(**{n: np.concatenate([getattr(one, n) for one in parts]) for n in names})
