"""Linears of planish's own directories, of both versions and both layouts."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planish.compare.lint.linear import Readable, StoredLinear, on_grid, read_or_report
from planish.compare.lint.opened import Opened
from planish.reference.errors import CheckpointError
from planish.reference.files.checkpoint import Checkpoint
from planish.reference.files.entries import require_entry
from planish.reference.files.formats import planish
from planish.reference.files.formats.stored import SCALE_TYPES, Compute, Stored, linears_with
from planish.reference.grids import num_groups
from planish.reference.model.shapes import block_shapes, outer_shapes
from planish.reference.model.weights import split_expert
from planish.reference.packing import TILE_OUTPUTS, tile_shape, unpack_nibbles
from planish.reference.quantized import QuantizedWeight, to_layout
from planish.reference.scheme import Scheme

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A linear's part of its block, and the shape of its weight; stack: (E,) if experts share."""

    part: str
    shape: tuple[int, int]
    layer: int | None = None
    stack: Shape = ()


def read_own(opened: Opened) -> Iterator[Readable]:
    """Every linear that has a scale; each expert of a stack is one."""
    places = {} if opened.model is None else find_places(opened.model)
    for prefix in linears_with(opened.source, "weight_scale"):
        place = places.get(prefix)
        stack = place.stack[0] if place is not None and place.stack else None
        for expert in [None] if stack is None else range(stack):
            read = functools.partial(read_linear, opened, place=place, expert=expert)
            yield read_or_report(prefix, read)


def expert_name(prefix: str, expert: int | None) -> str:
    """The name of one expert of a stack, which has no tensor: model.layers.0.mlp.experts.up[3]"""
    return prefix if expert is None else f"{prefix}[{expert}]"


def find_places(model: Checkpoint) -> dict[str, Place]:
    """Prefix in the files -> the place of each linear; stacked experts by their common prefix."""
    found, config = dict[str, Place](), model.config
    head = outer_shapes(config)["head"]
    found[model.prefix("head")] = Place(part="head", shape=(head[0], head[1]))
    for layer in range(config.num_layers):
        for part, (shape, _) in block_shapes(config, layer).items():
            pair, (general, expert) = (shape[0], shape[1]), split_expert(part)
            found[model.prefix(part, layer)] = Place(part=part, shape=pair, layer=layer)
            if expert is not None and config.moe is not None:
                stack = (config.moe.num_experts,)
                general_name = model.prefix(general, layer)
                found[general_name] = Place(part=general, shape=pair, layer=layer, stack=stack)
                own = Place(part=part, shape=pair, layer=layer)
                found[expert_name(general_name, expert)] = own
    return found


def read_linear(
    opened: Opened, prefix: str, place: Place | None, expert: int | None
) -> StoredLinear:
    """One linear, or one expert of a stack; CheckpointError if its tensors do not fit."""
    source, declared = opened.source, opened.declared
    scheme = None if place is None else planish.scheme(source, prefix, place.part)
    if place is None or declared is None or scheme is None:
        expected = "a linear of this model with a scheme in the config"
        raise CheckpointError("has no scheme", path=source.path, name=prefix, expected=expected)
    tiled = declared.layout == "tiles"
    shapes = shapes_of(scheme, place.shape, tiled)
    names = {kind: f"{prefix}.{kind}" for kind in shapes}
    present = [kind for kind in shapes if kind == "weight" or names[kind] in source.entries]
    arrays = {}
    for kind in present:
        dtypes, shape = shapes[kind]
        entry = require_entry(source, names[kind], dtypes, (*place.stack, *shape))
        arrays[kind] = entry.map() if expert is None else entry.map()[expert]
    weight = QuantizedWeight(
        codes=arrays["weight"],
        scale=arrays["weight_scale"],
        zero_point=arrays.get("weight_zero_point"),
        scheme=scheme,
        shape=place.shape,
        layout=declared.layout,
    )
    return describe_weight(expert_name(prefix, expert), weight, arrays)


def describe_weight(
    prefix: str, weight: QuantizedWeight, arrays: dict[str, np.ndarray]
) -> StoredLinear:
    """A weight in any layout as lint sees it: canonical, codes one by one."""
    scheme = weight.scheme

    def codes() -> np.ndarray:
        found = to_layout(weight, "canonical").codes
        return found if scheme.bits == 8 else unpack_nibbles(found, weight.shape[1])

    def zeros() -> np.ndarray:
        found = to_layout(weight, "canonical").zero_point
        assert found is not None
        return found

    stored = Stored(
        scheme=scheme,
        shape=weight.shape,
        codes=codes,
        scale=lambda: to_layout(weight, "canonical").scale,
        zero_point=None if weight.zero_point is None else zeros,
        offset=constant(arrays.get("weight_offset")),
        order=constant(arrays.get("weight_permutation")),
        input_scale=constant(arrays.get("input_scale")),
    )
    scale_type = "F16" if weight.scale.dtype == np.float16 else "F32"
    return on_grid(prefix, "planish", scheme.bits, stored, scale_type)


def constant(array: np.ndarray | None) -> Compute | None:
    """A tensor that is there, as what computes it."""
    return None if array is None else lambda: array


def shapes_of(
    scheme: Scheme, shape: tuple[int, int], tiled: bool
) -> dict[str, tuple[tuple[str, ...], Shape]]:
    """The types and the shape that each tensor of a linear must have."""
    (rows, cols), four = shape, scheme.bits == 4
    groups = num_groups(cols, scheme.group_size)
    codes = (
        tile_shape(rows, cols, scheme.bits) if tiled else (rows, -(-cols // 2) if four else cols)
    )
    beside: Shape = (1, 1) if scheme.granularity == "per_tensor" else (rows, groups)
    if tiled and four:
        beside = (-(-rows // TILE_OUTPUTS), groups, TILE_OUTPUTS)
    return {
        "weight": (("U8",) if four or scheme.offset else ("I8",), codes),
        "weight_scale": ((SCALE_TYPES[scheme.scale_dtype],) if four else ("F32", "F16"), beside),
        "weight_zero_point": (("U8",), beside),
        "weight_offset": (("F16", "F32"), beside),
        "weight_permutation": (("I32",), (cols,)),
        "input_scale": (("F32",), (1,)),
    }
