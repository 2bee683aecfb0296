"""Read a model's weights lazily, one block at a time.

Float tensors may be float32, float16 or bfloat16 and are returned as float32. A quantized linear is
read by its format (formats/) and returned in the layout that is asked for: `canonical`, which the
reference reads, or `tiles`, which the native kernels read. It is a view of the file if that has the
same layout. Nothing is unpickled and no path leaves the directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import overload

import numpy as np

from planish.reference.errors import CheckpointError, TokenizerError, notice
from planish.reference.files.checkpoint import Checkpoint, head_names
from planish.reference.files.entries import bad_value, require_entry
from planish.reference.files.floats import (
    FLOATS,
    all_finite,
    load_float,
    read_float,
    require_finite,
)
from planish.reference.files.formats import planish_linears
from planish.reference.files.formats.stored import CodedEntry, Source
from planish.reference.files.fused import fused_shapes
from planish.reference.files.opening import open_checkpoint
from planish.reference.linear import Linear, quantized_weight
from planish.reference.model.attention import AttentionScales
from planish.reference.model.experts import Stack
from planish.reference.model.layers import Norm
from planish.reference.model.shapes import (
    Shape,
    block_norms,
    block_shapes,
    norm_kinds,
    outer_norms,
    outer_shapes,
)
from planish.reference.model.weights import Block, Mlp, Weights, build_block, split_expert
from planish.reference.quantized import QuantizedWeight, to_layout
from planish.reference.scheme import Scheme
from planish.reference.text.tokenizer import load_tokenizer

__all__ = ["Checkpoint", "load_block", "load_float", "load_weights", "open_checkpoint"]

ROWS_TOGETHER = 256


def load_weights(checkpoint: Checkpoint, tiled: bool = False) -> Weights:
    """The model with lazy blocks: each is read when it is indexed.

    Quantized weights are in the canonical layout or, if `tiled`, in tiles: views of the file if it
    has this layout, otherwise converted.
    """
    config = checkpoint.config
    embed = _load_embed(checkpoint)
    positions = project_in = project_out = None
    if config.position_offset is not None:
        positions = _load_outer(checkpoint, "positions")
    if config.projects:
        project_in = Linear(_load_outer(checkpoint, "project_in"))
        project_out = Linear(_load_outer(checkpoint, "project_out"))
    shapes = outer_norms(config).items()
    norms = {part: load_norm(checkpoint, part, shape) for part, shape in shapes}
    return Weights(
        embed=embed,
        positions=positions,
        project_in=project_in,
        embed_norm=norms.get("embed_norm"),
        blocks=Blocks(checkpoint, tiled),
        final_norm=norms.get("final_norm"),
        project_out=project_out,
        head=_load_head(checkpoint, embed, tiled),
    )


def _load_outer(checkpoint: Checkpoint, part: str) -> np.ndarray:
    name, config = f"{checkpoint.prefix(part)}.weight", checkpoint.config
    if checkpoint.learned_positions is not None:
        config = replace(config, max_positions=checkpoint.learned_positions)
    return load_float(checkpoint, name, outer_shapes(config)[part])


def _load_embed(checkpoint: Checkpoint) -> np.ndarray | QuantizedWeight:
    """The embedding [V, E]: the codes that another program stored, or floats."""
    coded = load_coded_embed(checkpoint)
    return _load_float_embed(checkpoint) if coded is None else coded


def load_coded_embed(checkpoint: Checkpoint) -> QuantizedWeight | None:
    """The codes of the embedding [V, E] that another program stored, if there are any.

    None if lm_head is the embedding and floats, and if codes are not all usable.
    """
    prefix = checkpoint.prefix("embed")
    entry = checkpoint.entries.get(f"{prefix}.weight")
    if not isinstance(entry, CodedEntry) or _head_is_embedding(checkpoint):
        return None
    codes = {f"{prefix}.{kind}": one for kind, one in entry.kinds.items()}
    source = Source(path=checkpoint.path, values={}, entries=codes)
    shape = outer_shapes(checkpoint.config)["embed"]
    try:
        return quantized_weight(planish_linears.read(source, prefix, entry.scheme, shape))
    except CheckpointError:
        return None


def _load_float_embed(checkpoint: Checkpoint) -> np.ndarray:
    """The embedding in floats. Rows of ids without a token may be NaN or Inf and become zeros.

    Not if lm_head is the embedding: then each row gives a logit.
    """
    name = f"{checkpoint.prefix('embed')}.weight"
    embed = read_float(checkpoint, name, outer_shapes(checkpoint.config)["embed"])
    if all_finite(embed):
        return embed
    bad = ~np.isfinite(embed).all(axis=1)
    if not _head_is_embedding(checkpoint):
        embed = np.where((bad & _rows_without_token(checkpoint))[:, None], np.float32(0), embed)
    require_finite(checkpoint, name, embed)
    notice(
        f"{checkpoint.path}: {name}: not finite, read as zeros: {bad.sum()} rows without a token"
    )
    return embed


def _rows_without_token(checkpoint: Checkpoint) -> np.ndarray:
    """Which rows of the embedding, bool [V], have no token; none if there is no tokenizer."""
    config = checkpoint.config
    rows = range(config.vocab_size)
    try:
        tokenizer = load_tokenizer(checkpoint.tokenizer_path, config)
        ids = tokenizer.inner.get_vocab(with_added_tokens=True)
    except TokenizerError:
        return np.zeros(len(rows), bool)
    read = {*ids.values(), config.bos_token_id, *config.eos_token_ids}
    return np.array([row not in read for row in rows])


def _head_is_embedding(checkpoint: Checkpoint) -> bool:
    """Whether lm_head uses the embedding; a tied one that was quantized does not."""
    return checkpoint.config.tie_embeddings and checkpoint.scheme("head") is None


def _load_head(checkpoint: Checkpoint, embed: np.ndarray | QuantizedWeight, tiled: bool) -> Linear:
    """lm_head: its own weight, or the embedding."""
    config, prefix = checkpoint.config, checkpoint.prefix("head")
    if not isinstance(embed, QuantizedWeight) and _head_is_embedding(checkpoint):
        _require_tied(checkpoint, f"{prefix}.weight", embed)
        return Linear(embed)
    shape = outer_shapes(config)["head"]
    return load_linear(checkpoint, "head", None, shape, config.head_bias, tiled)


def _require_tied(checkpoint: Checkpoint, name: str, embed: np.ndarray) -> None:
    """Raise CheckpointError if the file has a tied lm_head that differs from the embedding.

    transformers does not tie such a head, in spite of the config; one of the two is wrong.
    """
    if name not in checkpoint.entries:
        return
    own = require_entry(checkpoint, name, FLOATS, embed.shape).map()
    for row in range(0, len(own), ROWS_TOGETHER):
        rows = slice(row, row + ROWS_TOGETHER)
        if not np.array_equal(own[rows].astype(np.float32), embed[rows]):
            expected = "the embedding, as tie_word_embeddings says"
            raise bad_value(checkpoint, name, expected, "another tensor")


class Blocks(Sequence[Block]):
    """The blocks of a checkpoint; each access reads the block from the file."""

    def __init__(self, checkpoint: Checkpoint, tiled: bool = False):
        self.checkpoint, self.tiled = checkpoint, tiled

    def __len__(self) -> int:
        return self.checkpoint.config.num_layers

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> list[Block]: ...
    def __getitem__(self, index: int | slice) -> Block | list[Block]:
        chosen = range(len(self))[index]
        if isinstance(chosen, int):
            return load_block(self.checkpoint, chosen, self.tiled)
        return [load_block(self.checkpoint, layer, self.tiled) for layer in chosen]


def load_block(checkpoint: Checkpoint, layer: int, tiled: bool = False) -> Block:
    """Read one layer's tensors."""
    config = checkpoint.config
    shapes = block_shapes(config, layer).items()
    stack = load_stack(checkpoint, layer, tiled) if checkpoint.has_stacked_experts(layer) else None
    linears = {
        part: load_linear(checkpoint, part, layer, shape, bias, tiled)
        for part, (shape, bias) in shapes
        if stack is None or split_expert(part)[1] is None
    }
    _require_same_schemes(checkpoint, layer, linears)
    norms = {
        part: load_norm(checkpoint, part, shape, layer)
        for part, shape in block_norms(config).items()
    }
    block = build_block(config.layers[layer], linears, norms, stack)
    return replace(block, attention_scales=_read_scales(checkpoint, layer))


def _read_scales(checkpoint: Checkpoint, layer: int) -> AttentionScales | None:
    """The calibrated scales of a layer's attention, if they are stored."""
    if checkpoint.format is None or not checkpoint.has_attention_scales:
        return None
    return checkpoint.format.read_scales(checkpoint, checkpoint.attention_prefix(layer))


def _require_same_schemes(checkpoint: Checkpoint, layer: int, linears: dict[str, Linear]) -> None:
    """Raise CheckpointError unless experts that are stored one by one have the same schemes."""
    experts = {part: x for part, x in linears.items() if split_expert(part)[1] is not None}
    floats = [part for part, x in experts.items() if x.scheme is None]
    if floats and len(floats) < len(experts):
        name = f"{checkpoint.prefix(floats[0], layer)}.weight"
        raise bad_value(checkpoint, name, "INT8 or INT4 codes, as the other experts have", "floats")
    schemes: dict[str, Scheme | None] = {}
    for part, linear in experts.items():
        first = schemes.setdefault(split_expert(part)[0], linear.scheme)
        if linear.scheme != first:
            name = f"{checkpoint.prefix(part, layer)}.weight_scale"
            raise bad_value(checkpoint, name, f"{first}, as the other experts have", linear.scheme)


def load_stack(checkpoint: Checkpoint, layer: int, tiled: bool = False) -> Stack:
    """The stacked experts of one layer, mapped; each access converts one expert if needed."""
    shapes = block_shapes(checkpoint.config, layer)
    found: dict[str, Linear] = {}
    for part in ("gate", "up", "down"):
        if f"experts.0.{part}" in shapes:
            found[part] = _load_experts(checkpoint, f"experts.{part}", layer)
    whole = Mlp(found.get("gate"), found["up"], found["down"])
    return Stack(whole, "tiles" if tiled else "canonical")


def _load_experts(checkpoint: Checkpoint, part: str, layer: int) -> Linear:
    """The gate, up or down of all experts in the file's layout, with a leading axis of experts."""
    moe, prefix = checkpoint.config.moe, checkpoint.prefix(part, layer)
    shape, has_bias = block_shapes(checkpoint.config, layer)[part.replace(".", ".0.")]
    stack = () if moe is None else (moe.num_experts,)
    experts = _read_quantized(checkpoint, part, layer, shape, stack)
    bias = load_float(checkpoint, f"{prefix}.bias", (*stack, shape[0])) if has_bias else None
    return replace(experts, bias=bias)


def _read_quantized(
    checkpoint: Checkpoint, part: str, layer: int | None, shape: Shape, stack: Shape = ()
) -> Linear:
    """Read a quantized linear, without its bias, by its format."""
    scheme, form = checkpoint.scheme(part, layer), checkpoint.format
    prefix = checkpoint.prefix(part, layer)
    if scheme is None or form is None:
        name = f"{prefix}.weight_scale"
        raise CheckpointError("is missing", path=checkpoint.path, name=name)
    return form.read(checkpoint, prefix, scheme, shape, stack)


def load_linear(
    checkpoint: Checkpoint,
    part: str,
    layer: int | None,
    shape: Shape,
    has_bias: bool,
    tiled: bool = False,
) -> Linear:
    """Read a linear: weight (float or quantized), bias, and static activation scale."""
    bias = load_part(checkpoint, part, layer, "bias", shape) if has_bias else None
    if checkpoint.scheme(part, layer) is None:
        return Linear(load_part(checkpoint, part, layer, "weight", shape), bias)
    linear = _read_quantized(checkpoint, part, layer, shape)
    if isinstance(linear.weight, QuantizedWeight):
        weight = to_layout(linear.weight, "tiles" if tiled else "canonical")
        linear = replace(linear, weight=weight)
    return replace(linear, bias=bias)


def load_part(
    checkpoint: Checkpoint, part: str, layer: int | None, kind: str, shape: Shape
) -> np.ndarray:
    """Read the weight [N, K] or bias [N] of a float linear, also from a fused tensor."""
    own, source = f"{checkpoint.prefix(part, layer)}.{kind}", checkpoint.source(part, layer)
    if own in checkpoint.entries or source.plain:
        return load_float(checkpoint, own, shape if kind == "weight" else shape[:1])
    name, shapes = f"{source.name}.{kind}", dict(fused_shapes(checkpoint, part, layer))
    groups = checkpoint.config.num_kv_heads if source.grouped else 1
    rows = [one[0] // groups for one in shapes.values()]
    start = sum(rows[: list(shapes).index(part)])
    whole: Shape = (sum(rows) * groups, shape[1])

    def cut(tensor: np.ndarray) -> np.ndarray:
        tensor = tensor.T if source.transposed else tensor
        tensor = tensor.reshape(groups, sum(rows), -1)[:, start : start + shape[0] // groups]
        return tensor.reshape(shape if kind == "weight" else shape[:1])

    if kind == "bias":
        return load_float(checkpoint, name, whole[:1], cut)
    return load_float(checkpoint, name, whole[::-1] if source.transposed else whole, cut)


def load_norm(checkpoint: Checkpoint, part: str, shape: Shape, layer: int | None = None) -> Norm:
    """Read a norm; 1 is added to its weight if the checkpoint stores weight - 1."""
    kinds = norm_kinds(checkpoint.config, part)
    if f"{checkpoint.prefix(part, layer)}.weight" in checkpoint.entries:
        kinds = kinds or ("weight",)  # smoothing added it
    weight, bias = (
        load_norm_part(checkpoint, part, layer, kind, shape) if kind in kinds else None
        for kind in ("weight", "bias")
    )
    config = checkpoint.config
    return Norm(weight=weight, bias=bias, kind=config.norm, eps=config.norm_eps)


def load_norm_part(
    checkpoint: Checkpoint, part: str, layer: int | None, kind: str, shape: Shape
) -> np.ndarray:
    own, source = f"{checkpoint.prefix(part, layer)}.{kind}", checkpoint.source(part, layer)
    if own in checkpoint.entries:
        return load_float(checkpoint, own, shape)
    if "{h}" in source.name:
        names = head_names(checkpoint, source.name, part)
        return np.stack([load_float(checkpoint, f"{name}.{kind}", shape[1:]) for name in names])
    tensor = load_float(checkpoint, f"{source.name}.{kind}", shape)
    return tensor + np.float32(1) if checkpoint.config.norm_plus_one else tensor
