"""Write a block in planish's format: its quantized linears, the stacked experts, and the floats."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planish.reference.files.checkpoint import Checkpoint
from planish.reference.files.formats import FORMATS
from planish.reference.files.writer import Sink
from planish.reference.linear import Linear
from planish.reference.model.experts import stack_linears
from planish.reference.model.layers import Norm
from planish.reference.model.weights import Block, block_linears, block_norms, split_expert
from planish.reference.quantized import QuantizedWeight, to_layout

PLANISH = FORMATS["planish"]


def add_block(
    checkpoint: Checkpoint,
    sink: Sink,
    layer: int,
    block: Block,
    layout: str,
    raw: bool,
) -> None:
    """Add a block's tensors to a sink.

    raw: whether no float tensor was changed, so that those of the file are written as they are.
    """
    linears, experts = split_experts(block_linears(block))
    for part, value in (block_norms(block) | linears).items():
        prefix = checkpoint.prefix(part, layer)
        if isinstance(value, Linear) and isinstance(value.weight, QuantizedWeight):
            PLANISH.write(sink, prefix, put_in_layout(value, layout))
        else:
            _add_float(checkpoint, sink, prefix, value, raw)
    if (scales := block.attention_scales) is not None:
        PLANISH.write_scales(sink, checkpoint.attention_prefix(layer), scales)
    for part, each in experts.items():
        stack = stack_linears([put_in_layout(layer, layout) for layer in each])
        PLANISH.write(sink, checkpoint.prefix(part, layer), stack)


def split_experts(linears: dict[str, Linear]) -> tuple[dict[str, Linear], dict[str, list[Linear]]]:
    """The linears that are written one by one, and the quantized experts, which are stacked."""
    single: dict[str, Linear] = {}
    experts: dict[str, list[Linear]] = {}
    for part, linear in linears.items():
        general, expert = split_expert(part)
        if expert is None or not isinstance(linear.weight, QuantizedWeight):
            single[part] = linear
        else:
            experts.setdefault(general, []).append(linear)
    return single, experts


def _add_float(
    checkpoint: Checkpoint, sink: Sink, prefix: str, value: Linear | Norm, raw: bool
) -> None:
    """Write weight and bias: unchanged ones (raw) in the source's type, others in float32."""
    for kind in ("weight", "bias"):
        tensor, name = getattr(value, kind), f"{prefix}.{kind}"
        if raw and name in checkpoint.entries:
            sink.add(name, checkpoint.entries[name].map())
        elif tensor is not None:
            sink.add(name, tensor.astype(np.float32, copy=False))


def put_in_layout(layer: Linear, layout: str) -> Linear:
    """The linear with its quantized weight, if it has one, in a layout."""
    weight = layer.weight
    if not isinstance(weight, QuantizedWeight):
        return layer
    return replace(layer, weight=to_layout(weight, layout))
