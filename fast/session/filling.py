"""How a step is filled: one token of each row that is answered, then tokens of prompts.

A step is padded to one of STEP_TOKENS sizes, so prompts share it: several short ones are computed
at once, and where the next size would be mostly padding, a step takes as many tokens as the size
below holds. The rest comes with the next step, which the rows that are answered need anyway. No
token's bits depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

from planish.fast.session.rows import SCORED_TOKENS, STEP_TOKENS, Part, Row

MIXED_SECONDS = 0.12  # rows that are being answered wait no longer for tokens of prompts
FEW_TOKENS = 32  # such a step is not split: half of it would hardly cost less


def fill_step(
    answering: int, reading: Sequence[Row], seconds: float, padded: bool = False
) -> list[Part]:
    """The tokens of prompts that the next step computes beside those of `answering` rows.

    reading: rows whose prompts are not done, the oldest first. seconds: of a token; 0: unknown.
    padded: take all tokens that there are, with whatever padding. Prompts whose every token is
    scored have steps of their own: their logits are many.
    """
    scored = reading[0].is_scored
    some = list(takewhile(lambda row: row.is_scored == scored, reading))
    wanted = answering + sum(row.unread for row in some)
    most = min(most_tokens(answering, seconds), SCORED_TOKENS if scored else STEP_TOKENS[-1])
    size = min(wanted, most)
    room = max(1, size - answering)
    return list(share(room if scored or padded else without_padding(answering, room), some))


def share(room: int, rows: Sequence[Row]) -> Iterator[Part]:
    """Parts of so many tokens together, of as few prompts as hold them."""
    for row in rows:
        count = min(room, row.unread)
        if count == 0:
            return
        yield Part(row=row, first=row.written, count=count)
        room -= count


def most_tokens(answering: int, seconds: float) -> int:
    """The largest step: as large as fits in MIXED_SECONDS where rows are answered, but at least
    FEW_TOKENS, and enough for as many tokens of prompts as rows are answered."""
    if not (answering and seconds):
        return STEP_TOKENS[-1]
    least = max(FEW_TOKENS, 2 * answering)
    return max(size for size in STEP_TOKENS if size < 2 * least or size * seconds <= MIXED_SECONDS)


def without_padding(answering: int, room: int) -> int:
    """So many tokens of prompts, or at least half of them that fill the next smaller size, where
    more than a quarter would be padding."""
    count = answering + room
    size = next((size for size in STEP_TOKENS if size >= count), count)
    less = size // 2 - answering
    is_padded = size > FEW_TOKENS and 4 * count <= 3 * size
    return less if is_padded and 2 * less >= room else room
