"""Search for a recipe: from a request to a plan, the search, and the model that it chose.

`planish quantize --method auto` (verbs/search.py) and planish.quantize(method="auto") are this.

compare/quality/auto.py searches. The candidates are written to the system's temporary directory
(TMPDIR); the one that is chosen is copied to --out, with the trail of the search beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from planish import pocket
from planish.calibration import read_calibration
from planish.compare.quality import order, tasks
from planish.opening import prepare_kernels
from planish.reference.errors import PromptError, RecipeError, notice
from planish.reference.files.load import Checkpoint, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.progress import Progress
from planish.reference.quantize.checkpoint import check_request
from planish.reference.quantize.observe import SAMPLE_LENGTH, cut_samples
from planish.reference.text.evaluate import cut_windows
from planish.reference.text.tokenizer import load_tokenizer
from planish.terminal.output import finite
from planish.terminal.progress import progress
from planish.terminal.sizes import parse_bytes
from planish.terminal.tasks import read_task

PathLike = str | Path  # a file or a directory
METRICS = ("perplexity", "kl", "top1", "accuracy")
Task = tuple[list[tasks.Item], list[list[tasks.Group]]]  # items, and the token ids of each
RECIPE, TOLERANCE, METRIC = "W4A16", 0.01, "perplexity"
SAMPLES, VALIDATION_TOKENS, WINDOW = 64, 16384, 512
LEAST_BITS, MOST_BITS = 4.0, 16.0
CHOSEN = (  # by the search, of what a recipe may change
    *("scheme", "group_size", "rule", "scale_dtype", "alpha", "smooth_outputs", "clip_inputs"),
    *("search_range", "act_order", "true_sequential", "no-search_range"),
    *("no-act_order", "no-true_sequential", "damping", "preset", "iterations"),
)
CHOOSES = "is what --method auto chooses"


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What is calibrated and measured on: the values of the flags of these names."""

    calibration: PathLike | None = None
    samples: int | None = None
    sequence_length: int | None = None
    seed: int | None = None
    validation: PathLike | None = None
    validation_tokens: int | None = None

    @classmethod
    def from_flags(cls, args: argparse.Namespace) -> Self:
        """The values of the flags; the default where none was given."""
        given = {one.name: getattr(args, one.name) for one in fields(cls)}
        return cls(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class Request(Texts):
    """A search as it is asked for: the values of the flags of `planish quantize`."""

    model: PathLike
    out: PathLike
    recipe: str | None = None
    activation: str | None = None
    lm_head: str | None = None
    ignore: Sequence[str] | None = None
    tolerance: float | None = None
    metric: str | None = None
    budget: float | None = None
    task: PathLike | None = None
    engine: str = "fast"
    kernels: str = "auto"
    compilation_cache: str | None = None
    layout: str = "tiles"
    overwrite: bool = False
    memory_budget: str | int | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A search that can be made: everything that is checked before anything is written.

    about: the texts in words.
    """

    request: Request
    checkpoint: Checkpoint
    candidates: list[order.Candidate]
    writer: CheckpointWriter
    samples: list[np.ndarray]
    windows: list[list[int]]
    about: dict[str, str]
    task: Task | None


def prepare(request: Request, checkpoint: Checkpoint) -> Plan:
    """Check what is asked for, the model and the texts. Raises PlanishError."""
    check_goal(request)
    candidates = list(order.candidates(request.recipe or RECIPE, **recipe_changes(request)))
    check_request(checkpoint, candidates[0].recipe, request.layout)
    writer = CheckpointWriter(request.out, request.model, request.overwrite)
    samples, windows, about = make_texts(request, checkpoint)
    return Plan(
        request=request,
        checkpoint=checkpoint,
        candidates=candidates,
        writer=writer,
        samples=samples,
        windows=windows,
        about=about,
        task=None if request.task is None else encode_task(request.task, checkpoint),
    )


def search(plan: Plan, show: Callable[[Any], None], shown: Progress) -> dict[str, Any]:
    """Search and write the model with its report; returns the report as JSON values.

    show: gets each row as soon as it is measured. shown: what shows the progress.
    """
    from planish.compare.quality import trail
    from planish.compare.quality.auto import Search

    request = plan.request
    with plan.writer, tempfile.TemporaryDirectory(prefix="planish-auto-") as directory:
        study = study_of(plan, Path(directory), shown)
        outcome = Search(study=study, show=show).run(plan.candidates)
        recipe = request.recipe or RECIPE
        facts = trail.About(model=str(request.model), recipe=recipe, **plan.about)
        values = trail.report_values(outcome, study.goal, facts)
        write(plan.writer, outcome, values)
    found: dict[str, Any] = finite(values)
    return found


def check_goal(request: Request) -> None:
    """Raise RecipeError or PromptError for a goal that no search can have."""
    if request.engine == "reference":
        raise RecipeError("needs gradients, which only --engine fast has", name="--method auto")
    metric = METRIC if request.metric is None else request.metric
    if metric not in METRICS:
        expected = f"one of {', '.join(METRICS)}"
        raise RecipeError("unknown", name="metric", expected=expected, found=repr(metric))
    if (metric == "accuracy") != (request.task is not None):
        problem = (
            "needs the items of --task FILE" if request.task is None else "is for accuracy only"
        )
        raise RecipeError(problem, name="metric accuracy" if request.task is None else "task")
    if request.tolerance is not None and not (
        math.isfinite(request.tolerance) and request.tolerance > 0
    ):
        expected = "more than 0, as 0.01"
        raise RecipeError("bad value", name="tolerance", expected=expected, found=request.tolerance)
    if request.budget is not None and not LEAST_BITS < request.budget <= MOST_BITS:
        expected = f"more than {LEAST_BITS:g} (scales count) and at most {MOST_BITS:g} bits"
        raise RecipeError("bad value", name="budget", expected=expected, found=request.budget)
    if request.validation_tokens is not None and request.validation_tokens < 2:
        found = request.validation_tokens
        raise PromptError("bad value", name="validation_tokens", expected="2 or more", found=found)


def goal_of(request: Request) -> Any:
    """The goal that is asked for: a tolerance of 1 %, unless there is a budget."""
    from planish.compare.quality.trial import Goal

    tolerance = request.tolerance
    if tolerance is None and request.budget is None:
        tolerance = TOLERANCE
    budget = MOST_BITS if request.budget is None else request.budget
    return Goal(metric=request.metric or METRIC, tolerance=tolerance, budget=budget)


def recipe_changes(request: Request) -> dict[str, Any]:
    """The changes that all candidates have."""
    given = {
        "activation": request.activation,
        "head": request.lm_head,
        "ignore": None if request.ignore is None else tuple(request.ignore),
    }
    return {key: value for key, value in given.items() if value is not None}


def make_texts(
    texts: Texts, checkpoint: Checkpoint
) -> tuple[list[np.ndarray], list[list[int]], dict[str, str]]:
    """The calibration samples, the validation windows, and both in words.

    Without --validation the end of the calibration text is for validation, at most a quarter of
    it. Raises PromptError for a text that is too short.
    """
    tokens = calibration_tokens(texts.calibration, checkpoint)
    wanted = VALIDATION_TOKENS if texts.validation_tokens is None else texts.validation_tokens
    longest = checkpoint.config.max_positions
    window = min(WINDOW, longest, wanted)
    if texts.validation is None:
        kept = min(wanted, len(tokens) // 4)
        tokens, kept_back = tokens[: len(tokens) - kept], tokens[len(tokens) - kept :]
        source = "the end of the calibration text"
    else:
        encode = load_tokenizer(checkpoint.tokenizer_path, checkpoint.config).encode
        kept_back = encode(read_calibration(texts.validation))[:wanted]
        source = str(texts.validation)
    if len(kept_back) < window:
        name = "calibration" if texts.validation is None else "validation"
        expected = f"{window * (4 if texts.validation is None else 1)} tokens or more, to measure"
        found = len(kept_back) * (4 if texts.validation is None else 1)
        raise PromptError("is too short", name=name, expected=expected, found=found)
    windows = cut_windows(kept_back, window)
    length = min(SAMPLE_LENGTH, longest, len(tokens))
    length = length if texts.sequence_length is None else min(texts.sequence_length, longest)
    count = min(SAMPLES, len(tokens) // length) if texts.samples is None else texts.samples
    samples = cut_samples(tokens, count, length, texts.seed)
    text = texts.calibration or "the embedded text"
    words = {
        "calibration": f"{text}: {len(samples)} x {length} tokens",
        "validation": f"{source}: {len(windows)} x {window} tokens",
    }
    return samples, windows, words


def calibration_tokens(given: PathLike | None, checkpoint: Checkpoint) -> list[int]:
    """The calibration text as token ids, from the beginning."""
    if given is None:
        notice("calibrating on the embedded text; --calibration FILE takes your own")
    encode = load_tokenizer(checkpoint.tokenizer_path, checkpoint.config).encode
    return list(encode(read_calibration(given or pocket.CALIBRATION)))


def study_of(plan: Plan, directory: Path, shown: Progress) -> Any:
    """The study of a plan; compiles the kernels on first use."""
    request, score = plan.request, None
    native = prepare_kernels(request.kernels, request.compilation_cache)
    study = make_study(plan.checkpoint, plan.samples, plan.windows, directory, native, shown)
    budget = parse_bytes(request.memory_budget, "memory_budget")
    if plan.task is not None:
        score = make_score(plan.checkpoint, plan.task, native, directory, shown)
    return replace(
        study,
        goal=replace(goal_of(request), score=score),
        runtime=replace(study.runtime, memory_budget=budget),
        layout=request.layout,
    )


def make_study(
    checkpoint: Checkpoint,
    samples: list[np.ndarray],
    windows: list[list[int]],
    directory: Path,
    native: bool,
    shown: Progress = progress,
) -> Any:
    """A study of perplexity within 1 %, run by JAX; runs the float model on the windows."""
    from planish.compare.quality.judge import prepare_judge
    from planish.compare.quality.trial import Goal, Study
    from planish.fast.quantize.runtime import fast_runtime
    from planish.fast.quantize.sensitivity import measure_sensitivity
    from planish.fast.quantize.validate import compare_heads

    runtime = fast_runtime(native)
    engine = {"runner": runtime.runner, "compare": compare_heads, "tiled": native}
    return Study(
        source=checkpoint,
        samples=samples,
        judge=prepare_judge(checkpoint, windows, shown, **engine),
        goal=Goal(),
        directory=directory,
        sensitivity=measure_sensitivity,
        runtime=runtime,
        progress=shown,
    )


def encode_task(path: PathLike, checkpoint: Checkpoint) -> Task:
    """The items of a task's file and their token ids."""
    tokenizer = load_tokenizer(checkpoint.tokenizer_path, checkpoint.config)
    items, longest = read_task(path), checkpoint.config.max_positions
    return items, [tasks.encode_item(path, item, tokenizer, longest) for item in items]


def make_score(
    source: Checkpoint, task: Task, native: bool, directory: Path, shown: Progress
) -> Any:
    """A function that says which items a mixture, or the float model (None), gets right.

    A mixture is written to `directory`, because the engine that scores reads files.
    """
    from planish.compare.quality.assemble import write_mixture
    from planish.fast.session.engine import Engine

    def score_checkpoint(checkpoint: Checkpoint) -> np.ndarray:
        found = tasks.measure_items(Engine(checkpoint, native), *task, shown)
        return found[tasks.ACCURACY]

    @cache
    def score_float() -> np.ndarray:
        return score_checkpoint(source)

    def score(model: Any) -> np.ndarray:
        if model is None:
            return score_float()
        target = directory / "scored"
        with CheckpointWriter(target, source.path, overwrite=True) as writer:
            write_mixture(model, writer)
        return score_checkpoint(open_checkpoint(target))

    return score


def write(writer: CheckpointWriter, outcome: Any, values: dict[str, Any]) -> None:
    """Write the chosen model with its report."""
    from planish.compare.quality import trail
    from planish.compare.quality.assemble import write_mixture

    pictures = draw(writer.hidden / "quantization_report.svg", finite(values))
    text = trail.report_text(values, outcome.trials, pictures)
    writer.add_text("quantization_report.md", text)
    writer.add_text("quantization_report.json", json.dumps(finite(values), indent=2) + "\n")
    write_mixture(outcome.chosen.model, writer)


def draw(path: Path, values: dict[str, Any]) -> list[str]:
    """Draw the picture of the search, if matplotlib is installed; the names of the files."""
    from planish.figures import trail as picture

    try:
        picture.draw(values, path)
    except ImportError:
        notice("no picture: matplotlib is not installed (pip install planish[plot])")
        return []
    return [path.name]
