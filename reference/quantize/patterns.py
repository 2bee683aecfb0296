"""Check the patterns by which a user names linears; recipe.matches applies them.

Python's regular expressions backtrack: `re:(a+)+b` takes 2^n steps on n letters, and only Ctrl-C
ends it. So count_ways bounds in how many ways an expression can match a name, and one with too many
is refused before it is used.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable
from typing import Any

from planish.reference.errors import RecipeError

LONGEST_PATTERN = 2000  # characters
LONGEST_NAME = 128  # characters of a linear's name; real ones have fewer than 100
MOST_WAYS = 64 * LONGEST_NAME**3  # half a second for a name of that length; real ones are short
FEWER = "fewer * and +, and none inside another"


def check_pattern(pattern: str, name: str) -> None:
    """Raise RecipeError for an empty pattern, a bad regular expression, or one that may not end."""
    if not pattern.removeprefix("re:"):
        raise RecipeError("an empty pattern", name=name, found=repr(pattern))
    if len(pattern) > LONGEST_PATTERN:
        expected, found = f"at most {LONGEST_PATTERN} characters", len(pattern)
        raise RecipeError("a pattern too long", name=name, expected=expected, found=found)
    if not pattern.startswith("re:"):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what re warns of has another meaning in other Pythons
            re.compile(pattern[3:])
        ways = count_ways(pattern[3:])
    except (re.error, Warning, OverflowError, RecursionError) as problem:
        raise RecipeError(
            f"not a regular expression: {problem}", name=name, found=pattern
        ) from None
    if ways > MOST_WAYS:
        reason = "a regular expression that can take too long"
        raise RecipeError(reason, name=name, expected=FEWER, found=pattern)


def count_ways(expression: str) -> float:
    """A bound on the ways in which a valid expression can match a name, as its parser sees it.

    One after another they multiply, alternatives add up, and a repeat has one way for each number
    of times: x{2,4} has w^2 + w^3 + w^4 for the w ways of x.
    """
    parser: Any = getattr(re, "_parser")  # noqa: B009  (private, and in no type stub)
    return _ways_of_sequence(parser.parse(expression))


def _ways_of_sequence(items: Iterable[tuple[Any, Any]]) -> float:
    return math.prod(_ways_of_item(str(kind), value) for kind, value in items)


def _ways_of_item(kind: str, value: Any) -> float:
    """The ways of one item of a parsed expression; a character or an anchor has one."""
    if kind == "BRANCH":
        return sum(map(_ways_of_sequence, value[1]))
    if kind.endswith("_REPEAT"):
        least, most, body = value
        return _ways_of_repeat(int(least), int(most), _ways_of_sequence(body))
    if kind == "GROUPREF_EXISTS":
        return sum(_ways_of_sequence(part) for part in value[1:] if part is not None)
    if kind in ("SUBPATTERN", "ASSERT", "ASSERT_NOT"):
        return _ways_of_sequence(value[-1])
    return _ways_of_sequence(value) if kind == "ATOMIC_GROUP" else 1


def _ways_of_repeat(least: int, most: int, ways: float) -> float:
    """ways^least + ... + ways^most, for no more repetitions than a name has characters."""
    least, most = min(least, LONGEST_NAME), min(most, LONGEST_NAME)
    if ways == 1:
        return most - least + 1
    if most * math.log(ways) > math.log(MOST_WAYS):
        return math.inf
    return sum(ways**times for times in range(least, most + 1))
