"""Recipes: a method, a smoothing, and a scheme for each linear by the pattern of its name (SPEC 3).

    recipe       smoothing     schemes, first match wins
    W8A8         alpha 0.5     lm_head float, * W8A8
    O1, O2, O3   alpha 0.5     lm_head float, * of the same name (scheme.py)
    naive        none          lm_head float, * O2
    W8A16 ...    none          lm_head float, * of the same name
    float        none          * float

A user's patterns come before these: first those of `ignore` (float), then those of `scheme`, as in
`recipe("W4A16", scheme={"down_proj": "W8A16"})`, then the width of lm_head. Each linear has several
names that a pattern can match (schemes.py); lm_head always has this one.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from planish.reference.errors import RecipeError
from planish.reference.grids import GROUP_SIZES, INT4_RULES, SYMMETRIC_RULES
from planish.reference.model.config import ATTENTIONS, KV_CACHES, choose_kv_cache
from planish.reference.quantize.methods import METHODS
from planish.reference.quantize.patterns import check_pattern
from planish.reference.quantize.settings import DEFAULTS, PRESETS, Settings
from planish.reference.quantize.spelling import (
    NAMES,
    SCHEMES,
    SEARCHES,
    SMOOTHED,
    Spelled,
    choose,
    parse_chain,
    parse_name,
    parse_scheme,
    read_schemes,
    with_grid,
)
from planish.reference.scheme import ACTIVATIONS, SCALE_DTYPES, Scheme, int4, int8

HEAD, REST = "lm_head", "*"  # patterns: lm_head, and every linear that nothing else matches
HEADS = ("float", "int8", "int4")

Entry = tuple[str, Scheme | None]


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """SmoothQuant's settings.

    alpha: the migration strength, 0..1; `search` finds one for the model, `search_per_block` one
    for each block. outputs: also fold v -> o and up -> down.
    """

    alpha: float | str = 0.5
    outputs: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is quantized.

    schemes: (pattern, scheme) pairs, None for float; the first match wins, and the last pattern
    is `*`. method: a chain of names of METHODS, joined by +. rule: how symmetric INT4 scales are
    chosen; asymmetric schemes use minmax. clip_inputs: static scales by least error (clip.py).
    attention, kv_cache: as in ModelConfig.
    """

    name: str
    schemes: tuple[Entry, ...]
    smoothing: Smoothing | None = None
    method: str = "rtn"
    rule: str = "signed"
    clip_inputs: bool = False
    settings: Settings = DEFAULTS
    attention: str = "float"
    kv_cache: str = "float32"

    def scheme_of(self, *names: str) -> Scheme | None:
        """The scheme of a linear with these names; None if it stays in float."""
        return next(
            (scheme for pattern, scheme in self.schemes if _matches_any(pattern, names)), None
        )

    @property
    def default(self) -> Scheme | None:
        """The scheme of the linears that only `*` matches."""
        return self.schemes[-1][1]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods in order; the last one rounds."""
        chain = tuple(self.method.split("+"))
        return chain if METHODS[chain[-1]].rounds else (*chain, "rtn")

    @property
    def rescales(self) -> bool:
        """Whether a method changes the float block before another rounds it."""
        return len(self.methods) > 1

    @property
    def sequential(self) -> bool:
        """Whether a method takes its inputs from the quantized blocks before its own."""
        return any(METHODS[method].sequential for method in self.methods)

    @property
    def follows_floats(self) -> bool:
        """Whether all samples pass through the float blocks; if not, a few do."""
        wanted = self.smoothing is not None or self.calibrates_scales or not self.sequential
        return wanted or any(METHODS[method].targets for method in self.methods)

    @property
    def alpha(self) -> float | str | None:
        """The smoothing's alpha; None without smoothing."""
        return None if self.smoothing is None else self.smoothing.alpha

    @property
    def static(self) -> bool:
        """Whether any linear has static activation scales."""
        return any(scheme and scheme.activation == "static" for _, scheme in self.schemes)

    @property
    def calibrates_scales(self) -> bool:
        """Whether any linear, or attention, has static scales."""
        return self.static or self.kv_cache == "int8_static"

    @property
    def quantizes(self) -> bool:
        """Whether any pattern has a scheme."""
        return any(scheme is not None for _, scheme in self.schemes)

    @property
    def quantizes_blocks(self) -> bool:
        """Whether any pattern except lm_head has a scheme."""
        return any(scheme is not None for pattern, scheme in self.schemes if pattern != HEAD)


def _matches_any(pattern: str, names: tuple[str, ...]) -> bool:
    return any(matches(pattern, name) for name in names)


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern matches a tensor's name, with or without its `.weight`.

    re:PATTERN is a regular expression that matches the start of the name (re.match), as in
    compressed-tensors. Any other pattern is shell-style and matches the whole name or consecutive
    components of it: `*.layers.0.*`, `down_proj`, `mlp.c_fc`; {i} matches any layer number, as
    `inspect` prints it.
    """
    if pattern.startswith("re:"):
        return any(re.match(pattern[3:], name + end) for end in ("", ".weight"))
    pattern = pattern.removesuffix(".weight").replace("{i}", "*")
    return fnmatch.fnmatchcase(f".{name}.", f"*.{pattern}.*")


def _make_recipe(name: str) -> Recipe:
    """The recipe of this name, unchanged."""
    scheme = SCHEMES["O2" if name == "naive" else name]
    smoothing = Smoothing() if name in SMOOTHED else None
    return Recipe(name=name, schemes=((HEAD, None), (REST, scheme)), smoothing=smoothing)


RECIPES = {name: _make_recipe(name) for name in NAMES}
GRID = ("group_size", "scale_dtype", "rule")  # of INT4 weights
SETTINGS = tuple(field.name for field in fields(Settings))
CHANGES = (
    *("method", "rule", "group_size", "scale_dtype", "activation"),
    *("alpha", "smooth_outputs", "clip_inputs", "head", "ignore", *SETTINGS),
    *("attention", "kv_cache"),
)


def recipe(
    name: str, *, scheme: str | Mapping[str, Spelled] | None = None, **changes: Any
) -> Recipe:
    """The named recipe with changes; RecipeError suggests the nearest name for a misspelt one.

    name: of RECIPES, or one with its changes in one word, as W4A8-g32-alpha0.5 (spelling.py).
    changes: method, rule, group_size, scale_dtype, activation (of the recipe's linears), alpha,
    smooth_outputs, clip_inputs, head (of lm_head: float, int8, int4), ignore (patterns), attention
    and kv_cache (model/config.py), and the methods' settings (settings.py); None means not given.
    method is a name of METHODS, or several joined by +, as awq+gptq; smooth at the head of a chain
    means alpha 0.5.
    scheme: other schemes by pattern, as a mapping or as text for read_schemes. For the recipe
    naive it may name a smoothed recipe, whose scheme is then used without smoothing; the default,
    O2, is the baseline that SmoothQuant's tables call W8A8 (arXiv 2211.10438).
    """
    name, given = _with_words(name, {"scheme": scheme, **changes})
    scheme = given.pop("scheme", None)
    choose("recipe", name, RECIPES)
    if unknown := given.keys() - set(CHANGES):
        raise TypeError(f"recipe() has no {', '.join(sorted(unknown))}")
    base, mixed = _base_and_patterns(name, scheme)
    given |= parse_chain(given, RECIPES[name].alpha)
    _check_values(given, base)
    grid: dict[str, Any] = {key: given[key] for key in GRID if key in given}
    changed = with_grid(base, grid, given.get("activation"))
    entries: list[Entry] = [(pattern, None) for pattern in given.get("ignore", ())]
    entries += [(pattern, parse_scheme(pattern, value, grid)) for pattern, value in mixed.items()]
    schemes = (*entries, (HEAD, _head_scheme(given.get("head", "float"), grid)), (REST, changed))
    rule = given.get("rule", "signed")
    chosen = Recipe(
        name=name,
        schemes=schemes,
        smoothing=_smoothing(RECIPES[name].smoothing, given),
        method=given.get("method", "rtn"),
        rule=rule if rule in SYMMETRIC_RULES else "signed",
        clip_inputs=given.get("clip_inputs", False),
        settings=Settings(**{key: given[key] for key in SETTINGS if key in given}),
    )
    chosen = with_attention(chosen, given.get("attention"), given.get("kv_cache"))
    _check_settings(chosen, given)
    _check_effect(chosen, grid)
    return chosen


def with_attention(recipe: Recipe, attention: str | None, kv_cache: str | None) -> Recipe:
    """The recipe with this attention, and the cache that it implies (model/config.py)."""
    attention = attention or recipe.attention
    choose("attention", attention, ATTENTIONS)
    choose("kv_cache", kv_cache or "float32", KV_CACHES)
    cache = choose_kv_cache(attention, kv_cache, recipe.static)
    return replace(recipe, attention=attention, kv_cache=cache)


def _with_words(text: str, changes: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """W4A8-g32 and {alpha: 0.5} -> W4A8 and {group_size: 32, alpha: 0.5}; None is not given."""
    name, words = parse_name(text)
    given = {key: value for key, value in changes.items() if value is not None}
    if twice := words.keys() & given.keys():
        key = min(twice)
        raise RecipeError("is given twice", name=key, found=f"{words[key]} in {text}, {given[key]}")
    return name, words | given


def _base_and_patterns(
    name: str, scheme: str | Mapping[str, Spelled] | None
) -> tuple[Scheme | None, Mapping[str, Spelled]]:
    """The recipe's default scheme, and the schemes by pattern."""
    own = RECIPES[name].default
    if scheme is None:
        return own, {}
    if not isinstance(scheme, str):
        return own, scheme
    if "=" in scheme or scheme.endswith(".json"):
        return own, read_schemes(scheme)
    if name != "naive" and scheme in SCHEMES:
        raise RecipeError("is only valid with --recipe naive", name="scheme", found=name)
    if name != "naive":
        expected = "PATTERN=SCHEME,... or a FILE.json"
        raise RecipeError("wrong form", name="scheme", expected=expected, found=repr(scheme))
    choose("scheme", scheme, SMOOTHED)
    return SCHEMES[scheme], {}


def _head_scheme(width: str, grid: Mapping[str, Any]) -> Scheme | None:
    """lm_head's scheme at this width, its activations in float."""
    return with_grid({"float": None, "int8": int8(), "int4": int4()}[width], grid, None)


def _smoothing(own: Smoothing | None, given: Mapping[str, Any]) -> Smoothing | None:
    if "alpha" in given:
        own = Smoothing(alpha=given["alpha"])
    outputs = given.get("smooth_outputs", False)
    if own is None and outputs:
        raise RecipeError("has no effect without smoothing", name="smooth_outputs", found=True)
    return None if own is None else replace(own, outputs=outputs)


def _check_values(given: Mapping[str, Any], base: Scheme | None) -> None:
    """Raise RecipeError for a value outside its range."""
    activations = ("float",) if base is None else ACTIVATIONS[base.bits]
    choices: dict[str, tuple[str, Any]] = {
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


def _check_settings(recipe: Recipe, given: Mapping[str, Any]) -> None:
    """Raise RecipeError for a setting outside its range, or one that no method reads."""
    read = {setting for method in recipe.methods for setting in METHODS[method].settings}
    read |= {"seed"} if needs_calibration(recipe) else set()  # it draws the samples
    for key in SETTINGS:
        if key in given and key not in read:
            raise RecipeError("has no effect", name=key, found=f"method {recipe.method}")
    settings = recipe.settings
    choose("preset", settings.preset, PRESETS)
    if not (math.isfinite(settings.damping) and 0 < settings.damping <= 1):
        raise RecipeError("bad value", name="damping", expected="0..1", found=settings.damping)
    if settings.iterations is not None and settings.iterations < 1:
        problem, found = "bad value", settings.iterations
        raise RecipeError(problem, name="iterations", expected="at least 1", found=found)
    if not 0 <= settings.seed < 2**32:
        raise RecipeError("bad value", name="seed", expected="0..2^32 - 1", found=settings.seed)


def _check_effect(recipe: Recipe, grid: Mapping[str, Any]) -> None:
    """Raise RecipeError for a value that the recipe has no place for, or that contradicts it.

    What is written must be what the values say; docs/command.md has the rule for all flags.
    """
    alpha = recipe.alpha
    if isinstance(alpha, str) and not recipe.quantizes_blocks:
        problem = "has no error to minimise in a float model"
        raise RecipeError(problem, name="alpha", expected="0..1", found=alpha)
    if recipe.name == "naive" and alpha is not None:
        raise RecipeError("naive means without smoothing", name="alpha", found=alpha)
    if recipe.method != "rtn" and not recipe.quantizes:
        problem = "has no effect without quantized weights"
        raise RecipeError(problem, name="method", found=recipe.method)
    if recipe.kv_cache != "float32" and not recipe.quantizes:
        name = "attention" if recipe.attention == "int8" else "kv_cache"
        problem = "is not stored with a float model: give it to generate"
        raise RecipeError(problem, name=name, found=getattr(recipe, name))
    if recipe.clip_inputs and not recipe.static:
        problem = "has no effect without static activations (O3)"
        raise RecipeError(problem, name="clip_inputs", found=recipe.name)
    if grid and not any(scheme and scheme.bits == 4 for _, scheme in recipe.schemes):
        name = next(iter(grid))
        raise RecipeError("has no effect without INT4 weights", name=name, found=recipe.name)


def needs_calibration(recipe: Recipe) -> bool:
    """Whether the recipe needs activations: for smoothing, static scales or the method."""
    return recipe.smoothing is not None or needs_states(recipe)


def needs_states(recipe: Recipe) -> bool:
    """Whether the samples must pass through the blocks once a search for alpha has ended."""
    calibrates = any(METHODS[method].calibrates for method in recipe.methods)
    return recipe.calibrates_scales or (recipe.quantizes_blocks and calibrates)
