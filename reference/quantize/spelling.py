"""How a user writes schemes: by name, by pattern on the command line, or in a small JSON file.

W4A16-g32                              a name, a group size, a rule
*.down_proj=W8A16,re:.*q_proj$=float   schemes by pattern, the first match wins
{"down_proj": "W8A16", "o_proj": null, "lm_head": {"weights": {"num_bits": 8, ...}}}
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from planish.reference.errors import RecipeError
from planish.reference.grids import GROUP_SIZES, INT4_RULES, SYMMETRIC_RULES
from planish.reference.json import read_json
from planish.reference.quantize.methods import METHODS
from planish.reference.quantize.patterns import check_pattern
from planish.reference.quantize.settings import PRESETS
from planish.reference.scheme import SCALE_DTYPES, Scheme, int4, int8, scheme_from_values

Spelled = str | Mapping[str, Any] | None  # a name, an object as in config_groups, None: float

SCHEMES: dict[str, Scheme | None] = {
    "float": None,
    "W8A8": int8(activation="per_token"),
    "O1": int8("per_tensor", "per_token"),
    "O2": int8("per_tensor", "per_tensor"),
    "O3": int8("per_tensor", "static"),
    "W8A16": int8(),
    "W4A16": int4(),
    "W4A8": int4(activation="per_group"),
}


NAMES = (*SCHEMES, "naive")  # of recipes
SMOOTHED = ("W8A8", "O1", "O2", "O3")  # naive uses the scheme of one of them, not smoothed
SMOOTH = "smooth"  # at the head of a chain of methods: SmoothQuant at alpha 0.5
SEARCHES = ("search", "search_per_block")
WORDS: dict[str, tuple[str, ...]] = {
    "rule": tuple(INT4_RULES),
    "alpha": SEARCHES,
    "activation": ("per_group", "per_token"),
    "scale_dtype": SCALE_DTYPES[4],
    "scheme": SMOOTHED,
    "preset": tuple(preset for preset in PRESETS if preset != "default"),
}
INT8_ATTENTION = "int8_attention"  # a word
SWITCHES = ("act_order", "true_sequential", "search_range")  # words; with no_ before them: off
# of the whole recipe, not of a single linear
RECIPE_KEYS = ("alpha", "scheme", "method", "preset", "attention", *SWITCHES)
NUMBERS = re.compile(r"(g)(-1|[0-9]{1,9})|(alpha)([0-9]{1,9}(?:\.[0-9]{1,99})?)")
GROUP_KEYS = ("weights", "input_activations", "output_activations", "targets", "format")


def read_schemes(text: str) -> dict[str, Spelled]:
    """Read schemes by pattern from `PATTERN=SCHEME,PATTERN=SCHEME` or from FILE.json, in order.

    A pattern may contain commas and equals signs, as regular expressions do: an entry ends where a
    comma follows a scheme's name. The file holds one object that maps a pattern to the name of a
    scheme, to null for float, or to an object as in config_groups (docs/file-format.md).
    """
    if text.endswith(".json"):
        return read_json(Path(text), RecipeError)
    found, rest = dict[str, Spelled](), text
    while rest:
        entry = re.match(r"(.*?)=([\w.-]+)(?:,(?=.)|$)", rest)
        if entry is None:
            expected = "PATTERN=SCHEME, separated by commas"
            raise RecipeError("wrong form", name="scheme", expected=expected, found=repr(rest))
        if entry[1] in found:
            raise RecipeError("is given twice", name="scheme", found=repr(entry[1]))
        found[entry[1]], rest = entry[2], rest[entry.end() :]
    return found


def parse_name(text: str) -> tuple[str, dict[str, Any]]:
    """W4A8-g64-minmax-alpha0.8 -> W4A8 and the changes for recipe().

    Words in any order: gN (g-1: a whole row), a rule, a method or a chain of them (awq+gptq),
    per_group or per_token, float16 or float32, alphaN, search or search_per_block, for naive the
    scheme that it uses; int8_attention; of methods' settings light or best, act_order,
    true_sequential and search_range, or no_act_order and so on. Raises RecipeError for any other
    word; does not check the name and the numbers.
    """
    name, *words = re.split(r"-(?=[A-Za-z])", text)
    changes: dict[str, Any] = {}
    for word in words:
        key, value = _parse_word(word, text)
        if key in changes:
            raise RecipeError(f"gives {key} twice", name=text)
        changes[key] = value
    if "activation" in changes and name != "W4A8":
        raise RecipeError("activation is only valid with W4A8", name=text)
    return name, changes


def _parse_word(word: str, text: str) -> tuple[str, Any]:
    """One word -> the argument of recipe() that it sets, and its value."""
    for key, choices in WORDS.items():
        if word in choices:
            return key, word
    if all(part in (*METHODS, SMOOTH) for part in word.split("+")):
        return "method", word
    if word == INT8_ATTENTION:
        return "attention", "int8"
    if word.removeprefix("no_") in SWITCHES:
        return word.removeprefix("no_"), not word.startswith("no_")
    found = NUMBERS.fullmatch(word)
    if found and found[1]:
        return "group_size", int(found[2])
    if found:
        return "alpha", float(found[4])
    expected = f"one of {', '.join(NAMES)}, then words such as -g32, -minmax, -alpha0.5"
    raise RecipeError("unknown", name=text, expected=expected, found=repr(word))


def parse_chain(given: Mapping[str, Any], own: float | str | None) -> dict[str, Any]:
    """The changes that a chain of methods such as `smooth+gptq` means: its alpha, and the rest.

    own: the alpha of the named recipe. Raises RecipeError for an unknown method, or one after a
    method that rounds.
    """
    if "method" not in given:
        return {}
    first, *rest = chain = str(given["method"]).split("+")
    smooths = first == SMOOTH
    chain = rest if smooths and rest else ["rtn"] if smooths else chain
    for method in chain:
        choose("method", method, METHODS)
    if any(METHODS[method].rounds for method in chain[:-1]):
        expected = "one method that rounds, at the end"
        raise RecipeError("wrong form", name="method", expected=expected, found=given["method"])
    if len({*chain}) < len(chain):
        raise RecipeError("names a method twice", name="method", found=given["method"])
    alpha = {"alpha": 0.5} if smooths and "alpha" not in given and own is None else {}
    return {"method": "+".join(chain), **alpha}


def parse_scheme(pattern: str, value: Spelled, grid: Mapping[str, Any]) -> Scheme | None:
    """The scheme that a user gives a pattern; grid: the recipe's group size, rule, scale_dtype."""
    check_pattern(pattern, "scheme")
    if value is None:
        return None
    if isinstance(value, str):
        name, changes = parse_name(value)
        choose("scheme", name, SCHEMES)
        grid = _own_grid(value, changes, grid)
        return with_grid(SCHEMES[name], grid, changes.get("activation"))
    if not isinstance(value, Mapping):
        expected, found = "the name of a scheme, null or an object", type(value).__name__
        raise RecipeError("wrong form", name=f"scheme {pattern}", expected=expected, found=found)
    for key in value:
        choose(f"scheme {pattern}", key, GROUP_KEYS)
    try:
        return scheme_from_values(value)
    except RecipeError as problem:
        raise RecipeError(f"{problem}", name=f"scheme {pattern}") from None


def _own_grid(spelled: str, changes: Mapping[str, Any], grid: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's grid, overridden by the words after the scheme's name."""
    if changes.keys() & {*RECIPE_KEYS}:
        problem = "sets what belongs to the recipe, not to a linear"
        raise RecipeError(problem, name="scheme", found=spelled)
    if changes and not _is_int4(spelled):
        raise RecipeError("has no effect without INT4 weights", name="scheme", found=spelled)
    rule = changes.get("rule")
    own = grid.get("rule") if grid.get("rule") in SYMMETRIC_RULES else "signed"
    if rule in SYMMETRIC_RULES and rule != own:
        problem = "every symmetric scheme uses the recipe's rule; give --rule"
        raise RecipeError(problem, name="scheme", found=spelled)
    if "group_size" in changes:
        choose("group_size", changes["group_size"], GROUP_SIZES)
    return {**grid, **changes}


def _is_int4(spelled: str) -> bool:
    scheme = SCHEMES.get(spelled.partition("-")[0])
    return scheme is not None and scheme.bits == 4


def with_grid(
    scheme: Scheme | None, grid: Mapping[str, Any], activation: str | None
) -> Scheme | None:
    """The scheme with another activation and, for INT4 weights, another grid."""
    if scheme is None:
        return None
    activation = activation or scheme.activation
    if scheme.bits == 8:
        return replace(scheme, activation=activation)
    return int4(
        grid.get("group_size", 128),
        symmetric=grid.get("rule") != "minmax",
        scale_dtype=grid.get("scale_dtype", "float16"),
        activation=activation,
    )


def choose(name: str, value: Any, choices: Any, besides: str = "") -> None:
    """Raise RecipeError, with the nearest choice, unless the value is one of them."""
    if value not in choices:
        near = difflib.get_close_matches(str(value).lower(), [str(c).lower() for c in choices], n=1)
        nearest = [c for c in choices if near and str(c).lower() == near[0]]
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        listed = besides + ", ".join(str(c) for c in choices)
        raise RecipeError(
            "unknown", name=name, expected=f"one of {listed}{hint}", found=repr(value)
        )
