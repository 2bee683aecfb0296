"""What an answer must be, token by token: a mask over the logits before a token is drawn.

A `Matcher` knows which tokens may come next. Who knows grammars makes one (for JSON,
planish/openai/grammar.py); sessions only ask it. An answer of at least so many tokens excludes its
ends before. The mask comes first of all (SPEC 7): no bias and no temperature brings back what it
excludes. Log-probabilities stay those of raw logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from planish.reference.errors import PlanishError


class Matcher(Protocol):
    """One answer as it grows."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow: the answer ends here, without a token that says so."""

    def allowed(self) -> np.ndarray:
        """bool [V]: tokens that may come next; those that end the answer only where it may end.
        Raises PlanishError if that cannot be said within its limits."""

    def accept(self, token: int) -> None:
        """The next token of the answer, one of those allowed. Raises PlanishError as well."""


Constraint = Callable[[], Matcher]  # a matcher before its first token


def mask_logits(
    logits: np.ndarray, matcher: Matcher | None, excluded: Sequence[int] = ()
) -> np.ndarray:
    """Logits [V] with -inf for tokens that may not come next: those that the matcher does not
    allow, and the excluded ids. As they are if there is neither."""
    if matcher is None and not excluded:
        return logits
    allowed = np.ones(len(logits), bool) if matcher is None else matcher.allowed().copy()
    allowed[list(excluded)] = False
    if not allowed.any():
        raise PlanishError("no token of the vocabulary continues the answer", name="constraint")
    return np.where(allowed, logits, np.float32(-np.inf))


def accept_token(matcher: Matcher | None, token: int) -> bool:
    """Tell the matcher; returns whether the answer is complete."""
    if matcher is None:
        return False
    matcher.accept(token)
    return matcher.is_complete
