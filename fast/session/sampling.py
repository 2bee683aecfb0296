"""Sampling in a session: on the host, or by a program that samples several tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from planish.fast.model.backend import Draw
from planish.fast.native.sampling import as_int32, pack_settings
from planish.fast.placement import on_cpu, put
from planish.reference.text.sampling import Sampling, sample, uniform

MOST_TOKENS = 16  # of one dispatch
NEVER = -2  # no token's id


def sample_rows(
    logits: Sequence[np.ndarray],
    sampling: Sampling,
    rows: Sequence[int],
    step: int,
    active: Collection[int],
) -> np.ndarray:
    """The next token of each row of logits B x [V], on the host; 0 for rows that have ended."""
    pairs = zip(rows, logits, strict=True)
    return np.array([sample(x, sampling, row, step) if row in active else 0 for row, x in pairs])


@on_cpu
def prepare_draw(
    sampling: Sampling, rows: Sequence[int], step: int, count: int, eos: Sequence[int]
) -> Draw:
    """The arrays from which the device samples `count` tokens of each row, from `step` on."""
    numbers = np.zeros((MOST_TOKENS, len(rows)))
    if sampling.temperature > 0:
        for index, column in np.ndindex(count, len(rows)):
            numbers[index, column] = uniform(sampling.seed, rows[column], step + index)
    return Draw(
        sampling=put(pack_settings(sampling)),
        uniform=put(as_int32(numbers)),
        ends=put(np.array([eos or (NEVER,)], np.int32)),
        count=put(np.int32(count)),
    )
