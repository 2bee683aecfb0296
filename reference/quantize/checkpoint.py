"""Quantize a checkpoint, one block at a time.

    for each block:  read -> observe -> smooth -> (observe, for static scales) -> quantize -> write

The float model is never in memory as a whole: only one block and, if the recipe needs a
calibration, the samples' hidden states before and after it. A runner (runner.py) computes these and
the statistics; a method (methods/) turns a weight and its statistics into codes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from planish.reference.errors import RecipeError
from planish.reference.files.blocks import add_block
from planish.reference.files.load import Checkpoint, load_weights
from planish.reference.files.partial import Partial
from planish.reference.files.safetensors import forget_entries
from planish.reference.files.writer import CheckpointWriter, Sink, Tensors
from planish.reference.linear import float_weight
from planish.reference.model.weights import Block, Weights, block_linears
from planish.reference.quantize.ahead import map_ahead
from planish.reference.quantize.block import calibrate_attention, quantize_block
from planish.reference.quantize.job import BlockJob
from planish.reference.quantize.observe import ChannelAbsmax, require_finite_states, spread
from planish.reference.quantize.output import add_outer, config_values, read_block
from planish.reference.quantize.recipe import Recipe, needs_calibration, needs_states
from planish.reference.quantize.remarks import Remarks
from planish.reference.quantize.report import BlockReport, no_report
from planish.reference.quantize.resume import (
    ALPHAS,
    block_piece,
    describe_request,
    load_alphas,
    save_alphas,
)
from planish.reference.quantize.runner import Hidden
from planish.reference.quantize.runtime import NUMPY, Runtime
from planish.reference.quantize.schemes import block_schemes, check_schemes, linear_names
from planish.reference.quantize.search import BlockAlphas, output_error, search_alpha
from planish.reference.quantize.settings import DEFAULTS
from planish.reference.quantize.smooth import apply_smoothing, require_folds, require_smoothed
from planish.reference.quantized import LAYOUTS, QuantizedWeight

ERROR_SAMPLES = 4  # on which a block's error is measured for the report


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
    if writer.partial is not None:
        name = runtime.runner.name
        writer.partial.begin(describe_request(checkpoint, recipe, samples, layout, name))
    runtime, weights = runtime.storing(writer.hidden), load_weights(checkpoint)
    smoothing = choose_alphas(checkpoint, weights, recipe, samples, runtime, writer.partial)
    given: Any = {"smoothing": smoothing, "runtime": runtime, "layout": layout}
    job = Job(checkpoint=checkpoint, recipe=recipe, **given)
    remarks = convert_blocks(job, writer, weights, samples)
    add_outer(checkpoint, writer, weights, recipe, layout, remarks)
    remarks.report()
    alphas = None if smoothing is None else smoothing.alphas
    writer.finish(config_values(checkpoint, recipe, layout, alphas, samples))


def convert_blocks(
    job: Job, writer: CheckpointWriter, weights: Weights, samples: Sequence[np.ndarray] | None
) -> Remarks:
    """Quantize and write every block that no earlier run has finished; remarks on all of them."""
    blocks, remarks = weights.blocks, Remarks(job.recipe)
    done = sum(writer.has_piece(block_piece(layer)) for layer in range(len(blocks)))
    states = job.first_states(weights, samples) if done < len(blocks) else States()
    if states.floats:
        converted = job.convert_in_turn(writer, blocks, done, states)
    else:
        converted = job.convert_ahead(writer, blocks, done)
    start = time.perf_counter()
    for layer in job.runtime.progress(range(len(blocks)), f"quantize {job.recipe.name}"):
        facts = next(converted)
        forget_entries(job.checkpoint.entries)
        remarks.add(facts["remarks"])
        start, before = time.perf_counter(), start
        job.report(layer, layer < done, facts["errors"], start - before)
    return remarks


@dataclass(frozen=True, kw_only=True)
class States:
    """The samples' hidden states at the input of a block.

    floats: in the float model; of ERROR_SAMPLES samples if the recipe needs no more.
    quantized: in the quantized one, if a method is sequential; else the same.
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
    layout: str

    def first_states(self, weights: Weights, samples: Sequence[np.ndarray] | None) -> States:
        """The first block's input; empty if no statistics are needed."""
        seen = self.smoothing is not None and self.smoothing.observed is not None
        if samples is None or (seen and not needs_states(self.recipe)):
            return States()
        hidden = self.runtime.runner.embed(self.checkpoint.config, weights, samples)
        few = hidden if self.recipe.follows_floats else choose_few(hidden)
        return States(floats=few, quantized=hidden)

    def convert_in_turn(
        self, writer: CheckpointWriter, blocks: Sequence[Block], done: int, states: States
    ) -> Iterator[dict[str, Any]]:
        """Quantize and write the blocks after the first `done`; the facts of all, one by one."""
        for layer in range(len(blocks)):
            piece = block_piece(layer)
            if layer < done:
                states = self.pass_through(writer, blocks, layer, states)
                yield writer.add_piece(piece)
            else:
                facts, states = self.convert(writer, blocks[layer], layer, states)
                writer.end_piece(piece, facts)
                yield facts

    def convert_ahead(
        self, writer: CheckpointWriter, blocks: Sequence[Block], done: int
    ) -> Iterator[dict[str, Any]]:
        """The same without hidden states: no block waits for another, so some are ahead."""

        def convert(layer: int) -> tuple[dict[str, Any], Tensors]:
            found = Tensors()
            return self.convert(found, blocks[layer], layer, States())[0], found

        for layer in range(done):
            yield writer.add_piece(block_piece(layer))
        rest = range(done, len(blocks))
        for layer, (facts, found) in zip(
            rest, map_ahead(convert, rest, self.runtime.ahead), strict=True
        ):
            for name, tensor in found.tensors.items():
                writer.add(name, tensor)
            writer.end_piece(block_piece(layer), facts)
            yield facts

    def convert(
        self, sink: Sink, block: Block, layer: int, states: States
    ) -> tuple[dict[str, Any], States]:
        """Quantize one float block and add it to `sink`; its facts in JSON, the next's inputs."""
        names, config = linear_names(self.checkpoint, layer), self.checkpoint.config
        absmax, outputs = self.runtime.runner.observe(config, block, states.floats, names)
        smooth, remarks = self.smooth(block, layer, absmax), Remarks(self.recipe)
        if not self.recipe.quantizes:
            add_block(self.checkpoint, sink, layer, smooth, self.layout, raw=self.raw)
            nothing = {"remarks": remarks.facts(), "errors": (None, None)}
            return nothing, States(floats=outputs, quantized=outputs)
        job = self.block_job(layer, states, outputs)
        job = replace(job, absmax=absmax) if smooth is block else job  # else its inputs have moved
        quantized, rescaled = quantize_block(job, smooth, self.recipe, self.runtime)
        if self.recipe.kv_cache == "int8_static":
            scales = calibrate_attention(job, rescaled)
            quantized = replace(quantized, attention_scales=scales)
        floats = block_linears(rescaled)
        for part, linear in block_linears(quantized).items():
            if isinstance(linear.weight, QuantizedWeight):
                remarks.see(names[part], float_weight(floats[part]), linear.weight)
        add_block(self.checkpoint, sink, layer, quantized, self.layout, raw=self.raw)
        after = self.next_states(layer, quantized, states, outputs)
        errors = self.measure_errors(job, block, quantized, after)
        facts: dict[str, Any] = {"remarks": remarks.facts(), "errors": errors}
        return facts, after

    @property
    def raw(self) -> bool:
        """Whether what is not quantized stays as it is in the float model."""
        return self.smoothing is None and not self.recipe.rescales

    def pass_through(
        self, writer: CheckpointWriter, blocks: Sequence[Block], layer: int, states: States
    ) -> States:
        """The next block's inputs, after a block that an earlier run has finished."""
        if not states.floats:
            return states
        config, names = self.checkpoint.config, linear_names(self.checkpoint, layer)
        _, outputs = self.runtime.runner.observe(config, blocks[layer], states.floats, names)
        if writer.partial is None or not self.recipe.sequential:
            return States(floats=outputs, quantized=outputs)
        entries = writer.partial.tensors(block_piece(layer))
        quantized = read_block(self.checkpoint, self.recipe, self.layout, layer, entries)
        return self.next_states(layer, quantized, states, outputs)

    def measure_errors(
        self, job: BlockJob, block: Block, quantized: Block, after: States
    ) -> tuple[float | None, float | None]:
        """The block's error when it is rounded to nearest, and that of its quantized form.

        None where nobody asks or there is no calibration; BlockReport says what is measured.
        after: the next block's inputs, which may be the quantized block's outputs already.
        """
        if self.runtime.report is no_report or not job.targets:
            return None, None
        floats, inputs, targets = map(choose_few, (job.float_inputs, job.inputs, job.targets))

        def run(candidate: Block) -> Hidden:
            return self.runtime.runner.run(job.config, candidate, inputs)

        was_run = after.quantized is not after.floats
        found = choose_few(after.quantized) if was_run else run(quantized)
        error = output_error(floats, found, targets)
        if self.recipe.method == "rtn" and self.smoothing is None:
            return None, error
        few = replace(job, float_inputs=floats, inputs=inputs, targets=targets)
        nearest = replace(self.recipe, method="rtn", settings=DEFAULTS)
        rounded = run(quantize_block(few, block, nearest)[0])
        return output_error(floats, rounded, targets), error

    def report(
        self,
        layer: int,
        resumed: bool,
        errors: Sequence[float | None],
        seconds: float,
    ) -> None:
        """Report a finished block."""
        before, after = errors
        self.runtime.report(
            BlockReport(
                layer=layer,
                blocks=self.checkpoint.config.num_layers,
                method=self.recipe.method,
                before=before,
                after=after,
                seconds=seconds,
                resumed=resumed,
            )
        )

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

    def next_states(self, layer: int, quantized: Block, states: States, outputs: Hidden) -> States:
        """The hidden states after a block, in the float and in the quantized model.

        Nothing reads those after the last block, so it is not run again in its quantized form.
        """
        last = layer + 1 == self.checkpoint.config.num_layers
        if last or not self.recipe.sequential:
            return States(floats=outputs, quantized=outputs)
        found = self.runtime.runner.run(self.checkpoint.config, quantized, states.quantized)
        require_finite_states(found, linear_names(self.checkpoint, layer))
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


def choose_few(hidden: Hidden) -> Hidden:
    """ERROR_SAMPLES of the samples, evenly spaced."""
    return [hidden[index] for index in spread(len(hidden), ERROR_SAMPLES)]


def check_request(checkpoint: Checkpoint, recipe: Recipe, layout: str) -> None:
    """Raise RecipeError unless the recipe can be applied to this model."""
    if layout not in LAYOUTS:
        expected = f"one of {', '.join(LAYOUTS)}"
        raise RecipeError("unknown", name="layout", expected=expected, found=repr(layout))
    if checkpoint.format is not None:
        _refuse_quantized(checkpoint)
    if recipe.smoothing is not None:
        require_folds(checkpoint.config)
    check_schemes(checkpoint, recipe)


def _refuse_quantized(checkpoint: Checkpoint) -> None:
    """Raise RecipeError for a model that is quantized already, by planish or another program."""
    found = (checkpoint.quantization or {}).get("recipe")
    if checkpoint.origin is not None:
        found = checkpoint.origin.format
    expected = "a float model, as `planish convert --format float` makes of it"
    problem = "is already quantized"
    raise RecipeError(problem, path=checkpoint.path, expected=expected, found=found)


def choose_alphas(
    checkpoint: Checkpoint,
    weights: Weights,
    recipe: Recipe,
    samples: Sequence[np.ndarray] | None,
    runtime: Runtime = NUMPY,
    partial: Partial | None = None,
) -> BlockAlphas | None:
    """The alpha of each block, given or searched for; None without smoothing.

    partial: has the result of a search that an earlier run has finished, or keeps this one's.
    """
    if recipe.alpha is None or samples is None:
        return None
    if not isinstance(recipe.alpha, str):
        return BlockAlphas(alphas=[float(recipe.alpha)] * checkpoint.config.num_layers)
    if partial is not None and partial.has(ALPHAS):
        return load_alphas(partial)
    found = search_alpha(checkpoint, weights, samples, recipe, runtime=runtime)
    if partial is not None:
        save_alphas(partial, found)
    return found
