"""The `quantization_config` that planish writes into config.json, and its check on the way back.

It follows Hugging Face's custom (a dictionary with a quant_method) and holds the whole recipe,
so that a directory says by itself what was done to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reference.errors import ConfigError
from reference.grids import GROUP_SIZES
from reference.linear import ACTIVATIONS
from reference.recipes import Recipe

VERSION = 1


def quantization_config(
    recipe: Recipe, alphas: list[float] | None, calibration: dict[str, Any] | None
) -> dict[str, Any]:
    """What is written: the recipe, the alpha of every block where smoothed, what it was calibrated on."""
    description = recipe.describe()
    return {
        "quant_method": "planish",
        "version": VERSION,
        "recipe": description.pop("name"),
        **description,
        "smoothing": None if alphas is None else {"alpha_per_block": alphas},
        "calibration": calibration,
    }


def check_quantization_config(values: dict[str, Any], path: Path) -> None:
    """Raise ConfigError unless the fields that the loader uses are what this version writes."""
    rules: dict[str, tuple[object, bool]] = {
        "version": (VERSION, values.get("version") == VERSION),
        "bits": ("8 or 4", values.get("bits") in (8, 4)),
        "activation": (f"one of {ACTIVATIONS}", values.get("activation") in ACTIVATIONS),
        "group_size": (f"one of {GROUP_SIZES}", values.get("group_size", -1) in GROUP_SIZES),
        "recipe": ("a name", isinstance(values.get("recipe"), str)),
    }
    for name, (expected, good) in rules.items():
        if not good:
            name, found = f"quantization_config.{name}", repr(values.get(name))
            raise ConfigError("bad value", path=path, name=name, expected=expected, found=found)
