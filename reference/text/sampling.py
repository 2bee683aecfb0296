"""From logits to a token: temperature, then top_k, then top_p, then a draw (SPEC 7)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from planish.reference.errors import SamplingError


@dataclass(frozen=True)
class Sampling:
    """How to sample. temperature 0 is greedy; top_k 0 and top_p 1 keep every token."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def check(self, vocab_size: int) -> None:
        """Raise SamplingError for a value outside its range."""
        rules = {
            "temperature": ("0 or a positive finite number", 0 <= self.temperature < math.inf),
            "top_k": (f"0..{vocab_size}", 0 <= self.top_k <= vocab_size),
            "top_p": ("above 0 and at most 1", 0 < self.top_p <= 1),
            "seed": ("0..2**64 - 1", 0 <= self.seed < 2**64),
        }
        for name, (expected, good) in rules.items():
            if not good:
                raise SamplingError(
                    "bad value", name=name, expected=expected, found=getattr(self, name)
                )


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
    """One token id from logits [V]; the same logits, seed, row and step give the same id."""
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
    cumulative = np.cumsum(p[:keep])
    drawn = np.searchsorted(cumulative, uniform(sampling.seed, row, step) * cumulative[-1], "right")
    return int(ids[min(drawn, keep - 1)])
