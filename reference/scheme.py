"""The scheme of one linear: the grid of its weight, and how its input is quantized (SPEC 2 and 4).

A scheme belongs to a linear, not to a model: two linears of one block may have different ones.

    scheme of         bits  granularity   activation
    W8A8              8     per_channel   per_token
    O1                8     per_tensor    per_token
    O2                8     per_tensor    per_tensor
    O3                8     per_tensor    static
    W8A16             8     per_channel   float
    W4A16             4     per_group     float
    W4A8              4     per_group     per_group, or per_token

Checkpoints of other programs also hold what no recipe makes (SPEC 4, "What other programs write"):
INT8 in groups, float offsets, codes of -128, inputs in another order, and static inputs with a zero
point. Such a scheme is `foreign`: it is only read.

The terms are those of compressed-tensors (https://github.com/neuralmagic/compressed-tensors,
quantization/quant_args.py), which calls the granularity `strategy`; docs/file-format.md has the
table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planish.reference.errors import RecipeError
from planish.reference.grids import GROUP_SIZES

GRANULARITIES = {8: ("per_channel", "per_tensor"), 4: ("per_group", "per_channel")}
ACTIVATIONS = {
    8: ("float", "per_token", "per_tensor", "static"),
    4: ("float", "per_token", "per_group"),
}
HEAD_ACTIVATIONS = ("float", "per_token", "per_group")  # no scale over several tokens
SCALE_DTYPES = {8: ("float32",), 4: ("float16", "float32")}
SYMMETRIC = {8: (True,), 4: (True, False)}
FOREIGN_GROUP_SIZES = (16, *GROUP_SIZES[1:])  # of INT8; Q6_K of llama.cpp has 16


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How one linear is quantized. Raises RecipeError for a combination that does not exist.

    bits:         of a code, 8 or 4
    granularity:  which weights share a scale: all (per_tensor), a row of W [N, K] (per_channel),
                  or `group_size` neighbours in a row (per_group)
    group_size:   32 .. 1024 for per_group, else -1
    symmetric:    no zero points; INT4 codes then represent -8..7
    scale_dtype:  the type of stored INT4 scales, if it can hold them (grids.store_scale)
    offset:       w = q * scale + offset, a float per group, in place of zero points; the codes of
                  INT8 are then 0..255
    full_range:   INT8 codes may be -128
    act_order:    groups are of inputs in another order, which the weight has (GPTQ's desc_act)
    input_zero_point:  static inputs have a zero point: x = (code - zero_point) * scale
    activation:   float     the input stays in float32
                  per_token, per_tensor, per_group   INT8, dynamic: scales computed from the input
                  static    INT8, one calibrated scale per linear
    """

    bits: int
    granularity: str = "per_channel"
    group_size: int = -1
    symmetric: bool = True
    scale_dtype: str = "float32"
    activation: str = "float"
    offset: bool = False
    full_range: bool = False
    act_order: bool = False
    input_zero_point: bool = False

    def __post_init__(self) -> None:
        _require("bits", self.bits, tuple(GRANULARITIES))
        if self.foreign:
            _require_foreign(self)
            return
        _require("granularity", self.granularity, GRANULARITIES[self.bits])
        grouped = self.granularity == "per_group"
        _require("group_size", self.group_size, GROUP_SIZES[1:] if grouped else (-1,))
        _require("symmetric", self.symmetric, SYMMETRIC[self.bits])
        _require("scale_dtype", self.scale_dtype, SCALE_DTYPES[self.bits])
        _require("activation", self.activation, ACTIVATIONS[self.bits])

    @property
    def foreign(self) -> bool:
        """Whether only other programs make such codes: no method of ours does."""
        return self.full_range or self.canonical_in_files

    @property
    def canonical_in_files(self) -> bool:
        """Whether files have such codes in the canonical layout only; loading tiles them."""
        int8_groups = self.bits == 8 and self.granularity == "per_group" and self.group_size != -1
        return int8_groups or self.offset or self.act_order or self.input_zero_point

    @property
    def has_group_scales(self) -> bool:
        """Whether scales are [N, G], and tiled with the codes; else [N, 1] or [1, 1] for all."""
        return self.bits == 4 or self.granularity == "per_group" or self.offset

    def __str__(self) -> str:
        """The form that `inspect` prints: int4 g=32 asymmetric, input int8 per_group."""
        words = [f"int{self.bits}", self.granularity if self.group_size == -1 else ""]
        words += [f"g={self.group_size}" if self.group_size != -1 else ""]
        words += ["offset" if self.offset else "" if self.symmetric else "asymmetric"]
        words += ["full range" if self.full_range else "", "act order" if self.act_order else ""]
        text = " ".join(word for word in words if word)
        if self.activation == "float":
            return text
        return f"{text}, input int8 {self.activation}{' asymmetric' * self.input_zero_point}"


def _require_foreign(scheme: Scheme) -> None:
    """Raise RecipeError unless a scheme of other programs is one that the reference computes."""
    grouped = scheme.granularity == "per_group"
    _require("granularity", scheme.granularity, ("per_channel", "per_tensor", "per_group"))
    sizes = FOREIGN_GROUP_SIZES if scheme.bits == 8 else GROUP_SIZES[1:]
    _require("group_size", scheme.group_size, sizes if grouped else (-1,))
    _require("symmetric", scheme.symmetric, (False,) if scheme.offset else SYMMETRIC[scheme.bits])
    _require("scale_dtype", scheme.scale_dtype, SCALE_DTYPES[4])
    _require("full_range", scheme.full_range, (True, False) if scheme.bits == 8 else (False,))
    only_floats = scheme.offset or scheme.act_order or grouped
    activations = ("float",) if only_floats else ACTIVATIONS[8]
    if scheme.input_zero_point:
        _require("bits", scheme.bits, (8,))
        activations = ("static",) if not only_floats else ()
    _require("activation", scheme.activation, activations)


def int8(granularity: str = "per_channel", activation: str = "float") -> Scheme:
    """An INT8 scheme; INT8 is always symmetric."""
    return Scheme(bits=8, granularity=granularity, activation=activation)


def int4(
    group_size: int = 128,
    *,
    symmetric: bool = True,
    scale_dtype: str = "float16",
    activation: str = "float",
) -> Scheme:
    """An INT4 scheme; a group size of -1 means the whole row."""
    return Scheme(
        bits=4,
        granularity="per_channel" if group_size == -1 else "per_group",
        group_size=group_size,
        symmetric=symmetric,
        scale_dtype=scale_dtype,
        activation=activation,
    )


FOREIGN = ("offset", "full_range", "act_order")  # fields of weights that only foreign schemes set
# compressed-tensors' strategy <- granularity, and its (strategy, dynamic) <- activation
STRATEGIES = {"per_tensor": "tensor", "per_channel": "channel", "per_group": "group"}
INPUTS = {
    "per_token": ("token", True),
    "per_tensor": ("tensor", True),
    "static": ("tensor", False),
    "per_group": ("group", True),
}


def scheme_values(scheme: Scheme) -> dict[str, Any]:
    """A scheme as JSON values: weights and input_activations, as in a config_group."""
    weights: dict[str, Any] = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": STRATEGIES[scheme.granularity],
        "group_size": None if scheme.group_size == -1 else scheme.group_size,
        "scale_dtype": scheme.scale_dtype,
    }
    weights |= {name: True for name in FOREIGN if getattr(scheme, name)}
    if scheme.activation == "float":
        return {"weights": weights, "input_activations": None}
    strategy, dynamic = INPUTS[scheme.activation]
    inputs = {"num_bits": 8, "type": "int", "symmetric": not scheme.input_zero_point}
    inputs |= {"strategy": strategy, "dynamic": dynamic}
    return {"weights": weights, "input_activations": inputs}


def scheme_from_values(values: Mapping[str, Any], foreign: bool = False) -> Scheme:
    """The inverse of scheme_values. Raises RecipeError naming the value that does not fit.

    foreign: whether it may be a scheme that only other programs make. Other keys that tools write
    (observers, targets) are ignored.
    """
    weights, inputs = _object(values, "weights"), values.get("input_activations")
    _require("output_activations", values.get("output_activations"), (None,))
    _require("weights.type", weights.get("type", "int"), ("int",))
    bits: Any = weights.get("num_bits")
    _require("weights.num_bits", bits, tuple(GRANULARITIES))
    names = {strategy: granularity for granularity, strategy in STRATEGIES.items()}
    _require("weights.strategy", weights.get("strategy"), tuple(names))
    size = weights.get("group_size")
    granularity = names[weights["strategy"]]
    if not foreign:
        _require("granularity", granularity, GRANULARITIES[bits])
    if inputs is not None:
        inputs = _object(values, "input_activations")
    more = {name: weights.get(name, False) for name in FOREIGN} if foreign else {}
    for name, value in more.items():
        _require(f"weights.{name}", value, (True, False))
    if foreign and inputs is not None:
        more["input_zero_point"] = inputs.get("symmetric") is False
        inputs = {**inputs, "symmetric": True}
    return Scheme(
        bits=bits,
        granularity=granularity,
        group_size=-1 if size is None else size,
        symmetric=weights.get("symmetric", True),
        scale_dtype=weights.get("scale_dtype", SCALE_DTYPES[bits][0]),
        activation="float" if inputs is None else _activation(inputs),
        **more,
    )


def _activation(inputs: Mapping[str, Any]) -> str:
    expected = {"num_bits": 8, "type": "int", "symmetric": True}
    for name, value in expected.items():
        _require(f"input_activations.{name}", inputs.get(name, value), (value,))
    names = {found: activation for activation, found in INPUTS.items()}
    strategies = tuple(strategy for strategy, _ in names)
    _require("input_activations.strategy", inputs.get("strategy"), strategies)
    dynamics = tuple(dynamic for strategy, dynamic in names if strategy == inputs["strategy"])
    _require("input_activations.dynamic", inputs.get("dynamic", False), dynamics)
    return names[inputs["strategy"], inputs.get("dynamic", False)]


def _object(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise RecipeError("wrong form", name=name, expected="an object", found=kind)
    return found


def _require(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Refuse a value that is not among the choices, type included: neither True nor 4.0 is 4."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        expected = f"one of {', '.join(map(str, dict.fromkeys(choices)))}"
        raise RecipeError("bad value", name=name, expected=expected, found=repr(value))
