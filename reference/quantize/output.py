"""The tensors of a quantized model in its directory: blocks, what is outside them, config.json.

add_block writes a block, and read_block reads a finished one back, which a later run needs to go
on after it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from planish.reference.files.formats import FORMATS
from planish.reference.files.load import Checkpoint, load_block
from planish.reference.files.safetensors import TensorEntry
from planish.reference.files.writer import CheckpointWriter, Sink
from planish.reference.linear import Linear, float_weight, quantized_weight
from planish.reference.model.experts import stack_linears
from planish.reference.model.layers import Norm
from planish.reference.model.shapes import outer_kinds
from planish.reference.model.weights import Block, Weights, block_linears, block_norms, split_expert
from planish.reference.quantize.methods.rtn import quantize_linear
from planish.reference.quantize.observe import fingerprint
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantize.remarks import Remarks
from planish.reference.quantize.schemes import head_scheme, schemes_to_write
from planish.reference.quantized import QuantizedWeight, to_layout
from planish.reference.scheme import Scheme

WRITTEN = FORMATS["planish"]


def add_block(
    checkpoint: Checkpoint,
    sink: Sink,
    layer: int,
    block: Block,
    layout: str,
    raw: bool,
) -> None:
    linears, experts = split_experts(block_linears(block))
    for part, value in (block_norms(block) | linears).items():
        prefix = checkpoint.prefix(part, layer)
        if isinstance(value, Linear) and isinstance(value.weight, QuantizedWeight):
            WRITTEN.write(sink, prefix, _put_in_layout(value, layout))
        else:
            _add_float(checkpoint, sink, prefix, value, raw)
    if (scales := block.attention_scales) is not None:
        WRITTEN.write_scales(sink, checkpoint.attention_prefix(layer), scales)
    for part, each in experts.items():
        stack = stack_linears([_put_in_layout(layer, layout) for layer in each])
        WRITTEN.write(sink, checkpoint.prefix(part, layer), stack)


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


def _put_in_layout(layer: Linear, layout: str) -> Linear:
    """The linear with its quantized weight in the file's layout."""
    weight = layer.weight
    if not isinstance(weight, QuantizedWeight):
        return layer
    return replace(layer, weight=to_layout(weight, layout))


def add_outer(
    checkpoint: Checkpoint,
    writer: CheckpointWriter,
    weights: Weights,
    recipe: Recipe,
    layout: str,
    remarks: Remarks,
) -> None:
    """Write embeddings, final norm and projections unchanged, and lm_head under its scheme."""
    for part, kinds in outer_kinds(checkpoint.config).items():
        prefix, source = checkpoint.prefix(part), checkpoint.source(part).name
        if part == "head" and (scheme := head_scheme(checkpoint, recipe)) is not None:
            head = quantize_head(weights.head, scheme, recipe, prefix)
            remarks.see(prefix, float_weight(weights.head), quantized_weight(head))
            WRITTEN.write(writer, prefix, _put_in_layout(head, layout))
            continue
        if part == "head" and checkpoint.config.tie_embeddings:
            continue
        for kind in kinds:
            writer.add(f"{source}.{kind}", checkpoint.entries[f"{source}.{kind}"].map())


def quantize_head(head: Linear, scheme: Scheme, recipe: Recipe, name: str) -> Linear:
    """Round lm_head to nearest under its scheme, whatever the recipe's method."""
    return quantize_linear(head, scheme, rule=recipe.rule, name=name)


def config_values(
    checkpoint: Checkpoint,
    recipe: Recipe,
    layout: str,
    alphas: list[float] | None,
    samples: Sequence[np.ndarray] | None,
) -> dict[str, Any]:
    values = copy.deepcopy(checkpoint.values)
    if not recipe.quantizes:  # a float model, perhaps smoothed
        if alphas is not None:
            values["torch_dtype" if "torch_dtype" in values else "dtype"] = "float32"
        return values
    said = WRITTEN.config(schemes_to_write(checkpoint, recipe), layout)
    facts = recipe_facts(recipe, alphas, fingerprint(samples) if samples else None)
    chosen = {"attention": recipe.attention, "kv_cache": recipe.kv_cache}
    said |= {key: value for key, value in chosen.items() if not value.startswith("float")}
    return {**values, "quantization_config": {**said, **facts}}


def recipe_facts(
    recipe: Recipe, alphas: list[float] | None = None, calibration: dict[str, Any] | None = None
) -> dict[str, Any]:
    """How a directory was made, for config.json; no reader needs it."""
    smoothing = recipe.smoothing
    return {
        "recipe": recipe.name,
        "method": recipe.method,
        "rule": recipe.rule,
        "smoothing": smoothing and {**asdict(smoothing), "alpha_per_block": alphas},
        "calibration": calibration,
    } | ({"clip_inputs": True} if recipe.clip_inputs else {})


def read_block(
    checkpoint: Checkpoint,
    recipe: Recipe,
    layout: str,
    layer: int,
    entries: Mapping[str, TensorEntry],
) -> Block:
    """A finished block, from the tensors that add_block wrote."""
    written = as_quantized(checkpoint, recipe, layout)
    return load_block(replace(written, entries={**checkpoint.entries, **entries}), layer)


def as_quantized(checkpoint: Checkpoint, recipe: Recipe, layout: str = "tiles") -> Checkpoint:
    """The checkpoint as it will declare itself, still with the float model's tensors."""
    if not recipe.quantizes:
        return checkpoint
    values = config_values(checkpoint, recipe, layout, None, None)
    declared = WRITTEN.parse(values["quantization_config"], Path("config.json"))
    config = replace(checkpoint.config, attention=declared.attention, kv_cache=declared.kv_cache)
    return replace(checkpoint, values=values, config=config, format=WRITTEN, declared=declared)
