"""A float model in, a quantized one out, whole or not at all."""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from planish import pocket
from planish.opening import open_subject
from planish.reference.errors import RecipeError, notice
from planish.reference.files.load import Checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.model.config import ModelConfig
from planish.reference.quantize.checkpoint import check_request, quantize_checkpoint
from planish.reference.quantize.observe import NUM_SAMPLES, SAMPLE_LENGTH, cut_samples
from planish.reference.quantize.recipe import Recipe, needs_calibration, recipe
from planish.reference.quantize.runner import Runtime
from planish.reference.quantize.smooth import output_folds
from planish.reference.text.tokenizer import load_tokenizer, read_text
from planish.terminal.flags import add_model_flag
from planish.terminal.given import Rule, notice_idle
from planish.terminal.progress import progress


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flag(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="the directory to be made")
    parser.add_argument(
        "--recipe",
        required=True,
        help="float, W8A8, O1, O2, O3, naive, W8A16, W4A16 or W4A8",
    )
    parser.add_argument("--scheme", help="of the recipe naive: O2 (default), O1, O3 or W8A8")
    parser.add_argument("--method", help="how INT4 codes are chosen: rtn")
    parser.add_argument("--group_size", type=int, help="inputs that share an INT4 scale; -1 a row")
    parser.add_argument("--rule", help="INT4: signed (default), absmax, absmax7 or minmax")
    parser.add_argument("--scale_dtype", help="of INT4 scales: float16 (default) or float32")
    parser.add_argument("--activation", help="of W4A8: per_group (default) or per_token")
    parser.add_argument("--alpha", help="smoothing: 0..1, search or search_per_block")
    parser.add_argument(
        "--smooth_outputs", action="store_true", default=None, help="fold v -> o, up -> down too"
    )
    parser.add_argument("--lm_head", help="float (default), int8 or int4")
    parser.add_argument(
        "--ignore",
        action="append",
        metavar="PATTERN",
        help="linears left in float: down_proj, layers.0, *.experts.*, re:REGEX, ...",
    )
    parser.add_argument(
        "--layout", default="tiles", help="of codes: tiles (default), as kernels read, or canonical"
    )
    parser.add_argument("--calibration", metavar="FILE", help="UTF-8 text (default: the pocket's)")
    parser.add_argument(
        "--samples",
        type=int,
        default=NUM_SAMPLES,
        metavar="N",
        help=f"how many samples of the text to calibrate on (default: {NUM_SAMPLES})",
    )
    parser.add_argument(
        "--sample_length",
        type=int,
        default=SAMPLE_LENGTH,
        metavar="N",
        help=f"tokens of a sample (default: {SAMPLE_LENGTH})",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the model that --out holds"
    )


def run(args: argparse.Namespace) -> int:
    chosen = recipe_of(args)
    checkpoint = open_subject(args)
    check_request(checkpoint, chosen, args.layout)
    writer = CheckpointWriter(args.out, args.model, args.overwrite)
    tokens = calibration_tokens(args, checkpoint, chosen)
    samples = None if tokens is None else samples_of(args, checkpoint, tokens)
    start = time.perf_counter()
    with writer:
        notice_idle(args, *idle_rules(chosen, checkpoint.config))
        runtime = Runtime(progress=progress)
        quantize_checkpoint(checkpoint, writer, chosen, samples, args.layout, runtime)
    seconds = time.perf_counter() - start
    print(f"{args.out}: {chosen.name}, {seconds:.1f} s", file=sys.stderr)
    return 0


def idle_rules(chosen: Recipe, config: ModelConfig) -> tuple[Rule, ...]:
    """Flags that change nothing; those that contradict the recipe are refused by recipe()."""
    quantizes = chosen.bits is not None or chosen.head != "float"
    return (
        (
            not needs_calibration(chosen),
            f"with --recipe {chosen.name}, which needs no calibration",
            ("--calibration", "--samples", "--sample_length"),
        ),
        (chosen.bits is None, "with --recipe float", ("--ignore",)),
        (not quantizes, "without quantized weights", ("--method", "--layout")),
        (not any(output_folds(config)), "on this architecture", ("--smooth_outputs",)),
    )


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe with the changes that the flags ask for."""
    if args.activation is not None and args.activation not in ("per_group", "per_token"):
        expected = "per_group or per_token"
        raise RecipeError("unknown", name="activation", expected=expected, found=args.activation)
    if args.activation is not None and args.recipe != "W4A8":
        raise RecipeError("goes with the recipe W4A8 only", name="activation", found=args.recipe)
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
        head=args.lm_head,
        ignore=None if args.ignore is None else tuple(args.ignore),
    )


def alpha_of(text: str | None) -> float | str | None:
    """A number where it is one; recipe() judges the rest."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def calibration_tokens(
    args: argparse.Namespace, checkpoint: Checkpoint, chosen: Recipe
) -> list[int] | None:
    """The text that was given, or the embedded one; None for a recipe that needs none, but a file
    that was named must be readable."""
    needed, path = needs_calibration(chosen), args.calibration
    if path is None:
        path = pocket.CALIBRATION
    elif not needed:
        read_text(path)
    return load_tokenizer(args.model, checkpoint.config).encode(read_text(path)) if needed else None


def samples_of(
    args: argparse.Namespace, checkpoint: Checkpoint, tokens: list[int]
) -> list[np.ndarray]:
    """Samples as long as the model can read; of a short text one that is shorter, if no length was
    asked for."""
    if args.calibration is None:
        notice("calibrating on the embedded text; --calibration FILE takes your own")
    length = min(args.sample_length, checkpoint.config.max_positions)
    if length < args.sample_length and "--sample_length" in args.given:
        notice(f"--sample_length: {length}, as the model has no more positions")
    if tokens and "--sample_length" not in args.given:
        length = min(length, len(tokens))
    return cut_samples(tokens, args.samples, length)
