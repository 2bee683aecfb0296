"""What a quantized model has lost against float on a text or a task: the metrics of a tolerance.

With a_i and b_i the cross entropies (nats) of token i in the quantized and in the float model:

    perplexity   P_a / P_b - 1 = exp(mean(a - b)) - 1       0.01: perplexity 1 % higher
    kl           mean KL(float || quantized)                0.01: nats per token
    top1         1 - share of tokens with the same top 1    0.01: one in a hundred differs
    accuracy     accuracy_b - accuracy_a on a task's items  0.01: one point in a hundred

Each is paired, on the same tokens or items, and has a standard error: that of a mean over them,
taken as independent. A loss is within a tolerance if loss + standard error is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from planish.reference.errors import PromptError
from planish.reference.text.evaluate import Comparison

METRICS = {
    "perplexity": "perplexity / float perplexity - 1",
    "kl": "mean KL(float || quantized) of the next token, nats",
    "top1": "share of tokens whose likeliest successor is another",
    "accuracy": "float accuracy - accuracy on the task's items",
}


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss and its standard error, in the metric's unit."""

    value: float
    error: float

    @property
    def bound(self) -> float:
        """loss + standard error: what a tolerance is compared with."""
        return self.value + self.error


def text_loss(metric: str, found: Comparison) -> Loss:
    """The loss by `perplexity`, `kl` or `top1`. Raises PromptError where nll is not finite."""
    if not np.isfinite(found.nll).all():
        raise PromptError("the quantized model gives NaN or Inf", name="validation")
    if metric == "perplexity":
        worse = found.nll - found.float_nll
        ratio = math.exp(min(float(worse.mean()), 700.0))
        return Loss(value=ratio - 1, error=ratio * standard_error(worse))
    each = found.kl if metric == "kl" else 1.0 - found.same
    return Loss(value=float(each.mean()), error=standard_error(each))


def task_loss(right: np.ndarray, float_right: np.ndarray) -> Loss:
    """The loss of accuracy: right, float_right: 1 or 0 for each item, [items] both."""
    worse = np.asarray(float_right, np.float64) - np.asarray(right, np.float64)
    return Loss(value=float(worse.mean()), error=standard_error(worse))


def standard_error(values: np.ndarray) -> float:
    """std / sqrt(n)."""
    return float(np.std(values) / math.sqrt(len(values)))
