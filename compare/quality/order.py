"""The recipes that `--method auto` tries, in order: the fewest bits first, then the fastest.

A recipe's codes take the same room by every method, so the group size comes first, and within it
the ways of choosing codes (families) from the fastest to the slowest. Every family is tried once;
with another rule or smaller groups only the one that was best. Rows whose methods this version does
not have are left out.

Training takes minutes a block where the others take seconds, so it comes last: SignRound at the
group size of the fewest bits, with AutoRound's light preset.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from planish.reference.errors import RecipeError
from planish.reference.quantize.methods import METHODS
from planish.reference.quantize.recipe import SETTINGS, Recipe, recipe
from planish.reference.quantize.spelling import SMOOTH

AUTO_RECIPES = ("W4A16", "W4A8", "W8A16", "W8A8", "O1", "O2", "O3")
CHAINED = ("smooth", "rtn", "gptq", "awq", "teq", "signround")  # first in a chain of methods


@dataclass(frozen=True, kw_only=True)
class Row:
    """One recipe to try: words after the recipe's name, and changes that no word says.

    family: how it chooses codes; None if it is tried whatever was found before.
    """

    words: str
    changes: dict[str, Any] = field(default_factory=dict)
    family: str | None = None


FAMILIES = ("", "-gptq", "-alpha0.5-gptq", "-awq+gptq")  # INT4 weights
GROUPED = (
    *(
        Row(words=f"{grid}{words}", family=words)
        for grid in ("", "-minmax", "-g32", "-g32-minmax")
        for words in FAMILIES
    ),
    Row(words="-minmax-signround", changes={"preset": "light"}),
)
OUTPUTS = {"smooth_outputs": True}
CLIPPED = {"smooth_outputs": True, "clip_inputs": True}
SMOOTHED = (  # INT8 weights and activations
    Row(words=""),
    Row(words="", changes=OUTPUTS),
    Row(words="-search", changes=OUTPUTS),
    Row(words="-search_per_block", changes=OUTPUTS),
    Row(words="-search_per_block-gptq", changes=OUTPUTS),
)
STATIC = (  # INT8 with static scales of the activations
    *SMOOTHED[:2],
    Row(words="", changes=CLIPPED),
    Row(words="-search", changes=CLIPPED),
    Row(words="-search_per_block", changes=CLIPPED),
    Row(words="-search_per_block-gptq", changes=CLIPPED),
)
WEIGHT_ONLY = (Row(words=""), Row(words="-gptq"))  # INT8 weights
ORDER = {"W4A16": GROUPED, "W4A8": GROUPED, "W8A16": WEIGHT_ONLY, "O3": STATIC}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A recipe of the order, under the name that the table shows."""

    name: str
    recipe: Recipe
    family: str | None = None


def candidates(name: str, **changes: Any) -> Iterator[Candidate]:
    """The candidates of a recipe, in order.

    changes: of recipe(), for all of them. Raises RecipeError for a recipe that has no order, or a
    change that none of them can have.
    """
    if name not in AUTO_RECIPES:
        expected = f"one of {', '.join(AUTO_RECIPES)}, without further words"
        raise RecipeError("cannot be searched", name="recipe", expected=expected, found=repr(name))
    for row in ORDER.get(name, SMOOTHED):
        if has_methods(row):
            given = known_changes(row)
            chosen = recipe(f"{name}{row.words}", **given, **changes)
            words = " ".join([f"{name}{row.words}", *map(spell_change, given.items())])
            yield Candidate(name=words, recipe=chosen, family=row.family)


def spell_change(change: tuple[str, Any]) -> str:
    """A change as the table shows it: its name, and its value unless it is a flag."""
    name, value = change
    return name if value is True else f"{name}={value}"


def chain_of(row: Row) -> tuple[str, ...]:
    """The methods of a row: rtn if it names none."""
    named = [word for word in row.words.split("-") if word.split("+")[0] in CHAINED]
    return tuple(named[0].split("+")) if named else ("rtn",)


def has_methods(row: Row) -> bool:
    """Whether this version has the row's methods."""
    return all(method in (*METHODS, SMOOTH) for method in chain_of(row))


def known_changes(row: Row) -> dict[str, Any]:
    """The row's changes, but for settings that this version's methods do not read."""
    read = {
        name for method in chain_of(row) if method in METHODS for name in METHODS[method].settings
    }
    return {k: value for k, value in row.changes.items() if k not in SETTINGS or k in read}
