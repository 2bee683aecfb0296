"""Quantize a float model and write it, whole or not at all."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np

from planish.calibration import announce_estimate, calibration_samples, read_calibration
from planish.exporting import (
    PROGRAM,
    check_export,
    export_request,
    finish_export,
    intermediate_layout,
    open_writer,
)
from planish.opening import ENGINES, native_kernels, open_subject, prepare_calibration
from planish.reference.errors import RecipeError
from planish.reference.files.load import Checkpoint
from planish.reference.files.partial import Partial
from planish.reference.model.config import ModelConfig
from planish.reference.model.folds import output_folds
from planish.reference.quantize.ahead import AHEAD
from planish.reference.quantize.checkpoint import check_request, quantize_checkpoint
from planish.reference.quantize.estimate import peak_resident
from planish.reference.quantize.methods import METHODS
from planish.reference.quantize.observe import NUM_SAMPLES, SAMPLE_LENGTH
from planish.reference.quantize.recipe import SETTINGS, Recipe, needs_calibration, recipe
from planish.reference.quantize.runtime import NUMPY, Runtime
from planish.reference.quantize.settings import PRESETS
from planish.terminal.blocks import FORMS, BlockProgress, describe_fields
from planish.terminal.flags import (
    add_attention_flags,
    add_cache_flag,
    add_kernels_flag,
    add_model_flag,
)
from planish.terminal.given import Rule, engine_rule, notice_idle, refuse_given
from planish.terminal.output import print_json
from planish.terminal.progress import progress
from planish.terminal.sizes import parse_bytes
from planish.verbs import search

CALIBRATION_FLAGS = (
    "--calibration",
    "--samples",
    "--sequence_length",
    "--sample_length",
    "--memory_budget",
    "--engine",
    "--kernels",
    "--compilation_cache",
)

GROUP_SIZE_HELP = "inputs that share an INT4 scale (default: 128); -1 a row"
METHOD_SWITCHES = {
    "search_range": "rtn: try smaller ranges for each group",
    "act_order": "gptq: the columns with the largest inputs first (default)",
    "true_sequential": "gptq: each linear fed by the quantized ones before it (default)",
}
ALPHA_HELP = (
    "smoothing: 0..1, search or search_per_block (default: 0.5 of W8A8, O1, O2 and O3; none of"
    " the others)"
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flag(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="the directory to write")
    parser.add_argument(
        "--recipe",
        help="float, W8A8, O1, O2, O3, naive, W8A16, W4A16 or W4A8; changes may be words of its"
        " name, as `planish quality` spells them: W4A8-g32-alpha0.5",
    )
    parser.add_argument(
        "--scheme",
        metavar="PATTERN=SCHEME,...",
        help="other schemes for some linears: '*.down_proj=W8A16,lm_head=W4A16-g32,o_proj=float',"
        " or FILE.json; with --recipe naive: O2 (default), O1, O3 or W8A8",
    )
    words = f"how codes are chosen: {', '.join(METHODS)}, or a chain: smooth+rtn; auto searches"
    parser.add_argument("--method", help=words)
    parser.add_argument("--group_size", type=int, help=GROUP_SIZE_HELP)
    parser.add_argument("--rule", help="INT4: signed (default), absmax, absmax7 or minmax")
    parser.add_argument("--scale_dtype", help="of INT4 scales: float16 (default) or float32")
    parser.add_argument("--activation", help="of W4A8: per_group (default) or per_token")
    parser.add_argument("--alpha", help=ALPHA_HELP)
    parser.add_argument(
        "--smooth_outputs",
        action="store_true",
        default=None,
        help="also fold v -> o and up -> down",
    )
    parser.add_argument(
        "--clip_inputs",
        action="store_true",
        default=None,
        help="O3: static scales of least error, not of the absmax",
    )
    add_attention_flags(parser, "float")
    parser.add_argument("--lm_head", help="float (default), int8 or int4")
    parser.add_argument(
        "--ignore",
        action="append",
        metavar="PATTERN",
        help="linears to leave in float: down_proj, layers.0, *.experts.*, re:REGEX, ...",
    )
    parser.add_argument(
        "--layout", help="order of the codes: tiles (default), for the kernels, or canonical"
    )
    parser.add_argument(
        "--format",
        metavar="FORMAT",
        help="planish (default), or any of `planish convert`, such as compressed-tensors",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a model that exists at --out"
    )
    add_running_flags(parser)
    add_method_flags(parser)
    add_calibration_flags(parser)
    search.add_flags(parser)


def add_running_flags(parser: argparse.ArgumentParser) -> None:
    """How the command runs: what it goes on with, what memory it takes, what it prints."""
    group = parser.add_argument_group("the run")
    words = "go on after the last finished block of a run that was stopped (OUT.partial)"
    group.add_argument("--resume", action="store_true", help=words)
    words = "memory for the samples' hidden states, as 2G; the rest is on the disk (default: all)"
    group.add_argument("--memory_budget", metavar="SIZE", help=words)
    words = "text (default), or json: an object for each finished block, on a line of stderr"
    group.add_argument("--progress", choices=FORMS, default="text", help=words)
    group.add_argument("--json", action="store_true", help="print one JSON object at the end")


def add_method_flags(parser: argparse.ArgumentParser) -> None:
    """What the methods leave open (reference/quantize/settings.py)."""
    group = parser.add_argument_group("the methods")
    for name, words in METHOD_SWITCHES.items():
        action = argparse.BooleanOptionalAction
        group.add_argument(f"--{name}", action=action, default=None, help=words)
    words = "gptq: added to the Hessian's diagonal, as a share of its mean (default: 0.01)"
    group.add_argument("--damping", type=float, metavar="X", help=words)
    words = "signround: default (200 iterations), light (50) or best (1000)"
    group.add_argument("--preset", choices=PRESETS, help=words)
    words = "teq, signround: steps of training of each block"
    group.add_argument("--iterations", type=int, metavar="N", help=words)


def add_calibration_flags(parser: argparse.ArgumentParser) -> None:
    """The calibration text, how much of it, and the engine that runs it."""
    group = parser.add_argument_group("the calibration")
    group.add_argument(
        "--calibration",
        metavar="FILE",
        help='UTF-8 text, or FILE.jsonl with a line {"text": "..."} for each (default: the'
        " embedded text)",
    )
    group.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help=f"how many samples of the text to calibrate on (default: {NUM_SAMPLES})",
    )
    group.add_argument(
        "--sequence_length",
        "--sample_length",
        type=int,
        metavar="N",
        help=f"tokens of a sample (default: {SAMPLE_LENGTH})",
    )
    words = "draw the samples from the whole text (default: the first ones); teq, signround: also"
    group.add_argument("--seed", type=int, metavar="N", help=f"{words} their order (default: 0)")
    group.add_argument(
        "--engine",
        choices=ENGINES,
        default="fast",
        help="what runs the calibration: fast (default), in JAX; reference, in NumPy",
    )
    add_kernels_flag(group)
    add_cache_flag(group)


def run(args: argparse.Namespace) -> int:
    if args.method == "auto":
        return search.run(args)
    refuse_given(args, search.FLAGS, "is for --method auto")
    if args.recipe is None:
        raise RecipeError("is missing", name="--recipe", expected="W8A8, W4A16, ...")
    chosen = recipe_of(args)
    checkpoint = open_subject(args)
    layout = intermediate_layout(args.format, args.layout)
    check_request(checkpoint, chosen, layout)
    request = export_request(args.format, args.overwrite, progress)
    check_export(checkpoint, chosen, request)
    partial = Partial(args.out, args.resume, PROGRAM)
    writer = open_writer(args.out, args.model, request, partial)
    samples, start = samples_of(args, checkpoint, chosen), time.perf_counter()
    shown = BlockProgress(args.progress)
    runtime = runtime_of(args, chosen)  # first: Ctrl-C in its imports kills, and undoes nothing
    budget = parse_bytes(args.memory_budget, "memory_budget")
    runtime = replace(runtime, progress=shown.progress, report=shown.report, memory_budget=budget)
    runtime = replace(runtime, ahead=min(AHEAD, args.threads or AHEAD))
    runtime.check_methods(chosen)
    with writer:
        notice_idle(args, *idle_rules(args, chosen, checkpoint.config))
        announce_estimate(checkpoint, chosen, samples, runtime)
        quantize_checkpoint(checkpoint, writer, chosen, samples, layout, runtime)
        finish_export(writer, args.out, request)
    seconds = time.perf_counter() - start
    print(f"{args.out}: {chosen.name}, {seconds:.1f} s", file=sys.stderr)
    if args.json:
        print_json(summarize(args, chosen, seconds, shown))
    return 0


def summarize(
    args: argparse.Namespace, chosen: Recipe, seconds: float, shown: BlockProgress
) -> dict[str, Any]:
    """What --json prints."""
    return {
        "out": args.out,
        "recipe": chosen.name,
        "method": chosen.method,
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak_resident(),
        "blocks": [describe_fields(report) for report in shown.reports],
    }


def runtime_of(args: argparse.Namespace, chosen: Recipe) -> Runtime:
    """What executes the quantization; imports jax only if needed."""
    if args.engine == "reference" or not needs_calibration(chosen):
        return NUMPY
    prepare_calibration(args.compilation_cache)
    native = native_kernels(args)
    from planish.fast.quantize.runtime import fast_runtime

    return fast_runtime(native)


def idle_rules(args: argparse.Namespace, chosen: Recipe, config: ModelConfig) -> tuple[Rule, ...]:
    """The rules for flags without effect; recipe() refuses those that contradict the recipe."""
    calibrates = needs_calibration(chosen)
    return (
        (
            not calibrates,
            f"with --recipe {chosen.name}, which needs no calibration",
            CALIBRATION_FLAGS,
        ),
        engine_rule(args) if calibrates else (False, "", ()),
        (not chosen.quantizes_blocks, "with --recipe float", ("--ignore",)),
        (not chosen.quantizes, "without quantized weights", ("--method", "--layout")),
        (not output_folds(config), "on this architecture", ("--smooth_outputs",)),
    )


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe with the changes of the flags."""
    if args.activation is not None and args.activation not in ("per_group", "per_token"):
        expected = "per_group or per_token"
        raise RecipeError("unknown", name="activation", expected=expected, found=args.activation)
    if args.activation is not None and args.recipe.partition("-")[0] != "W4A8":
        raise RecipeError("is only valid with --recipe W4A8", name="activation", found=args.recipe)
    return recipe(
        args.recipe,
        scheme=args.scheme,
        method=args.method,
        group_size=args.group_size,
        rule=args.rule,
        scale_dtype=args.scale_dtype,
        activation=args.activation,
        alpha=alpha_of(args.alpha),
        smooth_outputs=args.smooth_outputs,
        clip_inputs=args.clip_inputs,
        attention=args.attention,
        kv_cache=args.kv_cache,
        head=args.lm_head,
        ignore=None if args.ignore is None else tuple(args.ignore),
        **{name: getattr(args, name, None) for name in SETTINGS},
    )


def alpha_of(text: str | None) -> float | str | None:
    """--alpha as a number if it is one; recipe() checks it."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def samples_of(
    args: argparse.Namespace, checkpoint: Checkpoint, chosen: Recipe
) -> list[np.ndarray] | None:
    """The samples, or None if the recipe needs none; a given file must be readable even then."""
    if needs_calibration(chosen):
        given = args.calibration, args.samples, args.sequence_length, "--calibration FILE"
        return calibration_samples(checkpoint, *given, seed=args.seed)
    if args.calibration is not None:
        read_calibration(args.calibration)
    return None
