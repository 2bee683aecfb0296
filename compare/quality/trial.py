"""One candidate of the automatic search: quantize it, measure it, and make a row of the table."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from planish.compare.quality.judge import Judge
from planish.compare.quality.loss import Loss, task_loss, text_loss
from planish.compare.quality.measure import count_stored_bytes
from planish.compare.quality.mixture import Base, Mixture
from planish.compare.quality.order import Candidate
from planish.compare.quality.rescaling import Rescalings, find_rescalings
from planish.compare.quality.size import bits_per_weight, stored_bits
from planish.reference.files.load import Checkpoint, load_block, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.model.weights import Block
from planish.reference.progress import Progress, no_progress
from planish.reference.quantize.checkpoint import check_request, quantize_checkpoint
from planish.reference.quantize.job import BlockJob
from planish.reference.quantize.recipe import Recipe
from planish.reference.quantize.runtime import NUMPY, Runtime

Score = Callable[[Mixture | None], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is asked for: a loss of at most `tolerance`, or the least one within `budget`.

    metric: of loss.METRICS. budget: bits a weight at most; None for no limit. score: for the
    metric accuracy, whether a model gets each item of a task right (1 or 0), [items]; None means
    the float model.
    """

    metric: str = "perplexity"
    tolerance: float | None = 0.01
    budget: float | None = None
    score: Score | None = None

    def within(self, loss: Loss) -> bool:
        """Whether loss + standard error is within the tolerance; False without one."""
        return self.tolerance is not None and loss.bound <= self.tolerance

    def affords(self, bits: float) -> bool:
        """Whether so many bits a weight are within the budget."""
        return self.budget is None or bits <= self.budget + 1e-9


@dataclass(frozen=True, kw_only=True)
class Study:
    """What every candidate is made of and measured with.

    samples: calibration token ids. directory: gets the candidates. sensitivity: measures what each
    linear's rounding costs: fast/quantize/sensitivity.measure_sensitivity.
    """

    source: Checkpoint
    samples: Sequence[np.ndarray]
    judge: Judge
    goal: Goal
    directory: Path
    sensitivity: Callable[..., list[dict[str, Any]]]
    runtime: Runtime = NUMPY
    layout: str = "tiles"
    progress: Progress = no_progress


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One row of the table: a recipe or a mixture, and what it costs.

    bits: a weight (size.py). size: bytes of the weights' files; those of a mixture are computed.
    loss, error: by the goal's metric. seconds: to quantize and to measure it.
    """

    name: str
    bits: float
    size: int
    loss: float
    error: float
    perplexity: float
    float_perplexity: float
    mean_kl: float
    top1: float
    seconds: float
    within: bool

    @property
    def bound(self) -> float:
        """loss + standard error."""
        return self.loss + self.error


@dataclass(frozen=True, kw_only=True)
class Found:
    """A trial and the model that it measured."""

    trial: Trial
    model: Mixture


def try_candidate(study: Study, candidate: Candidate) -> Found:
    """Quantize and measure one recipe. Raises what quantize_checkpoint raises."""
    start = time.perf_counter()
    model = Mixture(base=make_base(study, candidate.recipe, candidate.name))
    return measure_model(study, candidate.name, model, start)


def make_base(study: Study, recipe: Recipe, name: str) -> Base:
    """Quantize the source by a recipe into the study's directory."""
    check_request(study.source, recipe, study.layout)
    directory = study.directory / name.replace(" ", "-")
    runtime, rescalings = watch_rescaling(study, recipe)
    with CheckpointWriter(directory, study.source.path, overwrite=True) as writer:
        quantize_checkpoint(study.source, writer, recipe, study.samples, study.layout, runtime)
    quantized = open_checkpoint(directory)
    return Base(source=study.source, quantized=quantized, recipe=recipe, rescalings=rescalings)


def watch_rescaling(study: Study, recipe: Recipe) -> tuple[Runtime, list[Rescalings]]:
    """The study's runtime, and a list that it fills with each block's rescalings.

    The step that rounds is watched: what it gets is the float block as the recipe rescaled it. The
    list stays empty if the recipe rescales nothing.
    """
    runtime = replace(study.runtime, progress=study.progress)
    *rescaling, rounding = recipe.methods
    if recipe.smoothing is None and not rescaling:
        return runtime, []
    found: list[Rescalings] = [{}] * study.source.config.num_layers
    step = runtime.step(rounding)

    def watched(job: BlockJob, block: Block) -> Block:
        found[job.layer] = find_rescalings(job.config, load_block(study.source, job.layer), block)
        return step(job, block)

    return replace(runtime, steps={**runtime.steps, rounding: watched}), found


def measure_model(study: Study, name: str, model: Mixture, start: float) -> Found:
    """Measure a model on the validation text and, for accuracy, on the task.

    start: perf_counter() before it was made.
    """
    judge, goal = study.judge, study.goal
    found = judge.measure(model.weights(judge.tiled), study.progress, f"measuring {name}")
    loss = text_loss("perplexity" if goal.metric == "accuracy" else goal.metric, found)
    if goal.metric == "accuracy" and goal.score is not None:
        loss = task_loss(goal.score(model), goal.score(None))
    trial = Trial(
        name=name,
        bits=bits_per_weight(model),
        size=model_bytes(model),
        loss=loss.value,
        error=loss.error,
        perplexity=perplexity_of(found.nll),
        float_perplexity=perplexity_of(found.float_nll),
        mean_kl=float(found.kl.mean()),
        top1=float(found.same.mean()),
        seconds=time.perf_counter() - start,
        within=goal.within(loss),
    )
    return Found(trial=trial, model=model)


def perplexity_of(nll: np.ndarray) -> float:
    """exp of the mean cross entropy."""
    return math.exp(min(float(nll.mean()), 700.0))


def model_bytes(model: Mixture) -> int:
    """Bytes of the base's weights' files, and what the changes add to them."""
    plain = Mixture(base=model.base)
    more = sum(stored_bits(model, key) - stored_bits(plain, key) for key in model.changes)
    return count_stored_bytes(model.base.quantized.path) + more // 8
