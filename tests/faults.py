"""Faults that tests put into a session that batches (fast/session/batching.py)."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest

from planish.fast.session.batching import Batching
from planish.reference.text.requests import Request


def spoil_logits(
    session: Batching, monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[Request], bool]
) -> None:
    """From now on the logits of some requests are NaN, in every kind of step."""
    step, decode = session.model.step, session.model.decode

    def spoiled_step(plan, prompt=None):
        bad = {row.number for row in session.rows if is_bad(row.request)}
        logits = step(plan, prompt)
        for i, index in enumerate(plan.wanted):
            if plan.rows[index] in bad:
                logits = logits.at[i].set(jnp.nan)
        return logits

    def spoiled_decode(rows, count):
        bad = np.array([is_bad(row.request) for row in rows])
        return np.where(bad[None, :], -1, decode(rows, count))

    monkeypatch.setattr(session.model, "step", spoiled_step)
    monkeypatch.setattr(session.model, "decode", spoiled_decode)
