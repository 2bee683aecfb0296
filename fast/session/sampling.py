"""The arrays by which a program samples several tokens of each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planish.fast.model.backend import Draw
from planish.fast.native.sampling import as_int32, pack_settings
from planish.fast.placement import give
from planish.reference.text.sampling import Sampling, uniform

MOST_TOKENS = 16  # of one dispatch
FEWEST_ENDS = 8  # ids of a row; more are rounded up to a power of two, so that few programs exist
NEVER = -2  # no token's id


@dataclass(frozen=True, kw_only=True)
class RowDraw:
    """How the next tokens of one row are drawn. row, step: of its first draw (SPEC 7).

    ends: ids that end it."""

    sampling: Sampling
    row: int
    step: int
    ends: Sequence[int]


def prepare_draw(rows: Sequence[RowDraw], count: int, size: int | None = None) -> Draw:
    """The arrays from which the device samples `count` tokens of each row.

    size: rows of the program, of which those after the last are padding; None: no padding.
    """
    size = len(rows) if size is None else size
    most = max((len(row.ends) for row in rows), default=0)
    ends = np.full((size, max(FEWEST_ENDS, 1 << (max(most, 1) - 1).bit_length())), NEVER, np.int32)
    settings, numbers = np.zeros((size, 5), np.int32), np.zeros((MOST_TOKENS, size))
    for i, row in enumerate(rows):
        ends[i, : len(row.ends)] = row.ends
        settings[i] = pack_settings(row.sampling)
        if row.sampling.temperature > 0:
            for step in range(count):
                numbers[step, i] = uniform(row.sampling.seed, row.row, row.step + step)
    return Draw(
        sampling=give(settings),
        uniform=give(as_int32(numbers)),
        ends=give(ends),
        count=give(np.array(count, np.int32)),
    )
