"""The tensors of a quantized model in its directory: what is outside the blocks, config.json.

files/blocks.py writes a block, and read_block reads a finished one back, which a later run needs
to go on after it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from planish.reference.files.blocks import put_in_layout
from planish.reference.files.formats import FORMATS
from planish.reference.files.load import Checkpoint, load_block
from planish.reference.files.safetensors import TensorEntry
from planish.reference.files.writer import CheckpointWriter
from planish.reference.linear import Linear, float_weight, quantized_weight
from planish.reference.model.shapes import outer_kinds
from planish.reference.model.weights import Block, Weights
from planish.reference.quantize.methods.rtn import quantize_linear
from planish.reference.quantize.observe import fingerprint
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantize.remarks import Remarks
from planish.reference.quantize.schemes import head_scheme, schemes_to_write
from planish.reference.scheme import Scheme

WRITTEN = FORMATS["planish"]


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
            WRITTEN.write(writer, prefix, put_in_layout(head, layout))
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
