"""Checkpoint in, quantized checkpoint out, one block at a time.

    for each block:  read -> observe -> smooth -> (observe, for static scales) -> quantize -> write

The float model is never whole in memory; what is kept is one block and, where the recipe needs
a calibration, the hidden states of the samples.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from planish.reference.errors import RecipeError
from planish.reference.files.formats import FORMATS
from planish.reference.files.load import Checkpoint, load_weights
from planish.reference.files.writer import CheckpointWriter
from planish.reference.linear import Linear, float_weight, quantized_weight
from planish.reference.model.experts import stacked
from planish.reference.model.layers import Norm
from planish.reference.model.shapes import outer_kinds
from planish.reference.model.weights import Block, Weights, block_linears, block_norms, split_expert
from planish.reference.quantize.methods import quantize_linear
from planish.reference.quantize.observe import (
    Progress,
    embed_samples,
    fingerprint,
    no_progress,
    observe_block,
)
from planish.reference.quantize.recipe import Recipe, needs_calibration
from planish.reference.quantize.remarks import Remarks
from planish.reference.quantize.schemes import (
    block_schemes,
    check_schemes,
    head_scheme,
    linear_names,
    written_schemes,
)
from planish.reference.quantize.smooth import (
    alpha_of,
    quantize_block,
    require_folds,
    require_smoothed,
    search_alpha,
    smoothed,
)
from planish.reference.quantized import LAYOUTS, QuantizedWeight, to_layout
from planish.reference.scheme import Scheme

WRITTEN = FORMATS["planish"]


def quantize_checkpoint(
    checkpoint: Checkpoint,
    writer: CheckpointWriter,
    recipe: Recipe,
    samples: Sequence[np.ndarray] | None = None,
    progress: Progress = no_progress,
    layout: str = "tiles",
) -> None:
    """Write the model by the recipe. `samples` are calibration tokens, for recipes that need them.

    layout: `tiles`, as the native kernels read quantized weights, or `canonical` (checkpoint.py).
    Raises RecipeError for a model that is quantized already, a recipe that cannot be applied,
    or missing samples; QuantizationError for a tensor that does not fit its grid.
    """
    check_request(checkpoint, recipe, layout)
    if needs_calibration(recipe) and not samples:
        raise RecipeError("needs calibration text", name=recipe.name)
    samples = samples if needs_calibration(recipe) else None
    weights = load_weights(checkpoint)
    alphas = choose_alphas(checkpoint, weights, recipe, samples, progress)
    hidden = embed_samples(checkpoint.config, weights, samples) if samples else []
    remarks = Remarks(recipe)
    for layer in progress(range(len(weights.blocks)), recipe.name):
        block, outputs = _smooth(checkpoint, weights, layer, recipe, alphas, hidden)
        if recipe.quantizes:
            block = _quantize(checkpoint, layer, block, recipe, hidden, remarks)
        _add_block(checkpoint, writer, layer, block, layout, raw=alphas is None)
        hidden = outputs
        del block  # before the next one is read
    _add_outer(checkpoint, writer, weights, recipe, layout, remarks)
    remarks.tell()
    writer.finish(_config_values(checkpoint, recipe, layout, alphas, samples))


def check_request(checkpoint: Checkpoint, recipe: Recipe, layout: str) -> None:
    """Raise RecipeError unless the recipe can be applied to this model."""
    if layout not in LAYOUTS:
        expected = f"one of {', '.join(LAYOUTS)}"
        raise RecipeError("unknown", name="layout", expected=expected, found=repr(layout))
    if checkpoint.quantization is not None:
        found = checkpoint.quantization.get("recipe")
        raise RecipeError(
            "is quantized already", path=checkpoint.path, expected="a float model", found=found
        )
    if recipe.smoothing is not None:
        require_folds(checkpoint.config)
    check_schemes(checkpoint, recipe)


def choose_alphas(
    checkpoint: Checkpoint,
    weights: Weights,
    recipe: Recipe,
    samples: Sequence[np.ndarray] | None,
    progress: Progress = no_progress,
) -> list[float] | None:
    """The alpha of each block: as given, or searched for; None without smoothing."""
    alpha = alpha_of(recipe)
    if alpha is None or samples is None:
        return None
    if not isinstance(alpha, str):
        return [float(alpha)] * checkpoint.config.num_layers
    return search_alpha(checkpoint, weights, samples, recipe, progress=progress)


def _smooth(
    checkpoint: Checkpoint,
    weights: Weights,
    layer: int,
    recipe: Recipe,
    alphas: list[float] | None,
    hidden: list[np.ndarray],
) -> tuple[Block, list[np.ndarray]]:
    """A block, read and perhaps smoothed, and the float hidden states that leave it."""
    config, block, names = checkpoint.config, weights.blocks[layer], linear_names(checkpoint, layer)
    absmax, outputs = observe_block(config, block, hidden, names)
    if alphas is None:
        return block, outputs
    after = smoothed(config, block, absmax, recipe, alphas[layer])
    require_smoothed(block, after, names)
    return after, outputs


def _quantize(
    checkpoint: Checkpoint,
    layer: int,
    block: Block,
    recipe: Recipe,
    hidden: list[np.ndarray],
    remarks: Remarks,
) -> Block:
    """A float block -> the recipe's."""
    floats, names = block_linears(block), linear_names(checkpoint, layer)
    schemes = block_schemes(checkpoint, recipe, layer)
    quantized = quantize_block(checkpoint.config, block, recipe, hidden, names, schemes)
    for part, linear in block_linears(quantized).items():
        if isinstance(linear.weight, QuantizedWeight):
            remarks.see(names[part], float_weight(floats[part]), linear.weight)
    return quantized


def _add_block(
    checkpoint: Checkpoint,
    writer: CheckpointWriter,
    layer: int,
    block: Block,
    layout: str,
    raw: bool,
) -> None:
    linears, experts = apart(block_linears(block))
    for part, value in (block_norms(block) | linears).items():
        prefix = checkpoint.prefix(part, layer)
        if isinstance(value, Linear) and isinstance(value.weight, QuantizedWeight):
            WRITTEN.write(writer, prefix, _laid_out(value, layout))
        else:
            _add_float(checkpoint, writer, prefix, value, raw)
    for part, each in experts.items():
        stack = stacked([_laid_out(layer, layout) for layer in each])
        WRITTEN.write(writer, checkpoint.prefix(part, layer), stack)


def apart(linears: dict[str, Linear]) -> tuple[dict[str, Linear], dict[str, list[Linear]]]:
    """Linears that are written one by one, and the quantized experts', which lie together."""
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
    checkpoint: Checkpoint, writer: CheckpointWriter, prefix: str, value: Linear | Norm, raw: bool
) -> None:
    """Weight and bias: as they lie in the source where nothing changed them, else float32."""
    for kind in ("weight", "bias"):
        tensor, name = getattr(value, kind), f"{prefix}.{kind}"
        if raw and name in checkpoint.entries:
            writer.add(name, checkpoint.entries[name].map())
        elif tensor is not None:
            writer.add(name, tensor.astype(np.float32, copy=False))


def _laid_out(layer: Linear, layout: str) -> Linear:
    """A quantized linear with its codes as they are to lie in the file."""
    weight = layer.weight
    if not isinstance(weight, QuantizedWeight):
        return layer
    return replace(layer, weight=to_layout(weight, layout))


def _add_outer(
    checkpoint: Checkpoint,
    writer: CheckpointWriter,
    weights: Weights,
    recipe: Recipe,
    layout: str,
    remarks: Remarks,
) -> None:
    """Embeddings, final norm and projections as they are; the head by its scheme."""
    for part, kinds in outer_kinds(checkpoint.config).items():
        prefix, source = checkpoint.prefix(part), checkpoint.source(part).name
        if part == "head" and (scheme := head_scheme(checkpoint, recipe)) is not None:
            head = quantize_head(weights.head, scheme, recipe, prefix)
            remarks.see(prefix, float_weight(weights.head), quantized_weight(head))
            WRITTEN.write(writer, prefix, _laid_out(head, layout))
            continue
        if part == "head" and checkpoint.config.tie_embeddings:
            continue
        for kind in kinds:
            writer.add(f"{source}.{kind}", checkpoint.entries[f"{source}.{kind}"].map())


def quantize_head(head: Linear, scheme: Scheme, recipe: Recipe, name: str) -> Linear:
    """lm_head by its scheme and the recipe's method."""
    return quantize_linear(head, scheme, method=recipe.method, rule=recipe.rule, name=name)


def _config_values(
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
    said = WRITTEN.config(written_schemes(checkpoint, recipe), layout)
    facts = recipe_facts(recipe, alphas, fingerprint(samples) if samples else None)
    return {**values, "quantization_config": {**said, **facts}}


def recipe_facts(
    recipe: Recipe, alphas: list[float] | None = None, calibration: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What a directory records of its making: nothing that a reader of it needs."""
    smoothing = recipe.smoothing
    return {
        "recipe": recipe.name,
        "method": recipe.method,
        "rule": recipe.rule,
        "smoothing": smoothing and {**asdict(smoothing), "alpha_per_block": alphas},
        "calibration": calibration,
    }
