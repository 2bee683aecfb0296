"""The `quantization_config` that planish writes into config.json, and its check on the way back.

It follows Hugging Face's custom (a dictionary with a quant_method) and holds the whole recipe,
so that a directory says by itself what was done to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planish.reference.errors import ConfigError
from planish.reference.grids import GROUP_SIZES, INT4_RULES
from planish.reference.quantize.recipe import ACTIVATIONS_BY_BITS, HEADS, Recipe

VERSION = 1
LAYOUTS = ("tiles", "canonical")  # of quantized weights in the files (checkpoint.py)


def quantization_config(
    recipe: Recipe,
    layout: str,
    alphas: list[float] | None = None,
    calibration: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What is written: recipe, layout, each block's alpha where smoothed, and the calibration."""
    description = recipe.describe()
    return {
        "quant_method": "planish",
        "version": VERSION,
        "recipe": description.pop("name"),
        **description,
        "layout": layout,
        "smoothing": None if alphas is None else {"alpha_per_block": alphas},
        "calibration": calibration,
    }


def weight_bits(values: dict[str, Any], is_head: bool) -> int | None:
    """8, 4 or None (float): how wide a quantization_config says that the codes are."""
    return {"float": None, "int8": 8, "int4": 4}[values["head"]] if is_head else values["bits"]


def check_quantization_config(values: dict[str, Any], path: Path) -> None:
    """Raise ConfigError unless the fields that the loader uses are what this version writes."""
    bits, head, group_size = (values.get(name) for name in ("bits", "head", "group_size"))
    activations = ACTIVATIONS_BY_BITS.get(bits if isinstance(bits, int) else None, ())
    has_int4 = bits == 4 or head == "int4"
    groups = GROUP_SIZES if has_int4 else (*GROUP_SIZES, None)
    rules = tuple(INT4_RULES) if has_int4 else (*INT4_RULES, None)
    choices: dict[str, tuple[object, tuple[object, ...]]] = {
        "version": (values.get("version"), (VERSION,)),
        "bits": (bits, tuple(ACTIVATIONS_BY_BITS)),
        "head": (head, HEADS),
        "activation": (values.get("activation"), activations),
        "group_size": (group_size, groups),
        "layout": (values.get("layout", "canonical"), LAYOUTS),
        "rule": (values.get("rule"), rules),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed or isinstance(value, bool | float):
            name, found = f"quantization_config.{name}", repr(value)
            expected = f"one of {', '.join(map(str, allowed))}"
            raise ConfigError("bad value", path=path, name=name, expected=expected, found=found)
