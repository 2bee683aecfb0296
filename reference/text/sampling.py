"""From logits to a token (SPEC 7), in this order:

logit_bias -> repetition, presence and frequency penalties -> temperature -> top_k -> top_p -> min_p
-> a draw

That is the order of transformers; llama.cpp filters first and applies the temperature last.

Sources: repetition_penalty, Keskar et al. 2019, "CTRL", arXiv:1909.05858, section 4.1; presence and
frequency penalties and logit_bias, https://platform.openai.com/docs/api-reference/completions;
min_p, Nguyen et al. 2024, arXiv:2407.01082.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planish.reference.errors import SamplingError


@dataclass(frozen=True)
class Sampling:
    """How to sample. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 keep every token.

    min_p: the least share of the likeliest token's probability. repetition_penalty: of tokens in
    the prompt and the text, 1 for none. presence_penalty, frequency_penalty: of tokens in the text,
    once and for each time, 0 for none. logit_bias: (id, what is added to its logit).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def adjusts(self) -> bool:
        """Whether logits change before anything else, so that greedy tokens differ as well."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return bool(self.logit_bias) or penalties != (1, 0, 0)

    def check(self, vocab_size: int) -> None:
        """Raise SamplingError for a value outside its range."""
        rules = {
            "temperature": ("0 or a positive finite number", 0 <= self.temperature < math.inf),
            "top_k": (f"0..{vocab_size}", 0 <= self.top_k <= vocab_size),
            "top_p": ("above 0 and at most 1", 0 < self.top_p <= 1),
            "seed": ("0..2**64 - 1", 0 <= self.seed < 2**64),
            "min_p": ("0..1", 0 <= self.min_p <= 1),
            "repetition_penalty": ("a positive number", 0 < self.repetition_penalty < math.inf),
            "presence_penalty": ("-2..2", -2 <= self.presence_penalty <= 2),
            "frequency_penalty": ("-2..2", -2 <= self.frequency_penalty <= 2),
            "logit_bias": (
                f"different ids of 0..{vocab_size - 1}, each with a number of -100..100",
                _is_bias(self.logit_bias, vocab_size),
            ),
        }
        for name, (expected, good) in rules.items():
            if not good:
                raise SamplingError(
                    "bad value", name=name, expected=expected, found=getattr(self, name)
                )


def _is_bias(pairs: Sequence[tuple[int, float]], vocab_size: int) -> bool:
    ids = [number for number, _ in pairs]
    return len(set(ids)) == len(ids) and all(
        0 <= number < vocab_size and -100 <= bias <= 100 for number, bias in pairs
    )


def adjust_logits(
    logits: np.ndarray, sampling: Sampling, prompt: Sequence[int], text: Sequence[int]
) -> np.ndarray:
    """Logits [V] with bias and penalties, in float64; as they are if there is nothing to adjust.

        x_i += bias_i
        x_i = x_i / r if x_i > 0 else x_i * r        for ids of prompt and text
        x_i -= presence + frequency * n_i            for ids that the text has n_i times

    r is repetition_penalty.
    """
    if not sampling.adjusts:
        return logits
    x = logits.astype(np.float64)
    for number, bias in sampling.logit_bias:
        x[number] += bias
    seen = np.unique([*prompt, *text]).astype(np.int64)
    factor = sampling.repetition_penalty
    x[seen] = np.where(x[seen] > 0, x[seen] / factor, x[seen] * factor)
    ids, counts = np.unique(np.array(text, np.int64), return_counts=True)
    x[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    return x


def next_token(
    logits: np.ndarray,
    sampling: Sampling,
    prompt: Sequence[int],
    text: Sequence[int],
    row: int = 0,
) -> int:
    """The token after prompt and text, from the logits [V] of the last one: adjusted, then drawn.

    The number of the draw is that of the tokens in the text.
    """
    return sample(adjust_logits(logits, sampling, prompt, text), sampling, row, len(text))


def uniform(seed: int, row: int, step: int) -> float:
    """The random number in [0, 1) for token `step` of prompt `row`.

    Philox with the position as its counter has no running state: a draw does not depend on
    earlier draws. Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    bits = np.random.Philox(key=seed, counter=[0, 0, row, step])
    return float(np.random.Generator(bits).random())


def greedy(logits: np.ndarray) -> int:
    """The likeliest token, ties to the lowest id; NaN and Inf are errors, -Inf excludes a token."""
    best = int(np.argmax(logits))  # the first NaN, if there is one
    if not np.isfinite(logits[best]):
        found = logits[best]
        raise SamplingError("cannot sample", name="logits", expected="numbers", found=found)
    return best


def sample(logits: np.ndarray, sampling: Sampling, row: int = 0, step: int = 0) -> int:
    """One token id from logits [V], adjusted already; the same logits, seed, row and step give the
    same id."""
    best = greedy(logits)
    if sampling.temperature == 0:
        return best
    ids = np.argsort(-logits, kind="stable")  # ties to the lowest id
    ids = ids[: sampling.top_k or len(ids)]
    with np.errstate(over="ignore"):  # a tiny temperature: exp(-inf) = 0 is intended
        p = np.exp((logits[ids].astype(np.float64) - logits[best]) / sampling.temperature)
    p /= p.sum()
    before = np.cumsum(p) - p  # the mass of all likelier tokens
    keep = max(1, int(np.sum(before < sampling.top_p)))
    keep = min(keep, int(np.sum(p >= sampling.min_p * p[0])))  # the likeliest is the first
    cumulative = np.cumsum(p[:keep])
    drawn = np.searchsorted(cumulative, uniform(sampling.seed, row, step) * cumulative[-1], "right")
    return int(ids[min(drawn, keep - 1)])
