"""The tensors of a GGUF file: names, types and shapes, and how each is read when its turn comes.

Whether a type can hold a linear's scheme is known before anything is written; whether it holds its
scales is known when they are read, and the file then never appears.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from planish.reference.errors import RecipeError
from planish.reference.files.checkpoint import Checkpoint
from planish.reference.files.export.directory import cannot_hold, require_float_attention
from planish.reference.files.export.dtypes import cast
from planish.reference.files.export.gguf_container import Part
from planish.reference.files.export.gguf_types import encode, refuse, type_of
from planish.reference.files.export.protocol import CannotHoldError, Refusal
from planish.reference.files.export.tied import coded_embedding, shared_head, without_codes
from planish.reference.files.formats.gguf import interleaved_rows
from planish.reference.files.load import load_linear, load_norm, load_part, load_stack
from planish.reference.linear import Linear, quantized_weight
from planish.reference.model.shapes import (
    Shape,
    block_norms,
    block_shapes,
    outer_norms,
    outer_shapes,
)
from planish.reference.model.weights import split_expert
from planish.reference.quantized import QuantizedWeight

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
NAMES_OF = {kind: name for name, kind in DTYPES.items()}
NAMES = {
    "embed": "token_embd",
    "final_norm": "output_norm",
    "head": "output",
    "attention_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "router": "ffn_gate_inp",
    "experts.gate": "ffn_gate_exps",
    "experts.up": "ffn_up_exps",
    "experts.down": "ffn_down_exps",
}
Parts = dict[str, Part]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A model, the dtype of float matrices (None: as stored), and whether q and k interleave."""

    checkpoint: Checkpoint
    dtype: str | None = None
    interleaved: bool = False


@dataclass(frozen=True, kw_only=True)
class Place:
    """One linear or norm: its name in the block, or outside for layer None."""

    part: str
    layer: int | None = None

    @property
    def name(self) -> str:
        """Its name in the file: blk.3.attn_q"""
        name = NAMES[split_expert(self.part)[0]]
        return name if self.layer is None else f"blk.{self.layer}.{name}"


def list_parts(plan: Plan) -> Parts:
    """Every tensor by its name; RecipeError for what GGUF cannot hold."""
    config = plan.checkpoint.config
    require_float_attention(plan.checkpoint)
    shapes = outer_shapes(config)
    plan, parts = _embedding(plan, shapes["embed"])
    for layer in range(config.num_layers):
        for name, shape in block_norms(config).items():
            parts |= _norm(plan, Place(part=name, layer=layer), shape)
        for name, (shape, has_bias) in block_shapes(config, layer).items():
            general, expert = split_expert(name)
            place = Place(part=general, layer=layer)
            if expert is None:
                parts |= _linear(plan, place, shape, has_bias)
            elif expert == 0:
                parts |= _experts(plan, place, shape)
    for name, shape in outer_norms(config).items():
        parts |= _norm(plan, Place(part=name), shape)
    if not config.tie_embeddings or plan.checkpoint.scheme("head") is not None:
        parts |= _linear(plan, Place(part="head"), shapes["head"], config.head_bias)
    return parts


def _embedding(plan: Plan, shape: Shape) -> tuple[Plan, Parts]:
    """The embedding, with its codes if GGUF holds them; a head with the same is then left out."""
    checkpoint, name = plan.checkpoint, "token_embd.weight"
    head = shared_head(checkpoint)
    own = coded_embedding(checkpoint) if head is None else head
    after = plan if head is None else replace(plan, checkpoint=without_codes(checkpoint))
    if own is None or not _holds(quantized_weight(own)):
        return after, {name: _floats(after, Place(part="embed"), shape)}
    kind, tied = type_of(quantized_weight(own).scheme), head is not None

    def read_own() -> np.ndarray:
        found = coded_embedding(checkpoint)
        assert found is not None
        return encode(quantized_weight(found))

    read = _codes(plan, Place(part="head"), shape) if tied else read_own
    return after, {name: Part(type=kind, shape=shape, read=read)}


def _holds(weight: QuantizedWeight) -> bool:
    """Whether GGUF holds a weight: its scheme, and its numbers."""
    if refuse(weight.scheme, weight.shape):
        return False
    try:
        encode(weight)
    except CannotHoldError:
        return False
    return True


def _norm(plan: Plan, place: Place, shape: Shape) -> Parts:
    """A norm's weight, in float32 as llama.cpp wants it."""

    def read() -> np.ndarray:
        weight = load_norm(plan.checkpoint, place.part, shape, place.layer).weight
        assert weight is not None  # RMSNorm
        return weight

    return {f"{place.name}.weight": Part(type="F32", shape=shape, read=read)}


def _linear(plan: Plan, place: Place, shape: Shape, has_bias: bool) -> Parts:
    """A linear's weight and, in float32, its bias."""
    checkpoint, order = plan.checkpoint, _row_order(plan, place, shape)
    scheme = checkpoint.scheme(place.part, place.layer)
    if scheme is None:
        parts = {f"{place.name}.weight": _floats(plan, place, shape)}
    else:
        found = refuse(scheme, (shape[0], shape[1]))
        if found is not None:
            raise _cannot_hold(plan, place, found)
        kind = type_of(scheme)
        parts = {
            f"{place.name}.weight": Part(type=kind, shape=shape, read=_codes(plan, place, shape))
        }
    if has_bias:

        def read_bias() -> np.ndarray:
            return order(load_part(checkpoint, place.part, place.layer, "bias", shape))

        parts[f"{place.name}.bias"] = Part(type="F32", shape=shape[:1], read=read_bias)
    return parts


def _experts(plan: Plan, place: Place, shape: Shape) -> Parts:
    """The gates, ups or downs of all experts of a layer, one after the other."""
    moe, kind = plan.checkpoint.config.moe, place.part.rpartition(".")[2]
    assert moe is not None and place.layer is not None
    each = [replace(place, part=f"experts.{e}.{kind}") for e in range(moe.num_experts)]
    stacked = plan.checkpoint.has_stacked_experts(place.layer)
    found = [_linear(plan, place if stacked else one, shape, False) for one in each]
    parts = [next(iter(one.values())) for one in found]
    if len({part.type for part in parts}) > 1:
        expected = Refusal(expected="experts of one type", found="several", nearest="planish")
        raise _cannot_hold(plan, place, expected)

    def read() -> np.ndarray:
        if not stacked:
            return np.stack([part.read() for part in parts])
        assert place.layer is not None
        mlps = load_stack(plan.checkpoint, place.layer)
        return np.stack([_blocks_of(plan, place, getattr(mlp, kind)) for mlp in mlps])

    whole = (moe.num_experts, *shape)
    return {f"{place.name}.weight": Part(type=parts[0].type, shape=whole, read=read)}


def _codes(plan: Plan, place: Place, shape: Shape) -> Callable[[], np.ndarray]:
    """How the blocks of a quantized linear are made."""
    order = _row_order(plan, place, shape)

    def read() -> np.ndarray:
        linear = load_linear(plan.checkpoint, place.part, place.layer, shape, has_bias=False)
        return order(_blocks_of(plan, place, linear))

    return read


def _blocks_of(plan: Plan, place: Place, linear: Linear) -> np.ndarray:
    """A quantized linear as blocks; RecipeError if its numbers do not fit."""
    try:
        return encode(quantized_weight(linear))
    except CannotHoldError as problem:
        raise _cannot_hold(plan, place, problem.refusal) from None


def _floats(plan: Plan, place: Place, shape: Shape) -> Part:
    """A float matrix in the type in which it is stored, or in that of the plan."""
    checkpoint, order = plan.checkpoint, _row_order(plan, place, shape)
    kind = DTYPES[plan.dtype] if plan.dtype else _stored_type(checkpoint, place)
    kind = "F32" if place.part == "router" else kind

    def read() -> np.ndarray:
        weight = load_part(checkpoint, place.part, place.layer, "weight", shape)
        return order(cast(checkpoint, f"{place.name}.weight", weight, NAMES_OF[kind]))

    return Part(type=kind, shape=shape, read=read)


def _stored_type(checkpoint: Checkpoint, place: Place) -> str:
    """F32, F16 or BF16: that of the tensor from which a linear is read."""
    prefixes = (
        checkpoint.prefix(place.part, place.layer),
        checkpoint.source(place.part, place.layer).name,
    )
    names = [f"{prefix}.weight" for prefix in prefixes]
    return next(checkpoint.entries[name].dtype for name in names if name in checkpoint.entries)


def _row_order(plan: Plan, place: Place, shape: Shape) -> Callable[[np.ndarray], np.ndarray]:
    """What puts rows in the order of the file."""
    config = plan.checkpoint.config
    heads = {"q": config.num_heads, "k": config.num_kv_heads}.get(place.part)
    if heads is None or not plan.interleaved:
        return lambda rows: rows
    order = interleaved_rows(shape[0], heads)
    return lambda rows: rows[order]


def _cannot_hold(plan: Plan, place: Place, refusal: Refusal) -> RecipeError:
    prefix = plan.checkpoint.prefix(place.part, place.layer)
    return cannot_hold(plan.checkpoint, "gguf", prefix, refusal)
