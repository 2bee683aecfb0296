"""A Hugging Face directory, read lazily: config, tensors by name, one block at a time.

Float tensors may be float32, float16 or bfloat16 and come out as float32. A directory whose
config has a `quantization_config` with quant_method `planish` holds, for a quantized linear P
of N outputs, K inputs and G groups of inputs, by its `layout`:

                          canonical (also where no layout is told)   tiles (packing.py)
    P.weight        INT8  int8 [N, K]                                [ceil(N/16), ceil(K/4), 16, 4]
                    INT4  uint8 [N, ceil(K / 2)], nibbles            [ceil(N/16), ceil(K/8), 16, 4]
    P.weight_scale  INT8  float32 [N, 1] or [1, 1]                   the same
                    INT4  float16 or float32 [N, G]                  [ceil(N/16), G, 16]
    P.weight_zero_point   uint8 [N, G], INT4 by the rule minmax      [ceil(N/16), G, 16]
    P.input_scale         float32 [1], static activations only       the same
    P.bias                as in the float model                      the same

The experts of a layer lie together where they are quantized: P has the experts' name without their
number, and each of its tensors an axis of E experts in front, as P.weight int8 [E, N, K] and
P.input_scale float32 [E, 1]. (An older directory may have a P for each expert.)

Symmetric INT4 rules have the zero point 8 everywhere, which need not be stored. Tiles are what
the native kernels read, straight from the file; the definition reads the canonical form, so
load_weights gives either from both. Nothing is unpickled and no path leaves the directory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import overload

import numpy as np

from planish.reference.architectures import Tensor
from planish.reference.errors import TokenizerError, notice
from planish.reference.files.checkpoint import (
    Checkpoint,
    activation_of,
    bad_value,
    checked_entry,
    head_names,
    open_checkpoint,
)
from planish.reference.files.floats import (
    FLOATS,
    all_finite,
    load_float,
    read_float,
    require_finite,
)
from planish.reference.files.formats.planish import (
    load_as_it_lies,
    load_quantized,
    require_positive,
)
from planish.reference.linear import Linear
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
from planish.reference.model.weights import Block, Mlp, Weights, put_together, split_expert
from planish.reference.text.tokenizer import load_tokenizer

__all__ = ["Checkpoint", "load_block", "load_float", "load_weights", "open_checkpoint"]

ROWS_TOGETHER = 256


def load_weights(checkpoint: Checkpoint, tiled: bool = False) -> Weights:
    """The model with lazy blocks: each is read when it is indexed.

    Quantized weights come out as QuantizedWeight or, if `tiled`, as TiledWeight: views of the
    file where it has them in this layout, converted where it has not.
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


def _load_embed(checkpoint: Checkpoint) -> np.ndarray:
    """The embedding [V, E]. Rows that no token reads may hold NaN or Inf, and come out as zeros.

    Not where the head is the embedding: there each of its rows makes a logit.
    """
    name = f"{checkpoint.prefix('embed')}.weight"
    embed = read_float(checkpoint, name, outer_shapes(checkpoint.config)["embed"])
    if all_finite(embed):
        return embed
    bad = ~np.isfinite(embed).all(axis=1)
    if not _head_is_embedding(checkpoint):
        embed = np.where((bad & _rows_without_token(checkpoint))[:, None], np.float32(0), embed)
    require_finite(checkpoint, name, embed)
    notice(f"{checkpoint.path}: {name}: not finite, read as zeros: {bad.sum()} rows of no token")
    return embed


def _rows_without_token(checkpoint: Checkpoint) -> np.ndarray:
    """Which rows of the embedding [V] belong to no token of the tokenizer; none without one."""
    config = checkpoint.config
    rows = range(config.vocab_size)
    try:
        ids = load_tokenizer(checkpoint.path, config).inner.get_vocab(with_added_tokens=True)
    except TokenizerError:
        return np.zeros(len(rows), bool)
    read = {*ids.values(), config.bos_token_id, *config.eos_token_ids}
    return np.array([row not in read for row in rows])


def _head_is_embedding(checkpoint: Checkpoint) -> bool:
    """Whether the head has no weight of its own; quantized, a tied one has."""
    own = f"{checkpoint.prefix('head')}.weight_scale" in checkpoint.entries
    return checkpoint.config.tie_embeddings and not own


def _load_head(checkpoint: Checkpoint, embed: np.ndarray, tiled: bool) -> Linear:
    """The head's own weight, or the embedding; a tied head that was quantized has its own."""
    config, prefix = checkpoint.config, checkpoint.prefix("head")
    if _head_is_embedding(checkpoint):
        _require_tied(checkpoint, f"{prefix}.weight", embed)
        return Linear(embed)
    shape = outer_shapes(config)["head"]
    return load_linear(checkpoint, "head", None, shape, config.head_bias, tiled)


def _require_tied(checkpoint: Checkpoint, name: str, embed: np.ndarray) -> None:
    """A tied head may lie in the file, too, but it must be the embedding.

    transformers does not tie a head that differs, whatever the config says; one of them is wrong.
    """
    if name not in checkpoint.entries:
        return
    own = checked_entry(checkpoint, name, FLOATS, embed.shape).map()
    for row in range(0, len(own), ROWS_TOGETHER):
        rows = slice(row, row + ROWS_TOGETHER)
        if not np.array_equal(own[rows].astype(np.float32), embed[rows]):
            expected = "the embedding, as tie_word_embeddings says"
            raise bad_value(checkpoint, name, expected, "another tensor")


class Blocks(Sequence[Block]):
    """The blocks of a checkpoint, each read from disk whenever it is asked for."""

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
    stack = load_stack(checkpoint, layer, tiled) if checkpoint.stacked(layer) else None
    linears = {
        part: load_linear(checkpoint, part, layer, shape, bias, tiled)
        for part, (shape, bias) in shapes
        if stack is None or split_expert(part)[1] is None
    }
    _require_alike(checkpoint, layer, linears)
    norms = {
        part: load_norm(checkpoint, part, shape, layer)
        for part, shape in block_norms(config).items()
    }
    return put_together(config.layers[layer], linears, norms, stack)


def _require_alike(checkpoint: Checkpoint, layer: int, linears: dict[str, Linear]) -> None:
    """An older directory has a tensor for each expert, but all of them in one form."""
    experts = {part: x for part, x in linears.items() if split_expert(part)[1] is not None}
    floats = [part for part, x in experts.items() if isinstance(x.weight, np.ndarray)]
    if floats and len(floats) < len(experts):
        name = f"{checkpoint.prefix(floats[0], layer)}.weight"
        raise bad_value(checkpoint, name, "INT8 or INT4 codes, as other experts have", "floats")


def load_stack(checkpoint: Checkpoint, layer: int, tiled: bool = False) -> Stack:
    """The quantized experts of one layer, mapped whole; each is converted when it is asked for."""
    shapes = block_shapes(checkpoint.config, layer)
    parts = {part: shapes.get(f"experts.0.{part}") for part in ("gate", "up", "down")}
    found = {
        part: load_linears(checkpoint, f"experts.{part}", layer, *shape)
        for part, shape in parts.items()
        if shape is not None
    }
    return Stack(Mlp(found.get("gate"), found["up"], found["down"]), tiled)


def load_linears(
    checkpoint: Checkpoint, part: str, layer: int, shape: Shape, has_bias: bool
) -> Linear:
    """One linear of every expert in the layout on disk, an axis of experts in front."""
    moe, prefix = checkpoint.config.moe, checkpoint.prefix(part, layer)
    stack = () if moe is None else (moe.num_experts,)
    weight = load_as_it_lies(checkpoint, prefix, shape, stack)
    bias = load_float(checkpoint, f"{prefix}.bias", (*stack, shape[0])) if has_bias else None
    linear = Linear(weight, bias, activation_of(checkpoint, prefix))
    return with_static_scale(checkpoint, prefix, linear, (*stack, 1))


def load_linear(
    checkpoint: Checkpoint,
    part: str,
    layer: int | None,
    shape: Shape,
    has_bias: bool,
    tiled: bool = False,
) -> Linear:
    """Weight (float or quantized) and bias of one linear, with its activations' treatment."""
    prefix = checkpoint.prefix(part, layer)
    bias = load_part(checkpoint, part, layer, "bias", shape) if has_bias else None
    if f"{prefix}.weight_scale" not in checkpoint.entries:
        return Linear(load_part(checkpoint, part, layer, "weight", shape), bias)
    weight = load_quantized(checkpoint, prefix, shape, tiled)
    linear = Linear(weight, bias, activation_of(checkpoint, prefix))
    return with_static_scale(checkpoint, prefix, linear, (1,))


def with_static_scale(checkpoint: Checkpoint, prefix: str, linear: Linear, shape: Shape) -> Linear:
    """The linear, with its activations' calibrated scale where they have one."""
    if linear.activation != "static":
        return linear
    scale = load_float(checkpoint, f"{prefix}.input_scale", shape)
    require_positive(checkpoint, f"{prefix}.input_scale", scale)
    return replace(linear, activation_scale=scale)


def load_part(
    checkpoint: Checkpoint, part: str, layer: int | None, kind: str, shape: Shape
) -> np.ndarray:
    """The weight [N, K] or bias [N] of a linear, by itself or out of a fused tensor."""
    own, source = f"{checkpoint.prefix(part, layer)}.{kind}", checkpoint.source(part, layer)
    if own in checkpoint.entries or source.plain:
        return load_float(checkpoint, own, shape if kind == "weight" else shape[:1])
    name, shapes = f"{source.name}.{kind}", dict(fused_shapes(checkpoint, part, layer, source))
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


def fused_shapes(
    checkpoint: Checkpoint, part: str, layer: int | None, source: Tensor
) -> Iterator[tuple[str, Shape]]:
    """The parts that share a tensor, this one among them, and their shapes."""
    if layer is None:
        yield part, outer_shapes(checkpoint.config)[part]
        return
    shapes, (general, _) = block_shapes(checkpoint.config, layer), split_expert(part)
    for other in checkpoint.architecture.together(general):
        name = part.removesuffix(general.rpartition(".")[2]) + other.rpartition(".")[2]
        yield name, shapes[name][0]


def load_norm(checkpoint: Checkpoint, part: str, shape: Shape, layer: int | None = None) -> Norm:
    """A norm, its weight as it multiplies, whether the checkpoint reduced it by one or not."""
    kinds = norm_kinds(checkpoint.config, part)
    if f"{checkpoint.prefix(part, layer)}.weight" in checkpoint.entries:
        kinds = kinds or ("weight",)  # smoothing gave it one
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
