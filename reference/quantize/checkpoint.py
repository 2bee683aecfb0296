"""Quantize a checkpoint, one block at a time.

    for each block:  read -> observe -> smooth -> (observe, for static scales) -> quantize -> write

The float model is never in memory as a whole: only one block and, if the recipe needs a
calibration, the samples' hidden states before and after it. A runner (runner.py) computes these and
the statistics; a method (methods/) turns a weight and its statistics into codes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from planish.reference.errors import RecipeError
from planish.reference.files.formats import FORMATS
from planish.reference.files.load import Checkpoint, load_weights
from planish.reference.files.writer import CheckpointWriter
from planish.reference.linear import Linear, float_weight, quantized_weight
from planish.reference.model.experts import stack_linears
from planish.reference.model.layers import Norm
from planish.reference.model.shapes import outer_kinds
from planish.reference.model.weights import Block, Weights, block_linears, block_norms, split_expert
from planish.reference.quantize.block import quantize_block
from planish.reference.quantize.job import BlockJob
from planish.reference.quantize.methods.rtn import quantize_linear
from planish.reference.quantize.observe import ChannelAbsmax, fingerprint
from planish.reference.quantize.recipe import Recipe, needs_calibration, needs_states
from planish.reference.quantize.remarks import Remarks
from planish.reference.quantize.runner import Hidden
from planish.reference.quantize.runtime import NUMPY, Runtime
from planish.reference.quantize.schemes import (
    block_schemes,
    check_schemes,
    head_scheme,
    linear_names,
    schemes_to_write,
)
from planish.reference.quantize.search import BlockAlphas, search_alpha
from planish.reference.quantize.smooth import apply_smoothing, require_folds, require_smoothed
from planish.reference.quantized import LAYOUTS, QuantizedWeight, to_layout
from planish.reference.scheme import Scheme

WRITTEN = FORMATS["planish"]


def quantize_checkpoint(
    checkpoint: Checkpoint,
    writer: CheckpointWriter,
    recipe: Recipe,
    samples: Sequence[np.ndarray] | None = None,
    layout: str = "tiles",
    runtime: Runtime = NUMPY,
) -> None:
    """Quantize the model by the recipe and write it; samples: calibration token ids, if needed.

    layout: `tiles`, which the native kernels read, or `canonical` (reference/quantized.py).
    Raises RecipeError for a model that is already quantized, a recipe that cannot be applied, or
    missing samples; QuantizationError for a tensor that does not fit its grid, or a float model
    that overflows on the samples.
    """
    check_request(checkpoint, recipe, layout)
    if needs_calibration(recipe) and not samples:
        raise RecipeError("needs calibration text", name=recipe.name)
    samples = samples if needs_calibration(recipe) else None
    weights = load_weights(checkpoint)
    smoothing = choose_alphas(checkpoint, weights, recipe, samples, runtime)
    job = Job(checkpoint=checkpoint, recipe=recipe, smoothing=smoothing, runtime=runtime)
    states = job.first_states(weights, samples)
    remarks = Remarks(recipe)
    for layer in runtime.progress(range(len(weights.blocks)), f"quantize {recipe.name}"):
        block, states = job.convert(weights.blocks[layer], layer, states, remarks)
        raw = smoothing is None and not recipe.rescales
        _add_block(checkpoint, writer, layer, block, layout, raw=raw)
        del block  # before the next one is read
    _add_outer(checkpoint, writer, weights, recipe, layout, remarks)
    remarks.report()
    alphas = None if smoothing is None else smoothing.alphas
    writer.finish(_config_values(checkpoint, recipe, layout, alphas, samples))


@dataclass(frozen=True, kw_only=True)
class States:
    """The samples' hidden states at the input of a block.

    floats: in the float model. quantized: in the quantized one, if a method is sequential; else
    the same.
    """

    floats: Hidden = ()
    quantized: Hidden = ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model under one recipe: what the conversion of every block needs."""

    checkpoint: Checkpoint
    recipe: Recipe
    smoothing: BlockAlphas | None
    runtime: Runtime

    def first_states(self, weights: Weights, samples: Sequence[np.ndarray] | None) -> States:
        """The first block's input; empty if no statistics are needed."""
        seen = self.smoothing is not None and self.smoothing.observed is not None
        if samples is None or (seen and not needs_states(self.recipe)):
            return States()
        hidden = self.runtime.runner.embed(self.checkpoint.config, weights, samples)
        return States(floats=hidden, quantized=hidden)

    def convert(
        self, block: Block, layer: int, states: States, remarks: Remarks
    ) -> tuple[Block, States]:
        """observe -> smooth -> quantize one float block; also the next block's inputs."""
        names, config = linear_names(self.checkpoint, layer), self.checkpoint.config
        absmax, outputs = self.runtime.runner.observe(config, block, states.floats, names)
        smooth = self.smooth(block, layer, absmax)
        if not self.recipe.quantizes:
            return smooth, States(floats=outputs, quantized=outputs)
        job = self.block_job(layer, states, outputs)
        job = replace(job, absmax=absmax) if smooth is block else job  # else its inputs have moved
        quantized, rescaled = quantize_block(job, smooth, self.recipe, self.runtime)
        floats = block_linears(rescaled)
        for part, linear in block_linears(quantized).items():
            if isinstance(linear.weight, QuantizedWeight):
                remarks.see(names[part], float_weight(floats[part]), linear.weight)
        return quantized, self.next_states(quantized, states, outputs)

    def block_job(self, layer: int, states: States, targets: Hidden) -> BlockJob:
        """What the methods get of one block."""
        return BlockJob(
            config=self.checkpoint.config,
            schemes=block_schemes(self.checkpoint, self.recipe, layer),
            rule=self.recipe.rule,
            settings=self.recipe.settings,
            names=linear_names(self.checkpoint, layer),
            runner=self.runtime.runner,
            inputs=states.quantized,
            float_inputs=states.floats,
            targets=targets,
            layer=layer,
        )

    def next_states(self, quantized: Block, states: States, outputs: Hidden) -> States:
        """The hidden states after a block, in the float and in the quantized model."""
        if not self.recipe.sequential:
            return States(floats=outputs, quantized=outputs)
        found = self.runtime.runner.run(self.checkpoint.config, quantized, states.quantized)
        return States(floats=outputs, quantized=found)

    def smooth(self, block: Block, layer: int, absmax: ChannelAbsmax) -> Block:
        """Smooth the block at its alpha, if the recipe smooths."""
        if self.smoothing is None:
            return block
        if self.smoothing.observed is not None:
            absmax = self.smoothing.observed[layer]
        config, alpha = self.checkpoint.config, self.smoothing.alphas[layer]
        after = apply_smoothing(config, block, absmax, self.recipe, alpha)
        require_smoothed(block, after, linear_names(self.checkpoint, layer))
        return after


def check_request(checkpoint: Checkpoint, recipe: Recipe, layout: str) -> None:
    """Raise RecipeError unless the recipe can be applied to this model."""
    if layout not in LAYOUTS:
        expected = f"one of {', '.join(LAYOUTS)}"
        raise RecipeError("unknown", name="layout", expected=expected, found=repr(layout))
    if checkpoint.quantization is not None:
        found = checkpoint.quantization.get("recipe")
        raise RecipeError(
            "is already quantized", path=checkpoint.path, expected="a float model", found=found
        )
    if recipe.smoothing is not None:
        require_folds(checkpoint.config)
    check_schemes(checkpoint, recipe)


def choose_alphas(
    checkpoint: Checkpoint,
    weights: Weights,
    recipe: Recipe,
    samples: Sequence[np.ndarray] | None,
    runtime: Runtime = NUMPY,
) -> BlockAlphas | None:
    """The alpha of each block, given or searched for; None without smoothing."""
    if recipe.alpha is None or samples is None:
        return None
    if not isinstance(recipe.alpha, str):
        return BlockAlphas(alphas=[float(recipe.alpha)] * checkpoint.config.num_layers)
    return search_alpha(checkpoint, weights, samples, recipe, runtime=runtime)


def _add_block(
    checkpoint: Checkpoint,
    writer: CheckpointWriter,
    layer: int,
    block: Block,
    layout: str,
    raw: bool,
) -> None:
    linears, experts = split_experts(block_linears(block))
    for part, value in (block_norms(block) | linears).items():
        prefix = checkpoint.prefix(part, layer)
        if isinstance(value, Linear) and isinstance(value.weight, QuantizedWeight):
            WRITTEN.write(writer, prefix, _put_in_layout(value, layout))
        else:
            _add_float(checkpoint, writer, prefix, value, raw)
    for part, each in experts.items():
        stack = stack_linears([_put_in_layout(layer, layout) for layer in each])
        WRITTEN.write(writer, checkpoint.prefix(part, layer), stack)


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
    checkpoint: Checkpoint, writer: CheckpointWriter, prefix: str, value: Linear | Norm, raw: bool
) -> None:
    """Write weight and bias: unchanged ones (raw) in the source's type, others in float32."""
    for kind in ("weight", "bias"):
        tensor, name = getattr(value, kind), f"{prefix}.{kind}"
        if raw and name in checkpoint.entries:
            writer.add(name, checkpoint.entries[name].map())
        elif tensor is not None:
            writer.add(name, tensor.astype(np.float32, copy=False))


def _put_in_layout(layer: Linear, layout: str) -> Linear:
    """The linear with its quantized weight in the file's layout."""
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
    said = WRITTEN.config(schemes_to_write(checkpoint, recipe), layout)
    facts = recipe_facts(recipe, alphas, fingerprint(samples) if samples else None)
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
    }
