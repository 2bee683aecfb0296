"""How schemes are spelled: by name, by pattern on the command line, and in a small JSON file.

W4A16-g32                              a scheme by its name, its group size and its rule
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
from planish.reference.files.json import read_json
from planish.reference.grids import GROUP_SIZES, INT4_RULES, SYMMETRIC_RULES
from planish.reference.scheme import Scheme, int4, int8, scheme_from_values

Spelled = str | Mapping[str, Any] | None  # a scheme by name, or as config_groups write it

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


def read_schemes(text: str) -> dict[str, Spelled]:
    """Schemes by pattern out of `PATTERN=SCHEME,PATTERN=SCHEME` or a FILE.json, in their order.

    A pattern may have commas and equals signs, as regular expressions do: an entry ends where a
    comma follows a scheme's name. The file is one object, pattern -> name of a scheme, null for
    float, or an object as config_groups have it (docs/file-format.md).
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
            raise RecipeError("is there twice", name="scheme", found=repr(entry[1]))
        found[entry[1]], rest = entry[2], rest[entry.end() :]
    return found


def parse_name(text: str) -> tuple[str, dict[str, Any]]:
    """W4A8-g64-minmax-alpha0.8 -> W4A8 and the changes that recipe() takes.

    -gN is the group size (-g-1 a row), -alphaX the smoothing, any other word an INT4 rule.
    """
    name, *words = re.split(r"-(?=[a-z])", text)
    changes: dict[str, Any] = {}
    for word in words:
        if re.fullmatch(r"g-?\d+", word):
            changes["group_size"] = int(word[1:])
        elif re.fullmatch(r"alpha\d+(\.\d+)?", word):
            changes["alpha"] = float(word.removeprefix("alpha"))
        else:
            choose("rule", word, INT4_RULES)
            changes["rule"] = word
    return name, changes


def scheme_spelled(pattern: str, value: Spelled, grid: Mapping[str, Any]) -> Scheme | None:
    """The scheme that a pattern is given; `grid` are the recipe's own group size and the like."""
    check_pattern(pattern, "scheme")
    if value is None:
        return None
    if isinstance(value, str):
        name, changes = parse_name(value)
        choose("scheme", name, SCHEMES)
        return with_grid(SCHEMES[name], _own_grid(value, changes, grid), None)
    if not isinstance(value, Mapping):
        expected, found = "the name of a scheme, null or an object", type(value).__name__
        raise RecipeError("wrong form", name=f"scheme {pattern}", expected=expected, found=found)
    try:
        return scheme_from_values(value)
    except RecipeError as problem:
        raise RecipeError(f"{problem}", name=f"scheme {pattern}") from None


def _own_grid(spelled: str, changes: Mapping[str, Any], grid: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a scheme spelled out, over those of the recipe."""
    if "alpha" in changes:
        problem = "is the recipe's, not a scheme's; give --alpha"
        raise RecipeError(problem, name="alpha", found=spelled)
    if changes and not _is_int4(spelled):
        raise RecipeError("has no effect without INT4 weights", name="scheme", found=spelled)
    rule = changes.get("rule")
    own = grid.get("rule") if grid.get("rule") in SYMMETRIC_RULES else "signed"
    if rule in SYMMETRIC_RULES and rule != own:
        problem = "all symmetric schemes have the recipe's rule; give --rule"
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
    """A scheme with another activation and, of INT4 weights, another grid."""
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
    if value not in choices:
        near = difflib.get_close_matches(str(value).lower(), [str(c).lower() for c in choices], n=1)
        nearest = [c for c in choices if near and str(c).lower() == near[0]]
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        listed = besides + ", ".join(str(c) for c in choices)
        raise RecipeError(
            "unknown", name=name, expected=f"one of {listed}{hint}", found=repr(value)
        )


def check_pattern(pattern: str, name: str) -> None:
    if not pattern.removeprefix("re:"):
        raise RecipeError("an empty pattern", name=name, found=repr(pattern))
    try:
        re.compile(pattern[3:] if pattern.startswith("re:") else "")
    except (re.error, OverflowError, RecursionError) as problem:
        raise RecipeError(
            f"not a regular expression: {problem}", name=name, found=pattern
        ) from None
