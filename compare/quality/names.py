"""A recipe in one word: its name, then what it changes, joined by dashes.

    W8A8                    W4A16-g32               W4A8-g64-minmax
    W8A8-alpha0.8           W8A8-search             W4A16-g32-alpha0.5
    naive-O1                W4A8-per_token          W4A16-g-1-float32
    W4A16-gptq              W4A8-g32-awq+gptq       W4A16-gptq-no_act_order
    W4A16-signround-light   W4A16-rtn-search_range

The words may be in any order: gN (inputs that share an INT4 scale; g-1 for the whole row), an INT4
rule, a method or a chain of them, alphaN, search or search_per_block, per_group or per_token,
float16 or float32 (of INT4 scales), for naive a scheme, and the methods' settings: light or best;
act_order, true_sequential, search_range, or with no_ before them.
"""

from __future__ import annotations

from planish.reference.errors import RecipeError
from planish.reference.quantize.recipe import Recipe, recipe
from planish.reference.quantize.spelling import parse_name


def parse_recipes(text: str) -> dict[str, Recipe]:
    """Parse names separated by commas into recipes by name, in order, without duplicates.

    Raises RecipeError for an unknown word, or for a change that the recipe does not support.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise RecipeError("names no recipe", name="recipes", expected="W8A8,...", found=repr(text))
    return {name: parse_recipe(name) for name in names}


def parse_recipe(text: str) -> Recipe:
    """W4A8-g64-minmax -> recipe("W4A8", group_size=64, rule="minmax")."""
    name, changes = parse_name(text)
    try:
        return recipe(name, **changes)
    except RecipeError as problem:
        raise RecipeError(str(problem), name=text) from None
