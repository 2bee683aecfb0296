"""`planish quantize --method auto`: its flags, the table that grows, and the exit code.

planish/auto.py prepares the search and writes what it chose.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from planish import auto
from planish.opening import open_subject, prepare_calibration
from planish.terminal.given import refuse_given
from planish.terminal.interrupts import interrupts_kill
from planish.terminal.progress import progress

MISSED = 3  # exit code
CHOSEN_FLAGS = tuple(f"--{name}" for name in auto.CHOSEN)
FLAGS = ("--tolerance", "--metric", "--budget", "--validation", "--validation_tokens", "--task")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What a search is asked for."""
    group = parser.add_argument_group("--method auto")
    words = f"loss against float, by the metric, that is accepted (default: {auto.TOLERANCE})"
    group.add_argument("--tolerance", type=float, metavar="X", help=words)
    words = "perplexity (default; its relative increase), kl (nats), top1 (share), accuracy (of"
    group.add_argument("--metric", metavar="NAME", help=f"{words} --task)")
    words = "bits a weight at most; without --tolerance: the best model of so many"
    group.add_argument("--budget", type=float, metavar="BITS", help=words)
    words = "UTF-8 text to measure on (default: the end of the calibration text, not calibrated on)"
    group.add_argument("--validation", metavar="FILE", help=words)
    words = f"tokens to measure on (default: {auto.VALIDATION_TOKENS})"
    group.add_argument("--validation_tokens", type=int, metavar="N", help=words)
    words = "items of --metric accuracy, as for `planish evaluate`"
    group.add_argument("--task", metavar="FILE", help=words)


def run(args: argparse.Namespace) -> int:
    """Search, print the table, and write the model; exit code 3 if the tolerance is missed."""
    refuse_given(args, CHOSEN_FLAGS, auto.CHOOSES)
    refuse_given(args, ("--resume", "--format"), "is for one recipe, not for --method auto")
    plan = auto.prepare(auto.Request.from_flags(args), open_subject(args))
    start = time.perf_counter()
    prepare_calibration(args.compilation_cache)
    with interrupts_kill():
        import planish.compare.quality.trail  # noqa: F401  (here a signal undoes nothing)
    values = auto.search(plan, show_rows(args, plan), progress)
    if args.json:
        print(json.dumps(values, allow_nan=False))
    else:
        print(f"\n{values['verdict']}")
    print(f"{args.out}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return MISSED if values["tolerance"] is not None and not values["within"] else 0


def show_rows(args: argparse.Namespace, plan: auto.Plan) -> Callable[[Any], None]:
    """What prints each row: the table grows as candidates are measured. Nothing with --json."""
    from planish.compare.quality import trail

    if args.json:
        return lambda trial: None  # noqa: ARG005
    print("\n".join(f"{name}: {words}" for name, words in plan.about.items()))
    print(f"\n{trail.HEADER}", flush=True)
    metric = plan.request.metric or auto.METRIC
    return lambda trial: print(trail.table_row(trial, metric), flush=True)
