"""Recipes: a method, a smoothing, and a scheme for each linear by the pattern of its name (SPEC 3).

    recipe       smoothing     schemes, first match wins
    W8A8         alpha 0.5     lm_head float, * W8A8
    O1, O2, O3   alpha 0.5     lm_head float, * of the same name (scheme.py)
    naive        none          lm_head float, * O2
    W8A16 ...    none          lm_head float, * of the same name
    float        none          * float

What a user asks for comes before these: patterns of `ignore` (float), then those of `scheme`, so
that `recipe("W4A16", scheme={"down_proj": "W8A16"})` has two widths, then a width for lm_head.
Every linear goes by several names, lm_head always by this one, too (schemes.py).
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from planish.reference.errors import RecipeError
from planish.reference.grids import GROUP_SIZES, INT4_RULES, SYMMETRIC_RULES
from planish.reference.quantize.methods import METHODS
from planish.reference.quantize.spelling import (
    NAMES,
    SCHEMES,
    SEARCHES,
    SMOOTHED,
    Spelled,
    check_pattern,
    choose,
    parse_name,
    read_schemes,
    scheme_spelled,
    with_grid,
)
from planish.reference.scheme import ACTIVATIONS, SCALE_DTYPES, Scheme, int4, int8

HEAD, REST = "lm_head", "*"  # patterns: the head, and what no other pattern takes
HEADS = ("float", "int8", "int4")

Entry = tuple[str, Scheme | None]


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """alpha: SmoothQuant's migration strength 0..1; `search` finds one for the model and
    `search_per_block` one for each block. outputs: fold v -> o and up -> down too."""

    alpha: float | str = 0.5
    outputs: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is quantized.

    schemes: patterns of names and what the linears that match get, None for float; the first
    match wins, the last pattern is `*`. rule: of INT4 scales where the scheme is symmetric;
    asymmetric ones have minmax.
    """

    name: str
    schemes: tuple[Entry, ...]
    smoothing: Smoothing | None = None
    method: str = "rtn"
    rule: str = "signed"

    def scheme_of(self, *names: str) -> Scheme | None:
        """The scheme of a linear that goes by these names; None where it stays in float."""
        return next((scheme for pattern, scheme in self.schemes if _any(pattern, names)), None)

    @property
    def default(self) -> Scheme | None:
        """The scheme of the linears that no pattern but `*` takes."""
        return self.schemes[-1][1]

    @property
    def alpha(self) -> float | str | None:
        """The smoothing's; None without."""
        return None if self.smoothing is None else self.smoothing.alpha

    @property
    def static(self) -> bool:
        """Whether any linear has static activation scales."""
        return any(scheme and scheme.activation == "static" for _, scheme in self.schemes)

    @property
    def quantizes(self) -> bool:
        """Whether any pattern has a scheme."""
        return any(scheme is not None for _, scheme in self.schemes)

    @property
    def quantizes_blocks(self) -> bool:
        """Whether any pattern but that of the head has one."""
        return any(scheme is not None for pattern, scheme in self.schemes if pattern != HEAD)


def _any(pattern: str, names: tuple[str, ...]) -> bool:
    return any(matches(pattern, name) for name in names)


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern matches a tensor's name, with or without its `.weight`.

    re:PATTERN is a regular expression for the start of the name (re.match), as in
    compressed-tensors. Any other is shell-style, for the whole name or a run of its components:
    `*.layers.0.*`, `down_proj`, `mlp.c_fc`; {i} is any number, as in what `inspect` prints.
    """
    if pattern.startswith("re:"):
        return any(re.match(pattern[3:], name + end) for end in ("", ".weight"))
    pattern = pattern.removesuffix(".weight").replace("{i}", "*")
    return fnmatch.fnmatchcase(f".{name}.", f"*.{pattern}.*")


def _named(name: str) -> Recipe:
    """The recipe of a name as it is without changes."""
    scheme = SCHEMES["O2" if name == "naive" else name]
    smoothing = Smoothing() if name in SMOOTHED else None
    return Recipe(name=name, schemes=((HEAD, None), (REST, scheme)), smoothing=smoothing)


RECIPES = {name: _named(name) for name in NAMES}
GRID = ("group_size", "scale_dtype", "rule")  # of INT4 weights
CHANGES = (
    *("method", "rule", "group_size", "scale_dtype", "activation"),
    *("alpha", "smooth_outputs", "head", "ignore"),
)


def recipe(
    name: str, *, scheme: str | Mapping[str, Spelled] | None = None, **changes: Any
) -> Recipe:
    """The named recipe with changes; raises RecipeError naming the nearest where one is misspelt.

    name: of RECIPES, or one with its changes in one word, as W4A8-g32-alpha0.5 (spelling.py).
    changes: method, rule, group_size, scale_dtype, activation (of the recipe's linears), alpha,
    smooth_outputs, head (of lm_head: float, int8, int4), ignore (patterns); None is not given.
    scheme: other schemes by pattern, as a mapping or spelled as read_schemes reads it. Of the
    recipe naive it may be the name of another, whose scheme it takes without smoothing: O2, which
    is what SmoothQuant's tables call W8A8, if none is given.
    """
    name, given = _with_words(name, {"scheme": scheme, **changes})
    scheme = given.pop("scheme", None)
    choose("recipe", name, RECIPES)
    if unknown := given.keys() - set(CHANGES):
        raise TypeError(f"recipe() has no {', '.join(sorted(unknown))}")
    base, mixed = _base(name, scheme)
    _check_values(given, base)
    grid: dict[str, Any] = {key: given[key] for key in GRID if key in given}
    changed = with_grid(base, grid, given.get("activation"))
    entries: list[Entry] = [(pattern, None) for pattern in given.get("ignore", ())]
    entries += [(pattern, scheme_spelled(pattern, value, grid)) for pattern, value in mixed.items()]
    schemes = (*entries, (HEAD, _head(given.get("head", "float"), grid)), (REST, changed))
    rule = given.get("rule", "signed")
    chosen = Recipe(
        name=name,
        schemes=schemes,
        smoothing=_smoothing(RECIPES[name].smoothing, given),
        method=given.get("method", "rtn"),
        rule=rule if rule in SYMMETRIC_RULES else "signed",
    )
    _check_effect(chosen, grid)
    return chosen


def _with_words(text: str, changes: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """W4A8-g32 and {alpha: 0.5} -> W4A8 and {group_size: 32, alpha: 0.5}; None is not given."""
    name, words = parse_name(text)
    given = {key: value for key, value in changes.items() if value is not None}
    if twice := words.keys() & given.keys():
        key = min(twice)
        raise RecipeError("is given twice", name=key, found=f"{words[key]} in {text}, {given[key]}")
    return name, words | given


def _base(
    name: str, scheme: str | Mapping[str, Spelled] | None
) -> tuple[Scheme | None, Mapping[str, Spelled]]:
    """The scheme of the recipe, and those by pattern."""
    own = RECIPES[name].default
    if scheme is None:
        return own, {}
    if not isinstance(scheme, str):
        return own, scheme
    if "=" in scheme or scheme.endswith(".json"):
        return own, read_schemes(scheme)
    if name != "naive" and scheme in SCHEMES:
        raise RecipeError("goes with the recipe naive only", name="scheme", found=name)
    if name != "naive":
        expected = "PATTERN=SCHEME,... or a FILE.json"
        raise RecipeError("wrong form", name="scheme", expected=expected, found=repr(scheme))
    choose("scheme", scheme, SMOOTHED)
    return SCHEMES[scheme], {}


def _head(width: str, grid: Mapping[str, Any]) -> Scheme | None:
    """lm_head's scheme: its activations stay in float."""
    return with_grid({"float": None, "int8": int8(), "int4": int4()}[width], grid, None)


def _smoothing(own: Smoothing | None, given: Mapping[str, Any]) -> Smoothing | None:
    if "alpha" in given:
        own = Smoothing(alpha=given["alpha"])
    outputs = given.get("smooth_outputs", False)
    if own is None and outputs:
        raise RecipeError("has no effect without smoothing", name="smooth_outputs", found=True)
    return None if own is None else replace(own, outputs=outputs)


def _check_values(given: Mapping[str, Any], base: Scheme | None) -> None:
    """Raise RecipeError for a value out of its range."""
    activations = ("float",) if base is None else ACTIVATIONS[base.bits]
    choices: dict[str, tuple[str, Any]] = {
        "method": ("method", METHODS),
        "rule": ("rule", INT4_RULES),
        "group_size": ("group_size", GROUP_SIZES),
        "scale_dtype": ("scale_dtype", SCALE_DTYPES[4]),
        "head": ("lm_head", HEADS),
        "activation": ("activation", activations),
    }
    for key, (name, allowed) in choices.items():
        if key in given:
            choose(name, given[key], allowed)
    for pattern in given.get("ignore", ()):
        check_pattern(pattern, "ignore")
    _check_alpha(given.get("alpha"))


def _check_alpha(alpha: Any) -> None:
    if isinstance(alpha, str):
        choose("alpha", alpha, SEARCHES, besides="0..1, ")
    elif alpha is not None and not (math.isfinite(alpha) and 0 <= alpha <= 1):
        raise RecipeError("bad value", name="alpha", expected="0..1", found=alpha)


def _check_effect(recipe: Recipe, grid: Mapping[str, Any]) -> None:
    """Raise RecipeError for a value that the recipe would ignore, or that contradicts it."""
    alpha = recipe.alpha
    if isinstance(alpha, str) and not recipe.quantizes_blocks:
        problem = "has no error to minimise in a float model"
        raise RecipeError(problem, name="alpha", expected="0..1", found=alpha)
    if recipe.name == "naive" and alpha is not None:
        raise RecipeError("naive means without smoothing", name="alpha", found=alpha)
    if grid and not any(scheme and scheme.bits == 4 for _, scheme in recipe.schemes):
        name = next(iter(grid))
        raise RecipeError("has no effect without INT4 weights", name=name, found=recipe.name)


def needs_calibration(recipe: Recipe) -> bool:
    """Whether activations must be seen before the weights can be quantized."""
    observes = recipe.quantizes_blocks and METHODS[recipe.method].observer is not None
    return recipe.smoothing is not None or recipe.static or observes
