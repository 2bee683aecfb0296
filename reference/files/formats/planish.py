"""The format that planish writes: tensors and quantization_config (SPEC 2, 4).

For a quantized linear P of N outputs, K inputs and G groups of inputs, by the layout:

                          canonical                     tiles (packing.py)
    P.weight        INT8  int8 [N, K]                   int8  [ceil(N/16), ceil(K/4), 16, 4]
                    INT4  uint8 [N, ceil(K / 2)]        uint8 [ceil(N/16), ceil(K/8), 16, 4]
    P.weight_scale  INT8  float32 [N, 1] or [1, 1]      the same
                    INT4  float16 or float32 [N, G]     [ceil(N/16), G, 16]
    P.weight_zero_point   uint8 [N, G], INT4 where not symmetric       [ceil(N/16), G, 16]
    P.weight_offset       float16 or float32 [N, G], in place of zero points; canonical only
    P.weight_permutation  int32 [K], INT4 and INT8 in act order; canonical only
    P.input_scale         float32 [1], static activations only         the same
    P.bias                as in the float model                        the same

Beside the linears of attention, whose common prefix is A, with "kv_cache": "int8_static":

    A.q_scale, A.k_scale, A.v_scale    float32 [1], of rotated queries and keys, and of values

The quantized experts of a layer are stacked: P is their name without the number, and each tensor
has a leading axis of E experts. What is read in the file's layout is a view of it: nothing is
copied, and INT4 codes are not even read, as every byte is valid. Scales, zero points and INT8 codes
are checked once, the padding of tiles never.

quantization_config, version 2 (docs/file-format.md), names the linears of each scheme:

    {"quant_method": "planish", "version": 2, "layout": "tiles", "config_groups": {"group_0": {
        "targets": ["model.layers.{i}.mlp.down_proj"],
        "weights": {"num_bits": 4, "type": "int", "symmetric": true, ...},
        "input_activations": null}}, "ignore": ["lm_head"],
     "attention": "int8", "kv_cache": "int8_static", ...}

Version 1 (planish 0.1.0), which is still read, has one scheme for the model and one for lm_head; a
linear is quantized if it has a scale, and experts may be stored one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from planish.reference.errors import ConfigError, RecipeError
from planish.reference.files.entries import Declared, Directory, general_name, require_entry
from planish.reference.files.formats.fields import bad_field, require, require_names, require_object
from planish.reference.files.formats.planish_linears import read
from planish.reference.files.formats.scales import require_positive
from planish.reference.files.writer import Sink
from planish.reference.grids import GROUP_SIZES, INT4_RULES, SYMMETRIC_RULES
from planish.reference.linear import Linear
from planish.reference.model.attention import AttentionScales
from planish.reference.model.config import ATTENTIONS, KV_CACHES
from planish.reference.quantized import LAYOUTS, QuantizedWeight
from planish.reference.scheme import (
    ACTIVATIONS,
    Scheme,
    int4,
    int8,
    scheme_from_values,
    scheme_values,
)

__all__ = [
    "companions",
    "config",
    "detect",
    "parse",
    "read",
    "read_scales",
    "scheme",
    "write",
    "write_scales",
]

VERSION = 2
SCALES = ("q", "k", "v")  # of a static cache
Shape = tuple[int, ...]


def detect(values: Mapping[str, Any]) -> bool:
    """Whether quant_method is planish."""
    return values.get("quant_method") == "planish"


def config(schemes: Mapping[str, Scheme | None], layout: str) -> dict[str, Any]:
    """The quantization_config for linears with these schemes, by prefix.

    Linears whose names differ only in numbers, such as the layer, share a target.
    """
    targets = _targets(schemes)
    kinds = dict.fromkeys(scheme for scheme in targets.values() if scheme is not None)
    groups = {
        f"group_{number}": {
            "targets": [name for name, found in targets.items() if found == scheme],
            **scheme_values(scheme),
        }
        for number, scheme in enumerate(kinds)
    }
    return {
        "quant_method": "planish",
        "version": VERSION,
        "layout": layout,
        "config_groups": groups,
        "ignore": [name for name, scheme in targets.items() if scheme is None],
    }


def _targets(schemes: Mapping[str, Scheme | None]) -> dict[str, Scheme | None]:
    """Schemes by general name if all linears of it have the same scheme, else by prefix."""
    general: dict[str, set[Scheme | None]] = {}
    for prefix, scheme in schemes.items():
        general.setdefault(general_name(prefix), set()).add(scheme)
    uniform = {name for name, found in general.items() if len(found) == 1}
    names = {prefix: general_name(prefix) for prefix in schemes}
    return {
        names[prefix] if names[prefix] in uniform else prefix: scheme
        for prefix, scheme in schemes.items()
    }


def parse(values: Mapping[str, Any], path: Path) -> Declared:
    """What a quantization_config declares; ConfigError for what planish never writes."""
    version = values.get("version")
    require(path, "version", version, (1, VERSION))
    if version == 1:
        return _parse_version_1(values, path)
    require(path, "layout", values.get("layout"), LAYOUTS)
    groups = require_object(path, "config_groups", values.get("config_groups"))
    targets: dict[str, Scheme] = {}
    for key, group in groups.items():
        name = f"config_groups.{key}"
        scheme = _group_scheme(path, name, require_object(path, name, group))
        for target in require_names(path, f"{name}.targets", group.get("targets")):
            if target in targets:
                raise bad_field(path, f"{name}.targets", "names that no other group has", target)
            targets[target] = scheme
    declared = Declared(layout=values["layout"], targets=targets)
    return _with_attention(declared, values, path)


def _with_attention(declared: Declared, values: Mapping[str, Any], path: Path) -> Declared:
    """With attention and kv_cache, float where absent; ConfigError if they contradict."""
    attention, cache = values.get("attention", "float"), values.get("kv_cache", "float32")
    require(path, "attention", attention, ATTENTIONS)
    require(path, "kv_cache", cache, KV_CACHES if attention == "float" else KV_CACHES[1:])
    return replace(declared, attention=attention, kv_cache=cache)


def _group_scheme(path: Path, name: str, group: Mapping[str, Any]) -> Scheme:
    try:
        return scheme_from_values(group, foreign=True)
    except RecipeError as problem:
        raise ConfigError(str(problem), path=path, name=f"quantization_config.{name}") from None


def _parse_version_1(values: Mapping[str, Any], path: Path) -> Declared:
    """One scheme for all linears and one for lm_head, as planish 0.1.0 wrote them."""
    bits, head, size = (values.get(name) for name in ("bits", "head", "group_size"))
    has_int4 = bits == 4 or head == "int4"
    allowed_of_bits = ("float",) if bits is None else ACTIVATIONS.get(_hashable(bits), ())
    activation: Any = values.get("activation")
    rule = values.get("rule")
    choices: dict[str, tuple[object, tuple[object, ...]]] = {
        "bits": (bits, (None, 8, 4)),
        "head": (head, ("float", "int8", "int4")),
        "activation": (activation, allowed_of_bits),
        "group_size": (size, GROUP_SIZES if has_int4 else (*GROUP_SIZES, None)),
        "layout": (values.get("layout", "canonical"), LAYOUTS),
        "rule": (rule, tuple(INT4_RULES) if has_int4 else (*INT4_RULES, None)),
    }
    for name, (value, allowed) in choices.items():
        require(path, name, value, allowed)
    symmetric = rule in SYMMETRIC_RULES
    narrow = int4(size or -1, symmetric=symmetric) if has_int4 else None
    head_schemes = {"float": None, "int8": int8(), "int4": narrow}
    rest = int8(activation=activation) if bits == 8 else None
    if bits == 4:
        rest = int4(size or -1, symmetric=symmetric, activation=activation or "float")
    layout = values.get("layout", "canonical")
    return Declared(layout=layout, rest=rest, head=head_schemes[str(head)])


def _hashable(value: Any) -> Any:
    return value if type(value) is int else None


def scheme(directory: Directory, prefix: str, part: str) -> Scheme | None:
    """A linear's scheme: its target's or, in version 1, the model's if it has a scale."""
    declared = directory.declared
    if declared is None:
        return None
    if declared.targets:
        return declared.targets.get(prefix) or declared.targets.get(general_name(prefix))
    found = declared.head if part == "head" else declared.rest
    name = f"{prefix}.weight_scale"
    if found is None or name not in directory.entries:
        return None
    one = directory.entries[name].shape[-2:] == (1, 1)
    return int8("per_tensor", found.activation) if found.bits == 8 and one else found


def companions(scheme: Scheme) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The required and the optional companion tensors of a quantized linear.

    Zero points that are all 8 need not be stored, but older directories have them.
    """
    must: tuple[str, ...] = ("weight_scale",)
    must += ("input_scale",) if scheme.activation == "static" else ()
    must += ("input_zero_point",) if scheme.input_zero_point else ()
    must += ("weight_permutation",) if scheme.act_order else ()
    must += ("weight_offset",) if scheme.offset else ()
    if scheme.bits == 8 or scheme.offset:
        return must, ()
    zero_point = ("weight_zero_point",)
    return (must, zero_point) if scheme.symmetric else (must + zero_point, ())


def write(sink: Sink, prefix: str, layer: Linear) -> None:
    """Write a quantized linear's tensors in its weight's layout."""
    weight = layer.weight
    if not isinstance(weight, QuantizedWeight):
        raise TypeError(f"expected a quantized linear, found one in floats: {prefix}")
    sink.add(f"{prefix}.weight", weight.codes)
    sink.add(f"{prefix}.weight_scale", weight.scale)
    if weight.zero_point is not None:
        sink.add(f"{prefix}.weight_zero_point", weight.zero_point)
    if weight.offset is not None:
        sink.add(f"{prefix}.weight_offset", weight.offset)
    if weight.permutation is not None:
        sink.add(f"{prefix}.weight_permutation", weight.permutation)
    if layer.activation_scale is not None:
        sink.add(f"{prefix}.input_scale", layer.activation_scale)
    if layer.activation_zero_point is not None:
        sink.add(f"{prefix}.input_zero_point", layer.activation_zero_point)
    if layer.bias is not None:
        sink.add(f"{prefix}.bias", layer.bias.astype(np.float32, copy=False))


def write_scales(sink: Sink, prefix: str, scales: AttentionScales) -> None:
    """Write the calibrated scales of one layer's attention."""
    for name in SCALES:
        sink.add(f"{prefix}.{name}_scale", getattr(scales, name))


def read_scales(directory: Directory, prefix: str) -> AttentionScales:
    """Read the calibrated scales of one layer's attention; CheckpointError for a bad one."""
    found: dict[str, np.ndarray] = {}
    for name in SCALES:
        entry = require_entry(directory, f"{prefix}.{name}_scale", ("F32",), (1,))
        found[name] = entry.map()
        require_positive(directory, f"{prefix}.{name}_scale", found[name])
    return AttentionScales(**found)
