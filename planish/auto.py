"""`planish quantize --method auto`: from flags to a search, its table, and the model it chose.

compare/quality/auto.py searches. The candidates are written to the system's temporary directory
(TMPDIR); the one that is chosen is copied to --out, with the trail of the search beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from planish import pocket
from planish.calibration import read_calibration
from planish.compare.quality import order, tasks
from planish.opening import keep_programs, native_kernels, open_subject
from planish.reference.errors import PromptError, RecipeError, notice
from planish.reference.files.load import Checkpoint, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.progress import Progress
from planish.reference.quantize.checkpoint import check_request
from planish.reference.quantize.observe import SAMPLE_LENGTH, cut_samples
from planish.reference.text.evaluate import cut_windows
from planish.reference.text.tokenizer import load_tokenizer
from planish.terminal.given import refuse_given
from planish.terminal.interrupts import interrupts_kill
from planish.terminal.output import finite
from planish.terminal.progress import progress
from planish.terminal.sizes import parse_bytes
from planish.terminal.tasks import read_task

METRICS = ("perplexity", "kl", "top1", "accuracy")
Task = tuple[list[tasks.Item], list[list[tasks.Group]]]  # items, and the token ids of each
RECIPE, TOLERANCE, METRIC = "W4A16", 0.01, "perplexity"
SAMPLES, VALIDATION_TOKENS, WINDOW = 64, 16384, 512
LEAST_BITS, MOST_BITS = 4.0, 16.0
MISSED = 3  # exit code
CHOSEN_FLAGS = (
    *("--scheme", "--group_size", "--rule", "--scale_dtype", "--alpha", "--smooth_outputs"),
    "--clip_inputs",
    *("--search_range", "--act_order", "--true_sequential", "--no-search_range"),
    *("--no-act_order", "--no-true_sequential", "--damping", "--preset", "--iterations"),
)
FLAGS = ("--tolerance", "--metric", "--budget", "--validation", "--validation_tokens", "--task")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What a search is asked for."""
    group = parser.add_argument_group("--method auto")
    words = f"loss against float, by the metric, that is accepted (default: {TOLERANCE})"
    group.add_argument("--tolerance", type=float, metavar="X", help=words)
    words = "perplexity (default; its relative increase), kl (nats), top1 (share), accuracy (of"
    group.add_argument("--metric", metavar="NAME", help=f"{words} --task)")
    words = "bits a weight at most; without --tolerance: the best model of so many"
    group.add_argument("--budget", type=float, metavar="BITS", help=words)
    words = "UTF-8 text to measure on (default: the end of the calibration text, not calibrated on)"
    group.add_argument("--validation", metavar="FILE", help=words)
    words = f"tokens to measure on (default: {VALIDATION_TOKENS})"
    group.add_argument("--validation_tokens", type=int, metavar="N", help=words)
    words = "items of --metric accuracy, as for `planish evaluate`"
    group.add_argument("--task", metavar="FILE", help=words)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A search that the flags allow: everything that is checked before anything is made.

    about: the texts in words.
    """

    checkpoint: Checkpoint
    candidates: list[order.Candidate]
    writer: CheckpointWriter
    samples: list[np.ndarray]
    windows: list[list[int]]
    about: dict[str, str]
    task: Task | None


def run(args: argparse.Namespace) -> int:
    """Search, print the table, and write the model; exit code 3 if the tolerance is missed."""
    plan, start = prepare(args), time.perf_counter()
    keep_programs(args.compilation_cache)
    with interrupts_kill():
        import planish.compare.quality.trail  # noqa: F401  (here a signal undoes nothing)
    values = search(args, plan, show_rows(args, plan.about), progress)
    if args.json:
        print(json.dumps(values, allow_nan=False))
    else:
        print(f"\n{values['verdict']}")
    print(f"{args.out}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return MISSED if values["tolerance"] is not None and not values["within"] else 0


def prepare(args: argparse.Namespace) -> Plan:
    """Check the flags, the model and the texts. Raises PlanishError."""
    refuse_given(args, CHOSEN_FLAGS, "is what --method auto chooses")
    refuse_given(args, ("--resume",), "is for one recipe, not for --method auto")
    check_goal(args)
    checkpoint = open_subject(args)
    candidates = list(order.candidates(args.recipe or RECIPE, **recipe_changes(args)))
    check_request(checkpoint, candidates[0].recipe, args.layout)
    writer = CheckpointWriter(args.out, args.model, args.overwrite)
    samples, windows, about = texts(args, checkpoint)
    return Plan(
        checkpoint=checkpoint,
        candidates=candidates,
        writer=writer,
        samples=samples,
        windows=windows,
        about=about,
        task=None if args.task is None else encode_task(args, checkpoint),
    )


def search(
    args: argparse.Namespace, plan: Plan, show: Callable[[Any], None], shown: Progress
) -> dict[str, Any]:
    """Search and write the model with its report; returns the report as JSON values.

    show: gets each row as soon as it is measured. shown: what shows the progress.
    """
    from planish.compare.quality import trail
    from planish.compare.quality.auto import Search

    with plan.writer, tempfile.TemporaryDirectory(prefix="planish-auto-") as directory:
        study = study_of(args, plan, Path(directory), shown)
        outcome = Search(study=study, show=show).run(plan.candidates)
        name = args.recipe or RECIPE
        facts = trail.About(model=str(args.model), recipe=name, **plan.about)
        values = trail.report_values(outcome, study.goal, facts)
        write(plan.writer, outcome, values)
    found: dict[str, Any] = finite(values)
    return found


def check_goal(args: argparse.Namespace) -> None:
    """Raise RecipeError or PromptError for a goal that no search can have."""
    if args.engine == "reference":
        raise RecipeError("needs gradients, which only --engine fast has", name="--method auto")
    metric = METRIC if args.metric is None else args.metric
    if metric not in METRICS:
        expected = f"one of {', '.join(METRICS)}"
        raise RecipeError("unknown", name="metric", expected=expected, found=repr(metric))
    if (metric == "accuracy") != (args.task is not None):
        problem = "needs the items of --task FILE" if args.task is None else "is for accuracy only"
        raise RecipeError(problem, name="metric accuracy" if args.task is None else "task")
    if args.tolerance is not None and not (math.isfinite(args.tolerance) and args.tolerance > 0):
        expected = "more than 0, as 0.01"
        raise RecipeError("bad value", name="tolerance", expected=expected, found=args.tolerance)
    if args.budget is not None and not LEAST_BITS < args.budget <= MOST_BITS:
        expected = f"more than {LEAST_BITS:g} (scales count) and at most {MOST_BITS:g} bits"
        raise RecipeError("bad value", name="budget", expected=expected, found=args.budget)
    if args.validation_tokens is not None and args.validation_tokens < 2:
        found = args.validation_tokens
        raise PromptError("bad value", name="validation_tokens", expected="2 or more", found=found)


def goal_of(args: argparse.Namespace) -> Any:
    """The goal of the flags: a tolerance of 1 %, unless there is a budget."""
    from planish.compare.quality.trial import Goal

    tolerance = args.tolerance
    if tolerance is None and args.budget is None:
        tolerance = TOLERANCE
    budget = MOST_BITS if args.budget is None else args.budget
    return Goal(metric=args.metric or METRIC, tolerance=tolerance, budget=budget)


def recipe_changes(args: argparse.Namespace) -> dict[str, Any]:
    """The changes that all candidates have."""
    given = {
        "activation": args.activation,
        "head": args.lm_head,
        "ignore": None if args.ignore is None else tuple(args.ignore),
    }
    return {key: value for key, value in given.items() if value is not None}


def texts(
    args: argparse.Namespace, checkpoint: Checkpoint
) -> tuple[list[np.ndarray], list[list[int]], dict[str, str]]:
    """The calibration samples, the validation windows, and both in words.

    Without --validation the end of the calibration text is for validation, at most a quarter of
    it. Raises PromptError for a text that is too short.
    """
    tokens = calibration_tokens(args, checkpoint)
    wanted = VALIDATION_TOKENS if args.validation_tokens is None else args.validation_tokens
    longest = checkpoint.config.max_positions
    window = min(WINDOW, longest, wanted)
    if args.validation is None:
        kept = min(wanted, len(tokens) // 4)
        tokens, kept_back = tokens[: len(tokens) - kept], tokens[len(tokens) - kept :]
        source = "the end of the calibration text"
    else:
        encode = load_tokenizer(checkpoint.path, checkpoint.config).encode
        kept_back, source = encode(read_calibration(args.validation))[:wanted], args.validation
    if len(kept_back) < window:
        name = "calibration" if args.validation is None else "validation"
        expected = f"{window * (4 if args.validation is None else 1)} tokens or more, to measure"
        found = len(kept_back) * (4 if args.validation is None else 1)
        raise PromptError("is too short", name=name, expected=expected, found=found)
    windows = cut_windows(kept_back, window)
    length = min(SAMPLE_LENGTH, longest, len(tokens))
    length = length if args.sequence_length is None else min(args.sequence_length, longest)
    count = min(SAMPLES, len(tokens) // length) if args.samples is None else args.samples
    samples = cut_samples(tokens, count, length, args.seed)
    text = args.calibration or "the embedded text"
    words = {
        "calibration": f"{text}: {len(samples)} x {length} tokens",
        "validation": f"{source}: {len(windows)} x {window} tokens",
    }
    return samples, windows, words


def calibration_tokens(args: argparse.Namespace, checkpoint: Checkpoint) -> list[int]:
    """The calibration text as token ids, from the beginning."""
    if args.calibration is None:
        notice("calibrating on the embedded text; --calibration FILE takes your own")
    encode = load_tokenizer(checkpoint.path, checkpoint.config).encode
    return list(encode(read_calibration(args.calibration or pocket.CALIBRATION)))


def study_of(args: argparse.Namespace, plan: Plan, directory: Path, shown: Progress) -> Any:
    """The study of the flags."""
    native = native_kernels(args)
    study = make_study(plan.checkpoint, plan.samples, plan.windows, directory, native, shown)
    budget = parse_bytes(args.memory_budget, "memory_budget")
    task, score = plan.task, None
    if task is not None:
        score = make_score(plan.checkpoint, task, native, directory, shown)
    return replace(
        study,
        goal=replace(goal_of(args), score=score),
        runtime=replace(study.runtime, memory_budget=budget),
        layout=args.layout,
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


def encode_task(args: argparse.Namespace, checkpoint: Checkpoint) -> Task:
    """The items of --task and their token ids."""
    tokenizer = load_tokenizer(checkpoint.path, checkpoint.config)
    items, longest = read_task(args.task), checkpoint.config.max_positions
    return items, [tasks.encode_item(args.task, item, tokenizer, longest) for item in items]


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


def show_rows(args: argparse.Namespace, about: dict[str, str]) -> Callable[[Any], None]:
    """What prints each row: the table grows as candidates are measured. Nothing with --json."""
    from planish.compare.quality import trail

    if args.json:
        return lambda trial: None  # noqa: ARG005
    print("\n".join(f"{name}: {words}" for name, words in about.items()))
    print(f"\n{trail.HEADER}", flush=True)
    metric = args.metric or METRIC
    return lambda trial: print(trail.table_row(trial, metric), flush=True)


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
