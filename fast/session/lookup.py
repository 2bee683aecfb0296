"""Prompt lookup: guesses of the next tokens from the text itself, verified in one step.

What follows the last earlier occurrence of the text's last tokens often follows them again: in
code, in quotations, in lists. A step computes the last token and its guesses at once, for little
more than the price of one token, because it reads the weights once. Guesses that are equal to what
is then sampled are kept. Draws are numbered by their place in the text, so the tokens are exactly
those without guesses, greedy or not.

Source: Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding; verifying several tokens
at once, Leviathan et al. 2023, arXiv 2211.17192.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

LONGEST, SHORTEST = 3, 2  # tokens that are looked up; a single one recurs by chance
VERIFIED = 8  # tokens of a step that verifies, of all rows
MOST_ROWS = 2  # with more rows a step costs more, and each has fewer guesses
PAUSE, LONGEST_PAUSE = 64, 512  # tokens without guesses, once they do not pay; twice, again
UNKNOWN = 1.0  # accepted guesses that pay, before it is measured
NEWEST = 0.3  # the weight of the last measurement in an average


@dataclass(kw_only=True)
class Guesser:
    """The guesses of one row.

    tokens   the row's, prompt and answer; they only grow
    """

    tokens: Sequence[int]
    after: dict[tuple[int, ...], int] = field(default_factory=dict)  # where what follows begins
    indexed: int = 0  # tokens whose endings are in `after`
    average: float | None = None  # accepted guesses of a step; None: to be measured
    resume: int = 0  # no guesses before there are so many tokens
    pause: int = PAUSE  # the next one

    def guess(self, count: int) -> list[int]:
        """At most `count` tokens that may come next."""
        if count < 1 or len(self.tokens) < self.resume:
            return []
        self._index()
        for length in range(LONGEST, SHORTEST - 1, -1):
            start = self.after.get(tuple(self.tokens[-length:]))
            if start is not None:
                return continue_from(self.tokens, start, count)
        return []

    def _index(self) -> None:
        """Remember where each ending of the text occurs, the last of all excepted."""
        for end in range(self.indexed + 1, len(self.tokens)):
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self.after[tuple(self.tokens[end - length : end])] = end
        self.indexed = max(self.indexed, len(self.tokens) - 1)

    def learn(self, accepted: int, needed: float) -> None:
        """A step accepted so many guesses; below `needed` on average they pause."""
        before = accepted if self.average is None else self.average
        self.average = (1 - NEWEST) * before + NEWEST * accepted
        if self.average >= needed:
            self.pause = PAUSE
            return
        self.average, self.resume = None, len(self.tokens) + self.pause
        self.pause = min(2 * self.pause, LONGEST_PAUSE)


@dataclass
class Costs:
    """Seconds of a step that verifies and of one token of each row, by the number of rows."""

    verifying: dict[int, float] = field(default_factory=dict)
    plain: dict[int, float] = field(default_factory=dict)

    def note_verifying(self, rows: int, seconds: float) -> None:
        note(self.verifying, rows, seconds)

    def note_plain(self, rows: int, seconds: float) -> None:
        note(self.plain, rows, seconds)

    def needed(self, rows: int) -> float:
        """Accepted guesses for each row that pay for a step: its price in tokens, less one."""
        if rows not in self.verifying or rows not in self.plain:
            return UNKNOWN
        return self.verifying[rows] / max(self.plain[rows], 1e-9) - 1


def note(averages: dict[int, float], key: int, value: float) -> None:
    """Move an average towards a new measurement."""
    averages[key] = value + (1 - NEWEST) * (averages.get(key, value) - value)


def continue_from(tokens: Sequence[int], start: int, count: int) -> list[int]:
    """The tokens from `start` on; where the text ends, what repeats goes on repeating."""
    found = list(tokens[start : start + count])
    period = len(found)
    return found + [found[i % period] for i in range(period, count)]


def guesses_of(rows: int, most: int, left: int) -> int:
    """How many guesses a row may have: of `rows` rows in a step, with `left` tokens to come."""
    return min(most, VERIFIED // rows - 1, left - 1)
