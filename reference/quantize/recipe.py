"""The schemes by name: what is done to weights, to activations, and before both (SPEC 3, 4)."""

from __future__ import annotations

import difflib
import fnmatch
import math
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from planish.reference.errors import RecipeError
from planish.reference.grids import GROUP_SIZES, INT4_RULES

METHODS = ("rtn",)
SCALE_DTYPES = ("float16", "float32")
HEADS = ("float", "int8", "int4")
ACTIVATIONS_BY_BITS: dict[int | None, tuple[str, ...]] = {
    None: ("float",),
    8: ("float", "per_token", "per_tensor", "static"),
    4: ("float", "per_token", "per_group"),
}
SEARCHES = ("search", "search_per_block")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is quantized. Fields that a scheme does not use keep their defaults.

    alpha: SmoothQuant's migration strength; None for no smoothing; `search` finds one for the
    model and `search_per_block` one for each block (smooth.py).
    """

    name: str
    bits: int | None = None  # None | 8 | 4
    granularity: str = "per_channel"  # of INT8 weights: per_channel | per_tensor
    activation: str = "float"  # linear.ACTIVATIONS
    alpha: float | str | None = None
    smooth_outputs: bool = False  # fold v -> o and up -> down too
    method: str = "rtn"
    rule: str = "signed"
    group_size: int = 128
    scale_dtype: str = "float16"  # of INT4 scales that it can hold (grids.store_scale)
    head: str = "float"
    ignore: tuple[str, ...] = ()  # patterns of linears left in float

    def ignores(self, *names: str) -> bool:
        """Whether a linear, by any of its names, is left in float."""
        return any(matches(pattern, name) for pattern in self.ignore for name in names)

    def describe(self) -> dict[str, Any]:
        """The fields that hold for this recipe, as they are written to quantization_config."""
        fields = asdict(self)
        unused = ("granularity",) if self.bits == 4 else ("rule", "group_size", "scale_dtype")
        if self.bits == 8 and self.head != "int4":
            fields = {k: v for k, v in fields.items() if k not in unused}
        return {**fields, "ignore": list(self.ignore)}


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern of `ignore` matches a tensor's name, with or without its `.weight`.

    re:PATTERN is a regular expression for the start of the name (re.match), as in
    compressed-tensors. Any other is shell-style, for the whole name or a run of its components:
    `*.layers.0.*`, `down_proj`, `mlp.c_fc`; {i} is any number, as in what `inspect` prints.
    """
    if pattern.startswith("re:"):
        return any(re.match(pattern[3:], name + end) for end in ("", ".weight"))
    pattern = pattern.removesuffix(".weight").replace("{i}", "*")
    return fnmatch.fnmatchcase(f".{name}.", f"*.{pattern}.*")


_W8A8 = Recipe(name="W8A8", bits=8, activation="per_token", alpha=0.5)
_O2 = replace(_W8A8, name="O2", granularity="per_tensor", activation="per_tensor")

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="float"),
        _W8A8,
        replace(_W8A8, name="O1", granularity="per_tensor"),
        _O2,
        replace(_O2, name="O3", activation="static"),
        replace(_O2, name="naive", alpha=None),
        Recipe(name="W8A16", bits=8),
        Recipe(name="W4A16", bits=4),
        Recipe(name="W4A8", bits=4, activation="per_group"),
    )
}


def _choose(name: str, value: Any, choices: Any, besides: str = "") -> None:
    if value not in choices:
        near = difflib.get_close_matches(str(value).lower(), [str(c).lower() for c in choices], n=1)
        nearest = [c for c in choices if near and str(c).lower() == near[0]]
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        listed = besides + ", ".join(str(c) for c in choices)
        raise RecipeError(
            "unknown", name=name, expected=f"one of {listed}{hint}", found=repr(value)
        )


def recipe(name: str, *, scheme: str | None = None, **changes: Any) -> Recipe:
    """The named recipe with changes; raises RecipeError naming the nearest where one is misspelt.

    `naive` is a scheme without smoothing: O2's, which is what SmoothQuant's tables call W8A8,
    or with scheme="W8A8" (O1, O3) that one's.
    """
    _choose("recipe", name, RECIPES)
    chosen = RECIPES[name]
    if scheme is not None:
        _choose("scheme", scheme, ("W8A8", "O1", "O2", "O3"))
        if name != "naive":
            raise RecipeError("goes with the recipe naive only", name="scheme", found=name)
        chosen = replace(RECIPES[scheme], name="naive", alpha=None)
    given = {key: value for key, value in changes.items() if value is not None}
    chosen = replace(chosen, **given)
    check(chosen, given)
    return chosen


def check(recipe: Recipe, given: dict[str, Any]) -> None:
    """Raise RecipeError for a value out of its range, or one that the scheme would ignore."""
    _choose("method", recipe.method, METHODS)
    _choose("rule", recipe.rule, INT4_RULES)
    _choose("group_size", recipe.group_size, GROUP_SIZES)
    _choose("scale_dtype", recipe.scale_dtype, SCALE_DTYPES)
    _choose("lm_head", recipe.head, HEADS)
    _choose("activation", recipe.activation, ACTIVATIONS_BY_BITS[recipe.bits])
    for pattern in recipe.ignore:
        _check_pattern(pattern)
    if isinstance(recipe.alpha, str):
        _choose("alpha", recipe.alpha, SEARCHES, besides="0..1, ")
    elif recipe.alpha is not None and not (math.isfinite(recipe.alpha) and 0 <= recipe.alpha <= 1):
        raise RecipeError("bad value", name="alpha", expected="0..1", found=recipe.alpha)
    if isinstance(recipe.alpha, str) and recipe.bits is None:
        problem = "has no error to minimise in a float model"
        raise RecipeError(problem, name="alpha", expected="0..1", found=recipe.alpha)
    if recipe.name == "naive" and recipe.alpha is not None:
        raise RecipeError("naive means without smoothing", name="alpha", found=recipe.alpha)
    if recipe.smooth_outputs and recipe.alpha is None:
        raise RecipeError("has no effect without smoothing", name="smooth_outputs", found=True)
    for key in ("rule", "group_size", "scale_dtype"):
        if key in given and recipe.bits != 4 and recipe.head != "int4":
            raise RecipeError("has no effect without INT4 weights", name=key, found=recipe.name)


def _check_pattern(pattern: str) -> None:
    if not pattern.removeprefix("re:"):
        raise RecipeError("an empty pattern", name="ignore", found=repr(pattern))
    try:
        re.compile(pattern[3:] if pattern.startswith("re:") else "")
    except (re.error, OverflowError, RecursionError) as problem:
        raise RecipeError(
            f"not a regular expression: {problem}", name="ignore", found=pattern
        ) from None


def needs_calibration(recipe: Recipe) -> bool:
    """Whether activations must be seen before the weights can be quantized."""
    return recipe.alpha is not None or recipe.activation == "static"
