"""Tasks with right and wrong answers: multiple choice and last words, by log-likelihood.

    multiple choice    accuracy               argmax_i log p(choice_i | context) is the answer
                       normalized_accuracy    the same for log p(choice_i | context) / bytes of i
    last word          accuracy               greedy decoding writes the word, token by token
                       loss                   -log p(word | the text before it), nats

As in lm-evaluation-harness (acc, acc_bytes, lambada_openai), context and choice are tokenized as
one text, and spaces at the end of a context count as the choice's:
https://github.com/EleutherAI/lm-evaluation-harness. Its acc_norm divides by characters, which are
bytes in ASCII; its tasks, and so we, do not count the space before a choice. Ties go to the first
choice.

A figure is the mean of n items, with the standard error s / sqrt(n), where
s^2 = sum (x - mean)^2 / (n - 1). Two models are compared item by item: x is the difference of their
figures on one item, so that the difficulty of an item cancels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from planish.reference.errors import PromptError
from planish.reference.progress import Progress, no_progress
from planish.reference.text.evaluate import Scores
from planish.reference.text.tokenizer import Tokenizer

MULTIPLE_CHOICE, LAST_WORD = "multiple choice", "last word"
ACCURACY, NORMALIZED, LOSS = "accuracy", "normalized_accuracy", "loss"


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question. A last word is the only choice of its context."""

    line: int  # of the file, from 1
    kind: str
    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, kw_only=True)
class Group:
    """Choices of an item after the same context tokens: all of them, unless a token crosses the end
    of the context."""

    context: tuple[int, ...]
    indices: tuple[int, ...]  # of the choices
    continuations: tuple[list[int], ...]  # token ids of each


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a model made of an item."""

    log_likelihoods: tuple[float, ...]  # of each choice, nats
    greedy: tuple[bool, ...]  # whether greedy decoding writes the choice
    figures: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over items, and its standard error; that of a single item is NaN."""

    value: float
    standard_error: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean of one model less the other's, and on how many items the first is better, worse."""

    value: float
    standard_error: float
    better: int
    worse: int


class Scorer(Protocol):
    """What is needed of an engine."""

    def score(self, context: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[Scores]:
        """Score each continuation of a context, token by token."""


def split_last_word(text: str) -> tuple[str, str]:
    """The text before its last word, and the word with the space before it; ("", text) if there
    is only one word."""
    found = re.fullmatch(r"(.*\S)(\s+\S+)\s*", text, re.DOTALL)
    return ("", text) if found is None else (found[1], found[2])


def encode_item(
    path: str | Path, item: Item, tokenizer: Tokenizer, longest: int, special: bool = True
) -> list[Group]:
    """Token ids of every choice and its context.

    special: with the tokens that the tokenizer adds to every text (BOS). Raises PromptError, which
    names the line, if one has no tokens or more than `longest`.
    """
    name = f"line {item.line}"
    try:
        context, *wholes = [
            tokenizer.encode(text, add_special_tokens=special)
            for text in (item.context.rstrip(), *(item.context + one for one in item.choices))
        ]
    except PromptError as problem:
        raise PromptError(str(problem), path=path, name=name) from None
    length = max(map(len, wholes))
    if length > longest:
        expected = f"at most {longest} tokens, the model's length"
        raise PromptError("is too long", path=path, name=name, expected=expected, found=length)
    short = [index for index, whole in enumerate(wholes) if len(whole) <= len(context)]
    if short:
        where = f"{name}: choice {short[0]}"
        raise PromptError("adds no token to its context", path=path, name=where)
    return group_by_context(wholes, len(context))


def group_by_context(wholes: Sequence[list[int]], count: int) -> list[Group]:
    """Group token ids by their first `count`, the context's."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, whole in enumerate(wholes):
        groups.setdefault(tuple(whole[:count]), []).append(index)
    return [
        Group(
            context=context,
            indices=tuple(indices),
            continuations=tuple(wholes[index][count:] for index in indices),
        )
        for context, indices in groups.items()
    ]


def measure_items(
    engine: Scorer,
    items: Sequence[Item],
    encoded: Sequence[Sequence[Group]],
    progress: Progress = no_progress,
) -> dict[str, np.ndarray]:
    """Every figure of every item, [n] each. Raises PromptError if the model gives NaN or Inf."""
    return stack_figures(judge_items(engine, items, encoded, progress))


def stack_figures(judged: Sequence[Judged]) -> dict[str, np.ndarray]:
    """Every figure of every item, [n] each."""
    return {name: np.array([one.figures[name] for one in judged]) for name in judged[0].figures}


def judge_items(
    engine: Scorer,
    items: Sequence[Item],
    encoded: Sequence[Sequence[Group]],
    progress: Progress = no_progress,
) -> list[Judged]:
    """Score and judge each item. Raises PromptError if the model gives NaN or Inf."""
    found = []
    for item, groups in progress(list(zip(items, encoded, strict=True)), items[0].kind):
        scores: dict[int, Scores] = {}
        for group in groups:
            parts = engine.score(group.context, group.continuations)
            scores |= zip(group.indices, parts, strict=True)
        ordered = [scores[index] for index in range(len(item.choices))]
        found.append(
            Judged(
                log_likelihoods=tuple(-sum_losses(score) for score in ordered),
                greedy=tuple(bool(score.likeliest.all()) for score in ordered),
                figures=judge_item(item, ordered),
            )
        )
    return found


def sum_losses(score: Scores) -> float:
    """-log p of a continuation, nats."""
    return float(score.losses.sum(dtype=np.float64))


def judge_item(item: Item, scores: Sequence[Scores]) -> dict[str, float]:
    """An item's figures, from the scores of each choice."""
    losses = np.array([sum_losses(score) for score in scores])
    if not np.isfinite(losses).all():
        raise PromptError("the model gives NaN or Inf", name=f"line {item.line}")
    if item.kind == LAST_WORD:
        return {ACCURACY: float(scores[0].likeliest.all()), LOSS: float(losses[0])}
    lengths = np.array([count_bytes(choice) for choice in item.choices])
    return {
        ACCURACY: float(losses.argmin() == item.answer),
        NORMALIZED: float((losses / lengths).argmin() == item.answer),
    }


def count_bytes(choice: str) -> int:
    """UTF-8 bytes of a choice without the space before it; all bytes if it is only space."""
    return len((choice.lstrip() or choice).encode("utf-8"))


def estimate(x: np.ndarray) -> Estimate:
    """The mean of x [n] and its standard error."""
    error = float(x.std(ddof=1)) / math.sqrt(len(x)) if len(x) > 1 else math.nan
    return Estimate(value=float(x.mean()), standard_error=error)


def pair(name: str, ours: np.ndarray, others: np.ndarray) -> Difference:
    """Compare a figure of two models on the same items, [n] each; less is better for a loss."""
    mean, gain = estimate(ours - others), others - ours if name == LOSS else ours - others
    return Difference(
        value=mean.value,
        standard_error=mean.standard_error,
        better=int((gain > 0).sum()),
        worse=int((gain < 0).sum()),
    )
