"""The quantization_config of compressed-tensors: which group of schemes a linear belongs to.

    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {...},
                                  "input_activations": {...} or null, "format": ...}}

A target is a class name, the exact name of a module, or `re:` and a regular expression that matches
the beginning of a name. Expressions come from an untrusted file: long ones, and those that could
take exponential time, are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from planish.reference.errors import RecipeError
from planish.reference.files.formats.fields import require_names, require_object
from planish.reference.files.formats.stored import Source
from planish.reference.scheme import INPUTS

PRESETS = {  # a group may be {"W8A8": ["Linear"]}; source: quantization/quant_scheme.py
    "W8A8": (8, "channel", None, "token"),
    "INT8": (8, "channel", None, "token"),
    "W8A16": (8, "channel", None, None),
    "W4A16": (4, "group", 128, None),
    "W4A16_ASYM": (4, "group", 128, None),
    "W4A8": (4, "group", 128, "token"),
}
CLASSES = ("Linear",)
LONGEST = 200  # characters of an expression
STARS = 4  # unbounded repetitions in one expression


def check_config(source: Source) -> None:
    """Raise ConfigError for what changes the weights in a way that planish does not undo."""
    values = source.values
    sparsity = values.get("sparsity_config") or {}
    dense = not isinstance(sparsity, dict) or sparsity.get("format", "dense") == "dense"
    if not dense or "sparse" in str(values.get("format")) or "24" in str(values.get("format")):
        found = sparsity.get("format") or values.get("format")
        raise source.bad("sparsity_config", "dense weights; decompress the model first", found)
    if values.get("transform_config"):
        expected = "none: planish does not undo rotations; save the model without them"
        raise source.bad("transform_config", expected, "Hadamard or other transforms")
    require_object(source.path / "config.json", "config_groups", values.get("config_groups"))


def find_group(source: Source, prefix: str) -> Mapping[str, Any]:
    """A linear's group: `weights` with num_bits, `activation` by planish's names, and whether these
    inputs have a zero point, `input_zero_point`.
    """
    file, groups = source.path / "config.json", source.values["config_groups"]
    default = None
    for key, group in groups.items():
        name = f"config_groups.{key}"
        if isinstance(group, list) and key in PRESETS:
            group = expand_preset(key) | {"targets": group}
        targets = require_object(file, name, group).get("targets")
        targets = require_names(file, f"{name}.targets", targets)
        if any(matches(source, target, prefix) for target in targets):
            return check_group(source, name, group)
        if any(target in CLASSES for target in targets):
            default = name, group
    if default is None:
        raise source.bad("config_groups", "a group for every quantized linear", f"none of {prefix}")
    return check_group(source, *default)


def expand_preset(name: str) -> dict[str, Any]:
    """The group that a preset's name means."""
    bits, strategy, size, inputs = PRESETS[name]
    activations = None
    if inputs is not None:
        activations = {"num_bits": 8, "type": "int", "strategy": inputs, "dynamic": True}
    weights = {"num_bits": bits, "type": "int", "strategy": strategy, "group_size": size}
    return {"weights": weights, "input_activations": activations}


def matches(source: Source, target: str, prefix: str) -> bool:
    """Whether a target names this module or its pattern matches it."""
    if not target.startswith("re:"):
        return target == prefix
    pattern = target.removeprefix("re:")
    unbounded = len(re.findall(r"[*+]|\{\d*,\}", pattern))
    nested = re.search(r"\)[*+{?]|\\\d", pattern.replace(r"\.", ""))
    if len(pattern) > LONGEST or unbounded > STARS or nested:
        expected = f"at most {LONGEST} characters, {STARS} of * and +, none after )"
        raise source.bad("config_groups", f"expressions of {expected}", target)
    try:
        return re.match(pattern, prefix[:LONGEST]) is not None
    except re.error as problem:
        raise source.bad("config_groups", f"an expression ({problem})", target) from None


def check_group(source: Source, name: str, group: Mapping[str, Any]) -> Mapping[str, Any]:
    """The group with its activation; ConfigError for what planish does not compute."""
    file = source.path / "config.json"
    weights = require_object(file, f"{name}.weights", group.get("weights"))
    if weights.get("type", "int") == "float":
        if weights.get("num_bits") != 8:
            found = f"{weights.get('num_bits')}-bit floats"
            raise source.bad(f"{name}.weights", "integers, or FP8 (MXFP4, NVFP4: no)", found)
        return {"weights": weights, "activation": "float", "input_zero_point": False}
    bits, size = weights.get("num_bits"), weights.get("group_size")
    if type(bits) is not int or not 2 <= bits <= 8:
        raise source.bad(f"{name}.weights.num_bits", "2..8", repr(bits))
    if size is not None and type(size) is not int:
        raise source.bad(f"{name}.weights.group_size", "a number", repr(size))
    inputs = group.get("input_activations")
    activation = "float" if inputs is None else read_activation(source, name, inputs)
    zero = isinstance(inputs, dict) and inputs.get("symmetric", True) is False
    return {"weights": weights, "activation": activation, "input_zero_point": zero}


def read_activation(source: Source, name: str, inputs: object) -> str:
    """planish's name of an input quantization: per_token, per_tensor, static or per_group."""
    file = source.path / "config.json"
    given = require_object(file, f"{name}.input_activations", inputs)
    names = {found: activation for activation, found in INPUTS.items()}
    key = given.get("strategy"), given.get("dynamic", False)
    plain = given.get("num_bits") == 8 and given.get("type", "int") == "int"
    symmetric = given.get("symmetric", True)
    static = key == ("tensor", False)
    plain = plain and (symmetric is True or (symmetric is False and static))
    try:
        activation = names.get(key)  # type: ignore[arg-type]
    except TypeError as problem:
        raise RecipeError(str(problem)) from None
    if not plain or activation is None:
        words = [f"{given.get('num_bits')} bits", str(given.get("type", "int"))]
        words += ["symmetric" if given.get("symmetric", True) is True else "asymmetric"]
        words += [f"strategy {key[0]}", f"dynamic {key[1]}"]
        expected = "8 bits int symmetric by token, tensor or group, or static by tensor"
        raise source.bad(f"{name}.input_activations", expected, ", ".join(words))
    return activation
