"""How often a model answers right: multiple choice, or the last word of a text.

The task is a file of lines {"context": "...", "choices": ["...", "..."], "answer": 0}, where answer
is an index from 0, or of lines {"text": "..."}. Context and choice are joined as written, so a
choice usually begins with a space. normalized_accuracy divides each log-likelihood by the choice's
bytes, like acc_bytes of lm-evaluation-harness; its acc_norm counts characters.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from planish.compare.quality import tasks
from planish.opening import open_engine, open_model
from planish.reference.errors import PromptError
from planish.reference.files.load import Checkpoint
from planish.reference.files.placing import check_file, write_file
from planish.terminal.flags import add_engine_flags, add_model_flag
from planish.terminal.given import engine_rule, notice_idle
from planish.terminal.output import counted, finite, print_json
from planish.terminal.progress import progress
from planish.terminal.tasks import read_task

Figures = dict[str, np.ndarray]  # of every item, [n]
Encoded = list[list[tasks.Group]]  # of every item
PLAIN = "encode texts without the tokens that the tokenizer adds (BOS), as lm_eval's API models do"


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flag(parser)
    parser.add_argument("--task", required=True, metavar="FILE.jsonl", help="items, one a line")
    words = "another model, such as the float one, to compare with on the same items"
    parser.add_argument("--against", metavar="DIR", help=words)
    parser.add_argument("--no_special_tokens", action="store_true", help=PLAIN)
    words = "write each item's log-likelihoods and figures, one JSON object a line"
    parser.add_argument("--samples", metavar="FILE.jsonl", help=words)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    idle = engine_rule(args)
    if args.samples is not None:
        check_file(Path(args.samples))
    items = read_task(args.task)
    directories = [args.model] if args.against is None else [args.model, args.against]
    prepared = [prepare(args, directory, items) for directory in directories]
    notice_idle(args, idle)
    judged = [judge(args, items, *pair) for pair in prepared]
    if args.samples is not None:
        write_samples(Path(args.samples), items, judged)
    values = summarize(args, items, [tasks.stack_figures(one) for one in judged])
    print_json(values) if args.json else print(as_text(values))
    return 0


def prepare(
    args: argparse.Namespace, directory: str, items: list[tasks.Item]
) -> tuple[Checkpoint, Encoded]:
    """Open a model and encode the items; raises before any weights are read."""
    config = args.config if directory == args.model else None
    given = {**vars(args), "model": directory, "config": config}
    checkpoint, tokenizer = open_model(argparse.Namespace(**given))
    fixed = tokenizer, checkpoint.config.max_positions, not args.no_special_tokens
    return checkpoint, [tasks.encode_item(args.task, item, *fixed) for item in items]


def judge(
    args: argparse.Namespace, items: list[tasks.Item], checkpoint: Checkpoint, encoded: Encoded
) -> list[tasks.Judged]:
    """Load a model and score the items; its weights are freed afterwards."""
    try:
        return tasks.judge_items(open_engine(checkpoint, args), items, encoded, progress)
    except PromptError as problem:
        raise PromptError(str(problem), path=checkpoint.path) from None


def write_samples(
    out: Path, items: Sequence[tasks.Item], judged: Sequence[Sequence[tasks.Judged]]
) -> None:
    """One object for each item; the other model's is in its field `against`."""
    with write_file(out) as file:
        for item, ours, *others in zip(items, *judged, strict=True):
            values = {"line": item.line, **as_sample(ours)}
            for other in others:
                values["against"] = as_sample(other)
            file.write((json.dumps(finite(values), allow_nan=False) + "\n").encode())


def as_sample(judged: tasks.Judged) -> dict[str, Any]:
    """The log-likelihoods of an item's choices, whether they are greedy, and its figures."""
    scores = {"log_likelihoods": list(judged.log_likelihoods), "greedy": list(judged.greedy)}
    return {**scores, **judged.figures}


def summarize(
    args: argparse.Namespace, items: list[tasks.Item], figures: list[Figures]
) -> dict[str, Any]:
    """The object that --json prints."""
    ours = figures[0]
    values: dict[str, Any] = {
        "model": args.model,
        "task": args.task,
        "kind": items[0].kind,
        "items": len(items),
        "metrics": describe(ours),
    }
    for others in figures[1:]:
        pairs = {name: asdict(tasks.pair(name, x, others[name])) for name, x in ours.items()}
        more = {"metrics": describe(others), "differences": pairs}
        values["against"] = {"model": args.against, **more}
    return values


def describe(figures: Figures) -> dict[str, dict[str, float]]:
    """The mean of each figure and its standard error."""
    return {name: asdict(tasks.estimate(x)) for name, x in figures.items()}


def as_text(values: dict[str, Any]) -> str:
    """One line for each figure, and for each difference."""
    width = max(map(len, values["metrics"]))
    lines = [f"{values['task']}: {counted(values['items'], 'item')}, {values['kind']}"]
    lines += figure_lines(values["metrics"], width)
    if "against" in values:
        against = values["against"]
        lines += [f"against {against['model']}", *figure_lines(against["metrics"], width)]
        lines.append("difference, paired item by item")
        lines += [
            f"{name:{width}}  {with_error(found, '+.4f')}"
            f" (better on {counted(found['better'], 'item')}, worse on {found['worse']})"
            for name, found in against["differences"].items()
        ]
    return "\n".join(lines)


def figure_lines(metrics: dict[str, dict[str, float]], width: int) -> list[str]:
    """A name and its figure on each line."""
    return [f"{name:{width}}  {with_error(found, '.4f')}" for name, found in metrics.items()]


def with_error(found: dict[str, Any], form: str) -> str:
    """0.6500 ± 0.0479; a single item has no standard error."""
    error = found["standard_error"]
    return f"{found['value']:{form}} ± {'unknown' if math.isnan(error) else format(error, '.4f')}"
