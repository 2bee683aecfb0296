"""A checkpoint's modules under Hugging Face's names, whoever wrote it.

planish stores q, k and v apart where a model has them in one tensor, stacks experts, and keeps the
weight of a norm where Gemma keeps weight - 1. Here they are as the model's own files have them:
rows and their scales are put back one after another, which changes no number. Tensors that no one
has changed are those of the file, in their own type.

Not exact: a norm of Gemma that smoothing has changed is stored minus 1, which rounds weights
below 1/2 to multiples of 2^-24.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from planish.reference.errors import RecipeError
from planish.reference.files.checkpoint import Checkpoint, head_names
from planish.reference.files.entries import bad_value
from planish.reference.files.formats.stored import ComputedEntry
from planish.reference.files.fused import fused_shapes, rows_of
from planish.reference.files.load import load_block, load_linear
from planish.reference.files.safetensors import forget_entries
from planish.reference.grids import SYMMETRIC_ZERO
from planish.reference.linear import Linear, quantized_weight
from planish.reference.model.layers import Norm
from planish.reference.model.shapes import block_shapes, outer_kinds, outer_shapes
from planish.reference.model.weights import block_linears, block_norms, split_expert
from planish.reference.progress import Progress, no_progress
from planish.reference.quantized import QuantizedWeight
from planish.reference.scheme import Scheme

KINDS = ("weight", "bias")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A linear as the model's own files have it: alone, or several in one tensor.

    parts: names in the block, in the order of their rows. scheme: None if it is in floats.
    """

    name: str
    layer: int | None
    parts: tuple[str, ...]
    scheme: Scheme | None
    shape: tuple[int, int]  # N, K
    transposed: bool = False  # weights are stored [K, N] (GPT-2)


@dataclass(frozen=True, kw_only=True)
class Module:
    """One module's tensors. linear: a quantized one, canonical, with its scheme and its bias.

    floats: weight and bias by kind where the module is in floats; a bias of a quantized linear is
    among them, too. computed: kinds that are not the file's own tensors.
    """

    name: str
    place: Place | None = None
    linear: Linear | None = None
    floats: Mapping[str, np.ndarray] = field(default_factory=dict)
    computed: bool = False


def places(checkpoint: Checkpoint, layer: int) -> list[Place]:
    """The linears of a block; RecipeError if parts of one tensor have different schemes."""
    found: dict[str, Place] = {}
    for part, (shape, _) in block_shapes(checkpoint.config, layer).items():
        source = checkpoint.source(part, layer)
        if source.name in found:
            continue
        parts: tuple[str, ...] = (part,)
        rows = shape[0]
        if source.fused:
            shapes = dict(fused_shapes(checkpoint, part, layer))
            parts, rows = tuple(shapes), sum(one[0] for one in shapes.values())
        found[source.name] = Place(
            name=source.name,
            layer=layer,
            parts=parts,
            scheme=_common_scheme(checkpoint, source.name, layer, parts),
            shape=(rows, shape[1]),
            transposed=source.transposed,
        )
    return list(found.values())


def head_place(checkpoint: Checkpoint) -> Place:
    """lm_head."""
    rows, cols = outer_shapes(checkpoint.config)["head"]
    return Place(
        name=checkpoint.source("head").name,
        layer=None,
        parts=("head",),
        scheme=checkpoint.scheme("head"),
        shape=(rows, cols),
    )


def public_name(checkpoint: Checkpoint, name: str) -> str:
    """The name with the first word that the directory leaves off: h.0.mlp -> transformer.h.0.mlp.

    Other programs look quantized linears up by the whole name.
    """
    return name if name == head_place(checkpoint).name else f"{checkpoint.left_off}{name}"


def all_places(checkpoint: Checkpoint) -> list[Place]:
    """Every linear of the model, routers and lm_head among them."""
    blocks = range(checkpoint.config.num_layers)
    found = [place for layer in blocks for place in places(checkpoint, layer)]
    return [*found, head_place(checkpoint)]


def _common_scheme(
    checkpoint: Checkpoint, name: str, layer: int, parts: Sequence[str]
) -> Scheme | None:
    """The scheme of linears in one tensor; INT8 with a scale each has one for each row."""
    schemes = {part: _scheme(checkpoint, part, layer) for part in parts}
    first, *others = dict.fromkeys(schemes.values())
    if others:
        words = (f"{part} {scheme or 'float'}" for part, scheme in schemes.items())
        expected = f"one scheme for {', '.join(parts)}, which are one tensor; --format planish"
        raise RecipeError(
            "cannot be put together",
            path=checkpoint.path,
            name=name,
            expected=expected,
            found=", ".join(words),
        )
    if first is not None and len(parts) > 1 and first.granularity == "per_tensor":
        return replace(first, granularity="per_channel")
    return first


def _scheme(checkpoint: Checkpoint, part: str, layer: int) -> Scheme | None:
    general, expert = split_expert(part)
    stacked = expert is not None and checkpoint.has_stacked_experts(layer)
    return checkpoint.scheme(general if stacked else part, layer)


def modules(checkpoint: Checkpoint, progress: Progress = no_progress) -> Iterator[Module]:
    """Every module with tensors, one block in memory at a time.

    A tied lm_head in floats is not among them. Raises RecipeError for a norm that the model has
    not (smoothing gave OLMo's one).
    """
    config = checkpoint.config
    for part in outer_kinds(config):
        if part != "head":
            yield _outer_module(checkpoint, part)
    for layer in progress(range(config.num_layers), "convert"):
        yield from block_modules(checkpoint, layer)
        forget_entries(checkpoint.entries)
    if checkpoint.scheme("head") is not None:
        place = head_place(checkpoint)
        linear = load_linear(checkpoint, "head", None, place.shape, config.head_bias)
        yield _quantized_module(checkpoint, place, [linear])
    elif not config.tie_embeddings:
        yield _outer_module(checkpoint, "head")


def _outer_module(checkpoint: Checkpoint, part: str) -> Module:
    """A module outside the blocks; no recipe changes these."""
    place = head_place(checkpoint) if part == "head" else None
    return _raw_module(checkpoint, checkpoint.source(part).name, place)


def block_modules(checkpoint: Checkpoint, layer: int) -> Iterator[Module]:
    """The modules of a block, linears first."""
    block = load_block(checkpoint, layer)
    linears = block_linears(block)
    for place in places(checkpoint, layer):
        parts = [linears[part] for part in place.parts]
        make = _float_module if place.scheme is None else _quantized_module
        yield make(checkpoint, place, parts)
    for part, norm in block_norms(block).items():
        yield from _norm_modules(checkpoint, part, layer, norm)


def _raw_module(checkpoint: Checkpoint, name: str, place: Place | None = None) -> Module:
    """A module with the file's own tensors; those of FP8, say, are computed from others."""
    kinds = [checkpoint.entries.get(f"{name}.{kind}") for kind in KINDS]
    computed = any(isinstance(entry, ComputedEntry) for entry in kinds)
    return Module(name=name, place=place, floats=_raw(checkpoint, name), computed=computed)


def _raw(checkpoint: Checkpoint, name: str) -> dict[str, np.ndarray]:
    """The file's own float tensors of a module, by kind."""
    kinds = [kind for kind in KINDS if f"{name}.{kind}" in checkpoint.entries]
    return {kind: checkpoint.entries[f"{name}.{kind}"].map() for kind in kinds}


def _float_module(checkpoint: Checkpoint, place: Place, parts: Sequence[Linear]) -> Module:
    if len(parts) == 1 or f"{place.name}.weight" in checkpoint.entries:
        raw = _raw_module(checkpoint, place.name, place)
        if raw.floats:
            return raw
    floats = {}
    for kind in KINDS:
        tensors = [getattr(part, kind) for part in parts]
        if tensors[0] is not None:
            floats[kind] = _join(checkpoint, place, tensors)
    floats["weight"] = floats["weight"].T if place.transposed else floats["weight"]
    return Module(name=place.name, place=place, floats=floats, computed=True)


def _quantized_module(checkpoint: Checkpoint, place: Place, parts: Sequence[Linear]) -> Module:
    """A quantized linear; its bias in the file's type if it is the file's own."""
    bias = {kind: one for kind, one in _raw(checkpoint, place.name).items() if kind == "bias"}
    if not bias and parts[0].bias is not None:
        bias = {"bias": _join(checkpoint, place, [part.bias for part in parts])}
    linear = replace(_fuse(checkpoint, place, parts), bias=None)
    return Module(name=place.name, place=place, linear=linear, floats=bias)


def _fuse(checkpoint: Checkpoint, place: Place, parts: Sequence[Linear]) -> Linear:
    """Quantized linears as one: rows are put together, what belongs to the input is shared."""
    first = parts[0]
    weights = [_without_eights(checkpoint, place, quantized_weight(part)) for part in parts]
    if len(parts) == 1:
        return replace(first, weight=weights[0])
    scales = [part.activation_scale for part in parts]
    zeros = [part.activation_zero_point for part in parts]
    orders = [weight.permutation for weight in weights]
    for shared in (scales, zeros, orders):
        if any(not np.array_equal(one, shared[0]) for one in shared):  # type: ignore[arg-type]
            found = ", ".join(place.parts)
            raise RecipeError(
                "cannot be put together",
                path=checkpoint.path,
                name=place.name,
                expected="linears with the same input; --format planish",
                found=f"{found} with inputs quantized in different ways",
            )
    arrays: dict[str, Any] = {"scheme": place.scheme, "shape": place.shape}
    for kind in ("codes", "scale", "zero_point", "offset"):
        values = [getattr(weight, kind) for weight in weights]
        if all(value is not None for value in values):
            rows = [_rows(one, weight) for one, weight in zip(values, weights, strict=True)]
            arrays[kind] = _join(checkpoint, place, rows)
    return replace(first, weight=replace(weights[0], **arrays))


def _without_eights(
    checkpoint: Checkpoint, place: Place, weight: QuantizedWeight
) -> QuantizedWeight:
    """A symmetric weight without the zero points that old directories store: all are 8."""
    if weight.zero_point is None or not weight.scheme.symmetric:
        return weight
    if (weight.zero_point != SYMMETRIC_ZERO).any():
        name, expected = f"{place.name}.weight_zero_point", "8, as symmetric is true"
        raise bad_value(checkpoint, name, expected, "others")
    return replace(weight, zero_point=None)


def _rows(values: np.ndarray, weight: QuantizedWeight) -> np.ndarray:
    """A scale of the whole tensor [1, 1] as one for each row; others as they are."""
    return np.broadcast_to(values, (weight.shape[0], *values.shape[1:]))


def _join(checkpoint: Checkpoint, place: Place, tensors: Sequence[Any]) -> np.ndarray:
    """Tensors [N, ...] of the parts as one, each row at its place in the fused tensor."""
    if len(tensors) == 1:
        one: np.ndarray = tensors[0]
        return one
    whole = np.empty((place.shape[0], *tensors[0].shape[1:]), np.result_type(*tensors))
    for part, tensor in zip(place.parts, tensors, strict=True):
        whole[rows_of(checkpoint, part, place.layer)] = tensor
    return whole


def _norm_modules(checkpoint: Checkpoint, part: str, layer: int, norm: Norm) -> Iterator[Module]:
    """A norm: as the file has it, or what smoothing made of it; one for each head if stored so."""
    name, own = checkpoint.source(part, layer).name, checkpoint.prefix(part, layer)
    names = head_names(checkpoint, name, part) if "{h}" in name else [name]
    if own == name or not any(f"{own}.{kind}" in checkpoint.entries for kind in KINDS):
        raws = (_raw_module(checkpoint, each) for each in names)
        yield from (raw for raw in raws if raw.floats)
        return
    if not checkpoint.config.norm_affine:
        expected = "a model whose norms have weights; --format planish"
        found = "weights that smoothing added"
        raise RecipeError(
            "cannot be stored", path=checkpoint.path, name=name, expected=expected, found=found
        )
    floats = {kind: getattr(norm, kind) for kind in KINDS if getattr(norm, kind) is not None}
    if checkpoint.config.norm_plus_one:
        floats["weight"] = floats["weight"] - np.float32(1)
    for index, each in enumerate(names):
        one = floats if len(names) == 1 else {kind: x[index] for kind, x in floats.items()}
        yield Module(name=each, floats=one, computed=True)
