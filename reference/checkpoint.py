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

Symmetric INT4 rules have the zero point 8 everywhere, which need not be stored. Tiles are what
the native kernels read, straight from the file; the definition reads the canonical form, so
load_weights gives either from both. Nothing is unpickled and no path leaves the directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np

from reference.directory import (
    Checkpoint,
    activation_of,
    bad_value,
    checked_entry,
    open_checkpoint,
)
from reference.layers import Norm
from reference.linear import Linear
from reference.model import Block, Weights
from reference.quantized import load_quantized, require_positive
from reference.shapes import block_shapes, outer_shapes

__all__ = ["Checkpoint", "load_block", "load_float", "load_weights", "open_checkpoint"]

FLOATS = ("F32", "F16", "BF16")
CHECKED_TOGETHER = 2**18  # numbers: 1 MiB, which a second look finds in the cache


def load_weights(checkpoint: Checkpoint, tiled: bool = False) -> Weights:
    """The model with lazy blocks: each is read when it is indexed.

    Quantized weights come out as QuantizedWeight or, if `tiled`, as TiledWeight: views of the
    file where it has them in this layout, converted where it has not.
    """
    embed = _load_outer(checkpoint, "embed")
    positions = project_in = project_out = final_norm = None
    if checkpoint.config.position_offset is not None:
        positions = _load_outer(checkpoint, "positions")
    if checkpoint.config.projects:
        project_in = Linear(_load_outer(checkpoint, "project_in"))
        project_out = Linear(_load_outer(checkpoint, "project_out"))
    if checkpoint.config.final_norm:
        final_norm = _load_norm(checkpoint, checkpoint.prefix("final_norm"))
    blocks, head = Blocks(checkpoint, tiled), _load_head(checkpoint, embed, tiled)
    return Weights(embed, positions, project_in, blocks, final_norm, project_out, head)


def _load_outer(checkpoint: Checkpoint, part: str) -> np.ndarray:
    name = f"{checkpoint.prefix(part)}.weight"
    return load_float(checkpoint, name, outer_shapes(checkpoint.config)[part])


def _load_head(checkpoint: Checkpoint, embed: np.ndarray, tiled: bool) -> Linear:
    """The head's own weight, or the embedding; a tied head that was quantized has its own."""
    prefix = checkpoint.prefix("head")
    if checkpoint.config.tie_embeddings and f"{prefix}.weight_scale" not in checkpoint.entries:
        return Linear(embed)
    return load_linear(checkpoint, prefix, outer_shapes(checkpoint.config)["head"], False, tiled)


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
    parts: dict[str, Any] = {"gate": None}
    for part, (shape, bias) in block_shapes(checkpoint.config).items():
        prefix = checkpoint.prefix(part, layer)
        parts[part] = load_linear(checkpoint, prefix, shape, bias, tiled)
    for part in ("attention_norm", "mlp_norm"):
        parts[part] = _load_norm(checkpoint, checkpoint.prefix(part, layer))
    return Block(**parts)


def load_linear(
    checkpoint: Checkpoint,
    prefix: str,
    shape: tuple[int, ...],
    has_bias: bool,
    tiled: bool = False,
) -> Linear:
    """Weight (float or quantized) and bias of one linear, with its activations' treatment."""
    bias = load_float(checkpoint, f"{prefix}.bias", shape[:1]) if has_bias else None
    if f"{prefix}.weight_scale" not in checkpoint.entries:
        return Linear(load_float(checkpoint, f"{prefix}.weight", shape), bias)
    weight = load_quantized(checkpoint, prefix, shape, tiled)
    activation = activation_of(checkpoint, prefix)
    layer = Linear(weight, bias, activation)
    if activation != "static":
        return layer
    scale = load_float(checkpoint, f"{prefix}.input_scale", (1,))
    require_positive(checkpoint, f"{prefix}.input_scale", scale)
    return replace(layer, activation_scale=scale)


def load_float(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float tensor as float32, a view of the file if it is float32 there; it must be finite."""
    entry = checked_entry(checkpoint, name, FLOATS, shape)
    with np.errstate(invalid="ignore"):  # a signalling NaN is reported below, by name
        tensor = entry.map().astype(np.float32, copy=False)
    if not _all_finite(tensor.reshape(-1)):
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(tensor))[0])
        raise bad_value(checkpoint, name, "finite", f"{tensor[index]} at {index}")
    return tensor


def _all_finite(numbers: np.ndarray) -> bool:
    """Whether a float32 vector holds neither NaN nor Inf.

    A sum of squares is finite only then, as squares cannot cancel; it costs one pass and no
    memory. Where it is not, large numbers may have overflowed, so isfinite has the last word.
    """
    for start in range(0, numbers.size, CHECKED_TOGETHER):
        part = numbers[start : start + CHECKED_TOGETHER]
        with np.errstate(all="ignore"):
            square = np.dot(part, part)
        if not np.isfinite(square) and not np.isfinite(part).all():
            return False
    return True


def _load_norm(checkpoint: Checkpoint, prefix: str) -> Norm:
    config = checkpoint.config
    if not config.norm_affine:
        return Norm(None)
    shape = (config.hidden_size,)
    weight = load_float(checkpoint, f"{prefix}.weight", shape)
    bias = load_float(checkpoint, f"{prefix}.bias", shape) if config.norm == "layer_norm" else None
    return Norm(weight, bias)
