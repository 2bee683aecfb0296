"""A recipe in one word: its name, then what it changes, joined by dashes.

    W8A8                    W4A16-g32               W4A8-g64-minmax
    W8A8-alpha0.8           W8A8-search             W4A16-g32-alpha0.5
    naive-O1                W4A8-per_token          W4A16-g-1-float32

The words in any order: gN (inputs that share an INT4 scale; g-1 the whole row), a rule of INT4,
alphaN, search or search_per_block, per_group or per_token, float16 or float32 (INT4 scales), and,
for naive, the scheme that it takes.
"""

from __future__ import annotations

import re
from typing import Any

from planish.reference.errors import RecipeError
from planish.reference.grids import INT4_RULES
from planish.reference.quantize.recipe import RECIPES, Recipe, recipe

CHOICES = {
    "rule": tuple(INT4_RULES),
    "alpha": ("search", "search_per_block"),
    "activation": ("per_group", "per_token"),
    "scale_dtype": ("float16", "float32"),
    "scheme": ("W8A8", "O1", "O2", "O3"),
}
NUMBERS = re.compile(r"(g)(-1|\d+)|(alpha)(\d+(?:\.\d+)?)")


def parse_recipes(text: str) -> dict[str, Recipe]:
    """Names separated by commas -> recipes by those names, in order, each once.

    Raises RecipeError naming the word that is not known, or a change that the recipe cannot take.
    """
    names = [name.strip() for name in text.split(",")]
    return {name: parse_recipe(name) for name in names}


def parse_recipe(text: str) -> Recipe:
    """W4A8-g64-minmax -> recipe("W4A8", group_size=64, rule="minmax")."""
    name, *words = re.split(r"-(?=[A-Za-z])", text)
    changes: dict[str, Any] = {}
    for word in words:
        key, value = parse_change(word, text)
        if key in changes:
            raise RecipeError(f"says {key} twice", name=text)
        changes[key] = value
    if "activation" in changes and name != "W4A8":
        raise RecipeError("activation goes with the recipe W4A8 only", name=text)
    try:
        return recipe(name, **changes)
    except RecipeError as problem:
        raise RecipeError(str(problem), name=text) from None


def parse_change(word: str, text: str) -> tuple[str, Any]:
    """One word of a name -> the argument of recipe() that it changes, and its value."""
    for key, choices in CHOICES.items():
        if word in choices:
            return key, word
    found = NUMBERS.fullmatch(word)
    if found and found[1]:
        return "group_size", int(found[2])
    if found:
        return "alpha", float(found[4])
    expected = f"one of {', '.join(RECIPES)}, then words such as -g32, -minmax, -alpha0.5"
    raise RecipeError("unknown", name=text, expected=expected, found=repr(word))
